/* visits.c — geometry, orders, patterns and visit lists for Python. Rows and items arrive as uint32 arrays
 * with the bytes of sv_row and sv_item (pattern/visits.h); what can take long runs without the GIL. */
#include "pattern/visits.h"

#include "base/scratch.h"
#include "pyext/convert.h"
#include "pyext/module.h"

#define ROW_WORDS 4
_Static_assert(sizeof(sv_row) == 16 && sizeof(sv_item) == 16, "rows and items are four words of 32 bits");

SVPY_FUNCTION(svpy_geometry_check) {
  static char *names[] = {"geometry", NULL};
  PyObject *geometry;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "O:geometry_check", names, &geometry)) return NULL;
  sv_geometry g;
  sv_status status = svpy_to_geometry("geometry", geometry, &g);
  return svpy_finish(module, status, NULL, Py_NewRef(Py_None));
}

/* ---- patterns ---- */

static sv_status check_pattern(const char *who, PyObject *geometry, PyObject *ints) {
  sv_geometry g;
  PyArrayObject *array;
  sv_pattern pattern;
  const int64_t any[] = {SVPY_ANY};
  SV_TRY(svpy_to_geometry("geometry", geometry, &g));
  SV_TRY(svpy_to_array(who, "pattern", ints, NPY_INT64, 1, any, &array));
  return sv_pattern_parse(who, &g, PyArray_DATA(array), PyArray_DIM(array, 0), &pattern);
}

SVPY_FUNCTION(svpy_pattern_check) {
  static char *names[] = {"geometry", "pattern", "who", NULL};
  PyObject *geometry, *ints;
  const char *who = "pattern";
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO|s:pattern_check", names, &geometry, &ints, &who))
    return NULL;
  return svpy_finish(module, check_pattern(who, geometry, ints), NULL, Py_NewRef(Py_None));
}

/* ---- orders ---- */

static PyObject *new_array(int n_dims, const npy_intp *shape, int numpy_type) {
  return PyArray_SimpleNew(n_dims, shape, numpy_type);
}

SVPY_FUNCTION(svpy_tokens) {
  static char *names[] = {"geometry", "order", NULL};
  PyObject *geometry, *order_ints;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO:tokens", names, &geometry, &order_ints)) return NULL;
  sv_geometry g;
  sv_order order;
  sv_status status = svpy_to_geometry("tokens", geometry, &g);
  if (status == SV_OK) status = svpy_to_order("tokens", order_ints, &order);
  if (status != SV_OK) return svpy_raise(module, status, NULL);
  npy_intp n = (npy_intp)sv_geometry_tokens(&g);
  PyObject *tokens = new_array(1, &n, NPY_INT32);
  if (!tokens) return NULL;
  svpy_poll poll;
  svpy_poll_open(&poll);
  Py_BEGIN_ALLOW_THREADS;
  status = sv_order_places(&g, &order, &poll.poll, NULL, PyArray_DATA((PyArrayObject *)tokens));
  Py_END_ALLOW_THREADS;
  return svpy_finish(module, status, &poll, tokens);
}

/* The 32-bit map is written into the upper half of `out` and widened from the front: no second array. */
static sv_status fill_places(const sv_geometry *g, const sv_order *order, const sv_poll *poll, int64_t *out) {
  int64_t n = sv_geometry_tokens(g);
  int32_t *narrow = (int32_t *)out + n;
  SV_TRY(sv_order_places(g, order, poll, narrow, NULL));
  for (int64_t i = 0; i < n; i++) {
    int32_t place = narrow[i];
    memcpy(out + i, &(int64_t){place}, sizeof(int64_t));
    if ((i & 0xffff) == 0 && sv_poll_interrupted(poll))
      return sv_fail(SV_ERR_INTERRUPTED, "places: interrupted");
  }
  return SV_OK;
}

SVPY_FUNCTION(svpy_places) {
  static char *names[] = {"geometry", "order", NULL};
  PyObject *geometry, *order_ints;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OO:places", names, &geometry, &order_ints)) return NULL;
  sv_geometry g;
  sv_order order;
  sv_status status = svpy_to_geometry("places", geometry, &g);
  if (status == SV_OK) status = svpy_to_order("places", order_ints, &order);
  if (status != SV_OK) return svpy_raise(module, status, NULL);
  npy_intp n = (npy_intp)sv_geometry_tokens(&g);
  PyObject *places = new_array(1, &n, NPY_INT64);
  if (!places) return NULL;
  svpy_poll poll;
  svpy_poll_open(&poll);
  Py_BEGIN_ALLOW_THREADS;
  status = fill_places(&g, &order, &poll.poll, PyArray_DATA((PyArrayObject *)places));
  Py_END_ALLOW_THREADS;
  return svpy_finish(module, status, &poll, places);
}

