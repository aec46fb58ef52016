/* block_kernel.h — the block operations, written once over a vector type. A block_<isa>.c defines vec, LANES,
 * TILE_PANELS, TALL, LOW and the vec_ functions, includes this page and fills its table.
 *
 *   scores   s = q k^T, one register tile of rows x 16 * TILE_PANELS; the row maxima ride along
 *   softmax  p = 2^(s - m); m moves only when a maximum passes it by more than 2^SLACK (lazy rescaling)
 *   output   o += p v, one register tile of rows x 16 * TILE_PANELS over all keys of the chunk */
#include "attention/block_softmax.h"
#include "base/half.h"

#define AHEAD 256 /* words between a panel's line in use and the one fetched: 16 lines, some 100 cycles */

typedef vec tile[TALL][TILE_VECS];

/* acc += a b^T for one component (or key): a from `rows` places ld apart, b from each panel's vectors. */
INLINE void multiply_step(const int rows, const int panels, const float *SV_RESTRICT a, const int64_t ld,
                          const float *SV_RESTRICT b, int64_t panel_stride, tile acc) {
  vec columns[TILE_VECS];
  KEEP_ORDER();
  EACH(p, panels) { __builtin_prefetch(b + p * panel_stride + AHEAD); }
  EACH(c, panels * PANEL_VECS) {
    columns[c] = vec_load(b + (c / PANEL_VECS) * panel_stride + (c % PANEL_VECS) * LANES);
  }
  EACH(r, rows) {
    vec row = vec_set1(a + r * ld);
    EACH(c, panels * PANEL_VECS) { acc[r][c] = vec_fma(row, columns[c], acc[r][c]); }
  }
}

INLINE void multiply_steps(const int rows, const int panels, const float *SV_RESTRICT a, const int64_t ld,
                           const float *SV_RESTRICT b, int64_t step_stride, int64_t panel_stride, int64_t n,
                           tile acc) {
  for (int64_t i = 0; i < n; i++, b += step_stride)
    multiply_step(rows, panels, a + i, ld, b, panel_stride, acc);
}

/* ---- scores ---- */

INLINE void score_tile(const int rows, const int panels, const float *SV_RESTRICT q,
                       const float *SV_RESTRICT k, int64_t depth, float *SV_RESTRICT s,
                       float *SV_RESTRICT maxima) {
  tile acc;
  EACH(r, rows) {
    EACH(c, panels * PANEL_VECS) { acc[r][c] = vec_zero(); }
  }
  multiply_steps(rows, panels, q, SV_LD_Q, k, SV_PANEL, depth * SV_PANEL, depth, acc);
  EACH(r, rows) {
    vec m = vec_load(maxima + r * LANES);
    EACH(c, panels * PANEL_VECS) {
      vec_store(s + r * SV_LD_P + c * LANES, acc[r][c]);
      m = vec_max(m, acc[r][c]);
    }
    vec_store(maxima + r * LANES, m);
  }
}

INLINE int32_t score_segments(const int rows, const sv_strip *strip, const sv_segment *segments,
                              int32_t n_segments, float *maxima) {
  float *s = strip->p;
  for (int32_t g = 0; g < n_segments; g++) {
    const float *k = segments[g].k;
    int64_t depth = segments[g].depth;
    int32_t n_panels = padded(segments[g].n_keys) / SV_PANEL, i = 0;
    for (; i + TILE_PANELS <= n_panels; i += TILE_PANELS, k += TILE_PANELS * depth * SV_PANEL) {
      score_tile(rows, TILE_PANELS, strip->q, k, depth, s, maxima);
      s += TILE_PANELS * SV_PANEL;
    }
    for (; i < n_panels; i++, k += depth * SV_PANEL, s += SV_PANEL)
      score_tile(rows, 1, strip->q, k, depth, s, maxima);
  }
  return (int32_t)(s - strip->p);
}

/* ---- output ---- */

INLINE void output_tile(const int rows, const int panels, const sv_strip *strip, const sv_segment *segments,
                        int32_t n_segments, int32_t panel) {
  const int64_t ld_o = (int64_t)strip->n_v_panels * SV_PANEL;
  float *SV_RESTRICT o = strip->o + panel * SV_PANEL;
  const float *SV_RESTRICT p = strip->p;
  tile acc;
  EACH(r, rows) {
    EACH(c, panels * PANEL_VECS) {
      acc[r][c] = strip->is_first ? vec_zero() : vec_load(o + r * ld_o + c * LANES);
    }
  }
  for (int32_t g = 0; g < n_segments; g++) {
    const sv_segment *keys = &segments[g];
    const float *v = (const float *)keys->v + panel * keys->v_panel_stride;
    multiply_steps(rows, panels, p, SV_LD_P, v, keys->v_key_stride, keys->v_panel_stride, keys->n_keys, acc);
    p += padded(keys->n_keys);
  }
  EACH(r, rows) {
    EACH(c, panels * PANEL_VECS) { vec_store(o + r * ld_o + c * LANES, acc[r][c]); }
  }
}

