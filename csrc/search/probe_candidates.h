/* probe_candidates.h — from the sums of the key blocks of an order to the errors of its candidates, row by row. */
#ifndef SV_SEARCH_PROBE_CANDIDATES_H
#define SV_SEARCH_PROBE_CANDIDATES_H

#include "search/probe_rows.h"

/* sv_probe_sums — of the blocks of one order, for the rows of a task; a sum is x * 2^exponent (probe_ops.h). */
typedef struct sv_probe_sums {
  float *numerators;       /* [rows][nk][width] */
  float *exponents;        /* [nk][ld] */
  float *pooled;           /* [nk][ld] weight of the pseudo key, */
  float *pooled_exponents; /* [nk][ld] times 2^this */
  float *means;            /* [nk][width] mean value, 1 at [D] */
} sv_probe_sums;

typedef struct sv_probe_rows {
  int64_t first, n, h; /* rows first .. first + n - 1 of args->rows, of head h */
  int64_t order;       /* 0 = frame_major: energy, mass and stripes are added too */
  int32_t ld;
  const sv_probe_sums *sums;
} sv_probe_rows;

size_t sv_probe_candidates_bytes(const sv_probe *probe);
/* sv_probe_candidates_run — adds to the task's sums (sv_probe_sums_count). */
sv_status sv_probe_candidates_run(const sv_probe *probe, const sv_probe_rows *rows, void *room, double *sums);

#endif
