/* errors.c — exception classes, and the one place where a status becomes an exception. */
#include "pyext/module.h"

static PyObject *make_class(PyObject *module, const char *name, const char *text, PyObject *base,
                            PyObject *also) {
  PyObject *bases = also ? PyTuple_Pack(2, base, also) : PyTuple_Pack(1, base);
  if (!bases) return NULL;
  char full[64];
  (void)PyOS_snprintf(full, sizeof full, "sparse_vdit._C.%s", name);
  PyObject *made = PyErr_NewExceptionWithDoc(full, text, bases, NULL);
  Py_DECREF(bases);
  if (made && PyModule_AddObjectRef(module, name, made) < 0) Py_CLEAR(made);
  return made;
}

int svpy_add_exceptions(PyObject *module, svpy_state *state) {
  state->error = make_class(module, "SparseVDiTError", "An error of sparse_vdit.", PyExc_Exception, NULL);
  if (!state->error) return -1;
  state->unsupported = make_class(module, "UnsupportedError", "A case that sparse_vdit knows and refuses.",
                                  state->error, PyExc_NotImplementedError);
  if (!state->unsupported) return -1;
  state->cuda =
      make_class(module, "CudaError", "A call of the CUDA runtime failed.", state->error, PyExc_RuntimeError);
  return state->cuda ? 0 : -1;
}

static PyObject *choose_class(const svpy_state *state, sv_status status) {
  switch (status) {
  case SV_ERR_ARG:
    return PyExc_ValueError;
  case SV_ERR_TYPE:
    return PyExc_TypeError;
  case SV_ERR_NOMEM:
    return PyExc_MemoryError;
  case SV_ERR_UNSUPPORTED:
    return state->unsupported;
  case SV_ERR_CUDA:
    return state->cuda;
  case SV_ERR_INTERRUPTED:
    return PyExc_KeyboardInterrupt;
  default:
    return state->error;
  }
}

PyObject *svpy_raise(PyObject *module, sv_status status, svpy_poll *poll) {
  if (PyErr_Occurred()) return NULL; /* a conversion has said more already */
  if (status == SV_ERR_INTERRUPTED && poll && svpy_poll_restore(poll)) return NULL;
  const char *sentence = sv_last_error();
  PyObject *text = PyUnicode_DecodeUTF8(sentence, (Py_ssize_t)strlen(sentence), "replace");
  if (text) PyErr_SetObject(choose_class(svpy_get_state(module), status), text);
  Py_XDECREF(text);
  return NULL;
}

PyObject *svpy_finish(PyObject *module, sv_status status, svpy_poll *poll, PyObject *result) {
  if (status == SV_OK && result) return result;
  Py_XDECREF(result);
  return status == SV_OK ? NULL : svpy_raise(module, status, poll);
}

/* A status by number, for the tests: some never happen by themselves. */
SVPY_FUNCTION(svpy_fail) {
  static char *names[] = {"status", "sentence", NULL};
  int status;
  const char *sentence;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "is:_fail", names, &status, &sentence)) return NULL;
  sv_status failed = status == SV_OK ? SV_OK : sv_fail((sv_status)status, "%s", sentence);
  return svpy_finish(module, failed, NULL, Py_NewRef(Py_None));
}
