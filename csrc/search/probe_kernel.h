/* probe_kernel.h — the arithmetic of the probe, written once over a vector type. A probe_<isa>.c includes its vec_<isa>.h
 * and this page, and fills its table (probe_ops.h says what each function computes). */
#include <math.h>

#include "attention/vec_common.h"
#include "search/probe_ops.h"

typedef vec tile[TALL][TILE_VECS];

/* acc += a b for n steps: a from `rows` places a_row apart (the next step a_step further), b from `panels` panels of 16
 * columns. */
INLINE void multiply(const int rows, const int panels, const float *SV_RESTRICT a, int64_t a_row,
                     int64_t a_step, const float *SV_RESTRICT b, int64_t b_step, int64_t panel_stride,
                     int64_t n, tile acc) {
  for (int64_t i = 0; i < n; i++, a += a_step, b += b_step) {
    vec columns[TILE_VECS];
    KEEP_ORDER();
    EACH(c, panels * PANEL_VECS) {
      columns[c] = vec_load(b + (c / PANEL_VECS) * panel_stride + (c % PANEL_VECS) * LANES);
    }
    EACH(r, rows) {
      vec row = vec_set1(a + r * a_row);
      EACH(c, panels * PANEL_VECS) { acc[r][c] = vec_fma(row, columns[c], acc[r][c]); }
    }
  }
}

INLINE void clear_tile(const int rows, const int panels, tile acc) {
  EACH(r, rows) {
    EACH(c, panels * PANEL_VECS) { acc[r][c] = vec_zero(); }
  }
}

INLINE void store_tile(const int rows, const int panels, tile acc, float *out, int64_t stride) {
  EACH(r, rows) {
    EACH(c, panels * PANEL_VECS) { vec_store(out + r * stride + c * LANES, acc[r][c]); }
  }
}

/* ---- logits ---- */

INLINE void score_panels(const int rows, const int panels, const float *keys, int64_t depth,
                         const float *queries, float *out, int32_t ld) {
  tile acc;
  clear_tile(rows, panels, acc);
  multiply(rows, panels, keys, depth, 1, queries, SV_PANEL, depth * SV_PANEL, depth, acc);
  store_tile(rows, panels, acc, out, ld);
}

INLINE void score_rows(const int rows, const float *keys, int64_t depth, const float *queries, int32_t ld,
                       float *out) {
  int32_t p = 0, n_panels = ld / SV_PANEL;
  for (; p + TILE_PANELS <= n_panels; p += TILE_PANELS)
    score_panels(rows, TILE_PANELS, keys, depth, queries + p * depth * SV_PANEL, out + p * SV_PANEL, ld);
  for (; p < n_panels; p++)
    score_panels(rows, 1, keys, depth, queries + p * depth * SV_PANEL, out + p * SV_PANEL, ld);
}

static void scores(const float *keys, int64_t n, int64_t depth, const float *queries, int32_t ld,
                   float *logits) {
  int64_t j = 0;
  for (; j + TALL <= n; j += TALL) score_rows(TALL, keys + j * depth, depth, queries, ld, logits + j * ld);
  for (; j + LOW <= n; j += LOW) score_rows(LOW, keys + j * depth, depth, queries, ld, logits + j * ld);
  for (; j < n; j++) score_rows(1, keys + j * depth, depth, queries, ld, logits + j * ld);
}

/* ---- weights of a block ---- */

#define CHAINS                                                                                               \
  4 /* side by side: an addition takes 4 cycles, and a sum of n terms loses what one of n / 4 would */

typedef struct column {
  vec max[CHAINS], sum[CHAINS];
} column;

INLINE void look_at(const float *logits, int chain, column *seen) {
  vec x = vec_load(logits);
  seen->max[chain] = vec_max(seen->max[chain], x);
  seen->sum[chain] = vec_add(seen->sum[chain], x);
}

