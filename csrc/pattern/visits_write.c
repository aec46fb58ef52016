/* visits_write.c — rows and codes. A row that is one run without remainder, or visits every block, needs no
 * codes; a row equal to the one before it points to the same codes. */
#include "pattern/visits_write.h"

#include <inttypes.h>
#include <string.h>

#include "base/scratch.h"

void sv_codes_free(sv_codes *codes) {
  sv_scratch_free(codes->words);
  *codes = (sv_codes){0};
}

sv_row_writer sv_row_writer_make(const sv_geometry *g, bool with_remainder, sv_codes *codes) {
  return (sv_row_writer){.n_blocks = sv_geometry_key_blocks(g),
                         .block_k = g->block_k,
                         .short_block = sv_short_block(g),
                         .tile_words = sv_pooled_tile_words(g),
                         .with_remainder = with_remainder,
                         .codes = codes};
}

static sv_status reserve_words(sv_codes *codes, int64_t n_more) {
  int64_t n = codes->n + n_more;
  if (n > SV_MAX_CODES)
    return sv_fail(SV_ERR_ARG,
                   "visits: %" PRId64 " code words, expected at most %" PRId64
                   "; larger blocks or a coarser pattern need fewer",
                   n, SV_MAX_CODES);
  if (n <= codes->capacity) return SV_OK;
  size_t capacity_bytes = (size_t)codes->capacity * sizeof *codes->words;
  SV_TRY(sv_scratch_grow("visits", (void **)&codes->words, &capacity_bytes,
                         (size_t)codes->n * sizeof *codes->words, (size_t)(n + 1024) * sizeof *codes->words));
  codes->capacity = (int64_t)(capacity_bytes / sizeof *codes->words);
  return SV_OK;
}

static void put_word(sv_codes *codes, uint32_t word) { codes->words[codes->n++] = word; }

static void put_visits(sv_row_writer *w, int64_t first, int64_t n) {
  if (n >= 2) {
    put_word(w->codes, SV_CODE_MAKE(first, SV_SOURCE_KEYS, SV_FORM_RUN, 0));
    put_word(w->codes, (uint32_t)n);
  } else if (n == 1) {
    put_word(w->codes, SV_CODE_MAKE(first, SV_SOURCE_KEYS, SV_FORM_BLOCK, first == w->short_block));
  }
}

/* put_run — the short last block leaves its run and gets a code of its own. */
static void put_run(sv_row_writer *w, int64_t first, int64_t last) {
  bool apart = last == w->short_block && first < last;
  put_visits(w, first, last - first + (apart ? 0 : 1));
  if (apart) put_visits(w, last, 1);
}

static void close_tile(sv_row_writer *w) {
  if (w->tile < 0) return;
  if (w->tile_bits == w->block_k) w->codes->words[w->tile_at] &= ~(UINT32_C(1) << 31);
  w->tile = -1;
}

/* open_tile — appends a pooled tile without bits; it counts as partial until it closes full. */
static void open_tile(sv_row_writer *w, int64_t tile) {
  w->tile = tile;
  w->tile_at = w->codes->n;
  w->tile_bits = 0;
  put_word(w->codes, SV_CODE_MAKE(tile, SV_SOURCE_POOLED, SV_FORM_BLOCK, 1));
  for (int64_t i = 1; i < w->tile_words; i++) put_word(w->codes, 0);
}

/* set_bits — bits first..last of the open tile, a word at a time. */
static void set_bits(sv_row_writer *w, int64_t first, int64_t last) {
  uint32_t *words = w->codes->words + w->tile_at + 1;
  w->tile_bits += last - first + 1;
  for (int64_t word = first / 32; word <= last / 32; word++) {
    int64_t from = word * 32 < first ? first - word * 32 : 0;
    int64_t to = word * 32 + 31 > last ? last - word * 32 : 31;
    words[word] |= (UINT32_MAX >> (31 - to + from)) << from;
  }
}

/* put_unvisited — key blocks first..last go to the pooled tiles that they lie in. */
static void put_unvisited(sv_row_writer *w, int64_t first, int64_t last) {
  for (int64_t tile = first / w->block_k; tile <= last / w->block_k; tile++) {
    int64_t origin = tile * w->block_k;
    if (tile != w->tile) {
      close_tile(w);
      open_tile(w, tile);
    }
    set_bits(w, first > origin ? first - origin : 0,
             last < origin + w->block_k ? last - origin : w->block_k - 1);
  }
}

static void put_pooled(sv_row_writer *w, const sv_runs *blocks) {
  int64_t next = 0;
  w->tile = -1;
  for (int64_t i = 0; i < blocks->n; i++) {
    if (next < sv_runs_first(blocks, i)) put_unvisited(w, next, sv_runs_first(blocks, i) - 1);
    next = sv_runs_last(blocks, i) + 1;
  }
  if (next < w->n_blocks) put_unvisited(w, next, w->n_blocks - 1);
  close_tile(w);
}

static int64_t count_blocks(const sv_runs *blocks) {
  int64_t n = 0;
  for (int64_t i = 0; i < blocks->n; i++) n += sv_runs_last(blocks, i) - sv_runs_first(blocks, i) + 1;
  return n;
}

/* share_codes — drops the words just written when the last row with codes has the same. */
static void share_codes(sv_row_writer *w, sv_row *row) {
  sv_codes *codes = w->codes;
  size_t n_words = (size_t)row->n_words + row->n_pooled_words;
  bool same = row->n_words == w->last.n_words && row->n_pooled_words == w->last.n_pooled_words &&
              memcmp(codes->words + row->first, codes->words + w->last.first, n_words * 4) == 0;
  if (same) {
    codes->n = row->first;
    row->first = w->last.first;
  }
  w->last = *row;
}

sv_status sv_row_write(sv_row_writer *w, const sv_runs *blocks, sv_row *out_row) {
  int64_t n_blocks = count_blocks(blocks);
  bool pooled = w->with_remainder && n_blocks < w->n_blocks;
  *out_row = (sv_row){.n_blocks = (uint32_t)n_blocks};
  if (!pooled && blocks->n < 2) {
    if (blocks->n == 1) out_row->first = (uint32_t)sv_runs_first(blocks, 0);
    return SV_OK;
  }
  int64_t n_tiles = pooled ? sv_ceil_div(w->n_blocks, w->block_k) : 0;
  SV_TRY(reserve_words(w->codes, 2 * blocks->n + 1 + n_tiles * w->tile_words));
  out_row->first = (uint32_t)w->codes->n;
  for (int64_t i = 0; i < blocks->n; i++) put_run(w, sv_runs_first(blocks, i), sv_runs_last(blocks, i));
  out_row->n_words = (uint32_t)(w->codes->n - out_row->first);
  if (pooled) put_pooled(w, blocks);
  out_row->n_pooled_words = (uint32_t)(w->codes->n - out_row->first - out_row->n_words);
  share_codes(w, out_row);
  return SV_OK;
}
