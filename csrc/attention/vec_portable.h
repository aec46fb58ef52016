/* vec_portable.h — the vector type without intrinsics: four lanes of the compiler's vector extension, which every target
 * has or imitates; register tiles of 2 x 16 and 1 x 16. */
#ifndef SV_ATTENTION_VEC_PORTABLE_H
#define SV_ATTENTION_VEC_PORTABLE_H

#include <stdint.h>
#include <string.h>

#include "base/half.h"

typedef float vec __attribute__((vector_size(16)));
typedef int32_t ivec __attribute__((vector_size(16)));
#define LANES 4
#define TILE_PANELS 1
#define TALL 2
#define LOW 1

static inline vec vec_const(float x) { return (vec){x, x, x, x}; }
static inline vec vec_zero(void) { return vec_const(0.0f); }
static inline vec vec_load(const float *p) {
  vec a;
  memcpy(&a, p, sizeof a);
  return a;
}
static inline void vec_store(float *p, vec a) { memcpy(p, &a, sizeof a); }
static inline vec vec_set1(const float *p) { return vec_const(*p); }
static inline vec vec_fma(vec a, vec b, vec c) { return a * b + c; }
static inline vec vec_add(vec a, vec b) { return a + b; }
static inline vec vec_sub(vec a, vec b) { return a - b; }
static inline vec vec_mul(vec a, vec b) { return a * b; }

/* The second operand unless the first is greater, as the x86 instruction does. */
static inline vec vec_max(vec a, vec b) {
  ivec greater = a > b;
  return (vec)(((ivec)a & greater) | ((ivec)b & ~greater));
}

/* To the nearest integer, ties to even: 1.5 * 2^23 leaves no bits for a fraction. */
static inline vec vec_round(vec a) {
  const vec magic = vec_const(0x1.8p23f);
  return (a + magic) - magic;
}

static inline vec vec_scale2(vec p, vec n) {
  const ivec bits = (ivec)(n + vec_const(0x1.8p23f)); /* the low bits hold n */
  vec power = (vec)((bits << 23) + 0x3f800000);
  return p * power;
}

static inline vec vec_load_bf16(const uint16_t *p) {
  return (vec){sv_bf16_to_f32(p[0]), sv_bf16_to_f32(p[1]), sv_bf16_to_f32(p[2]), sv_bf16_to_f32(p[3])};
}
static inline vec vec_load_f16(const uint16_t *p) {
  return (vec){sv_f16_to_f32(p[0]), sv_f16_to_f32(p[1]), sv_f16_to_f32(p[2]), sv_f16_to_f32(p[3])};
}
static inline void vec_store_f16(uint16_t *p, vec a) {
  for (int i = 0; i < LANES; i++) p[i] = sv_f32_to_f16(a[i]);
}
static inline float vec_hsum(vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
static inline float vec_hmax(vec a) {
  float m = a[0];
  for (int i = 1; i < LANES; i++) m = m > a[i] ? m : a[i];
  return m;
}

#if defined(__x86_64__)
#define KEEP "+x"
#else
#define KEEP "+w"
#endif

#endif
