/* attention.c — the NumPy door: arrays in, a new array out; the core runs without the GIL. */
#include "attention/attention.h"

#include "base/scratch.h"
#include "pyext/convert.h"
#include "pyext/layer.h"
#include "pyext/module.h"

/* The arguments of one call as Python gave them. */
typedef struct door {
  PyObject *q, *k, *v, *items, *codes, *heads, *betas, *tokens, *geometry, *kv_len;
  double scale;
  int wants_lse;
} door;

static int parse_door(PyObject *args, PyObject *keywords, door *d) {
  static char *names[] = {"q",      "k",        "v",     "items",  "codes",      "heads", "betas",
                          "tokens", "geometry", "scale", "kv_len", "return_lse", NULL};
  return PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOOOOOdOp:attention", names, &d->q, &d->k, &d->v,
                                     &d->items, &d->codes, &d->heads, &d->betas, &d->tokens, &d->geometry,
                                     &d->scale, &d->kv_len, &d->wants_lse);
}

static sv_status take_tensors(const door *d, sv_attention_args *a) {
  SV_TRY(svpy_check_environment());
  SV_TRY(svpy_to_geometry("attention", d->geometry, &a->geometry));
  SV_TRY(svpy_to_tensor("attention", "q", d->q, &a->q));
  SV_TRY(svpy_to_tensor("attention", "k", d->k, &a->k));
  SV_TRY(svpy_to_tensor("attention", "v", d->v, &a->v));
  a->scale = d->scale;
  return svpy_to_kv_len("attention", d->kv_len, a->q.shape[0], &a->kv_len);
}

static sv_status take_lists(const door *d, sv_attention_args *a, sv_head **out_heads) {
  const int64_t item_shape[] = {SVPY_ANY, 4}, head_shape[] = {SVPY_ANY, 2}, any[] = {SVPY_ANY};
  const int64_t token_shape[] = {SVPY_ANY, sv_geometry_tokens(&a->geometry)};
  PyArrayObject *items, *codes, *heads, *betas, *tokens;
  SV_TRY(svpy_to_array("attention", "items", d->items, NPY_UINT32, 2, item_shape, &items));
  SV_TRY(svpy_to_array("attention", "codes", d->codes, NPY_UINT32, 1, any, &codes));
  SV_TRY(svpy_to_array("attention", "heads", d->heads, NPY_INT32, 2, head_shape, &heads));
  const int64_t n_heads = PyArray_DIM(heads, 0);
  SV_TRY(svpy_check_heads(&a->q, n_heads));
  SV_TRY(svpy_to_array("attention", "betas", d->betas, NPY_FLOAT32, 1, &n_heads, &betas));
  SV_TRY(svpy_to_array("attention", "tokens", d->tokens, NPY_INT32, 2, token_shape, &tokens));
  a->items = PyArray_DATA(items);
  a->n_items = PyArray_DIM(items, 0);
  a->codes = PyArray_DATA(codes);
  a->n_codes = PyArray_DIM(codes, 0);
  a->tokens = PyArray_DATA(tokens);
  a->n_orders = PyArray_DIM(tokens, 0);
  SV_TRY(svpy_make_heads(PyArray_DATA(heads), PyArray_DATA(betas), n_heads, out_heads));
  a->heads = *out_heads;
  return SV_OK;
}

static void view_new(PyObject *array, int32_t dtype, int n_dims, sv_tensor *out) {
  *out = (sv_tensor){.data = PyArray_DATA((PyArrayObject *)array), .dtype = dtype, .ndim = n_dims};
  int64_t stride = 1;
  for (int i = n_dims - 1; i >= 0; i--) {
    out->shape[i] = PyArray_DIM((PyArrayObject *)array, i);
    out->stride[i] = stride;
    stride *= out->shape[i];
  }
}

static void view_missing(const sv_tensor *q, sv_tensor *out) {
  *out = *q;
  out->data = NULL;
  out->stride[3] = 1;
  /* unsigned: the shape is not checked yet and may be anything */
  for (int i = 2; i >= 0; i--)
    out->stride[i] = (int64_t)((uint64_t)out->stride[i + 1] * (uint64_t)out->shape[i + 1]);
}

/* new out like q, C-contiguous, and lse [B, H, N]; -1 with an exception set. */
static int make_outputs(const door *d, sv_attention_args *a, PyObject **out, PyObject **lse) {
  PyArray_Descr *dtype = PyArray_DESCR((PyArrayObject *)d->q);
  Py_INCREF((PyObject *)dtype);
  *out =
      PyArray_NewFromDescr(&PyArray_Type, dtype, 4, PyArray_DIMS((PyArrayObject *)d->q), NULL, NULL, 0, NULL);
  if (!*out) return -1;
  view_new(*out, a->q.dtype, 4, &a->out);
  if (!d->wants_lse) return 0;
  *lse = PyArray_SimpleNew(3, PyArray_DIMS((PyArrayObject *)d->q), NPY_FLOAT32);
  if (!*lse) return -1;
  view_new(*lse, SV_F32, 3, &a->lse);
  return 0;
}