/* ---- visits ---- */

static void free_codes(PyObject *capsule) {
  sv_codes codes = {.words = PyCapsule_GetPointer(capsule, NULL)};
  sv_codes_free(&codes);
}

/* An array over the pool itself: no copy; the pool is freed with the array. Takes the pool in any case. */
static PyObject *wrap_codes(sv_codes *codes) {
  npy_intp n = (npy_intp)codes->n;
  if (n == 0) {
    sv_codes_free(codes);
    return new_array(1, &n, NPY_UINT32);
  }
  PyObject *array = PyArray_SimpleNewFromData(1, &n, NPY_UINT32, codes->words);
  PyObject *owner = array ? PyCapsule_New(codes->words, NULL, free_codes) : NULL;
  if (!owner) sv_codes_free(codes);
  if (owner && PyArray_SetBaseObject((PyArrayObject *)array, owner) == 0) return array; /* took the owner */
  Py_XDECREF(array);
  return NULL;
}

/* One call of visits or visits_from_masks. `wires` is a copy: another thread may change the arrays. */
typedef struct job {
  sv_geometry g;
  int64_t n;
  const uint8_t *remainder;
  PyObject *sources, *rows; /* tuple of arrays; uint32 [n, nq, 4] */
  int64_t *wires;           /* all patterns, one behind the other; NULL for masks */
  sv_codes codes;
  svpy_poll poll;
} job;

static sv_status open_job(job *j, const char *who, PyObject *geometry, PyObject *list, PyObject *remainder) {
  PyArrayObject *flags;
  SV_TRY(svpy_to_geometry(who, geometry, &j->g));
  if (!PyList_Check(list) && !PyTuple_Check(list))
    return sv_fail(SV_ERR_TYPE, "%s: there is no list of arrays, expected one", who);
  j->sources = PySequence_Tuple(list); /* of our own: another thread may change the list */
  if (!j->sources) return SV_ERR_NOMEM;
  j->n = PyTuple_Size(j->sources);
  SV_TRY(svpy_to_array(who, "remainder", remainder, NPY_BOOL, 1, &j->n, &flags));
  j->remainder = PyArray_DATA(flags);
  npy_intp shape[] = {(npy_intp)j->n, (npy_intp)sv_geometry_query_blocks(&j->g), ROW_WORDS};
  j->rows = new_array(3, shape, NPY_UINT32);
  if (!j->rows) return SV_ERR_NOMEM;
  svpy_poll_open(&j->poll);
  return SV_OK;
}

static PyObject *close_job(PyObject *module, job *j, sv_status status) {
  PyObject *codes = NULL, *result = NULL;
  sv_scratch_free(j->wires);
  Py_XDECREF(j->sources);
  if (status == SV_OK)
    codes = wrap_codes(&j->codes);
  else
    sv_codes_free(&j->codes);
  if (codes) result = PyTuple_Pack(2, j->rows, codes);
  Py_XDECREF(j->rows);
  Py_XDECREF(codes);
  return svpy_finish(module, status, &j->poll, result);
}

static sv_row *rows_of(const job *j, int64_t i) {
  return (sv_row *)PyArray_DATA((PyArrayObject *)j->rows) + i * sv_geometry_query_blocks(&j->g);
}

static sv_status take_array(const char *who, const char *what, PyObject *sources, int64_t i, int numpy_type,
                            int n_dims, const int64_t *shape, PyArrayObject **out) {
  char name[32];
  (void)PyOS_snprintf(name, sizeof name, "%s[%lld]", what, (long long)i);
  return svpy_to_array(who, name, PyTuple_GetItem(sources, (Py_ssize_t)i), numpy_type, n_dims, shape, out);
}

/* wires: n lengths, then the integers. */
static sv_status copy_wires(job *j) {
  const int64_t any[] = {SVPY_ANY};
  PyArrayObject *array;
  size_t n_ints = (size_t)j->n;
  for (int64_t i = 0; i < j->n; i++) {
    SV_TRY(take_array("visits", "patterns", j->sources, i, NPY_INT64, 1, any, &array));
    n_ints += (size_t)PyArray_DIM(array, 0);
  }
  void *block;
  SV_TRY(sv_scratch_alloc("visits", n_ints * sizeof(int64_t), &block));
  j->wires = block;
  int64_t *to = j->wires + j->n;
  for (int64_t i = 0; i < j->n; i++) {
    SV_TRY(take_array("visits", "patterns", j->sources, i, NPY_INT64, 1, any, &array));
    j->wires[i] = PyArray_DIM(array, 0);
    memcpy(to, PyArray_DATA(array), (size_t)j->wires[i] * sizeof(int64_t));
    to += j->wires[i];
  }
  return SV_OK;
}

