/* half.h — float32 <-> bfloat16 and float16, one number at a time, in integers.
 * To the short formats: round to nearest, ties to even; overflow gives infinity; NaN stays NaN (quiet).
 * The vector engines use the machine's own conversions, which agree bit by bit but for NaN payloads. */
#ifndef SV_BASE_HALF_H
#define SV_BASE_HALF_H

#include <stdint.h>
#include <string.h>

#include "base/compiler.h"

SV_INLINE uint32_t sv_float_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

SV_INLINE float sv_bits_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

SV_INLINE float sv_bf16_to_f32(uint16_t h) { return sv_bits_float((uint32_t)h << 16); }

SV_INLINE uint16_t sv_f32_to_bf16(float x) {
  uint32_t u = sv_float_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

SV_INLINE float sv_f16_to_f32(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
  uint32_t exponent = (h >> 10) & 0x1fu, fraction = h & 0x3ffu;
  if (exponent == 0x1fu)
    return sv_bits_float(sign | 0x7f800000u | (fraction << 13) | (fraction ? 0x400000u : 0u));
  if (exponent != 0) return sv_bits_float(sign | ((exponent + 112u) << 23) | (fraction << 13));
  float x = (float)fraction * 0x1p-24f; /* zero and subnormals */
  return sv_bits_float(sv_float_bits(x) | sign);
}

SV_INLINE uint16_t sv_f32_to_f16(float x) {
  uint32_t u = sv_float_bits(x), sign = (u >> 16) & 0x8000u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((u >> 13) & 0x3ffu));
  if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u);
  if (u < 0x38800000u) { /* subnormal: adding 0.5 aligns 2^-24 with the last bit and rounds */
    uint32_t rounded = sv_float_bits(sv_bits_float(u) + 0.5f) - 0x3f000000u;
    return (uint16_t)(sign | rounded);
  }
  return (uint16_t)(sign | ((u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13));
}

#endif
