/* visits.h — the one truth about which key blocks a query block visits, read by every engine.
 *
 *  rows   [P patterns, nq]   16 B each      made once per plan and geometry, shared by all heads
 *  codes  [n] uint32                        one pool for all patterns
 *  items  [H * nq]           16 B each      made per layer from rows: head + query block + where its codes are
 *
 *  code   31      30..28   27..24    23..0
 *         partial form     source    number
 *    source 0 (keys), form 0: visit key block `number`
 *    source 0 (keys), form 1: visit a run of key blocks from `number`; the next word is their count (>= 2)
 *    source 3 (pooled), form 0: tile `number` of pseudo keys: the means of key blocks number*block_k ...
 *                      (number+1)*block_k - 1; the next ceil(block_k/32) words are bits: bit i of them set =
 *                      block number*block_k + i is NOT visited, so its mean takes part
 *    partial: the key block is the short last one (never inside a run); a pooled tile has a bit unset
 *             (a range has no codes, so no flag: its last block may be the short one)
 *  Visits come in ascending order of key block, then the pooled tiles, ascending. Tiles without a set bit
 *  are left out. Sources 1 (other tokens apart) and 2 (gathered) are reserved. */
#ifndef SV_PATTERN_VISITS_H
#define SV_PATTERN_VISITS_H

#include <stdint.h>

#include "base/parallel.h"
#include "pattern/pattern.h"

SV_EXTERN_C_BEGIN

typedef struct sv_row {
  uint32_t first; /* index of the first code; when n_words = 0 and n_blocks > 0: first key block of a range */
  uint32_t n_words;        /* words of the visits */
  uint32_t n_pooled_words; /* words of the pooled tiles right behind them; 0 if made without remainder */
  uint32_t n_blocks;       /* key blocks visited */
} sv_row;

typedef enum sv_item_kind {
  SV_ITEM_LIST = 0, /* first = index of the first code, n = words, pooled tiles included */
  SV_ITEM_RANGE = 1 /* first = first key block, n = key blocks: no codes */
} sv_item_kind;

typedef struct sv_item {
  uint32_t head_kind; /* bits 0..23 head, 24..31 sv_item_kind */
  uint32_t query_block;
  uint32_t first;
  uint32_t n;
} sv_item;

#define SV_CODE_NUMBER(code) ((code) & 0xffffffu)
#define SV_CODE_SOURCE(code) (((code) >> 24) & 0xfu)
#define SV_CODE_FORM(code) (((code) >> 28) & 0x7u)
#define SV_CODE_PARTIAL(code) ((code) >> 31)
#define SV_CODE_MAKE(number, source, form, partial)                                                          \
  ((uint32_t)(number) | ((uint32_t)(source) << 24) | ((uint32_t)(form) << 28) | ((uint32_t)(partial) << 31))
#define SV_SOURCE_KEYS 0u
#define SV_SOURCE_POOLED 3u
#define SV_FORM_BLOCK 0u
#define SV_FORM_RUN 1u
#define SV_ITEM_HEAD(item) ((item).head_kind & 0xffffffu)
#define SV_ITEM_KIND(item) ((item).head_kind >> 24)

/* sv_codes — a growing pool; zero-initialise, free with sv_codes_free. */
typedef struct sv_codes {
  uint32_t *words;
  int64_t n, capacity;
} sv_codes;
void sv_codes_free(sv_codes *codes);

/* sv_visits_emit — the rows [nq] of one pattern, its codes appended to the pool. with_remainder adds the
 * pooled tiles (full and skip never have any). poll (or NULL) is asked once per query block or so.
 *   contract [alloc pool | errors ARG NOMEM INTERRUPTED | any thread | bitwise repeatable] */
sv_status sv_visits_emit(const sv_geometry *g, const sv_pattern *pattern, int with_remainder,
                         sv_row *out_rows, sv_codes *codes, const sv_poll *poll);
/* sv_visits_emit_mask — the same from a block mask, uint8 [nq, nk], as it stands (controls and tests). poll (or
 * NULL) is asked once per query block, here and below. */
sv_status sv_visits_emit_mask(const sv_geometry *g, const uint8_t *mask, int with_remainder, sv_row *out_rows,
                              sv_codes *codes, const sv_poll *poll);
/* sv_visits_mask — decodes rows into a block mask, uint8 [nq, nk]; checks every bound (SV_ERR_ARG). */
sv_status sv_visits_mask(const sv_geometry *g, const sv_row *rows, const uint32_t *codes, int64_t n_codes,
                         const sv_poll *poll, uint8_t *out_mask);
/* sv_visits_row_mask — the same for one query block of `rows` [nq]: uint8 [nk]. Its pooled tiles are not read. */
sv_status sv_visits_row_mask(const sv_geometry *g, const sv_row *rows, int64_t query_block,
                             const uint32_t *codes, int64_t n_codes, uint8_t *out_mask);
/* sv_visits_items — items of a layer, longest first (key blocks + pooled tiles; ties: head, query block).
 *   rows       [P, nq]    choice [H] in 0..P-1    remainder [H] 0/1: read the pooled tiles too
 *   out_items  [H * nq]   *out_n = items written (rows without visits have none) */
sv_status sv_visits_items(const sv_geometry *g, const sv_row *rows, int64_t n_patterns, const int32_t *choice,
                          const uint8_t *remainder, int64_t n_heads, const sv_poll *poll, sv_item *out_items,
                          int64_t *out_n);
/* sv_visits_pairs — query-key token pairs in the visited blocks, by their real sizes (kv_len apart). */
sv_status sv_visits_pairs(const sv_geometry *g, const sv_row *rows, const uint32_t *codes, int64_t n_codes,
                          const sv_poll *poll, double *out_pairs);

SV_EXTERN_C_END
#endif
