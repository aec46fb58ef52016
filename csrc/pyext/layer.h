/* layer.h — one call of the operator out of the packed arrays of a layer: what _torch and the raw pointers
 * have in common, so that both give the same bits and the same sentences. */
#ifndef SV_PYEXT_LAYER_H
#define SV_PYEXT_LAYER_H

#include "pyext/api.h"

/* svpy_layer_run — checks the counts, picks the bin, runs. Without the GIL.
 *   contract [alloc scratch | errors of sv_attention_cpu | any thread] */
sv_status svpy_layer_run(const sv_layer_call *call, const sv_poll *poll);
/* svpy_check_environment — the variables SPARSE_VDIT_ISA and SPARSE_VDIT_THREADS hold what they may; read until
 * they do, then never again. */
sv_status svpy_check_environment(void);
/* svpy_check_heads — q has the heads of the layer plan. */
sv_status svpy_check_heads(const sv_tensor *q, int64_t n_heads);
/* svpy_make_heads — the core's heads from [H, 2] (order, flags) and [H] betas; free with sv_scratch_free. */
sv_status svpy_make_heads(const int32_t *heads, const float *betas, int64_t n_heads, sv_head **out);

#endif