/* ---- one strip ---- */

INLINE void strip_of(const int rows, const sv_strip *strip, const sv_segment *segments, int32_t n_segments) {
  _Alignas(64) float maxima[TALL * LANES];
  for (int i = 0; i < rows * LANES; i++) maxima[i] = -INFINITY;
  int32_t n = score_segments(rows, strip, segments, n_segments, maxima);
  for (int r = 0; r < rows; r++) {
    follow_max(strip, r, vec_hmax(vec_load(maxima + r * LANES)));
    exponentials(strip->p + r * SV_LD_P, n, strip->row_max[r], &strip->row_sum[r]);
  }
  int32_t panel = 0;
  for (; panel + TILE_PANELS <= strip->n_v_panels; panel += TILE_PANELS)
    output_tile(rows, TILE_PANELS, strip, segments, n_segments, panel);
  for (; panel < strip->n_v_panels; panel++) output_tile(rows, 1, strip, segments, n_segments, panel);
}

static void strip_tall(const sv_strip *strip, const sv_segment *segments, int32_t n_segments) {
  strip_of(TALL, strip, segments, n_segments);
}

static void strip_low(const sv_strip *strip, const sv_segment *segments, int32_t n_segments) {
  strip_of(LOW, strip, segments, n_segments);
}

static void strip_f32(const sv_strip *strip, const sv_segment *segments, int32_t n_segments) {
  (strip->rows == TALL ? strip_tall : strip_low)(strip, segments, n_segments);
}

/* ---- the way in and out ---- */

static void to_float(const void *from, int32_t dtype, int64_t n, float factor, float *SV_RESTRICT out) {
  const vec f = vec_const(factor);
  int64_t i = 0;
  if (dtype == SV_F32) {
    for (; i + LANES <= n; i += LANES) vec_store(out + i, vec_mul(f, vec_load((const float *)from + i)));
    for (; i < n; i++) out[i] = factor * ((const float *)from)[i];
  } else if (dtype == SV_BF16) {
    for (; i + LANES <= n; i += LANES)
      vec_store(out + i, vec_mul(f, vec_load_bf16((const uint16_t *)from + i)));
    for (; i < n; i++) out[i] = factor * sv_bf16_to_f32(((const uint16_t *)from)[i]);
  } else {
    for (; i + LANES <= n; i += LANES)
      vec_store(out + i, vec_mul(f, vec_load_f16((const uint16_t *)from + i)));
    for (; i < n; i++) out[i] = factor * sv_f16_to_f32(((const uint16_t *)from)[i]);
  }
}

static void from_float(const float *SV_RESTRICT from, int64_t n, float factor, int32_t dtype, void *out) {
  const vec f = vec_const(factor);
  int64_t i = 0;
  if (dtype == SV_F32) {
    for (; i + LANES <= n; i += LANES) vec_store((float *)out + i, vec_mul(f, vec_load(from + i)));
    for (; i < n; i++) ((float *)out)[i] = factor * from[i];
  } else if (dtype == SV_BF16) {
    for (; i < n; i++) ((uint16_t *)out)[i] = sv_f32_to_bf16(factor * from[i]);
  } else {
    for (; i + LANES <= n; i += LANES) vec_store_f16((uint16_t *)out + i, vec_mul(f, vec_load(from + i)));
    for (; i < n; i++) ((uint16_t *)out)[i] = sv_f32_to_f16(factor * from[i]);
  }
}

static double multiply_add(int64_t rounds) {
  float start[12 * LANES], half = 0.5f;
  vec acc[12], sum = vec_zero();
  for (int i = 0; i < 12 * LANES; i++) start[i] = (float)i;
  EACH(c, 12) { acc[c] = vec_load(start + c * LANES); }
  vec a = vec_set1(&half);
  for (int64_t i = 0; i < rounds; i++) {
    EACH(c, 12) { acc[c] = vec_fma(acc[c], a, a); }
    __asm__ volatile("" : KEEP(a)); /* the loop stays a loop */
  }
  EACH(c, 12) { sum = vec_add(sum, acc[c]); }
  volatile float sink = vec_hsum(sum); /* the sums are needed */
  (void)sink;
  return (double)rounds * 12 * LANES * 2;
}
