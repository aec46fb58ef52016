/* block_kernel.h — the block operations, written once over a vector type. A block_<isa>.c defines vec, LANES,
 * TILE_PANELS, TALL, LOW and the vec_ functions, includes this page and fills its table.
 *
 *   scores   s = q k^T, one register tile of rows x 16 * TILE_PANELS; the row maxima ride along
 *   softmax  p = 2^(s - m); m moves only when a maximum passes it by more than 2^SLACK (lazy rescaling)
 *   output   o += p v, one register tile of rows x 16 * TILE_PANELS over all keys of the chunk */
#include "attention/block_softmax.h"
#include "base/half.h"

/* ---- scores ---- */

INLINE void score_tile(const int rows, const int panels, const float *SV_RESTRICT q,
                       const float *SV_RESTRICT k, int64_t depth, float *SV_RESTRICT s,
                       float *SV_RESTRICT maxima) {
  vec acc[TALL][TILE_VECS];
  UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < panels * PANEL_VECS; c++) acc[r][c] =
      vec_zero();
  for (int64_t d = 0; d < depth; d++) {
    vec b[TILE_VECS];
    UNROLL for (int c = 0; c < panels * PANEL_VECS; c++) b[c] =
        vec_load(k + (c / PANEL_VECS) * depth * SV_PANEL + d * SV_PANEL + (c % PANEL_VECS) * LANES);
    UNROLL for (int r = 0; r < rows; r++) {
      vec a = vec_set1(q + r * SV_LD_Q + d);
      UNROLL for (int c = 0; c < panels * PANEL_VECS; c++) acc[r][c] = vec_fma(a, b[c], acc[r][c]);
    }
  }
  UNROLL for (int r = 0; r < rows; r++) {
    vec m = vec_load(maxima + r * LANES);
    UNROLL for (int c = 0; c < panels * PANEL_VECS; c++) {
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
  vec acc[TALL][TILE_VECS];
  UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < panels * PANEL_VECS; c++) acc[r][c] =
      strip->is_first ? vec_zero() : vec_load(o + r * ld_o + c * LANES);
  for (int32_t g = 0; g < n_segments; g++) {
    const int64_t key_stride = segments[g].v_key_stride, panel_stride = segments[g].v_panel_stride;
    const float *SV_RESTRICT v = (const float *)segments[g].v + panel * panel_stride;
    for (int32_t j = 0; j < segments[g].n_keys; j++, v += key_stride) {
      vec b[TILE_VECS];
      UNROLL for (int c = 0; c < panels * PANEL_VECS; c++) b[c] =
          vec_load(v + (c / PANEL_VECS) * panel_stride + (c % PANEL_VECS) * LANES);
      UNROLL for (int r = 0; r < rows; r++) {
        vec a = vec_set1(p + r * SV_LD_P + j);
        UNROLL for (int c = 0; c < panels * PANEL_VECS; c++) acc[r][c] = vec_fma(a, b[c], acc[r][c]);
      }
    }
    p += padded(segments[g].n_keys);
  }
  UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < panels * PANEL_VECS; c++)
      vec_store(o + r * ld_o + c * LANES, acc[r][c]);
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
  UNROLL for (int c = 0; c < 12; c++) acc[c] = vec_load(start + c * LANES);
  vec a = vec_set1(&half);
  for (int64_t i = 0; i < rounds; i++) {
    UNROLL for (int c = 0; c < 12; c++) acc[c] = vec_fma(acc[c], a, a);
    __asm__ volatile("" : KEEP(a)); /* the loop stays a loop */
  }
  UNROLL for (int c = 0; c < 12; c++) sum = vec_add(sum, acc[c]);
  volatile float sink = vec_hsum(sum); /* the sums are needed */
  (void)sink;
  return (double)rounds * 12 * LANES * 2;
}