static sv_status emit_patterns(job *j) {
  const int64_t *ints = j->wires + j->n;
  for (int64_t i = 0; i < j->n; ints += j->wires[i++]) {
    char who[32];
    sv_pattern pattern;
    (void)PyOS_snprintf(who, sizeof who, "visits: patterns[%lld]", (long long)i);
    SV_TRY(sv_pattern_parse(who, &j->g, ints, j->wires[i], &pattern));
    SV_TRY(sv_visits_emit(&j->g, &pattern, j->remainder[i], rows_of(j, i), &j->codes, &j->poll.poll));
    if (sv_poll_interrupted(&j->poll.poll)) return sv_fail(SV_ERR_INTERRUPTED, "visits: interrupted");
  }
  return SV_OK;
}

SVPY_FUNCTION(svpy_visits) {
  static char *names[] = {"geometry", "patterns", "remainder", NULL};
  PyObject *geometry, *patterns, *remainder;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO:visits", names, &geometry, &patterns, &remainder))
    return NULL;
  job j = {0};
  sv_status status = open_job(&j, "visits", geometry, patterns, remainder);
  if (status == SV_OK) status = copy_wires(&j);
  if (status == SV_OK) {
    Py_BEGIN_ALLOW_THREADS;
    status = emit_patterns(&j);
    Py_END_ALLOW_THREADS;
  }
  return close_job(module, &j, status);
}

static sv_status emit_masks(job *j) {
  const int64_t shape[] = {sv_geometry_query_blocks(&j->g), sv_geometry_key_blocks(&j->g)};
  for (int64_t i = 0; i < j->n; i++) {
    PyArrayObject *mask;
    sv_status status;
    SV_TRY(take_array("visits_from_masks", "masks", j->sources, i, NPY_BOOL, 2, shape, &mask));
    Py_BEGIN_ALLOW_THREADS;
    status = sv_visits_emit_mask(&j->g, PyArray_DATA(mask), j->remainder[i], rows_of(j, i), &j->codes,
                                 &j->poll.poll);
    Py_END_ALLOW_THREADS;
    if (status != SV_OK) return status;
  }
  return SV_OK;
}

SVPY_FUNCTION(svpy_visits_from_masks) {
  static char *names[] = {"geometry", "masks", "remainder", NULL};
  PyObject *geometry, *masks, *remainder;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO:visits_from_masks", names, &geometry, &masks,
                                   &remainder))
    return NULL;
  job j = {0};
  sv_status status = open_job(&j, "visits_from_masks", geometry, masks, remainder);
  if (status == SV_OK) status = emit_masks(&j);
  return close_job(module, &j, status);
}

/* ---- reading visits ---- */

typedef struct one_pattern {
  sv_geometry g;
  const sv_row *rows;
  const uint32_t *codes;
  int64_t n_codes;
} one_pattern;

static sv_status take_pattern(const char *who, PyObject *geometry, PyObject *rows, PyObject *codes,
                              one_pattern *out) {
  PyArrayObject *row_array, *code_array;
  SV_TRY(svpy_to_geometry(who, geometry, &out->g));
  const int64_t shape[] = {sv_geometry_query_blocks(&out->g), ROW_WORDS}, any[] = {SVPY_ANY};
  SV_TRY(svpy_to_array(who, "rows", rows, NPY_UINT32, 2, shape, &row_array));
  SV_TRY(svpy_to_array(who, "codes", codes, NPY_UINT32, 1, any, &code_array));
  out->rows = PyArray_DATA(row_array);
  out->codes = PyArray_DATA(code_array);
  out->n_codes = PyArray_DIM(code_array, 0);
  return SV_OK;
}

