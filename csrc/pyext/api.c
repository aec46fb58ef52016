/* api.c — fills the table of api.h and exports it as a capsule. */
#include "pyext/api.h"

#include "pyext/layer.h"
#include "pyext/module.h"

static sv_status run_attention(const sv_layer_call *call) {
  svpy_poll poll;
  svpy_poll_open(&poll);
  sv_status status = svpy_layer_run(call, &poll.poll);
  if (status == SV_ERR_INTERRUPTED) svpy_poll_hand_over(&poll);
  return status;
}

static sv_api table = {
    .version = SV_API_VERSION,
    .size_bytes = sizeof(sv_api),
    .attention = run_attention,
    .attention_cuda = NULL,
    .last_error = sv_last_error,
};

int svpy_add_api(PyObject *module) {
  PyObject *capsule = PyCapsule_New(&table, SV_API_CAPSULE, NULL);
  if (!capsule) return -1;
  int failed = PyModule_AddObjectRef(module, "_api", capsule);
  Py_DECREF(capsule);
  return failed;
}
