/* reference.c — the oracle for Python: softmax in double precision with an explicit mask. */
#include "attention/attention.h"

#include "pyext/convert.h"
#include "pyext/module.h"

typedef struct oracle {
  sv_tensor q, k, v;
  const uint8_t *mask;
  const int64_t *kv_len;
  double scale;
} oracle;

static sv_status take_mask(PyObject *object, const sv_tensor *q, const uint8_t **out) {
  *out = NULL;
  if (Py_IsNone(object)) return SV_OK;
  const int64_t shape[] = {q->shape[1], q->shape[2], q->shape[2]};
  bool is_bytes = PyArray_Check(object) && PyArray_TYPE((PyArrayObject *)object) == NPY_UINT8;
  PyArrayObject *mask;
  SV_TRY(
      svpy_to_array("attention_reference", "mask", object, is_bytes ? NPY_UINT8 : NPY_BOOL, 3, shape, &mask));
  *out = PyArray_DATA(mask);
  return SV_OK;
}

static sv_status take_oracle(PyObject *const *qkv, PyObject *mask, PyObject *kv_len, oracle *o) {
  SV_TRY(svpy_to_tensor("attention_reference", "q", qkv[0], &o->q));
  SV_TRY(svpy_to_tensor("attention_reference", "k", qkv[1], &o->k));
  SV_TRY(svpy_to_tensor("attention_reference", "v", qkv[2], &o->v));
  SV_TRY(take_mask(mask, &o->q, &o->mask));
  return svpy_to_kv_len("attention_reference", kv_len, o->q.shape[0], &o->kv_len);
}

SVPY_FUNCTION(svpy_attention_reference) {
  static char *names[] = {"q", "k", "v", "mask", "kv_len", "scale", NULL};
  PyObject *qkv[3], *mask, *kv_len;
  oracle o = {0};
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "OOOOOd:attention_reference", names, &qkv[0], &qkv[1],
                                   &qkv[2], &mask, &kv_len, &o.scale))
    return NULL;
  sv_status status = take_oracle(qkv, mask, kv_len, &o);
  if (status != SV_OK) return svpy_raise(module, status, NULL);
  svpy_poll poll;
  svpy_poll_open(&poll);
  PyObject *out = PyArray_SimpleNew(4, PyArray_DIMS((PyArrayObject *)qkv[0]), NPY_DOUBLE);
  PyObject *lse = out ? PyArray_SimpleNew(3, PyArray_DIMS((PyArrayObject *)qkv[0]), NPY_DOUBLE) : NULL;
  PyObject *result = lse ? PyTuple_Pack(2, out, lse) : NULL;
  if (result) {
    double *out_data = PyArray_DATA((PyArrayObject *)out), *lse_data = PyArray_DATA((PyArrayObject *)lse);
    Py_BEGIN_ALLOW_THREADS;
    status =
        sv_attention_reference(&o.q, &o.k, &o.v, o.mask, o.kv_len, o.scale, &poll.poll, out_data, lse_data);
    Py_END_ALLOW_THREADS;
  }
  Py_XDECREF(out);
  Py_XDECREF(lse);
  return svpy_finish(module, status, &poll, result);
}
