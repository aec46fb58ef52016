/* probe_check.c — each refusal one sentence: who, what is got, what was expected. */
#include <math.h>

#include "attention/block_ops.h"
#include "search/probe.h"

#define MAX_SCALE 1e30 /* scale * log2(e) is a float32 number */
#define MAX_BETA 300.0 /* e^(2 beta) is a double */

static sv_status check_shape(const char *name, const sv_tensor *x, const sv_tensor *q, int64_t n_tokens) {
  static const char *const sources[] = {"q.shape[0]", "q.shape[1]", "tokens of the geometry", "q.shape[3]"};
  if (x->ndim != 4)
    return sv_fail(SV_ERR_ARG, "probe: %s has %d dimensions, expected 4 (batch, head, token, channel)", name,
                   (int)x->ndim);
  for (int i = 0; i < 4; i++) {
    int64_t expected = i == 2 ? n_tokens : q->shape[i];
    if (x->shape[i] != expected)
      return sv_fail(SV_ERR_ARG, "probe: %s.shape[%d] is %lld, expected %lld (= %s)", name, i,
                     (long long)x->shape[i], (long long)expected, sources[i]);
  }
  if (x->stride[3] != 1)
    return sv_fail(SV_ERR_ARG, "probe: the last dimension of %s has stride %lld, expected 1 (contiguous)",
                   name, (long long)x->stride[3]);
  if (sv_dtype_bytes(x->dtype) == 0)
    return sv_fail(SV_ERR_TYPE, "probe: %s has dtype number %d, expected float32, bfloat16 or float16", name,
                   (int)x->dtype);
  return SV_OK;
}

static sv_status check_tensors(const sv_probe_args *a) {
  const int64_t n_tokens = sv_geometry_tokens(&a->geometry);
  SV_TRY(check_shape("q", &a->q, &a->q, n_tokens));
  SV_TRY(check_shape("k", &a->k, &a->q, n_tokens));
  SV_TRY(check_shape("v", &a->v, &a->q, n_tokens));
  if (a->k.dtype != a->q.dtype)
    return sv_fail(SV_ERR_TYPE, "probe: k is %s, expected %s like q", sv_dtype_name(a->k.dtype),
                   sv_dtype_name(a->q.dtype));
  const int64_t *shape = a->q.shape;
  if (shape[0] < 1 || shape[1] < 1 || shape[0] > INT32_MAX || shape[1] > INT32_MAX)
    return sv_fail(SV_ERR_ARG,
                   "probe: q has shape [%lld, %lld, ...], expected 1..2147483647 samples and heads",
                   (long long)shape[0], (long long)shape[1]);
  if (shape[3] < 8 || shape[3] > SV_MAX_HEAD_DIM || shape[3] % 8 != 0)
    return sv_fail(SV_ERR_UNSUPPORTED, "probe: head_dim is %lld, expected a multiple of 8 in 8..%d",
                   (long long)shape[3], SV_MAX_HEAD_DIM);
  return SV_OK;
}

static sv_status check_rows(const sv_probe_args *a) {
  const int64_t n_tokens = sv_geometry_tokens(&a->geometry);
  if (a->n_rows < 1 || a->n_rows > INT32_MAX)
    return sv_fail(SV_ERR_ARG, "probe: there are %lld rows, expected 1..2147483647", (long long)a->n_rows);
  for (int64_t i = 0; i < a->n_rows; i++)
    if (a->rows[i] < 0 || a->rows[i] >= n_tokens)
      return sv_fail(SV_ERR_ARG, "probe: rows[%lld] is %d, expected 0..%lld", (long long)i, (int)a->rows[i],
                     (long long)n_tokens - 1);
  return SV_OK;
}

static sv_status check_numbers(const sv_probe_args *a) {
  if (!isfinite(a->scale) || fabs(a->scale) > MAX_SCALE)
    return sv_fail(SV_ERR_ARG, "probe: scale is %g, expected a finite number of at most %g in size", a->scale,
                   MAX_SCALE);
  if (a->n_betas < 0 || a->n_betas > SV_PROBE_MAX_BETAS)
    return sv_fail(SV_ERR_ARG, "probe: there are %lld betas, expected at most %d", (long long)a->n_betas,
                   SV_PROBE_MAX_BETAS);
  for (int64_t i = 0; i < a->n_betas; i++)
    if (!isfinite(a->betas[i]) || fabs(a->betas[i]) > MAX_BETA)
      return sv_fail(SV_ERR_ARG, "probe: betas[%lld] is %g, expected a finite number of at most %g in size",
                     (long long)i, a->betas[i], MAX_BETA);
  return SV_OK;
}

static sv_status check_candidates(const sv_probe_args *a) {
  if (a->n_candidates < 0 || a->n_candidates > INT32_MAX || a->n_codes < 0 || a->n_orders < 0)
    return sv_fail(SV_ERR_ARG, "probe: there are %lld candidates, %lld codes, %lld orders, expected counts",
                   (long long)a->n_candidates, (long long)a->n_codes, (long long)a->n_orders);
  for (int64_t c = 0; c < a->n_candidates; c++)
    if (a->orders[c] < -1 || a->orders[c] >= a->n_orders)
      return sv_fail(SV_ERR_ARG, "probe: orders[%lld] is %d, expected -1..%lld", (long long)c,
                     (int)a->orders[c], (long long)a->n_orders - 1);
  return SV_OK;
}

static sv_status check_kv_len(const sv_probe_args *a) {
  const int64_t n_tokens = sv_geometry_tokens(&a->geometry), least = n_tokens - a->geometry.suffix;
  for (int64_t b = 0; a->kv_len && b < a->q.shape[0]; b++)
    if (a->kv_len[b] < least || a->kv_len[b] > n_tokens)
      return sv_fail(SV_ERR_ARG,
                     "probe: kv_len[%lld] is %lld, expected %lld..%lld (prefix + video .. tokens)",
                     (long long)b, (long long)a->kv_len[b], (long long)least, (long long)n_tokens);
  return SV_OK;
}

static sv_status check_stripes(const sv_probe_args *a) {
  const int64_t nk = sv_geometry_key_blocks(&a->geometry), m = a->n_stripe_blocks;
  if (a->n_stripes < 0 || a->n_stripes > INT32_MAX || m < 0)
    return sv_fail(SV_ERR_ARG, "probe: there are %lld stripes of %lld blocks, expected counts",
                   (long long)a->n_stripes, (long long)m);
  for (int64_t s = 0; s < a->n_stripes; s++)
    if (a->stripe_counts[s] < 0 || a->stripe_counts[s] > m)
      return sv_fail(SV_ERR_ARG,
                     "probe: stripe_counts[%lld] is %d, expected 0..%lld (blocks of a head's stripes)",
                     (long long)s, (int)a->stripe_counts[s], (long long)m);
  for (int64_t i = 0; a->n_stripes > 0 && i < a->q.shape[1] * m; i++)
    if (a->stripes[i] < 0 || a->stripes[i] >= nk)
      return sv_fail(SV_ERR_ARG, "probe: stripes[%lld, %lld] is %d, expected 0..%lld", (long long)(i / m),
                     (long long)(i % m), (int)a->stripes[i], (long long)nk - 1);
  return SV_OK;
}

sv_status sv_probe_check(const sv_probe_args *a) {
  SV_TRY(sv_geometry_check(&a->geometry));
  SV_TRY(check_tensors(a));
  SV_TRY(check_rows(a));
  SV_TRY(check_numbers(a));
  SV_TRY(check_candidates(a));
  SV_TRY(check_kv_len(a));
  return check_stripes(a);
}
