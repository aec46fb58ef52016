/* convert.c — from Python objects to the core's structs. Names of types and dtypes are found as text, so
 * that ml_dtypes' bfloat16 is known without importing it. */
#include "pyext/convert.h"

static sv_status refuse_type(const char *who, const char *name, PyObject *object, const char *expected) {
  PyObject *type_name = PyType_GetName(Py_TYPE(object));
  const char *text = type_name ? PyUnicode_AsUTF8AndSize(type_name, NULL) : NULL;
  sv_status status =
      sv_fail(SV_ERR_TYPE, "%s: %s is %s, expected %s", who, name, text ? text : "?", expected);
  Py_XDECREF(type_name);
  PyErr_Clear();
  return status;
}

static sv_status refuse_dtype(const char *who, const char *name, PyArrayObject *array, const char *expected) {
  PyObject *dtype_name = PyObject_Str((PyObject *)PyArray_DESCR(array));
  const char *text = dtype_name ? PyUnicode_AsUTF8AndSize(dtype_name, NULL) : NULL;
  sv_status status =
      sv_fail(SV_ERR_TYPE, "%s: %s is %.60s, expected %s", who, name, text ? text : "?", expected);
  Py_XDECREF(dtype_name);
  PyErr_Clear();
  return status;
}

/* ---- integers ---- */

static sv_status take_int(const char *who, const char *name, int64_t at, PyObject *object, int64_t *out) {
  PyObject *number = PyFloat_Check(object) || PyBool_Check(object) ? NULL : PyNumber_Index(object);
  if (!number) {
    char place[64];
    (void)PyOS_snprintf(place, sizeof place, "%s[%lld]", name, (long long)at);
    return refuse_type(who, place, object, "an integer");
  }
  *out = PyLong_AsLongLong(number);
  Py_DECREF(number);
  if (*out != -1 || !PyErr_Occurred()) return SV_OK;
  PyErr_Clear();
  return sv_fail(SV_ERR_ARG, "%s: %s[%lld] has more than 64 bits, expected an int64", who, name,
                 (long long)at);
}

sv_status svpy_to_ints(const char *who, const char *name, PyObject *object, int64_t n, int64_t *out) {
  if (!PyTuple_Check(object) && !PyList_Check(object))
    return refuse_type(who, name, object, "a tuple of integers");
  Py_ssize_t length = PySequence_Size(object);
  if (length != n)
    return sv_fail(SV_ERR_ARG, "%s: %s has %lld integers, expected %lld", who, name, (long long)length,
                   (long long)n);
  for (Py_ssize_t i = 0; i < n; i++) {
    PyObject *item = PySequence_GetItem(object, i);
    if (!item) return sv_fail(SV_ERR_ARG, "%s: %s changed while it was read", who, name);
    sv_status status = take_int(who, name, i, item, &out[i]);
    Py_DECREF(item);
    if (status != SV_OK) return status;
  }
  return SV_OK;
}

sv_status svpy_to_geometry(const char *who, PyObject *object, sv_geometry *out) {
  int64_t g[SV_GEOMETRY_INTS];
  SV_TRY(svpy_to_ints(who, "geometry", object, SV_GEOMETRY_INTS, g));
  *out = (sv_geometry){g[0], g[1], g[2], g[3], g[4], g[5], g[6]};
  return sv_geometry_check(out);
}

sv_status svpy_to_order(const char *who, PyObject *object, sv_order *out) {
  int64_t ints[SV_ORDER_INTS];
  SV_TRY(svpy_to_ints(who, "order", object, SV_ORDER_INTS, ints));
  *out = (sv_order){ints[0], {ints[1], ints[2], ints[3]}};
  return sv_order_check(out);
}

/* ---- arrays ---- */

static const char *name_numpy_type(int numpy_type) {
  switch (numpy_type) {
  case NPY_BOOL:
    return "bool";
  case NPY_INT32:
    return "int32";
  case NPY_UINT32:
    return "uint32";
  case NPY_INT64:
    return "int64";
  case NPY_DOUBLE:
    return "float64";
  default:
    return "float32";
  }
}