SVPY_FUNCTION(svpy_block_mask) {
  static char *names[] = {"geometry", "rows", "codes", NULL};
  PyObject *geometry, *rows, *codes;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO:block_mask", names, &geometry, &rows, &codes))
    return NULL;
  one_pattern one;
  sv_status status = take_pattern("block_mask", geometry, rows, codes, &one);
  if (status != SV_OK) return svpy_raise(module, status, NULL);
  npy_intp shape[] = {(npy_intp)sv_geometry_query_blocks(&one.g), (npy_intp)sv_geometry_key_blocks(&one.g)};
  PyObject *mask = new_array(2, shape, NPY_BOOL);
  if (!mask) return NULL;
  svpy_poll poll;
  svpy_poll_open(&poll);
  Py_BEGIN_ALLOW_THREADS;
  status = sv_visits_mask(&one.g, one.rows, one.codes, one.n_codes, &poll.poll,
                          PyArray_DATA((PyArrayObject *)mask));
  Py_END_ALLOW_THREADS;
  return svpy_finish(module, status, &poll, mask);
}

SVPY_FUNCTION(svpy_visited_pairs) {
  static char *names[] = {"geometry", "rows", "codes", NULL};
  PyObject *geometry, *rows, *codes;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOO:visited_pairs", names, &geometry, &rows, &codes))
    return NULL;
  one_pattern one;
  double pairs = 0.0;
  svpy_poll poll;
  svpy_poll_open(&poll);
  sv_status status = take_pattern("visited_pairs", geometry, rows, codes, &one);
  if (status == SV_OK) {
    Py_BEGIN_ALLOW_THREADS;
    status = sv_visits_pairs(&one.g, one.rows, one.codes, one.n_codes, &poll.poll, &pairs);
    Py_END_ALLOW_THREADS;
  }
  return svpy_finish(module, status, &poll, status == SV_OK ? PyFloat_FromDouble(pairs) : NULL);
}

/* ---- items ---- */

typedef struct item_call {
  sv_geometry g;
  const sv_row *rows;
  const int32_t *choice;
  const uint8_t *remainder;
  int64_t n_patterns, n_heads, n_items;
  sv_item *items;
} item_call;

static sv_status take_item_call(PyObject *geometry, PyObject *rows, PyObject *choice, PyObject *remainder,
                                item_call *out) {
  PyArrayObject *row_array, *choice_array, *flags;
  SV_TRY(svpy_to_geometry("items", geometry, &out->g));
  const int64_t shape[] = {SVPY_ANY, sv_geometry_query_blocks(&out->g), ROW_WORDS}, any[] = {SVPY_ANY};
  SV_TRY(svpy_to_array("items", "rows", rows, NPY_UINT32, 3, shape, &row_array));
  SV_TRY(svpy_to_array("items", "choice", choice, NPY_INT32, 1, any, &choice_array));
  out->n_heads = PyArray_DIM(choice_array, 0);
  SV_TRY(svpy_to_array("items", "remainder", remainder, NPY_BOOL, 1, &out->n_heads, &flags));
  out->rows = PyArray_DATA(row_array);
  out->n_patterns = PyArray_DIM(row_array, 0);
  out->choice = PyArray_DATA(choice_array);
  out->remainder = PyArray_DATA(flags);
  return SV_OK;
}

static sv_status make_items(item_call *c, const sv_poll *poll) {
  void *block;
  size_t n = (size_t)(c->n_heads * sv_geometry_query_blocks(&c->g));
  SV_TRY(sv_scratch_alloc("items", n * sizeof(sv_item), &block));
  c->items = block;
  return sv_visits_items(&c->g, c->rows, c->n_patterns, c->choice, c->remainder, c->n_heads, poll, c->items,
                         &c->n_items);
}

SVPY_FUNCTION(svpy_items) {
  static char *names[] = {"geometry", "rows", "choice", "remainder", NULL};
  PyObject *geometry, *rows, *choice, *remainder, *result = NULL;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOO:items", names, &geometry, &rows, &choice,
                                   &remainder))
    return NULL;
  item_call c = {0};
  svpy_poll poll;
  svpy_poll_open(&poll);
  sv_status status = take_item_call(geometry, rows, choice, remainder, &c);
  if (status == SV_OK) {
    Py_BEGIN_ALLOW_THREADS;
    status = make_items(&c, &poll.poll);
    Py_END_ALLOW_THREADS;
  }
  if (status == SV_OK) {
    npy_intp shape[] = {(npy_intp)c.n_items, ROW_WORDS};
    result = new_array(2, shape, NPY_UINT32);
    if (result && c.n_items)
      memcpy(PyArray_DATA((PyArrayObject *)result), c.items, (size_t)c.n_items * sizeof(sv_item));
  }
  sv_scratch_free(c.items);
  return svpy_finish(module, status, &poll, result);
}