SVPY_FUNCTION(svpy_attention) {
  door d = {.kv_len = Py_None};
  if (!parse_door(args, keywords, &d)) return NULL;
  sv_attention_args a = {0};
  sv_head *heads = NULL;
  PyObject *out = NULL, *lse = NULL, *result = NULL;
  svpy_poll poll;
  svpy_poll_open(&poll);
  a.poll = &poll.poll;
  sv_status status = take_tensors(&d, &a);
  if (status == SV_OK) status = take_lists(&d, &a, &heads);
  if (status == SV_OK) { /* refused shapes must not be allocated for */
    view_missing(&a.q, &a.out);
    status = sv_attention_check(&a);
  }
  if (status == SV_OK && make_outputs(&d, &a, &out, &lse) != 0) status = SV_ERR_NOMEM;
  if (status == SV_OK) {
    Py_BEGIN_ALLOW_THREADS;
    status = sv_attention_cpu(&a);
    Py_END_ALLOW_THREADS;
  }
  if (status == SV_OK) result = lse ? PyTuple_Pack(2, out, lse) : Py_NewRef(out);
  sv_scratch_free(heads);
  Py_XDECREF(out);
  Py_XDECREF(lse);
  return svpy_finish(module, status, &poll, result);
}

/* ---- checks on metadata ---- */

/* (shape, strides in elements, dtype name) */
static sv_status take_metadata(const char *name, PyObject *object, sv_tensor *out) {
  PyObject *shape, *stride;
  const char *dtype_name;
  if (!PyTuple_Check(object) || !PyArg_ParseTuple(object, "OOs", &shape, &stride, &dtype_name)) {
    PyErr_Clear();
    return sv_fail(SV_ERR_TYPE, "attention_check: %s is not (shape, strides, dtype name), expected it to be",
                   name);
  }
  *out = (sv_tensor){.ndim = 4};
  SV_TRY(svpy_to_dtype("attention", name, dtype_name, &out->dtype));
  Py_ssize_t n = PySequence_Size(shape);
  if (n != 4) {
    PyErr_Clear();
    return sv_fail(SV_ERR_ARG, "attention: %s has %lld dimensions, expected 4 (batch, head, token, channel)",
                   name, (long long)n);
  }
  SV_TRY(svpy_to_ints("attention", name, shape, 4, out->shape));
  return svpy_to_ints("attention", name, stride, 4, out->stride);
}

static sv_status check_metadata(PyObject *const *qkv, PyObject *geometry, int64_t n_heads, double scale,
                                const char *device) {
  static const char *const names[] = {"q", "k", "v"};
  sv_attention_args a = {.scale = scale};
  sv_tensor *const views[] = {&a.q, &a.k, &a.v};
  if (strcmp(device, "cpu") != 0)
    return sv_fail(SV_ERR_UNSUPPORTED, "attention: q is on %.40s, expected cpu: %s", device,
                   SV_NO_CUDA_REASON);
  SV_TRY(svpy_check_environment());
  SV_TRY(svpy_to_geometry("attention", geometry, &a.geometry));
  for (int i = 0; i < 3; i++) SV_TRY(take_metadata(names[i], qkv[i], views[i]));
  SV_TRY(svpy_check_heads(&a.q, n_heads));
  view_missing(&a.q, &a.out);
  void *heads;
  SV_TRY(sv_scratch_alloc("attention", (size_t)n_heads * sizeof(sv_head), &heads));
  for (int64_t h = 0; h < n_heads; h++) ((sv_head *)heads)[h] = (sv_head){.order = -1};
  a.heads = heads;
  sv_status status = sv_attention_check(&a);
  sv_scratch_free(heads);
  return status;
}

SVPY_FUNCTION(svpy_attention_check) {
  static char *names[] = {"q", "k", "v", "geometry", "n_heads", "scale", "device", NULL};
  PyObject *qkv[3], *geometry;
  long long n_heads;
  double scale;
  const char *device = "cpu";
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOLd|s:attention_check", names, &qkv[0], &qkv[1],
                                   &qkv[2], &geometry, &n_heads, &scale, &device))
    return NULL;
  sv_status status = check_metadata(qkv, geometry, n_heads, scale, device);
  return svpy_finish(module, status, NULL, Py_NewRef(Py_None));
}

SVPY_FUNCTION(svpy_attention_engine) {
  static char *names[] = {"dtype", "head_dim", NULL};
  const char *dtype_name;
  long long head_dim;
  int32_t dtype;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "sL:attention_engine", names, &dtype_name, &head_dim))
    return NULL;
  sv_status status = svpy_to_dtype("attention_engine", "dtype", dtype_name, &dtype);
  if (status != SV_OK) return svpy_raise(module, status, NULL);
  return PyUnicode_FromString(sv_attention_engine(dtype, head_dim));
}
