/* layer.c — from the packed arrays of all bins to one call of the core. */
#include "pyext/layer.h"

#include <stdatomic.h>

#include "base/cpu.h"
#include "base/parallel.h"
#include "base/scratch.h"

sv_status svpy_check_environment(void) {
  static atomic_bool is_fine;
  if (atomic_load_explicit(&is_fine, memory_order_relaxed)) return SV_OK;
  SV_TRY(sv_cpu_check());
  SV_TRY(sv_parallel_check());
  atomic_store(&is_fine, true);
  return SV_OK;
}

sv_status svpy_make_heads(const int32_t *heads, const float *betas, int64_t n_heads, sv_head **out) {
  void *block;
  SV_TRY(sv_scratch_alloc("attention", (size_t)n_heads * sizeof(sv_head), &block));
  *out = block;
  for (int64_t h = 0; h < n_heads; h++) (*out)[h] = (sv_head){heads[2 * h], heads[2 * h + 1], betas[h]};
  return SV_OK;
}

sv_status svpy_check_heads(const sv_tensor *q, int64_t n_heads) {
  if (q->shape[1] == n_heads) return SV_OK;
  return sv_fail(SV_ERR_ARG, "attention: q.shape[1] is %lld, expected %lld (= heads of the layer plan)",
                 (long long)q->shape[1], (long long)n_heads);
}

static int64_t count_items(const sv_item *items, int64_t n) {
  int64_t low = 0, high = n; /* the filling is a tail */
  while (low < high) {
    int64_t middle = low + (high - low) / 2;
    if (items[middle].head_kind == UINT32_MAX)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

/* `view` is contiguous and has that shape; -1 = any length. */
static sv_status check_list(const char *name, const sv_tensor *view, int n_dims, const int64_t *shape) {
  if (view->ndim != n_dims)
    return sv_fail(SV_ERR_ARG, "attention: %s has %d dimensions, expected %d", name, (int)view->ndim, n_dims);
  int64_t stride = 1, n_elements = 1;
  for (int i = 0; i < n_dims; i++) {
    if (shape[i] != -1 && view->shape[i] != shape[i])
      return sv_fail(SV_ERR_ARG, "attention: %s.shape[%d] is %lld, expected %lld", name, i,
                     (long long)view->shape[i], (long long)shape[i]);
    n_elements *= view->shape[i];
  }
  for (int i = n_dims - 1; i >= 0 && n_elements > 0; i--) {
    if (view->shape[i] > 1 && view->stride[i] != stride)
      return sv_fail(SV_ERR_ARG, "attention: %s.stride[%d] is %lld, expected %lld (contiguous)", name, i,
                     (long long)view->stride[i], (long long)stride);
    stride *= view->shape[i];
  }
  return SV_OK;
}

static sv_status check_lists(const sv_layer_call *c, int64_t n_tokens) {
  if (c->q.ndim != 4)
    return sv_fail(SV_ERR_ARG, "attention: q has %d dimensions, expected 4 (batch, head, token, channel)",
                   (int)c->q.ndim);
  const int64_t n_bins = c->items.shape[0], n_heads = c->heads.shape[1];
  if (c->heads.ndim == 3) SV_TRY(svpy_check_heads(&c->q, n_heads));
  SV_TRY(check_list("items", &c->items, 3, (const int64_t[]){-1, -1, 4}));
  SV_TRY(check_list("codes", &c->codes, 1, (const int64_t[]){-1}));
  SV_TRY(check_list("heads", &c->heads, 3, (const int64_t[]){n_bins, -1, 2}));
  SV_TRY(check_list("betas", &c->betas, 2, (const int64_t[]){n_bins, n_heads}));
  SV_TRY(check_list("tokens", &c->tokens, 2, (const int64_t[]){-1, n_tokens}));
  if (c->kv_len.data) SV_TRY(check_list("kv_len", &c->kv_len, 1, (const int64_t[]){c->q.shape[0]}));
  if (c->bin >= 0 && c->bin < n_bins) return SV_OK;
  return sv_fail(SV_ERR_ARG, "attention: bin is %lld, expected 0..%lld", (long long)c->bin,
                 (long long)n_bins - 1);
}

static sv_status run_bin(const sv_layer_call *c, const sv_geometry *g, const sv_head *heads,
                         const sv_poll *poll) {
  const sv_item *items = (const sv_item *)c->items.data + c->bin * c->items.shape[1];
  const sv_attention_args args = {
      .geometry = *g,
      .q = c->q,
      .k = c->k,
      .v = c->v,
      .out = c->out,
      .lse = c->lse,
      .items = items,
      .n_items = count_items(items, c->items.shape[1]),
      .codes = c->codes.data,
      .n_codes = c->codes.shape[0],
      .heads = heads,
      .tokens = c->tokens.data,
      .n_orders = c->tokens.shape[0],
      .kv_len = c->kv_len.data,
      .scale = c->scale,
      .poll = poll,
  };
  return sv_attention_cpu(&args);
}

sv_status svpy_layer_run(const sv_layer_call *c, const sv_poll *poll) {
  const int64_t *ints = c->geometry, n_heads = c->heads.shape[1];
  const sv_geometry g = {ints[0], ints[1], ints[2], ints[3], ints[4], ints[5], ints[6]};
  SV_TRY(svpy_check_environment());
  SV_TRY(sv_geometry_check(&g));
  SV_TRY(check_lists(c, sv_geometry_tokens(&g)));
  sv_head *heads;
  SV_TRY(svpy_make_heads((const int32_t *)c->heads.data + 2 * c->bin * n_heads,
                         (const float *)c->betas.data + c->bin * n_heads, n_heads, &heads));
  sv_status status = run_bin(c, &g, heads, poll);
  sv_scratch_free(heads);
  return status;
}
