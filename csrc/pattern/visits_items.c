/* visits_items.c — the work list of a layer: one item per (head, query block), longest first, by counting
 * sort. Length = key blocks + pooled tiles; ties stay in the order (head, query block). */
#include <inttypes.h>
#include <string.h>

#include "base/scratch.h"
#include "pattern/visits.h"
#include "pattern/visits_write.h"

#define MAX_HEADS INT64_C(0x1000000)

typedef struct layer {
  const sv_row *rows; /* [P, nq] */
  const int32_t *choice;
  const uint8_t *remainder;
  int64_t n_heads, n_rows, tile_words;
  const sv_poll *poll;
} layer;

#define POLLED_ROWS 0xfff /* asked once in so many rows: some 10 us */

static bool is_stopped(const layer *l, int64_t row) {
  return (row & POLLED_ROWS) == 0 && sv_poll_interrupted(l->poll);
}

static sv_status refuse_stopped(void) { return sv_fail(SV_ERR_INTERRUPTED, "items: interrupted"); }

static const sv_row *row_of(const layer *l, int64_t head, int64_t query_block) {
  return l->rows + l->choice[head] * l->n_rows + query_block;
}

static int64_t length_of(const layer *l, int64_t head, const sv_row *row) {
  return row->n_blocks + (l->remainder[head] ? row->n_pooled_words / l->tile_words : 0);
}

static sv_status check_rows(const layer *l, int64_t n_patterns, const sv_geometry *g) {
  int64_t n_blocks = sv_geometry_key_blocks(g);
  int64_t n_pooled_words = sv_ceil_div(n_blocks, g->block_k) * l->tile_words;
  for (int64_t i = 0; i < n_patterns * l->n_rows; i++) {
    const sv_row *row = &l->rows[i];
    if (is_stopped(l, i)) return refuse_stopped();
    if (row->n_blocks > n_blocks)
      return sv_fail(SV_ERR_ARG, "items: n_blocks of row %" PRId64 " is %" PRIu32 ", expected 0..%" PRId64, i,
                     row->n_blocks, n_blocks);
    if (row->n_pooled_words > n_pooled_words)
      return sv_fail(SV_ERR_ARG,
                     "items: n_pooled_words of row %" PRId64 " is %" PRIu32 ", expected 0..%" PRId64, i,
                     row->n_pooled_words, n_pooled_words);
  }
  return SV_OK;
}

static sv_status check_choice(const layer *l, int64_t n_patterns) {
  if (l->n_heads < 0 || l->n_heads > MAX_HEADS)
    return sv_fail(SV_ERR_ARG, "items: %" PRId64 " heads, expected 0..%" PRId64, l->n_heads, MAX_HEADS);
  for (int64_t h = 0; h < l->n_heads; h++)
    if (l->choice[h] < 0 || l->choice[h] >= n_patterns)
      return sv_fail(SV_ERR_ARG, "items: choice[%" PRId64 "] is %" PRId32 ", expected 0..%" PRId64, h,
                     l->choice[h], n_patterns - 1);
  return SV_OK;
}

static sv_item make_item(const layer *l, int64_t head, int64_t query_block, const sv_row *row) {
  bool range = row->n_words == 0 && row->n_blocks > 0;
  uint32_t n_pooled_words = l->remainder[head] ? row->n_pooled_words : 0;
  return (sv_item){.head_kind = (uint32_t)head | (uint32_t)(range ? SV_ITEM_RANGE : SV_ITEM_LIST) << 24,
                   .query_block = (uint32_t)query_block,
                   .first = row->first,
                   .n = range ? row->n_blocks : row->n_words + n_pooled_words};
}

static sv_status find_longest(const layer *l, int64_t *out_longest) {
  *out_longest = 0;
  for (int64_t h = 0; h < l->n_heads; h++)
    for (int64_t i = 0; i < l->n_rows; i++) {
      int64_t n = length_of(l, h, row_of(l, h, i));
      if (is_stopped(l, i)) return refuse_stopped();
      if (n > *out_longest) *out_longest = n;
    }
  return SV_OK;
}

/* count_starts — starts[n] = index of the first item of length n; items without visits are not counted. */
static sv_status count_starts(const layer *l, int64_t longest, int64_t *starts, int64_t *out_total) {
  memset(starts, 0, (size_t)(longest + 1) * sizeof *starts);
  for (int64_t h = 0; h < l->n_heads; h++)
    for (int64_t i = 0; i < l->n_rows; i++) {
      if (is_stopped(l, i)) return refuse_stopped();
      starts[length_of(l, h, row_of(l, h, i))]++;
    }
  *out_total = 0;
  for (int64_t n = longest; n > 0; n--) {
    int64_t count = starts[n];
    starts[n] = *out_total;
    *out_total += count;
  }
  return SV_OK;
}

static sv_status place_items(const layer *l, int64_t *starts, sv_item *out_items) {
  for (int64_t h = 0; h < l->n_heads; h++)
    for (int64_t i = 0; i < l->n_rows; i++) {
      const sv_row *row = row_of(l, h, i);
      int64_t n = length_of(l, h, row);
      if (is_stopped(l, i)) return refuse_stopped();
      if (n > 0) out_items[starts[n]++] = make_item(l, h, i, row);
    }
  return SV_OK;
}

sv_status sv_visits_items(const sv_geometry *g, const sv_row *rows, int64_t n_patterns, const int32_t *choice,
                          const uint8_t *remainder, int64_t n_heads, const sv_poll *poll, sv_item *out_items,
                          int64_t *out_n) {
  SV_TRY(sv_geometry_check(g));
  layer l = {.rows = rows,
             .choice = choice,
             .remainder = remainder,
             .n_heads = n_heads,
             .n_rows = sv_geometry_query_blocks(g),
             .tile_words = sv_pooled_tile_words(g),
             .poll = poll};
  int64_t longest;
  SV_TRY(check_choice(&l, n_patterns));
  SV_TRY(check_rows(&l, n_patterns, g));
  SV_TRY(find_longest(&l, &longest));
  void *starts;
  SV_TRY(sv_scratch_alloc("items", (size_t)(longest + 1) * sizeof(int64_t), &starts));
  sv_status status = count_starts(&l, longest, starts, out_n);
  if (status == SV_OK) status = place_items(&l, starts, out_items);
  sv_scratch_free(starts);
  return status;
}