static sv_status check_shape(const char *who, const char *name, PyArrayObject *array, int n_dims,
                             const int64_t *shape) {
  if (PyArray_NDIM(array) != n_dims)
    return sv_fail(SV_ERR_ARG, "%s: %s has %d dimensions, expected %d", who, name, PyArray_NDIM(array),
                   n_dims);
  for (int i = 0; i < n_dims; i++) {
    if (shape[i] != SVPY_ANY && PyArray_DIM(array, i) != shape[i])
      return sv_fail(SV_ERR_ARG, "%s: %s.shape[%d] is %lld, expected %lld", who, name, i,
                     (long long)PyArray_DIM(array, i), (long long)shape[i]);
  }
  return SV_OK;
}

sv_status svpy_to_array(const char *who, const char *name, PyObject *object, int numpy_type, int n_dims,
                        const int64_t *shape, PyArrayObject **out) {
  *out = NULL;
  if (!PyArray_Check(object)) return refuse_type(who, name, object, "numpy.ndarray");
  PyArrayObject *array = (PyArrayObject *)object;
  if (!PyArray_EquivTypenums(PyArray_TYPE(array), numpy_type) || PyArray_ISBYTESWAPPED(array))
    return refuse_dtype(who, name, array, name_numpy_type(numpy_type));
  SV_TRY(check_shape(who, name, array, n_dims, shape));
  if (!PyArray_IS_C_CONTIGUOUS(array) || !PyArray_ISALIGNED(array))
    return sv_fail(SV_ERR_ARG, "%s: %s is not C-contiguous and aligned, expected it to be", who, name);
  *out = array;
  return SV_OK;
}

sv_status svpy_to_dtype(const char *who, const char *name, const char *dtype_name, int32_t *out) {
  for (int32_t dtype = SV_F32; dtype <= SV_F16; dtype++) {
    if (strcmp(dtype_name, sv_dtype_name(dtype)) != 0) continue;
    *out = dtype;
    return SV_OK;
  }
  return sv_fail(SV_ERR_TYPE, "%s: %s is %.60s, expected float32, float16 or bfloat16", who, name,
                 dtype_name);
}

static sv_status find_dtype(const char *who, const char *name, PyArrayObject *array, int32_t *out) {
  PyObject *dtype_name = PyObject_Str((PyObject *)PyArray_DESCR(array));
  const char *text = dtype_name ? PyUnicode_AsUTF8AndSize(dtype_name, NULL) : NULL;
  sv_status status = text ? svpy_to_dtype(who, name, text, out) : SV_ERR_TYPE; /* Python's error is set */
  Py_XDECREF(dtype_name);
  return status;
}

sv_status svpy_to_tensor(const char *who, const char *name, PyObject *object, sv_tensor *out) {
  if (!PyArray_Check(object)) return refuse_type(who, name, object, "numpy.ndarray");
  PyArrayObject *array = (PyArrayObject *)object;
  *out = (sv_tensor){.data = PyArray_DATA(array), .ndim = PyArray_NDIM(array)};
  SV_TRY(find_dtype(who, name, array, &out->dtype));
  if (out->ndim != 4)
    return sv_fail(SV_ERR_ARG, "%s: %s has %d dimensions, expected 4 (batch, head, token, channel)", who,
                   name, out->ndim);
  int64_t bytes = sv_dtype_bytes(out->dtype);
  bool is_aligned = (uintptr_t)out->data % (uintptr_t)bytes == 0;
  for (int i = 0; i < 4; i++) {
    out->shape[i] = PyArray_DIM(array, i);
    int64_t stride = PyArray_STRIDE(array, i);
    is_aligned = is_aligned && (stride % bytes == 0 || out->shape[i] < 2);
    out->stride[i] = stride / bytes;
  }
  if (is_aligned) return SV_OK;
  return sv_fail(SV_ERR_ARG,
                 "%s: %s is not aligned, expected an address and strides that are multiples of %lld bytes",
                 who, name, (long long)bytes);
}

sv_status svpy_to_kv_len(const char *who, PyObject *object, int64_t n_batch, const int64_t **out) {
  *out = NULL;
  if (Py_IsNone(object)) return SV_OK;
  PyArrayObject *array;
  SV_TRY(svpy_to_array(who, "kv_len", object, NPY_INT64, 1, &n_batch, &array));
  *out = PyArray_DATA(array);
  return SV_OK;
}
