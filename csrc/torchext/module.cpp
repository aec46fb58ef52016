/* module.cpp — sparse_vdit._torch: fetches the table of _C, checks that both were built together, registers
 * the kernels. Nothing is registered before the check, so a refused module leaves nothing behind. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <exception>

#include "torchext/ops.h"

static int exec_module(PyObject *) {
  const auto *api = static_cast<const sv_api *>(PyCapsule_Import(SV_API_CAPSULE, 0));
  if (!api) return -1;
  if (api->version != SV_API_VERSION || api->size_bytes < static_cast<int64_t>(sizeof(sv_api))) {
    PyErr_Format(PyExc_ImportError,
                 "_torch: the table of _C has version %d and %d bytes, expected %d and %d; build again",
                 static_cast<int>(api->version), static_cast<int>(api->size_bytes), SV_API_VERSION,
                 static_cast<int>(sizeof(sv_api)));
    return -1;
  }
  try {
    sv::torchext::register_kernels(api);
  } catch (const std::exception &error) {
    PyErr_SetString(PyExc_ImportError, error.what());
    return -1;
  }
  return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, reinterpret_cast<void *>(exec_module)},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, nullptr},
};

static PyModuleDef definition = {PyModuleDef_HEAD_INIT,
                                 "sparse_vdit._torch",
                                 "The torch operators of sparse_vdit.",
                                 0,
                                 nullptr,
                                 slots,
                                 nullptr,
                                 nullptr,
                                 nullptr};

PyMODINIT_FUNC PyInit__torch() { return PyModuleDef_Init(&definition); }
