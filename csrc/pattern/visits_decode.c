/* visits_decode.c — reads rows and codes back: into a block mask, and into token pairs for the density.
 * The codes may come from anywhere: every bound and every rule of the format is checked. */
#include <inttypes.h>
#include <string.h>

#include "pattern/boxes.h"
#include "pattern/visits.h"
#include "pattern/visits_write.h"

typedef struct reader {
  const sv_geometry *geometry;
  const uint32_t *codes;
  int64_t n_blocks, short_block, tile_words;
  int64_t row, at, end; /* words at..end-1 of the row are still to be read */
  int64_t next;         /* the lowest key block (or pooled tile) that may come */
} reader;

static sv_status refuse_code(const reader *r, const char *expected) {
  return sv_fail(SV_ERR_ARG, "visits: code %" PRId64 " of row %" PRId64 " is 0x%08" PRIx32 ", expected %s",
                 r->at, r->row, r->codes[r->at], expected);
}

static sv_status refuse_row(const reader *r, const sv_row *row, const char *expected) {
  return sv_fail(SV_ERR_ARG,
                 "visits: row %" PRId64 " is (%" PRIu32 ", %" PRIu32 ", %" PRIu32 ", %" PRIu32
                 "), expected %s",
                 r->row, row->first, row->n_words, row->n_pooled_words, row->n_blocks, expected);
}

static sv_status open_row(reader *r, const sv_row *row, int64_t number, int64_t n_codes) {
  r->row = number;
  r->next = 0;
  r->at = row->first;
  r->end = r->at + row->n_words;
  bool range = row->n_words == 0 && row->n_blocks > 0;
  if (range && row->n_pooled_words > 0) return refuse_row(r, row, "no pooled tiles behind a range");
  if (range && (int64_t)row->first + row->n_blocks > r->n_blocks)
    return refuse_row(r, row, "a range inside the key blocks");
  if (!range && r->end + row->n_pooled_words > n_codes)
    return refuse_row(r, row, "its codes inside the pool");
  return SV_OK;
}

/* read_run — the next key blocks of the row. */
static sv_status read_run(reader *r, int64_t *out_first, int64_t *out_n) {
  uint32_t code = r->codes[r->at];
  int64_t first = SV_CODE_NUMBER(code), n = 1, is_run = SV_CODE_FORM(code) == SV_FORM_RUN;
  if (SV_CODE_SOURCE(code) != SV_SOURCE_KEYS || SV_CODE_FORM(code) > SV_FORM_RUN)
    return refuse_code(r, "key blocks");
  if (is_run && r->at + 1 >= r->end) return refuse_code(r, "a count behind it");
  if (is_run) n = r->codes[r->at + 1];
  if (is_run && n < 2) return refuse_code(r, "a run of 2 or more");
  if (first < r->next || first + n > r->n_blocks)
    return refuse_code(r, "ascending key blocks of the geometry");
  bool ends_short = first + n - 1 == r->short_block;
  if (ends_short && is_run) return refuse_code(r, "the short last block outside a run");
  if (SV_CODE_PARTIAL(code) != ends_short)
    return refuse_code(r, "the partial flag on the short last block only");
  r->at += is_run ? 2 : 1;
  r->next = first + n;
  *out_first = first;
  *out_n = n;
  return SV_OK;
}

typedef sv_status (*run_visitor)(void *ctx, int64_t row, int64_t first, int64_t n);

/* visit_row — every run of key blocks of a row, a range included. */
static sv_status visit_row(reader *r, const sv_row *row, run_visitor visitor, void *ctx) {
  int64_t n_seen = 0;
  if (row->n_words == 0 && row->n_blocks > 0) return visitor(ctx, r->row, row->first, row->n_blocks);
  while (r->at < r->end) {
    int64_t first = 0, n = 0;
    SV_TRY(read_run(r, &first, &n));
    SV_TRY(visitor(ctx, r->row, first, n));
    n_seen += n;
  }
  return n_seen == row->n_blocks ? SV_OK : refuse_row(r, row, "n_blocks like its codes");
}

static bool bit_at(const uint32_t *words, int64_t i) { return words[i / 32] >> (i % 32) & 1u; }

/* check_tile_bits — bits stand for unvisited blocks that exist; the partial flag says if one is unset. */
static sv_status check_tile_bits(reader *r, const uint8_t *visited) {
  uint32_t code = r->codes[r->at];
  const uint32_t *words = r->codes + r->at + 1;
  int64_t block_k = r->geometry->block_k, origin = (int64_t)SV_CODE_NUMBER(code) * block_k, n_set = 0;
  for (int64_t i = 0; i < (r->tile_words - 1) * 32; i++) {
    bool exists = i < block_k && origin + i < r->n_blocks;
    bool expected = exists && !visited[origin + i];
    if (bit_at(words, i) != expected) return refuse_code(r, "the bits of the blocks that are not visited");
    n_set += expected;
  }
  if (n_set == 0) return refuse_code(r, "a tile with a bit set");
  if (SV_CODE_PARTIAL(code) != (n_set < block_k))
    return refuse_code(r, "the partial flag on tiles with a bit unset");
  return SV_OK;
}

