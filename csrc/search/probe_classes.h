/* probe_classes.h — key blocks that no candidate tells apart, for one query block in one order: a ladder of bands cuts a
 * row of blocks into a few rings. Their sums are made once per query row; a candidate is then a sum of a few classes. */
#ifndef SV_SEARCH_PROBE_CLASSES_H
#define SV_SEARCH_PROBE_CLASSES_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct sv_probe_classes {
  int64_t n_blocks, n_candidates; /* nk, C */
  int32_t n;                      /* classes */
  int32_t *first;                 /* [n + 1]: class i = blocks[first[i] .. first[i + 1] - 1] */
  int32_t *blocks;                /* [nk] */
  int32_t *lists;                 /* [C][n] classes: first those that the candidate visits, then the others */
  int32_t *n_visited;             /* [C] */
} sv_probe_classes;

/* sv_probe_classes_bytes — room at most; sv_probe_classes_place — cuts that room up. */
size_t sv_probe_classes_bytes(int64_t n_blocks, int64_t n_candidates);
void sv_probe_classes_place(int64_t n_blocks, int64_t n_candidates, void *room, sv_probe_classes *out);
/* sv_probe_classes_make — from masks uint8 [C][nk] of what is visited (0 or 1); work int32 [3 nk]. */
void sv_probe_classes_make(const uint8_t *masks, int32_t *work, sv_probe_classes *out);

#endif
