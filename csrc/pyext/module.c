/* module.c — sparse_vdit._C: multi-phase initialisation, state, the list of functions. Read it from the
 * bottom. Docstrings are in sparse_vdit/_C.pyi. */
#define SVPY_IMPORTS_NUMPY
#include "pyext/module.h"

#include "base/parallel.h"
#include "base/tensor.h"

svpy_state *svpy_get_state(PyObject *module) { return PyModule_GetState(module); }

#define ENTRY(name, function)                                                                                \
  {name, (PyCFunction)(void (*)(void))function, METH_VARARGS | METH_KEYWORDS, NULL}
static PyMethodDef functions[] = {
    ENTRY("geometry_check", svpy_geometry_check),
    ENTRY("pattern_check", svpy_pattern_check),
    ENTRY("places", svpy_places),
    ENTRY("tokens", svpy_tokens),
    ENTRY("visits", svpy_visits),
    ENTRY("visits_from_masks", svpy_visits_from_masks),
    ENTRY("block_mask", svpy_block_mask),
    ENTRY("visited_pairs", svpy_visited_pairs),
    ENTRY("items", svpy_items),
    ENTRY("attention", svpy_attention),
    ENTRY("attention_check", svpy_attention_check),
    ENTRY("attention_pointers", svpy_attention_pointers),
    ENTRY("attention_reference", svpy_attention_reference),
    ENTRY("attention_engine", svpy_attention_engine),
    ENTRY("fma_peak", svpy_fma_peak),
    ENTRY("cost_layers", svpy_cost_layers),
    ENTRY("cost_heads", svpy_cost_heads),
    ENTRY("hardware_names", svpy_hardware_names),
    ENTRY("hardware_engine", svpy_hardware_engine),
    ENTRY("select_paper", svpy_select_paper),
    ENTRY("select_budget", svpy_select_budget),
    ENTRY("probe", svpy_probe),
    ENTRY("build_info", svpy_build_info),
    ENTRY("set_threads", svpy_set_threads),
    ENTRY("scratch_live", svpy_scratch_live),
    ENTRY("scratch_fail_at", svpy_scratch_fail_at),
    ENTRY("raise_interrupt", svpy_raise_interrupt),
    ENTRY("_bind_torch", svpy_bind_torch),
    ENTRY("_fail", svpy_fail),
    {NULL, NULL, 0, NULL},
};

static int traverse(PyObject *module, visitproc visit, void *arg) {
  svpy_state *state = svpy_get_state(module);
  Py_VISIT(state->error);
  Py_VISIT(state->unsupported);
  Py_VISIT(state->cuda);
  return 0;
}

static int clear(PyObject *module) {
  svpy_state *state = svpy_get_state(module);
  Py_CLEAR(state->error);
  Py_CLEAR(state->unsupported);
  Py_CLEAR(state->cuda);
  return 0;
}

static void free_module(void *module) { (void)clear(module); }

static int exec_module(PyObject *module) {
  if (PyArray_ImportNumPyAPI() < 0) return -1;
  (void)sv_parallel_threads(); /* registers the fork handlers */
  if (svpy_add_exceptions(module, svpy_get_state(module)) != 0) return -1;
  return svpy_add_api(module);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)exec_module},
#ifdef Py_mod_multiple_interpreters
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "sparse_vdit._C",
    .m_doc = "The C core of sparse_vdit: patterns, visit lists, attention.",
    .m_size = sizeof(svpy_state),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
    .m_free = free_module,
};

PyMODINIT_FUNC PyInit__C(void) { return PyModuleDef_Init(&definition); }
