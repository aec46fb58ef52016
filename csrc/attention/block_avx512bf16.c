/* block_avx512bf16.c — strips whose products are vdpbf16ps: two bfloat16 products per lane, summed in float32.
 * Keys, values and weights come in pairs; scores, softmax and output stay float32. Pseudo keys and padded tails
 * are float32 strips of block_avx512.c, with which this file shares strip heights and running state. */
#include "attention/vec_avx512.h"

#include "attention/block_softmax.h"

/* Two bfloat16 numbers in every lane. */
INLINE __m512bh pair_set1(const uint16_t *p) {
  int32_t word;
  memcpy(&word, p, sizeof word);
  return (__m512bh)_mm512_set1_epi32(word);
}
INLINE __m512bh pair_load(const float *p) { return (__m512bh)_mm512_loadu_ps(p); }

INLINE void score_tile(const int rows, const int panels, const sv_strip *strip, const float *SV_RESTRICT k,
                       int64_t depth, float *SV_RESTRICT s, float *SV_RESTRICT maxima) {
  const uint16_t *SV_RESTRICT q = strip->q;
  vec acc[TALL][TILE_VECS];
  UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < panels; c++) acc[r][c] = vec_zero();
  for (int64_t d = 0; d < depth; d++) {
    __m512bh b[TILE_VECS];
    UNROLL for (int c = 0; c < panels; c++) b[c] = pair_load(k + (c * depth + d) * SV_PANEL);
    UNROLL for (int r = 0; r < rows; r++) {
      __m512bh a = pair_set1(q + r * SV_LD_Q + 2 * d);
      UNROLL for (int c = 0; c < panels; c++) acc[r][c] = _mm512_dpbf16_ps(acc[r][c], a, b[c]);
    }
  }
  const vec scale = vec_const(strip->scale);
  UNROLL for (int r = 0; r < rows; r++) {
    vec m = vec_load(maxima + r * LANES);
    UNROLL for (int c = 0; c < panels; c++) {
      vec scaled = vec_mul(acc[r][c], scale);
      vec_store(s + r * SV_LD_P + c * LANES, scaled);
      m = vec_max(m, scaled);
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
    int32_t n_panels = segments[g].n_keys / SV_PANEL, i = 0;
    for (; i + TILE_PANELS <= n_panels; i += TILE_PANELS, k += TILE_PANELS * depth * SV_PANEL) {
      score_tile(rows, TILE_PANELS, strip, k, depth, s, maxima);
      s += TILE_PANELS * SV_PANEL;
    }
    for (; i < n_panels; i++, k += depth * SV_PANEL, s += SV_PANEL)
      score_tile(rows, 1, strip, k, depth, s, maxima);
  }
  return (int32_t)(s - strip->p);
}

/* The weights take the place of the scores: 16 of them fill 32 of the 64 bytes already read. */
INLINE void exponential_pairs(float *s, int32_t n, float row_max, float *row_sum) {
  vec m = vec_const(row_max), sum = vec_zero();
  char *pairs = (char *)s;
  for (int32_t j = 0; j < n; j += SV_PANEL) {
    vec p = exp2_vec(vec_sub(vec_load(s + j), m));
    sum = vec_add(sum, p);
    _mm256_storeu_si256((__m256i *)(void *)(pairs + 2 * j), (__m256i)_mm512_cvtneps_pbh(p));
  }
  *row_sum += vec_hsum(sum);
}

INLINE void output_tile(const int rows, const int panels, const sv_strip *strip, const sv_segment *segments,
                        int32_t n_segments, int32_t panel) {
  const int64_t ld_o = (int64_t)strip->n_v_panels * SV_PANEL;
  float *SV_RESTRICT o = strip->o + panel * SV_PANEL;
  const char *p = (const char *)strip->p;
  vec acc[TALL][TILE_VECS];
  UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < panels; c++) acc[r][c] =
      strip->is_first ? vec_zero() : vec_load(o + r * ld_o + c * LANES);
  for (int32_t g = 0; g < n_segments; g++) {
    const int64_t panel_stride = segments[g].v_panel_stride;
    const float *SV_RESTRICT v = (const float *)segments[g].v + panel * panel_stride;
    for (int32_t j = 0; j < segments[g].n_keys; j += 2, v += SV_PANEL, p += 4) {
      __m512bh b[TILE_VECS];
      UNROLL for (int c = 0; c < panels; c++) b[c] = pair_load(v + c * panel_stride);
      UNROLL for (int r = 0; r < rows; r++) {
        __m512bh a = pair_set1((const uint16_t *)(const void *)(p + r * SV_LD_P * (int)sizeof(float)));
        UNROLL for (int c = 0; c < panels; c++) acc[r][c] = _mm512_dpbf16_ps(acc[r][c], a, b[c]);
      }
    }
  }
  UNROLL for (int r = 0; r < rows; r++) UNROLL for (int c = 0; c < panels; c++)
      vec_store(o + r * ld_o + c * LANES, acc[r][c]);
}

INLINE void strip_of(const int rows, const sv_strip *strip, const sv_segment *segments, int32_t n_segments) {
  _Alignas(64) float maxima[TALL * LANES];
  for (int i = 0; i < rows * LANES; i++) maxima[i] = -INFINITY;
  int32_t n = score_segments(rows, strip, segments, n_segments, maxima);
  for (int r = 0; r < rows; r++) {
    follow_max(strip, r, vec_hmax(vec_load(maxima + r * LANES)));
    exponential_pairs(strip->p + r * SV_LD_P, n, strip->row_max[r], &strip->row_sum[r]);
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

static void strip_pairs(const sv_strip *strip, const sv_segment *segments, int32_t n_segments) {
  (strip->rows == TALL ? strip_tall : strip_low)(strip, segments, n_segments);
}

static double multiply_add(int64_t rounds) {
  vec acc[12], sum = vec_zero();
  UNROLL for (int c = 0; c < 12; c++) acc[c] = vec_const((float)c);
  vec a = vec_const(0.5f);
  for (int64_t i = 0; i < rounds; i++) {
    UNROLL for (int c = 0; c < 12; c++) acc[c] = _mm512_dpbf16_ps(acc[c], (__m512bh)a, (__m512bh)a);
    __asm__ volatile("" : KEEP(a)); /* the loop stays a loop */
  }
  UNROLL for (int c = 0; c < 12; c++) sum = vec_add(sum, acc[c]);
  volatile float sink = vec_hsum(sum); /* the sums are needed */
  (void)sink;
  return (double)rounds * 12 * LANES * 4;
}

const sv_block_ops sv_block_ops_avx512bf16 = {.name = "avx512bf16 bf16",
                                              .heights = {TALL, LOW},
                                              .is_bf16 = true,
                                              .strip = strip_pairs,
                                              .multiply_add = multiply_add};
