/* probe_rows.h — one task of the probe: a few query rows of one head of one sample, all orders and candidates. */
#ifndef SV_SEARCH_PROBE_ROWS_H
#define SV_SEARCH_PROBE_ROWS_H

#include <stddef.h>

#include "search/probe.h"
#include "search/probe_classes.h"
#include "search/probe_ops.h"

/* sv_probe_order — what all heads share of an order. */
typedef struct sv_probe_order {
  const int32_t *tokens; /* [N] or NULL = frame_major */
  int64_t n_candidates;
  const int32_t *candidates; /* [n_candidates] their numbers, ascending */
  const int32_t *query_slot; /* [R]: which of `classes` belongs to the row */
  sv_probe_classes *classes; /* one per distinct query block of the rows */
} sv_probe_order;

typedef struct sv_probe {
  const sv_probe_args *args;
  const sv_probe_ops *ops;
  void (*to_float)(const void *from, int32_t dtype, int64_t n, float factor, float *out);
  int64_t n_tokens, n_key_blocks, n_query_blocks, head_dim, n_results; /* n_results = C + S */
  int64_t rows_per_task;                                               /* a multiple of 16 */
  int32_t width, columns; /* of a sum, of its components: multiples of 16 */
  int64_t n_orders;
  sv_probe_order *orders; /* [n_orders], frame_major first */
  const uint8_t *is_skip; /* [C] */
  const uint8_t
      *stripe_base; /* [query blocks of the rows in frame_major][nk]: what a stripe without blocks visits */
  double factors[SV_PROBE_MAX_BETAS]; /* e^beta */
} sv_probe;

/* sv_probe_rows_bytes — room of a thread; sv_probe_sums_count — doubles of a task's own results: energy, mass [nk], then
 * plain and curve [C + S][1 + K]. */
size_t sv_probe_rows_bytes(const sv_probe *probe);
int64_t sv_probe_sums_count(const sv_probe *probe);
/* sv_probe_rows_run — rows first .. first + n - 1 of the sample; SV_ERR_INTERRUPTED between blocks. */
sv_status sv_probe_rows_run(const sv_probe *probe, int64_t b, int64_t h, int64_t first, int64_t n, void *room,
                            double *sums);

#endif
