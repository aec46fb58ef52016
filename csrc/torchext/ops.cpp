/* ops.cpp — the bodies of torch.ops.sparse_vdit.*: tensors become views, the core does the work through the
 * table of _C, a status becomes the C++ exception that arrives in Python as the promised class. Kernels run
 * without the GIL. */
#include "torchext/ops.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <new>
#include <optional>
#include <tuple>
#include <vector>

#include "torchext/tensor.h"

namespace sv::torchext {

using torch::stable::detail::StableLibrary;
using torch::stable::detail::StableTorchLibraryInit;

static const sv_api *table;

/* Arrives as MemoryError, with our sentence. */
class OutOfMemory : public std::bad_alloc {
public:
  explicit OutOfMemory(const char *sentence) : sentence_(sentence) {}
  const char *what() const noexcept override { return sentence_.c_str(); }

private:
  std::string sentence_;
};

static void check(sv_status status) {
  if (status == SV_OK) return;
  if (status == SV_ERR_ARG || status == SV_ERR_TYPE) throw std::invalid_argument(table->last_error());
  if (status == SV_ERR_NOMEM) throw OutOfMemory(table->last_error());
  throw std::runtime_error(table->last_error());
}

static void fill_lists(const Tensor &items, const Tensor &codes, const Tensor &heads, const Tensor &betas,
                       const Tensor &tokens, const Tensor &bin, sv_layer_call *call) {
  call->items = view_of_type(items, "items", ScalarType::Int, "int32");
  call->codes = view_of_type(codes, "codes", ScalarType::Int, "int32");
  call->heads = view_of_type(heads, "heads", ScalarType::Int, "int32");
  call->betas = view_of_type(betas, "betas", ScalarType::Float, "float32");
  call->tokens = view_of_type(tokens, "tokens", ScalarType::Int, "int32");
  const sv_tensor number = view_of_type(bin, "bin", ScalarType::Long, "int64");
  if (bin.numel() != 1) throw std::invalid_argument(say("bin", "of another shape", "[1]"));
  call->bin = *static_cast<const int64_t *>(number.data);
}

static void fill_geometry(const std::vector<int64_t> &geometry, sv_layer_call *call) {
  if (geometry.size() != SV_GEOMETRY_INTS) {
    throw std::invalid_argument("attention: geometry has " + std::to_string(geometry.size()) +
                                " integers, expected 7");
  }
  for (size_t i = 0; i < SV_GEOMETRY_INTS; i++) call->geometry[i] = geometry[i];
}

static std::tuple<Tensor, Tensor> attention(const Tensor &q, const Tensor &k, const Tensor &v,
                                            const Tensor &items, const Tensor &codes, const Tensor &heads,
                                            const Tensor &betas, const Tensor &tokens, const Tensor &bin,
                                            const std::vector<int64_t> geometry, double scale,
                                            const std::optional<Tensor> kv_len, bool return_lse) {
  if (q.dim() != 4) throw std::invalid_argument("attention: q has another number of dimensions, expected 4");
  sv_layer_call call = {};
  call.q = view_float(q, "q");
  call.k = view_float(k, "k");
  call.v = view_float(v, "v");
  fill_lists(items, codes, heads, betas, tokens, bin, &call);
  fill_geometry(geometry, &call);
  call.scale = scale;
  if (kv_len) call.kv_len = view_of_type(*kv_len, "kv_len", ScalarType::Long, "int64");
  Tensor out = new_like(q), lse = new_lse(q, return_lse);
  call.out = view_float(out, "out");
  if (return_lse) call.lse = view(lse, "lse");
  check(table->attention(&call));
  return {out, lse};
}

static void add_cpu(StableLibrary &library) { library.impl("attention", TORCH_BOX(&attention)); }

void register_kernels(const sv_api *api) {
  table = api;
  constexpr auto kind = StableLibrary::Kind::IMPL;
  static StableTorchLibraryInit on_cpu(kind, add_cpu, "sparse_vdit", "CPU", __FILE__, __LINE__);
}

} // namespace sv::torchext
