/* probe.c — _C.probe: arrays in, four new arrays out; the core runs without the GIL. */
#include "search/probe.h"

#include "pyext/convert.h"
#include "pyext/layer.h"
#include "pyext/module.h"

/* The arguments of one call as Python gave them. */
typedef struct door {
  PyObject *q, *k, *v, *rows, *geometry, *visits, *codes, *orders, *tokens, *kv_len, *betas, *stripes,
      *counts;
  double scale;
} door;

static int parse_door(PyObject *args, PyObject *keywords, door *d) {
  static char *names[] = {"q",      "k",          "v",       "rows",          "geometry",
                          "scale",  "visit_rows", "codes",   "orders",        "tokens",
                          "kv_len", "betas",      "stripes", "stripe_counts", NULL};
  return PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOdOOOOOOOO:probe", names, &d->q, &d->k, &d->v,
                                     &d->rows, &d->geometry, &d->scale, &d->visits, &d->codes, &d->orders,
                                     &d->tokens, &d->kv_len, &d->betas, &d->stripes, &d->counts);
}

static sv_status take_tensors(const door *d, sv_probe_args *a) {
  const int64_t any[] = {SVPY_ANY};
  PyArrayObject *rows;
  SV_TRY(svpy_check_environment());
  SV_TRY(svpy_to_geometry("probe", d->geometry, &a->geometry));
  SV_TRY(svpy_to_tensor("probe", "q", d->q, &a->q));
  SV_TRY(svpy_to_tensor("probe", "k", d->k, &a->k));
  SV_TRY(svpy_to_tensor("probe", "v", d->v, &a->v));
  SV_TRY(svpy_to_array("probe", "rows", d->rows, NPY_INT32, 1, any, &rows));
  a->rows = PyArray_DATA(rows);
  a->n_rows = PyArray_DIM(rows, 0);
  a->scale = d->scale;
  return svpy_to_kv_len("probe", d->kv_len, a->q.shape[0], &a->kv_len);
}

static sv_status take_candidates(const door *d, sv_probe_args *a) {
  const int64_t any[] = {SVPY_ANY}, nq = sv_geometry_query_blocks(&a->geometry);
  const int64_t visit_shape[] = {SVPY_ANY, nq, 4},
                token_shape[] = {SVPY_ANY, sv_geometry_tokens(&a->geometry)};
  PyArrayObject *visits, *codes, *orders, *tokens, *betas;
  SV_TRY(svpy_to_array("probe", "visit_rows", d->visits, NPY_UINT32, 3, visit_shape, &visits));
  SV_TRY(svpy_to_array("probe", "codes", d->codes, NPY_UINT32, 1, any, &codes));
  a->visits = PyArray_DATA(visits);
  a->n_candidates = PyArray_DIM(visits, 0);
  a->codes = PyArray_DATA(codes);
  a->n_codes = PyArray_DIM(codes, 0);
  SV_TRY(svpy_to_array("probe", "orders", d->orders, NPY_INT32, 1, &a->n_candidates, &orders));
  SV_TRY(svpy_to_array("probe", "tokens", d->tokens, NPY_INT32, 2, token_shape, &tokens));
  SV_TRY(svpy_to_array("probe", "betas", d->betas, NPY_DOUBLE, 1, any, &betas));
  a->orders = PyArray_DATA(orders);
  a->tokens = PyArray_DATA(tokens);
  a->n_orders = PyArray_DIM(tokens, 0);
  a->betas = PyArray_DATA(betas);
  a->n_betas = PyArray_DIM(betas, 0);
  return SV_OK;
}

static sv_status take_stripes(const door *d, sv_probe_args *a) {
  const int64_t any[] = {SVPY_ANY}, shape[] = {a->q.shape[1], SVPY_ANY};
  PyArrayObject *stripes, *counts;
  SV_TRY(svpy_to_array("probe", "stripe_counts", d->counts, NPY_INT32, 1, any, &counts));
  a->stripe_counts = PyArray_DATA(counts);
  a->n_stripes = PyArray_DIM(counts, 0);
  if (Py_IsNone(d->stripes)) {
    if (a->n_stripes == 0) return SV_OK;
    return sv_fail(SV_ERR_ARG,
                   "probe: stripes is None, expected int32 [H, M] since there are %lld stripe_counts",
                   (long long)a->n_stripes);
  }
  SV_TRY(svpy_to_array("probe", "stripes", d->stripes, NPY_INT32, 2, shape, &stripes));
  a->stripes = PyArray_DATA(stripes);
  a->n_stripe_blocks = PyArray_DIM(stripes, 1);
  return SV_OK;
}

static double *new_numbers(int n_dims, int64_t n_heads, int64_t n, int64_t last, PyObject **out) {
  npy_intp shape[] = {(npy_intp)n_heads, (npy_intp)n, (npy_intp)last};
  *out = PyArray_SimpleNew(n_dims, shape, NPY_DOUBLE);
  return *out ? PyArray_DATA((PyArrayObject *)*out) : NULL;
}

/* (plain, curve, energy, mass), or NULL with an exception set. */
static PyObject *new_results(const sv_probe_args *a, sv_probe_results *out) {
  const int64_t n_heads = a->q.shape[1], n = a->n_candidates + a->n_stripes;
  PyObject *arrays[4] = {NULL}, *result = NULL;
  out->plain = new_numbers(2, n_heads, n, 0, &arrays[0]);
  out->curve = new_numbers(3, n_heads, n, a->n_betas, &arrays[1]);
  out->energy = new_numbers(1, n_heads, 0, 0, &arrays[2]);
  out->mass = new_numbers(2, n_heads, sv_geometry_key_blocks(&a->geometry), 0, &arrays[3]);
  if (arrays[0] && arrays[1] && arrays[2] && arrays[3])
    result = PyTuple_Pack(4, arrays[0], arrays[1], arrays[2], arrays[3]);
  for (int i = 0; i < 4; i++) Py_XDECREF(arrays[i]);
  return result;
}

SVPY_FUNCTION(svpy_probe) {
  door d;
  if (!parse_door(args, keywords, &d)) return NULL;
  sv_probe_args a = {0};
  sv_probe_results results;
  PyObject *result = NULL;
  svpy_poll poll;
  svpy_poll_open(&poll);
  a.poll = &poll.poll;
  sv_status status = take_tensors(&d, &a);
  if (status == SV_OK) status = take_candidates(&d, &a);
  if (status == SV_OK) status = take_stripes(&d, &a);
  if (status == SV_OK) status = sv_probe_check(&a); /* refused shapes must not be allocated for */
  if (status == SV_OK && !(result = new_results(&a, &results))) status = SV_ERR_NOMEM;
  if (status == SV_OK) {
    Py_BEGIN_ALLOW_THREADS;
    status = sv_probe_cpu(&a, &results);
    Py_END_ALLOW_THREADS;
  }
  return svpy_finish(module, status, &poll, result);
}
