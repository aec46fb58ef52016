/* cost.c — prices for Python: _C.cost_layers, _C.cost_heads; the constants: _C.hardware_names, _C.hardware_engine. */
#include "search/cost.h"

#include "pyext/convert.h"
#include "pyext/layer.h"
#include "pyext/module.h"

typedef struct cost_call {
  sv_hardware hardware;
  sv_cost_pool pool;
} cost_call;

/* The arguments that both calls share. */
typedef struct cost_door {
  PyObject *hardware, *geometry, *rows, *codes, *orders;
  long long batch, heads;
} cost_door;

static sv_status take_pool(const cost_door *d, cost_call *out) {
  const int64_t any[] = {SVPY_ANY};
  PyArrayObject *constants, *rows, *codes, *orders;
  SV_TRY(svpy_to_array("cost", "hardware", d->hardware, NPY_DOUBLE, 1, any, &constants));
  SV_TRY(sv_hardware_read(PyArray_DATA(constants), PyArray_DIM(constants, 0), &out->hardware));
  SV_TRY(svpy_to_geometry("cost", d->geometry, &out->pool.geometry));
  const int64_t shape[] = {SVPY_ANY, sv_geometry_query_blocks(&out->pool.geometry), 4};
  SV_TRY(svpy_to_array("cost", "visit_rows", d->rows, NPY_UINT32, 3, shape, &rows));
  SV_TRY(svpy_to_array("cost", "codes", d->codes, NPY_UINT32, 1, any, &codes));
  out->pool.n_patterns = PyArray_DIM(rows, 0);
  SV_TRY(svpy_to_array("cost", "orders", d->orders, NPY_INT32, 1, &out->pool.n_patterns, &orders));
  out->pool.rows = PyArray_DATA(rows);
  out->pool.codes = PyArray_DATA(codes);
  out->pool.n_codes = PyArray_DIM(codes, 0);
  out->pool.orders = PyArray_DATA(orders);
  out->pool.n_samples = d->batch;
  out->pool.n_heads = d->heads;
  return SV_OK;
}

SVPY_FUNCTION(svpy_cost_layers) {
  static char *names[] = {"hardware",  "geometry", "visit_rows", "codes", "choice",
                          "remainder", "orders",   "batch",      NULL};
  cost_door d = {0};
  PyObject *choice, *remainder;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOOOL:cost_layers", names, &d.hardware, &d.geometry,
                                   &d.rows, &d.codes, &choice, &remainder, &d.orders, &d.batch))
    return NULL;
  cost_call c = {0};
  const int64_t any[] = {SVPY_ANY, SVPY_ANY};
  int64_t mixes[] = {0, 0};
  PyArrayObject *choices, *flags;
  sv_status status = svpy_to_array("cost", "choice", choice, NPY_INT32, 2, any, &choices);
  if (status == SV_OK) {
    for (int i = 0; i < 2; i++) mixes[i] = PyArray_DIM(choices, i);
    d.heads = mixes[1];
    status = take_pool(&d, &c);
  }
  if (status == SV_OK) status = svpy_to_array("cost", "remainder", remainder, NPY_BOOL, 2, mixes, &flags);
  if (status != SV_OK) return svpy_raise(module, status, NULL);
  npy_intp shape[] = {(npy_intp)mixes[0], (npy_intp)mixes[1]};
  PyObject *ms = PyArray_SimpleNew(1, shape, NPY_DOUBLE), *head_ms = PyArray_SimpleNew(2, shape, NPY_DOUBLE);
  PyObject *result = ms && head_ms ? PyTuple_Pack(2, ms, head_ms) : NULL;
  Py_XDECREF(ms);
  Py_XDECREF(head_ms);
  if (!result) return NULL;
  svpy_poll poll;
  svpy_poll_open(&poll);
  Py_BEGIN_ALLOW_THREADS;
  status =
      sv_cost_layers(&c.hardware, &c.pool, mixes[0], PyArray_DATA(choices), PyArray_DATA(flags), &poll.poll,
                     PyArray_DATA((PyArrayObject *)ms), PyArray_DATA((PyArrayObject *)head_ms));
  Py_END_ALLOW_THREADS;
  return svpy_finish(module, status, &poll, result);
}

SVPY_FUNCTION(svpy_cost_heads) {
  static char *names[] = {"hardware", "geometry", "visit_rows", "codes", "orders", "batch", "heads", NULL};
  cost_door d;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOLL:cost_heads", names, &d.hardware, &d.geometry,
                                   &d.rows, &d.codes, &d.orders, &d.batch, &d.heads))
    return NULL;
  cost_call c = {0};
  sv_status status = take_pool(&d, &c);
  if (status != SV_OK) return svpy_raise(module, status, NULL);
  npy_intp shape[] = {(npy_intp)c.pool.n_patterns, 2};
  PyObject *ms = PyArray_SimpleNew(2, shape, NPY_DOUBLE);
  if (!ms) return NULL;
  svpy_poll poll;
  svpy_poll_open(&poll);
  Py_BEGIN_ALLOW_THREADS;
  status = sv_cost_heads(&c.hardware, &c.pool, &poll.poll, PyArray_DATA((PyArrayObject *)ms));
  Py_END_ALLOW_THREADS;
  return svpy_finish(module, status, &poll, ms);
}

SVPY_FUNCTION(svpy_hardware_names) {
  (void)module, (void)keywords;
  if (!PyArg_ParseTuple(args, ":hardware_names")) return NULL;
  PyObject *names = PyTuple_New((Py_ssize_t)SV_HARDWARE_N);
  for (int64_t i = 0; names && i < SV_HARDWARE_N; i++) {
    PyObject *name = PyUnicode_FromString(sv_hardware_name(i));
    if (!name || PyTuple_SetItem(names, (Py_ssize_t)i, name) != 0) Py_CLEAR(names); /* took the name */
  }
  return names;
}

SVPY_FUNCTION(svpy_hardware_engine) {
  static char *names[] = {"dtype", "head_dim", NULL};
  const char *dtype_name;
  long long head_dim;
  int32_t dtype;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "sL:hardware_engine", names, &dtype_name, &head_dim))
    return NULL;
  npy_intp n = (npy_intp)SV_HARDWARE_N;
  PyObject *constants = PyArray_SimpleNew(1, &n, NPY_DOUBLE);
  if (!constants) return NULL;
  sv_status status = svpy_check_environment();
  if (status == SV_OK) status = svpy_to_dtype("hardware", "dtype", dtype_name, &dtype);
  if (status == SV_OK) status = sv_hardware_engine(dtype, head_dim, PyArray_DATA((PyArrayObject *)constants));
  return svpy_finish(module, status, NULL, constants);
}
