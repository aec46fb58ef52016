/* attention.h — the door to attention on the CPU: all heads of a layer, any mix of patterns, in one call. */
#ifndef SV_ATTENTION_ATTENTION_H
#define SV_ATTENTION_ATTENTION_H

#include <stdint.h>

#include "base/parallel.h"
#include "base/tensor.h"
#include "pattern/visits.h"

SV_EXTERN_C_BEGIN

#define SV_HEAD_REMAINDER 1 /* flags: beta counts, pooled codes of its items are read */

typedef struct sv_head {
  int32_t order; /* row of `tokens`, or -1: frame_major, the caller's own order */
  int32_t flags;
  float beta; /* bias of the remainder's pseudo keys */
} sv_head;

typedef struct sv_attention_args {
  sv_geometry geometry;
  sv_tensor q, k, v;    /* [B, H, N, D], one dtype, last dim contiguous, any other strides        read */
  sv_tensor out;        /* [B, H, N, D], dtype of q, last dim contiguous, must not alias q, k, v  written */
  sv_tensor lse;        /* [B, H, N] float32, last dim contiguous; data NULL = not wanted         written */
  const sv_item *items; /* [n_items], of all heads, longest first (visits.h) */
  int64_t n_items;
  const uint32_t *codes; /* [n_codes] */
  int64_t n_codes;
  const sv_head *heads;  /* [H] */
  const int32_t *tokens; /* [n_orders, N]: sequence index at each place, a permutation */
  int64_t n_orders;
  const int64_t *kv_len; /* [B], or NULL = N: keys with sequence index >= kv_len take no part */
  double scale;          /* finite; the usual one is 1/sqrt(D) */
  const sv_poll *poll;   /* or NULL */
} sv_attention_args;

/* sv_attention_cpu — softmax over the visited keys and the pseudo keys, times V.
 *   equation  out_i = sum_j softmax_j(scale * q_i k_j) v_j, j over the visits of i with j < kv_len; a pooled
 *             block of n_b keys before kv_len is one more key: logit scale * q_i mean(k) + log(n_b) + beta, value mean(v)
 *             LSE = natural logarithm of the sum; a query without keys gives zeros and -inf (heads without
 *             items too: they are skipped heads)
 *   contract  [alloc scratch O(N D) | errors ARG TYPE UNSUPPORTED NOMEM INTERRUPTED | any thread | no GIL |
 *             bitwise repeatable, whatever the number of threads]
 *   NaN or infinity in a key or value that no query of the block visits never reaches the output. */
sv_status sv_attention_cpu(const sv_attention_args *args);
/* sv_attention_check — the door's checks alone; data pointers of q, k, v, out may be NULL. */
sv_status sv_attention_check(const sv_attention_args *args);
/* sv_attention_engine — name of the block operations that would run: "avx2 f32", ... static string. */
const char *sv_attention_engine(int32_t dtype, int64_t head_dim);

/* sv_attention_reference — the textbook in double precision with an explicit mask: the oracle.
 *   q, k, v   [B, H, N, D] any dtype;  mask uint8 [H, N, N] or NULL = all: may query i attend to key j
 *   out       double [B, H, N, D] contiguous;  out_lse double [B, H, N] contiguous or NULL
 *   It knows neither blocks nor lists nor remainder. */
sv_status sv_attention_reference(const sv_tensor *q, const sv_tensor *k, const sv_tensor *v,
                                 const uint8_t *mask, const int64_t *kv_len, double scale,
                                 const sv_poll *poll, double *out, double *out_lse);

/* sv_fma_peak_gflops — the rate of independent multiply-adds of the engine of `dtype`, in 1e9 floating-point
 * operations per second, summed over the threads of sv_parallel_threads; takes `seconds`. */
sv_status sv_fma_peak_gflops(int32_t dtype, double seconds, const sv_poll *poll, double *out_gflops);

SV_EXTERN_C_END
#endif