static int64_t count_unvisited(const uint8_t *visited, int64_t n) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i++) count += !visited[i];
  return count;
}

/* check_pooled — the pooled tiles behind the visits say exactly what the visits do not. */
static sv_status check_pooled(reader *r, const sv_row *row, const uint8_t *visited) {
  int64_t n_tiles = sv_ceil_div(r->n_blocks, r->geometry->block_k), n_seen = 0, n_bits = 0;
  r->end += row->n_pooled_words;
  for (r->next = 0; r->at < r->end; r->at += r->tile_words, n_seen++) {
    uint32_t code = r->codes[r->at];
    if (SV_CODE_SOURCE(code) != SV_SOURCE_POOLED || SV_CODE_FORM(code) != SV_FORM_BLOCK)
      return refuse_code(r, "a pooled tile");
    if (SV_CODE_NUMBER(code) < r->next || SV_CODE_NUMBER(code) >= n_tiles)
      return refuse_code(r, "ascending pooled tiles of the geometry");
    if (r->at + r->tile_words > r->end) return refuse_code(r, "all its words of bits");
    SV_TRY(check_tile_bits(r, visited));
    r->next = (int64_t)SV_CODE_NUMBER(code) + 1;
    for (int64_t i = 0; i < r->geometry->block_k; i++) n_bits += bit_at(r->codes + r->at + 1, i);
  }
  if (n_seen > 0 && n_bits != count_unvisited(visited, r->n_blocks))
    return refuse_row(r, row, "every block that is not visited in a pooled tile");
  return SV_OK;
}

static reader make_reader(const sv_geometry *g, const uint32_t *codes) {
  return (reader){.geometry = g,
                  .codes = codes,
                  .n_blocks = sv_geometry_key_blocks(g),
                  .short_block = sv_short_block(g),
                  .tile_words = sv_pooled_tile_words(g)};
}

static sv_status mark_run(void *ctx, int64_t row, int64_t first, int64_t n) {
  (void)row;
  memset((uint8_t *)ctx + first, 1, (size_t)n);
  return SV_OK;
}

static sv_status mark_row(reader *r, const sv_row *row, int64_t number, int64_t n_codes, uint8_t *out_mask) {
  memset(out_mask, 0, (size_t)r->n_blocks);
  SV_TRY(open_row(r, row, number, n_codes));
  return visit_row(r, row, mark_run, out_mask);
}

sv_status sv_visits_mask(const sv_geometry *g, const sv_row *rows, const uint32_t *codes, int64_t n_codes,
                         const sv_poll *poll, uint8_t *out_mask) {
  SV_TRY(sv_geometry_check(g));
  reader r = make_reader(g, codes);
  int64_t n_rows = sv_geometry_query_blocks(g);
  for (int64_t i = 0; i < n_rows; i++) {
    if (sv_poll_interrupted(poll)) return sv_fail(SV_ERR_INTERRUPTED, "visits: interrupted");
    SV_TRY(mark_row(&r, &rows[i], i, n_codes, out_mask + i * r.n_blocks));
    SV_TRY(check_pooled(&r, &rows[i], out_mask + i * r.n_blocks));
  }
  return SV_OK;
}

sv_status sv_visits_row_mask(const sv_geometry *g, const sv_row *rows, int64_t query_block,
                             const uint32_t *codes, int64_t n_codes, uint8_t *out_mask) {
  SV_TRY(sv_geometry_check(g));
  reader r = make_reader(g, codes);
  return mark_row(&r, &rows[query_block], query_block, n_codes, out_mask);
}

typedef struct token_counter {
  const sv_geometry *geometry;
  int64_t n_tokens; /* keys of the row at hand */
} token_counter;

static sv_status count_run(void *ctx, int64_t row, int64_t first, int64_t n) {
  token_counter *c = ctx;
  int64_t block_k = c->geometry->block_k;
  (void)row;
  c->n_tokens += sv_least((first + n) * block_k, sv_geometry_tokens(c->geometry)) - first * block_k;
  return SV_OK;
}

sv_status sv_visits_pairs(const sv_geometry *g, const sv_row *rows, const uint32_t *codes, int64_t n_codes,
                          const sv_poll *poll, double *out_pairs) {
  SV_TRY(sv_geometry_check(g));
  reader r = make_reader(g, codes);
  int64_t n_rows = sv_geometry_query_blocks(g), n_tokens = sv_geometry_tokens(g);
  int64_t pairs = 0; /* at most N * N < 2^62 */
  for (int64_t i = 0; i < n_rows; i++) {
    token_counter c = {.geometry = g};
    if (sv_poll_interrupted(poll)) return sv_fail(SV_ERR_INTERRUPTED, "visits: interrupted");
    SV_TRY(open_row(&r, &rows[i], i, n_codes));
    SV_TRY(visit_row(&r, &rows[i], count_run, &c));
    pairs += c.n_tokens * (sv_least((i + 1) * g->block_q, n_tokens) - i * g->block_q);
  }
  *out_pairs = (double)pairs;
  return SV_OK;
}
