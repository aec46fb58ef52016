/* tensor.h — a borrowed view of up to four dimensions: pointer, dtype, shape, strides in ELEMENTS.
 * It owns nothing. Negative and zero strides are legal where a door does not refuse them. */
#ifndef SV_BASE_TENSOR_H
#define SV_BASE_TENSOR_H

#include <stdint.h>

#include "base/status.h"

SV_EXTERN_C_BEGIN

typedef enum sv_dtype { SV_F32 = 0, SV_BF16 = 1, SV_F16 = 2 } sv_dtype;

typedef struct sv_tensor {
  void *data;
  int32_t dtype; /* sv_dtype */
  int32_t ndim;
  int64_t shape[4];
  int64_t stride[4]; /* elements */
} sv_tensor;

/* sv_dtype_name — "float32", "bfloat16", "float16"; "unknown" otherwise. */
const char *sv_dtype_name(int32_t dtype);
/* sv_dtype_bytes — 4, 2, 2; 0 otherwise. */
int64_t sv_dtype_bytes(int32_t dtype);

SV_EXTERN_C_END
#endif