INLINE vec add_chains(const vec sums[CHAINS]) {
  return vec_add(vec_add(sums[0], sums[1]), vec_add(sums[2], sums[3]));
}

/* Exponents and the pseudo key of LANES rows from i on; returns the exponents. */
INLINE vec open_column(const sv_probe_block *b, int64_t i) {
  column seen;
  int32_t j = 0;
  EACH(c, CHAINS) {
    seen.max[c] = vec_const(LOWEST);
    seen.sum[c] = vec_zero();
  }
  for (; j + CHAINS <= b->n; j += CHAINS) {
    EACH(c, CHAINS) { look_at(b->logits + (int64_t)b->keys[j + c] * b->ld + i, c, &seen); }
  }
  for (; j < b->n; j++) look_at(b->logits + (int64_t)b->keys[j] * b->ld + i, 0, &seen);
  vec max = vec_max(vec_max(seen.max[0], seen.max[1]), vec_max(seen.max[2], seen.max[3]));
  vec mean = vec_mul(add_chains(seen.sum), vec_const(1.0f / (float)b->n));
  vec pooled = vec_add(mean, vec_const(log2f((float)b->n))), pooled_exponent = vec_round(pooled);
  vec_store(b->pooled_sum + i, exp2_vec(vec_sub(pooled, pooled_exponent)));
  vec_store(b->pooled_exponent + i, pooled_exponent);
  return vec_round(max);
}

INLINE vec weigh_key(const sv_probe_block *b, int32_t j, int64_t i, vec exponent) {
  vec w = exp2_vec(vec_sub(vec_load(b->logits + (int64_t)b->keys[j] * b->ld + i), exponent));
  vec_store(b->weights + (int64_t)j * b->ld + i, w);
  return w;
}

static void weigh(const sv_probe_block *b) {
  for (int64_t i = 0; i < b->ld; i += LANES) {
    vec exponent = open_column(b, i), sums[CHAINS];
    int32_t j = 0;
    EACH(c, CHAINS) { sums[c] = vec_zero(); }
    for (; j + CHAINS <= b->n; j += CHAINS) {
      EACH(c, CHAINS) { sums[c] = vec_add(sums[c], weigh_key(b, j + c, i, exponent)); }
    }
    for (; j < b->n; j++) sums[0] = vec_add(sums[0], weigh_key(b, j, i, exponent));
    vec_store(b->sum + i, add_chains(sums));
    vec_store(b->exponent + i, exponent);
  }
}

/* ---- numerators of a block ---- */

INLINE void numerator_rows(const int rows, const float *weights, int32_t ld, const float *values,
                           int32_t columns, int32_t n, float *out, int64_t stride) {
  tile acc;
  int32_t c = 0;
  for (; c + TILE_PANELS * SV_PANEL <= columns; c += TILE_PANELS * SV_PANEL) {
    clear_tile(rows, TILE_PANELS, acc);
    multiply(rows, TILE_PANELS, weights, 1, ld, values + c, columns, SV_PANEL, n, acc);
    store_tile(rows, TILE_PANELS, acc, out + c, stride);
  }
  for (; c < columns; c += SV_PANEL) {
    clear_tile(rows, 1, acc);
    multiply(rows, 1, weights, 1, ld, values + c, columns, SV_PANEL, n, acc);
    store_tile(rows, 1, acc, out + c, stride);
  }
}

static void numerators(const float *weights, int32_t ld, int32_t rows, const float *values, int32_t columns,
                       int32_t n, float *out, int64_t stride) {
  int32_t r = 0;
  for (; r + TALL <= rows; r += TALL)
    numerator_rows(TALL, weights + r, ld, values, columns, n, out + r * stride, stride);
  for (; r + LOW <= rows; r += LOW)
    numerator_rows(LOW, weights + r, ld, values, columns, n, out + r * stride, stride);
  for (; r < rows; r++) numerator_rows(1, weights + r, ld, values, columns, n, out + r * stride, stride);
}

