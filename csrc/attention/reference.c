/* reference.c — the textbook in double precision: one query row at a time, an explicit mask, two passes. It
 * shares nothing with the engines but the tensors, and is what they are tested against. */
#include <float.h>
#include <math.h>
#include <string.h>

#include "attention/attention.h"
#include "base/half.h"
#include "base/scratch.h"

typedef struct oracle {
  const sv_tensor *q, *k, *v;
  const uint8_t *mask;
  const int64_t *kv_len;
  double scale;
  double *out, *out_lse;
  double *logits; /* [threads, N] */
} oracle;

static double element(const sv_tensor *x, int64_t b, int64_t h, int64_t i, int64_t d) {
  int64_t at = b * x->stride[0] + h * x->stride[1] + i * x->stride[2] + d * x->stride[3];
  if (x->dtype == SV_F32) return (double)((const float *)x->data)[at];
  uint16_t bits = ((const uint16_t *)x->data)[at];
  return (double)(x->dtype == SV_BF16 ? sv_bf16_to_f32(bits) : sv_f16_to_f32(bits));
}

static int takes_part(const oracle *o, int64_t b, int64_t h, int64_t i, int64_t j) {
  int64_t n = o->q->shape[2];
  return (!o->kv_len || j < o->kv_len[b]) && (!o->mask || o->mask[(h * n + i) * n + j]);
}

static double score(const oracle *o, int64_t b, int64_t h, int64_t i, int64_t j) {
  double sum = 0.0;
  for (int64_t d = 0; d < o->q->shape[3]; d++) sum += element(o->q, b, h, i, d) * element(o->k, b, h, j, d);
  return o->scale * sum;
}

static sv_status row_task(int64_t row, int32_t thread, void *ctx) {
  const oracle *o = ctx;
  const int64_t n = o->q->shape[2], head_dim = o->q->shape[3], n_heads = o->q->shape[1];
  const int64_t i = row % n, h = row / n % n_heads, b = row / n / n_heads;
  double *logits = o->logits + thread * n, *out = o->out + row * head_dim, max = -INFINITY, sum = 0.0;
  for (int64_t j = 0; j < n; j++) {
    logits[j] = takes_part(o, b, h, i, j) ? score(o, b, h, i, j) : -INFINITY;
    if (logits[j] > max || isnan(logits[j])) max = logits[j];
  }
  memset(out, 0, (size_t)head_dim * sizeof(double));
  for (int64_t j = 0; j < n; j++) {
    if (!takes_part(o, b, h, i, j)) continue;
    double p = exp(logits[j] - max);
    sum += p;
    for (int64_t d = 0; d < head_dim; d++) out[d] += p * element(o->v, b, h, j, d);
  }
  for (int64_t d = 0; d < head_dim && sum != 0.0; d++) out[d] /= sum;
  if (o->out_lse) o->out_lse[row] = sum != 0.0 ? max + log(sum) : -INFINITY;
  return SV_OK;
}

static sv_status check(const sv_tensor *q, const sv_tensor *x, const char *name) {
  for (int i = 0; i < 4; i++)
    if (x->ndim != 4 || x->shape[i] != q->shape[i])
      return sv_fail(SV_ERR_ARG, "attention_reference: %s.shape[%d] is %lld, expected %lld (= q.shape[%d])",
                     name, i, (long long)x->shape[i], (long long)q->shape[i], i);
  if (sv_dtype_bytes(x->dtype) == 0)
    return sv_fail(SV_ERR_TYPE,
                   "attention_reference: %s is of an unknown dtype, expected float32, bfloat16 or float16",
                   name);
  return SV_OK;
}

sv_status sv_attention_reference(const sv_tensor *q, const sv_tensor *k, const sv_tensor *v,
                                 const uint8_t *mask, const int64_t *kv_len, double scale,
                                 const sv_poll *poll, double *out, double *out_lse) {
  SV_TRY(check(q, q, "q"));
  SV_TRY(check(q, k, "k"));
  SV_TRY(check(q, v, "v"));
  int32_t n_threads = sv_parallel_threads();
  void *logits;
  SV_TRY(
      sv_scratch_alloc("attention_reference", (size_t)(n_threads * q->shape[2]) * sizeof(double), &logits));
  oracle o = {q, k, v, mask, kv_len, scale, out, out_lse, logits};
  sv_status status =
      sv_parallel_for_on(n_threads, q->shape[0] * q->shape[1] * q->shape[2], row_task, &o, poll);
  sv_scratch_free(logits);
  return status;
}
