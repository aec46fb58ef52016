/* select.c — the two rules for Python: arrays in, the choice and its sums out; both run without the GIL. */
#include "search/select.h"

#include <string.h>

#include "pyext/convert.h"
#include "pyext/module.h"

static const int64_t any_length[] = {SVPY_ANY}, any_table[] = {SVPY_ANY, SVPY_ANY};

static PyObject *new_choice(int64_t n) {
  npy_intp shape[] = {(npy_intp)n};
  return PyArray_SimpleNew(1, shape, NPY_INT32);
}

SVPY_FUNCTION(svpy_select_paper) {
  static char *names[] = {"mse", "sparsity", "lambda_", "epsilon", "full", NULL};
  PyObject *mse, *sparsity;
  PyArrayObject *table, *row;
  double lambda, epsilon;
  long long full;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOddL:select_paper", names, &mse, &sparsity, &lambda,
                                   &epsilon, &full))
    return NULL;
  sv_status status = svpy_to_array("select_paper", "mse", mse, NPY_DOUBLE, 2, any_table, &table);
  if (status != SV_OK) return svpy_raise(module, status, NULL);
  int64_t n = PyArray_DIM(table, 0), n_modes = PyArray_DIM(table, 1);
  status = svpy_to_array("select_paper", "sparsity", sparsity, NPY_DOUBLE, 1, &n_modes, &row);
  if (status != SV_OK) return svpy_raise(module, status, NULL);
  PyObject *choice = new_choice(n);
  if (!choice) return NULL;
  Py_BEGIN_ALLOW_THREADS;
  status = sv_select_paper(PyArray_DATA(table), n, n_modes, PyArray_DATA(row), lambda, epsilon, full,
                           PyArray_DATA((PyArrayObject *)choice));
  Py_END_ALLOW_THREADS;
  return svpy_finish(module, status, NULL, choice);
}

/* ---- budget ---- */

static sv_status take_numbers(const char *name, PyObject *object, int numpy_type, int64_t n,
                              const void **out) {
  PyArrayObject *array;
  SV_TRY(svpy_to_array("select_budget", name, object, numpy_type, 1, &n, &array));
  *out = PyArray_DATA(array);
  return SV_OK;
}

static sv_status take_tables(PyObject *errors, PyObject *times, sv_budget_args *out) {
  PyArrayObject *array;
  SV_TRY(svpy_to_array("select_budget", "errors", errors, NPY_FLOAT, 2, any_table, &array));
  out->errors = PyArray_DATA(array);
  out->n_decisions = PyArray_DIM(array, 0);
  out->n_options = PyArray_DIM(array, 1);
  const int64_t shape[] = {SVPY_ANY, out->n_options};
  SV_TRY(svpy_to_array("select_budget", "times", times, NPY_DOUBLE, 2, shape, &array));
  out->times_ms = PyArray_DATA(array);
  out->n_groups = PyArray_DIM(array, 0);
  return SV_OK;
}

static sv_status take_caps(PyObject *layer, PyObject *caps, sv_budget_args *out) {
  if (Py_IsNone(caps)) return SV_OK;
  if (Py_IsNone(layer))
    return sv_fail(SV_ERR_ARG, "select_budget: layer is None, expected the layer of each decision with "
                               "layer_caps");
  PyArrayObject *array;
  const void *layers;
  SV_TRY(take_numbers("layer", layer, NPY_INT32, out->n_decisions, &layers));
  SV_TRY(svpy_to_array("select_budget", "layer_caps", caps, NPY_DOUBLE, 1, any_length, &array));
  out->layers = layers;
  out->layer_caps = PyArray_DATA(array);
  out->n_layers = PyArray_DIM(array, 0);
  return SV_OK;
}

static sv_status take_objective(const char *objective, int32_t *out) {
  if (strcmp(objective, "time") != 0 && strcmp(objective, "error") != 0)
    return sv_fail(SV_ERR_ARG, "select_budget: the objective is '%.60s', expected time or error", objective);
  *out = objective[0] == 't' ? SV_LEAST_ERROR : SV_LEAST_TIME;
  return SV_OK;
}

static sv_status take_budget(PyObject *const *objects, const char *objective, sv_budget_args *out) {
  const void *groups, *weights, *repeats;
  SV_TRY(take_tables(objects[0], objects[1], out));
  SV_TRY(take_numbers("time_group", objects[2], NPY_INT32, out->n_decisions, &groups));
  SV_TRY(take_numbers("weights", objects[3], NPY_DOUBLE, out->n_decisions, &weights));
  SV_TRY(take_numbers("repeats", objects[4], NPY_DOUBLE, out->n_decisions, &repeats));
  out->groups = groups;
  out->weights = weights;
  out->repeats = repeats;
  SV_TRY(take_caps(objects[5], objects[6], out));
  return take_objective(objective, &out->objective);
}

static PyObject *make_answer(PyObject *choice, const sv_budget_result *found) {
  return Py_BuildValue("{s:O,s:d,s:d,s:d,s:d}", "choice", choice, "error", found->error, "time_ms",
                       found->time_ms, "multiplier", found->multiplier, "bound", found->bound);
}

SVPY_FUNCTION(svpy_select_budget) {
  static char *names[] = {"errors", "times",     "time_group", "weights",    "repeats",
                          "budget", "objective", "layer",      "layer_caps", NULL};
  PyObject *objects[7] = {NULL, NULL, NULL, NULL, NULL, Py_None, Py_None};
  const char *objective = "time";
  sv_budget_args budget = {0};
  sv_budget_result found = {0};
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOd|sOO:select_budget", names, &objects[0],
                                   &objects[1], &objects[2], &objects[3], &objects[4], &budget.budget,
                                   &objective, &objects[5], &objects[6]))
    return NULL;
  sv_status status = take_budget(objects, objective, &budget);
  if (status != SV_OK) return svpy_raise(module, status, NULL);
  PyObject *choice = new_choice(budget.n_decisions);
  if (!choice) return NULL;
  svpy_poll poll;
  svpy_poll_open(&poll);
  budget.poll = &poll.poll;
  Py_BEGIN_ALLOW_THREADS;
  status = sv_select_budget(&budget, PyArray_DATA((PyArrayObject *)choice), &found);
  Py_END_ALLOW_THREADS;
  PyObject *answer = status == SV_OK ? make_answer(choice, &found) : NULL;
  Py_DECREF(choice);
  return svpy_finish(module, status, &poll, answer);
}
