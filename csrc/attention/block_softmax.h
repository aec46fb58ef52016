/* block_softmax.h — the running softmax of one score row, written once over a vector type (block_kernel.h). All
 * exponents are of 2: the queries carry the factor log2(e).
 *   p = 2^(s - m), l = sum of p; m moves only when a maximum passes it by more than SLACK (lazy rescaling). */
#include <math.h>
#include <string.h>

#include "attention/vec_common.h"
#include "base/half.h"

#define SLACK 8.0f /* p <= 2^8: sums of 2^31 keys stay far from overflow */

INLINE int32_t padded(int32_t n_keys) { return (n_keys + SV_PANEL - 1) / SV_PANEL * SV_PANEL; }

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
