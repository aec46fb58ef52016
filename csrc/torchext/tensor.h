/* tensor.h — torch::stable::Tensor as sv_tensor, and back. A view borrows: keep the tensor alive. */
#ifndef SV_TORCHEXT_TENSOR_H
#define SV_TORCHEXT_TENSOR_H

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <stdexcept>
#include <string>

#include "base/tensor.h"

namespace sv::torchext {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string say(const char *name, const std::string &got, const std::string &expected) {
  return std::string("attention: ") + name + " is " + got + ", expected " + expected;
}

/* Shape, strides and pointer; a tensor of more than four dimensions fits no argument. */
inline sv_tensor view(const Tensor &tensor, const char *name) {
  const int64_t n_dims = tensor.dim();
  if (n_dims > 4) {
    throw std::invalid_argument(std::string("attention: ") + name + " has " + std::to_string(n_dims) +
                                " dimensions, expected at most 4");
  }
  sv_tensor out = {};
  out.data = tensor.numel() ? tensor.data_ptr() : nullptr;
  out.ndim = static_cast<int32_t>(n_dims);
  const auto sizes = tensor.sizes(), strides = tensor.strides();
  for (size_t i = 0; i < static_cast<size_t>(n_dims); i++) {
    out.shape[i] = sizes[i];
    out.stride[i] = strides[i];
  }
  return out;
}

inline sv_tensor view_float(const Tensor &tensor, const char *name) {
  sv_tensor out = view(tensor, name);
  switch (tensor.scalar_type()) {
  case ScalarType::Float:
    out.dtype = SV_F32;
    break;
  case ScalarType::BFloat16:
    out.dtype = SV_BF16;
    break;
  case ScalarType::Half:
    out.dtype = SV_F16;
    break;
  default:
    throw std::invalid_argument(say(name, "of another dtype", "float32, float16 or bfloat16"));
  }
  return out;
}

inline sv_tensor view_of_type(const Tensor &tensor, const char *name, ScalarType type,
                              const char *type_name) {
  if (tensor.scalar_type() != type) throw std::invalid_argument(say(name, "of another dtype", type_name));
  return view(tensor, name);
}

inline Tensor new_strided(const Tensor &like, const std::array<int64_t, 4> &sizes,
                          const std::array<int64_t, 4> &strides, int64_t n_dims, ScalarType type) {
  int32_t device_type = 0, device_index = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  const auto dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  AtenTensorHandle handle = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(n_dims, sizes.data(), strides.data(), dtype,
                                                         device_type, device_index, &handle));
  return Tensor(handle);
}

/* A new tensor in the memory order of q: [B, N, H, D] where its heads lie inside its tokens, else [B, H, N, D]. */
inline Tensor new_like(const Tensor &q) {
  const auto size = q.sizes(), stride = q.strides();
  const int64_t n_heads = size[1], n_tokens = size[2], d = size[3];
  const bool is_transposed = stride[1] < stride[2];
  const int64_t head_stride = is_transposed ? d : n_tokens * d;
  const int64_t token_stride = is_transposed ? n_heads * d : d;
  return new_strided(q, {size[0], n_heads, n_tokens, d},
                     {n_heads * n_tokens * d, head_stride, token_stride, 1}, 4, q.scalar_type());
}

/* float32 [B, H, N], or an empty [0] where it is not wanted. */
inline Tensor new_lse(const Tensor &q, bool is_wanted) {
  const auto size = q.sizes();
  if (!is_wanted) return new_strided(q, {0}, {1}, 1, ScalarType::Float);
  return new_strided(q, {size[0], size[1], size[2]}, {size[1] * size[2], size[2], 1}, 3, ScalarType::Float);
}

} // namespace sv::torchext

#endif
