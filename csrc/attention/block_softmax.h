/* block_softmax.h — the running softmax of one score row, written once over a vector type (block_kernel.h). All
 * exponents are of 2: the queries carry the factor log2(e).
 *   p = 2^(s - m), l = sum of p; m moves only when a maximum passes it by more than SLACK (lazy rescaling).
 * 2^x = 2^n * 2^f, n = x rounded, f in -1/2..1/2 by a polynomial of degree 5: relative error 1.6e-7. */
#include <math.h>
#include <string.h>

#include "attention/block_ops.h"
#include "base/half.h"

#define INLINE static inline __attribute__((always_inline))
#define EACH(i, n) _Pragma("GCC unroll 32") for (int i = 0; i < (n); i++) /* unrolled whole */
/* Loads of the next step stay behind it: hoisted, they cost the compiler copies and spills. */
#define KEEP_ORDER() __asm__ volatile("" ::: "memory")
#define PANEL_VECS (SV_PANEL / LANES)
#define TILE_VECS (PANEL_VECS * TILE_PANELS)
#define SLACK 8.0f      /* p <= 2^8: sums of 2^31 keys stay far from overflow */
#define LOWEST (-1e30f) /* stands in for a maximum of -inf, so that nothing becomes inf - inf */

INLINE int32_t padded(int32_t n_keys) { return (n_keys + SV_PANEL - 1) / SV_PANEL * SV_PANEL; }

INLINE vec exp2_vec(vec x) {
  x = vec_max(vec_const(-126.0f), x); /* keeps NaN: the second operand is returned */
  vec n = vec_round(x), f = vec_sub(x, n);
  vec p = vec_fma(vec_const(0x1.5bba14p-10f), f, vec_const(0x1.3cea88p-7f));
  p = vec_fma(p, f, vec_const(0x1.c6b752p-5f));
  p = vec_fma(p, f, vec_const(0x1.ebf9bcp-3f));
  p = vec_fma(p, f, vec_const(0x1.62e42ap-1f));
  p = vec_fma(p, f, vec_const(1.0f));
  return vec_scale2(p, n);
}

static float exp2_one(float x) {
  float lanes[LANES] = {0};
  lanes[0] = x;
  vec_store(lanes, exp2_vec(vec_load(lanes)));
  return lanes[0];
}

static void rescale_row(const sv_strip *strip, int r, float new_max) {
  float *o = strip->o + (int64_t)r * strip->n_v_panels * SV_PANEL;
  float factor = exp2_one(strip->row_max[r] - new_max);
  strip->row_max[r] = new_max;
  strip->row_sum[r] *= factor;
  for (int32_t c = 0; c < strip->n_v_panels * SV_PANEL; c++) o[c] *= factor;
}

INLINE void follow_max(const sv_strip *strip, int r, float chunk_max) {
  if (strip->is_first) {
    strip->row_max[r] = chunk_max > LOWEST ? chunk_max : LOWEST;
    strip->row_sum[r] = 0.0f;
  } else if (chunk_max > strip->row_max[r] + SLACK) {
    rescale_row(strip, r, chunk_max);
  }
}

INLINE void exponentials(float *SV_RESTRICT s, int32_t n, float row_max, float *row_sum) {
  vec m = vec_const(row_max), sum[2] = {vec_zero(), vec_zero()};
  for (int32_t j = 0; j < n; j += SV_PANEL) {
    EACH(c, PANEL_VECS) {
      vec p = exp2_vec(vec_sub(vec_load(s + j + c * LANES), m));
      vec_store(s + j + c * LANES, p);
      sum[c % 2] = vec_add(sum[c % 2], p);
    }
  }
  *row_sum += vec_hsum(vec_add(sum[0], sum[1]));
}
