/* module.h — what the files of the skin share: the state of the module, the one way from a status to an
 * exception, and the functions that module.c lists. Read module.c from the bottom. */
#ifndef SV_PYEXT_MODULE_H
#define SV_PYEXT_MODULE_H

#include "base/status.h"
#include "pyext/interrupt.h"
#include "pyext/ndarray.h"

typedef struct svpy_state {
  PyObject *error;       /* SparseVDiTError(Exception) */
  PyObject *unsupported; /* UnsupportedError(SparseVDiTError, NotImplementedError) */
  PyObject *cuda;        /* CudaError(SparseVDiTError, RuntimeError) */
} svpy_state;

svpy_state *svpy_get_state(PyObject *module);

/* svpy_add_exceptions — makes the classes and puts them into the module; -1 with an exception set. */
int svpy_add_exceptions(PyObject *module, svpy_state *state);
/* svpy_raise — sets the exception of `status` with this thread's last sentence; always NULL. An interrupt
 * raises what the poll kept. The only place where a status becomes an exception. */
PyObject *svpy_raise(PyObject *module, sv_status status, svpy_poll *poll);
/* svpy_finish — owned `result` if the status is SV_OK, else drops it and raises. */
PyObject *svpy_finish(PyObject *module, sv_status status, svpy_poll *poll, PyObject *result);

/* svpy_add_api — the capsule "sparse_vdit._C._api" (api.h). */
int svpy_add_api(PyObject *module);

#define SVPY_FUNCTION(name) PyObject *name(PyObject *module, PyObject *args, PyObject *keywords)
SVPY_FUNCTION(svpy_geometry_check);
SVPY_FUNCTION(svpy_pattern_check);
SVPY_FUNCTION(svpy_places);
SVPY_FUNCTION(svpy_tokens);
SVPY_FUNCTION(svpy_visits);
SVPY_FUNCTION(svpy_visits_from_masks);
SVPY_FUNCTION(svpy_block_mask);
SVPY_FUNCTION(svpy_visited_pairs);
SVPY_FUNCTION(svpy_items);
SVPY_FUNCTION(svpy_attention);
SVPY_FUNCTION(svpy_attention_check);
SVPY_FUNCTION(svpy_attention_pointers);
SVPY_FUNCTION(svpy_attention_reference);
SVPY_FUNCTION(svpy_attention_engine);
SVPY_FUNCTION(svpy_fma_peak);
SVPY_FUNCTION(svpy_cost_layers);
SVPY_FUNCTION(svpy_cost_heads);
SVPY_FUNCTION(svpy_hardware_names);
SVPY_FUNCTION(svpy_hardware_engine);
SVPY_FUNCTION(svpy_select_paper);
SVPY_FUNCTION(svpy_select_budget);
SVPY_FUNCTION(svpy_probe);
SVPY_FUNCTION(svpy_build_info);
SVPY_FUNCTION(svpy_set_threads);
SVPY_FUNCTION(svpy_scratch_live);
SVPY_FUNCTION(svpy_scratch_fail_at);
SVPY_FUNCTION(svpy_bind_torch);
SVPY_FUNCTION(svpy_raise_interrupt);
SVPY_FUNCTION(svpy_fail);

#endif
