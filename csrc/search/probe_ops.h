/* probe_ops.h — the arithmetic of the probe, one table per instruction set (probe_kernel.h, written over a vector type).
 *
 *   queries   [panel of 16 rows][D][16], times scale * log2(e): a lane is a query row, all exponents are of 2
 *   logits    [N][LD] by sequence index, LD = rows padded to panels; an order gathers rows of LD from here
 *   powers    a sum of weights is stored as x * 2^e with a whole e of its own per block (and row), so that no block
 *             underflows, however small its weights beside another's; sums scale by powers of two, which rounds nothing
 *   sums      vectors of `width` floats: D components, the sum of weights at [D], zeros up to a multiple of 16 */
#ifndef SV_SEARCH_PROBE_OPS_H
#define SV_SEARCH_PROBE_OPS_H

#include "attention/block_ops.h"

#define SV_PROBE_LOWEST (-1e30f) /* the exponent e of a sum of nothing */

/* sv_probe_block — the keys of one block that take part, and what the rows make of them. */
typedef struct sv_probe_block {
  const float *logits; /* [N][ld] */
  const int32_t *keys; /* [n] sequence indices */
  int32_t n, ld;
  float *weights;                      /* [n][ld] 2^(logit - exponent) */
  float *sum, *exponent;               /* [ld] of the weights */
  float *pooled_sum, *pooled_exponent; /* [ld] n 2^(mean logit) = pooled_sum * 2^pooled_exponent */
} sv_probe_block;

/* sv_probe_terms — of one row and candidate: |a + u c|^2 / (d + u e)^2 = (aa + 2 u ac + u u cc) / (d + u e)^2 */
typedef struct sv_probe_terms {
  double aa, ac, cc, d, e;
} sv_probe_terms;

typedef struct sv_probe_ops {
  /* scores — logits[j][lane] = keys j . queries; keys [n][depth] row by row */
  void (*scores)(const float *keys, int64_t n, int64_t depth, const float *queries, int32_t ld,
                 float *logits);
  void (*weigh)(const sv_probe_block *block);
  /* numerators — out[r * stride + d] = sum_j weights[j * ld + r] values[j * columns + d]; r < rows, d < columns, a
   * multiple of 16 */
  void (*numerators)(const float *weights, int32_t ld, int32_t rows, const float *values, int32_t columns,
                     int32_t n, float *out, int64_t stride);
  /* mean — out[d] = sum_j x[j * columns + d] / n; columns a multiple of 16 */
  void (*mean)(const float *x, int32_t n, int32_t columns, float *out);
  /* combine — out = sum_i factors[list[i]] x[list[i]]; vectors of width, a multiple of 16 */
  void (*combine)(const float *x, const float *factors, const int32_t *list, int32_t n, int32_t width,
                  float *out);
  /* subtract — x[i][0..depth) -= x[i][depth] * full, n vectors of width */
  void (*subtract)(float *x, int32_t n, int32_t width, int32_t depth, const float *full);
  /* dots — aa, ac, cc over depth components */
  void (*dots)(const float *a, const float *c, int64_t depth, sv_probe_terms *out);
  /* add_errors — sums[k] += the error at u = factors[k] */
  void (*add_errors)(const sv_probe_terms *terms, const double *factors, int32_t n, double *sums);
} sv_probe_ops;

extern const sv_probe_ops sv_probe_ops_portable;
extern const sv_probe_ops sv_probe_ops_avx2;
extern const sv_probe_ops sv_probe_ops_avx512;

#endif
