/* convert.h — from Python objects to the core's structs, each refusal one sentence "who: got, expected".
 * Nothing here owns what it converts: keep the object alive as long as the struct. */
#ifndef SV_PYEXT_CONVERT_H
#define SV_PYEXT_CONVERT_H

#include "base/tensor.h"
#include "pattern/pattern.h"
#include "pyext/ndarray.h"

#define SVPY_ANY (-1)

/* svpy_to_ints — `n` integers of a tuple or list. */
sv_status svpy_to_ints(const char *who, const char *name, PyObject *object, int64_t n, int64_t *out);
/* svpy_to_geometry, svpy_to_order — from integers, checked against the limits. */
sv_status svpy_to_geometry(const char *who, PyObject *object, sv_geometry *out);
sv_status svpy_to_order(const char *who, PyObject *object, sv_order *out);
/* svpy_to_array — a C-contiguous, aligned, native array of that NumPy type and shape (SVPY_ANY: any
 * length); *out is borrowed. */
sv_status svpy_to_array(const char *who, const char *name, PyObject *object, int numpy_type, int n_dims,
                        const int64_t *shape, PyArrayObject **out);
/* svpy_to_tensor — an array of float32, float16 or a dtype named bfloat16, with free strides. */
sv_status svpy_to_tensor(const char *who, const char *name, PyObject *object, sv_tensor *out);
/* svpy_to_dtype — from "float32", "float16", "bfloat16"; SV_ERR_TYPE for any other name. */
sv_status svpy_to_dtype(const char *who, const char *name, const char *dtype_name, int32_t *out);
/* svpy_to_kv_len — NULL for None, else the int64 [n_batch] of an array. */
sv_status svpy_to_kv_len(const char *who, PyObject *object, int64_t n_batch, const int64_t **out);

#endif
