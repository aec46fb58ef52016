/* tensor.c — names and sizes of the element types. */
#include "base/tensor.h"

const char *sv_dtype_name(int32_t dtype) {
  static const char *const names[] = {"float32", "bfloat16", "float16"};
  return dtype >= SV_F32 && dtype <= SV_F16 ? names[dtype] : "unknown";
}

int64_t sv_dtype_bytes(int32_t dtype) {
  static const int64_t bytes[] = {4, 2, 2};
  return dtype >= SV_F32 && dtype <= SV_F16 ? bytes[dtype] : 0;
}
