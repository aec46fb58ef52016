/* vec_common.h — what every page of vector code shares, written once over a vector type (vec_<isa>.h): 2^x, and the words
 * that unroll.
 * 2^x = 2^n * 2^f, n = x rounded, f in -1/2..1/2 by a polynomial of degree 5: relative error 1.6e-7. */
#ifndef SV_ATTENTION_VEC_COMMON_H
#define SV_ATTENTION_VEC_COMMON_H

#include "attention/block_ops.h"

#define INLINE static inline __attribute__((always_inline))
#define EACH(i, n) _Pragma("GCC unroll 32") for (int i = 0; i < (n); i++) /* unrolled whole */
/* Loads of the next step stay behind it: hoisted, they cost the compiler copies and spills. */
#define KEEP_ORDER() __asm__ volatile("" ::: "memory")
#define PANEL_VECS (SV_PANEL / LANES)
#define TILE_VECS (PANEL_VECS * TILE_PANELS)
#define LOWEST (-1e30f) /* stands in for a maximum of -inf, so that nothing becomes inf - inf */

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

#endif
