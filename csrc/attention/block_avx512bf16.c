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

#define AHEAD 256 /* words between a panel's line in use and the one fetched */

typedef vec tile[TALL][TILE_VECS];

/* acc += a b^T for `n` pairs of components (or keys): a from `rows` places ld numbers apart, b from each panel. */
INLINE void multiply_pairs(const int rows, const int panels, const uint16_t *SV_RESTRICT a, const int64_t ld,
                           const float *SV_RESTRICT b, int64_t panel_stride, int64_t n, tile acc) {
  for (int64_t i = 0; i < n; i++, a += 2, b += SV_PANEL) {
    __m512bh columns[TILE_VECS];
    KEEP_ORDER();
    EACH(c, panels) { __builtin_prefetch(b + c * panel_stride + AHEAD); }
    EACH(c, panels) { columns[c] = pair_load(b + c * panel_stride); }
    EACH(r, rows) {
      __m512bh row = pair_set1(a + r * ld);
      EACH(c, panels) { acc[r][c] = _mm512_dpbf16_ps(acc[r][c], row, columns[c]); }
    }
  }
}

INLINE void score_tile(const int rows, const int panels, const sv_strip *strip, const float *SV_RESTRICT k,
                       int64_t depth, float *SV_RESTRICT s, float *SV_RESTRICT maxima) {
  const vec scale = vec_const(strip->scale);
  tile acc;
  EACH(r, rows) {
    EACH(c, panels) { acc[r][c] = vec_zero(); }
  }
  multiply_pairs(rows, panels, strip->q, SV_LD_Q, k, depth * SV_PANEL, depth, acc);
  EACH(r, rows) {
    vec m = vec_load(maxima + r * LANES);
    EACH(c, panels) {
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
  const uint16_t *p = (const uint16_t *)(const void *)strip->p;
  tile acc;
  EACH(r, rows) {
    EACH(c, panels) { acc[r][c] = strip->is_first ? vec_zero() : vec_load(o + r * ld_o + c * LANES); }
  }
  for (int32_t g = 0; g < n_segments; p += segments[g++].n_keys) {
    const float *v = (const float *)segments[g].v + panel * segments[g].v_panel_stride;
    multiply_pairs(rows, panels, p, 2 * SV_LD_P, v, segments[g].v_panel_stride, segments[g].n_keys / 2, acc);
  }
  EACH(r, rows) {
    EACH(c, panels) { vec_store(o + r * ld_o + c * LANES, acc[r][c]); }
  }
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
  EACH(c, 12) { acc[c] = vec_const((float)c); }
  vec a = vec_const(0.5f);
  for (int64_t i = 0; i < rounds; i++) {
    EACH(c, 12) { acc[c] = _mm512_dpbf16_ps(acc[c], (__m512bh)a, (__m512bh)a); }
    __asm__ volatile("" : KEEP(a)); /* the loop stays a loop */
  }
  EACH(c, 12) { sum = vec_add(sum, acc[c]); }
  volatile float sink = vec_hsum(sum); /* the sums are needed */
  (void)sink;
  return (double)rounds * 12 * LANES * 4;
}

const sv_block_ops sv_block_ops_avx512bf16 = {.name = "avx512bf16 bf16",
                                              .heights = {TALL, LOW},
                                              .is_bf16 = true,
                                              .strip = strip_pairs,
                                              .multiply_add = multiply_add};