/* ---- sums of vectors ---- */

INLINE void combine_panels(const int panels, const float *SV_RESTRICT x, const float *SV_RESTRICT factors,
                           const int32_t *SV_RESTRICT list, int32_t n, int64_t width,
                           float *SV_RESTRICT out) {
  vec acc[5 * PANEL_VECS];
  EACH(c, panels * PANEL_VECS) { acc[c] = vec_zero(); }
  for (int32_t i = 0; i < n; i++) {
    const float *from = x + list[i] * width;
    vec factor = vec_set1(factors + list[i]);
    EACH(c, panels * PANEL_VECS) { acc[c] = vec_fma(factor, vec_load(from + c * LANES), acc[c]); }
  }
  EACH(c, panels * PANEL_VECS) { vec_store(out + c * LANES, acc[c]); }
}

/* Five panels are a head of 64 and its weight. */
static void combine(const float *x, const float *factors, const int32_t *list, int32_t n, int32_t width,
                    float *out) {
  int32_t c = 0;
  for (; c + 5 * SV_PANEL <= width; c += 5 * SV_PANEL)
    combine_panels(5, x + c, factors, list, n, width, out + c);
  for (; c + 4 * SV_PANEL <= width; c += 4 * SV_PANEL)
    combine_panels(4, x + c, factors, list, n, width, out + c);
  for (; c < width; c += SV_PANEL) combine_panels(1, x + c, factors, list, n, width, out + c);
}

/* In two levels, so that a mean stays near one unit in the last place of its terms. */
static void mean(const float *x, int32_t n, int32_t columns, float *out) {
  const vec share = vec_const(1.0f / (float)n);
  for (int32_t c = 0; c < columns; c += LANES) {
    vec total = vec_zero();
    for (int32_t j = 0; j < n;) {
      vec part = vec_zero();
      for (int32_t end = n - j < SV_PANEL ? n : j + SV_PANEL; j < end; j++)
        part = vec_add(part, vec_load(x + j * columns + c));
      total = vec_add(total, part);
    }
    vec_store(out + c, vec_mul(total, share));
  }
}

static void subtract(float *x, int32_t n, int32_t width, int32_t depth, const float *full) {
  for (int32_t i = 0; i < n; i++, x += width)
    for (int32_t d = 0; d < depth; d++) x[d] -= x[depth] * full[d];
}

/* In double: near the best bias a and u c cancel. */
static void dots(const float *a, const float *c, int64_t depth, sv_probe_terms *out) {
  double aa[8] = {0}, ac[8] = {0}, cc[8] = {0};
  for (int64_t i = 0; i < depth; i += 8)
    for (int j = 0; j < 8; j++) {
      double x = a[i + j], y = c[i + j];
      aa[j] += x * x;
      ac[j] += x * y;
      cc[j] += y * y;
    }
  out->aa = out->ac = out->cc = 0.0;
  for (int j = 0; j < 8; j++) {
    out->aa += aa[j];
    out->ac += ac[j];
    out->cc += cc[j];
  }
}

static void add_errors(const sv_probe_terms *t, const double *SV_RESTRICT factors, int32_t n,
                       double *SV_RESTRICT sums) {
  for (int32_t k = 0; k < n; k++) {
    double u = factors[k], below = t->d + u * t->e, above = t->aa + u * (2.0 * t->ac + u * t->cc);
    sums[k] += (above < 0.0 ? 0.0 : above) / (below * below);
  }
}

#define PROBE_OPS                                                                                            \
  {.scores = scores,                                                                                         \
   .weigh = weigh,                                                                                           \
   .numerators = numerators,                                                                                 \
   .mean = mean,                                                                                             \
   .combine = combine,                                                                                       \
   .subtract = subtract,                                                                                     \
   .dots = dots,                                                                                             \
   .add_errors = add_errors}
