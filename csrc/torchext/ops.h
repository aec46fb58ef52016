/* ops.h — what module.cpp needs of ops.cpp. */
#ifndef SV_TORCHEXT_OPS_H
#define SV_TORCHEXT_OPS_H

#include "pyext/api.h"

namespace sv::torchext {

/* register_kernels — the bodies of torch.ops.sparse_vdit.* for CPU; schemas, and the refusal that stands at the CUDA
 * key of a build without CUDA kernels, are in sparse_vdit/ops.py. */
void register_kernels(const sv_api *api);

} // namespace sv::torchext

#endif
