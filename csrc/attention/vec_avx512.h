/* vec_avx512.h — the vector type of the 512-bit engines: register tiles of 14 x 32 and 8 x 32 (28 or 16 sums, two
 * vectors of keys, one broadcast query: 31 of 32 registers). No masks: tails live in padded panels. */
#ifndef SV_ATTENTION_VEC_AVX512_H
#define SV_ATTENTION_VEC_AVX512_H

#include <immintrin.h>
#include <stdint.h>

typedef __m512 vec;
#define LANES 16
#define TILE_PANELS 2
#define TALL 14
#define LOW 8
#define KEEP "+v"

static inline vec vec_zero(void) { return _mm512_setzero_ps(); }
static inline vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vec_store(float *p, vec a) { _mm512_storeu_ps(p, a); }
static inline vec vec_set1(const float *p) { return _mm512_set1_ps(*p); }
static inline vec vec_const(float x) { return _mm512_set1_ps(x); }
static inline vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
static inline vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
static inline vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
static inline vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
static inline vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }
static inline vec vec_round(vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT); }
static inline vec vec_scale2(vec p, vec n) { return _mm512_scalef_ps(p, n); }
static inline float vec_hsum(vec a) { return _mm512_reduce_add_ps(a); }
static inline float vec_hmax(vec a) { return _mm512_reduce_max_ps(a); }

static inline vec vec_load_bf16(const uint16_t *p) {
  __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
static inline vec vec_load_f16(const uint16_t *p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}
static inline void vec_store_f16(uint16_t *p, vec a) {
  _mm256_storeu_si256((__m256i *)(void *)p,
                      _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

#endif
