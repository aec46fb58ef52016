/* pointers.c — the operator over raw pointers: the body of sparse_vdit/ops.py where _torch is absent. Each
 * tensor comes as (address, shape, strides in elements) with a shape of its own, so that the checks see
 * what is really there. Addresses are the caller's word: only ops.py calls this. */
#include "pyext/convert.h"
#include "pyext/layer.h"
#include "pyext/module.h"

#define WHO "attention_pointers"

/* (address, shape, strides); an address of 0 is a missing tensor. */
static sv_status take_view(const char *name, PyObject *object, int32_t dtype, sv_tensor *out) {
  PyObject *address, *shape, *stride;
  if (!PyTuple_Check(object) || !PyArg_ParseTuple(object, "OOO", &address, &shape, &stride)) {
    PyErr_Clear();
    return sv_fail(SV_ERR_TYPE, WHO ": %s is not (address, shape, strides), expected it to be", name);
  }
  Py_ssize_t n_dims = PyTuple_Check(shape) ? PyTuple_Size(shape) : -1;
  if (n_dims < 0 || n_dims > 4)
    return sv_fail(SV_ERR_ARG, WHO ": %s has %lld dimensions, expected at most 4", name, (long long)n_dims);
  *out = (sv_tensor){.data = PyLong_AsVoidPtr(address), .dtype = dtype, .ndim = (int32_t)n_dims};
  if (!out->data && PyErr_Occurred()) return SV_ERR_TYPE;
  SV_TRY(svpy_to_ints(WHO, name, shape, n_dims, out->shape));
  return svpy_to_ints(WHO, name, stride, n_dims, out->stride);
}

static sv_status take_call(const char *dtype_name, PyObject *const *views, PyObject *const *lists,
                           PyObject *geometry, PyObject *kv_len, sv_layer_call *c) {
  int32_t dtype;
  SV_TRY(svpy_to_dtype("attention", "q", dtype_name, &dtype));
  SV_TRY(svpy_to_ints("attention", "geometry", geometry, SV_GEOMETRY_INTS, c->geometry));
  SV_TRY(take_view("q", views[0], dtype, &c->q));
  SV_TRY(take_view("k", views[1], dtype, &c->k));
  SV_TRY(take_view("v", views[2], dtype, &c->v));
  SV_TRY(take_view("out", views[3], dtype, &c->out));
  if (!Py_IsNone(views[4])) SV_TRY(take_view("lse", views[4], SV_F32, &c->lse));
  SV_TRY(take_view("items", lists[0], SV_F32, &c->items));
  SV_TRY(take_view("codes", lists[1], SV_F32, &c->codes));
  SV_TRY(take_view("heads", lists[2], SV_F32, &c->heads));
  SV_TRY(take_view("betas", lists[3], SV_F32, &c->betas));
  SV_TRY(take_view("tokens", lists[4], SV_F32, &c->tokens));
  return Py_IsNone(kv_len) ? SV_OK : take_view("kv_len", kv_len, SV_F32, &c->kv_len);
}

SVPY_FUNCTION(svpy_attention_pointers) {
  static char *names[] = {"dtype", "q",     "k",      "v",   "out",      "lse",   "items",  "codes",
                          "heads", "betas", "tokens", "bin", "geometry", "scale", "kv_len", NULL};
  const char *dtype_name;
  PyObject *views[5], *lists[5], *geometry, *kv_len;
  long long bin;
  sv_layer_call c = {0};
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "sOOOOOOOOOOLOdO:attention_pointers", names, &dtype_name,
                                   &views[0], &views[1], &views[2], &views[3], &views[4], &lists[0],
                                   &lists[1], &lists[2], &lists[3], &lists[4], &bin, &geometry, &c.scale,
                                   &kv_len))
    return NULL;
  c.bin = bin;
  svpy_poll poll;
  svpy_poll_open(&poll);
  sv_status status = take_call(dtype_name, views, lists, geometry, kv_len, &c);
  if (status == SV_OK) {
    Py_BEGIN_ALLOW_THREADS;
    status = svpy_layer_run(&c, &poll.poll);
    Py_END_ALLOW_THREADS;
  }
  return svpy_finish(module, status, &poll, Py_NewRef(Py_None));
}
