/* api.h — the table that _C hands to _torch in the capsule "sparse_vdit._C._api": plain C, no Python, so
 * that torchext needs nothing else. Append only; a changed member is a new SV_API_VERSION. */
#ifndef SV_PYEXT_API_H
#define SV_PYEXT_API_H

#include <stdint.h>

#include "attention/attention.h"

SV_EXTERN_C_BEGIN

#define SV_API_VERSION 1
#define SV_API_CAPSULE "sparse_vdit._C._api"

/* sv_layer_call — one call of the operator. The small tensors are C-contiguous; whoever fills the views has
 * checked their element types (int32, float32, int64), the rest is checked by the callee. */
typedef struct sv_layer_call {
  sv_tensor q, k, v, out, lse; /* as in sv_attention_args */
  sv_tensor items;             /* int32 [n_bins, n_items, 4]; a first word of -1 ends a bin's own items */
  sv_tensor codes;             /* int32 [n_codes] */
  sv_tensor heads;             /* int32 [n_bins, H, 2]: row of tokens or -1, flags */
  sv_tensor betas;             /* float32 [n_bins, H] */
  sv_tensor tokens;            /* int32 [n_orders, N] */
  sv_tensor kv_len;            /* int64 [B]; data NULL = none */
  int64_t bin;                 /* 0..n_bins-1 */
  int64_t geometry[SV_GEOMETRY_INTS];
  double scale;
} sv_layer_call;

typedef struct sv_api {
  int64_t version;    /* SV_API_VERSION */
  int64_t size_bytes; /* of this struct, as _C was built */
  /* attention — runs without the GIL; on SV_ERR_INTERRUPTED what the signal raised waits in _C */
  sv_status (*attention)(const sv_layer_call *call);
  /* attention_cuda — NULL: this build has no CUDA kernels */
  sv_status (*attention_cuda)(const sv_layer_call *call, void *stream);
  const char *(*last_error)(void);
} sv_api;

SV_EXTERN_C_END
#endif
