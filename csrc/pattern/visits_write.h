/* visits_write.h — turns the key blocks of one query block into a row and its codes (format: visits.h). */
#ifndef SV_PATTERN_VISITS_WRITE_H
#define SV_PATTERN_VISITS_WRITE_H

#include <stdbool.h>

#include "pattern/runs.h"
#include "pattern/visits.h"

#define SV_MAX_CODES                                                                                         \
  (INT64_C(1) << 30) /* words of a pool: 4 GiB, so that a hostile plan ends in a sentence */

/* sv_pooled_tile_words — the code and its bits. */
SV_INLINE int64_t sv_pooled_tile_words(const sv_geometry *g) { return 1 + sv_ceil_div(g->block_k, 32); }
/* sv_short_block — number of the short last key block, or -1 when the last one is whole. */
SV_INLINE int64_t sv_short_block(const sv_geometry *g) {
  return sv_geometry_tokens(g) % g->block_k == 0 ? -1 : sv_geometry_key_blocks(g) - 1;
}

typedef struct sv_row_writer {
  int64_t n_blocks, block_k, short_block, tile_words;
  bool with_remainder;
  sv_codes *codes;
  int64_t tile, tile_at, tile_bits; /* the open pooled tile: number (-1: none), index of its code, bits set */
  sv_row last;                      /* the last row with codes: an equal one behind it shares them */
} sv_row_writer;

sv_row_writer sv_row_writer_make(const sv_geometry *g, bool with_remainder, sv_codes *codes);
/* sv_row_write — `blocks` ascending, disjoint, not touching each other. */
sv_status sv_row_write(sv_row_writer *writer, const sv_runs *blocks, sv_row *out_row);

#endif
