/* torch_runtime.c — the thread pool of a torch that is already loaded, found by name: nothing is linked. */
#define _GNU_SOURCE
#include "pyext/ndarray.h" /* Python.h before any header of the system */

#include <dlfcn.h>

#include "base/parallel.h"
#include "pyext/module.h"

/* ISO C has no conversion between the two kinds of pointers. */
typedef union symbol {
  void *address;
  int32_t (*parallel_for)(int64_t, int64_t, int64_t, sv_torch_range_body, void *);
  int32_t (*n_threads)(uint32_t *);
} symbol;

/* true if torch's pool is in use from now on; false where no torch is loaded or it is older than 2.10. */
SVPY_FUNCTION(svpy_bind_torch) {
  (void)module, (void)keywords;
  if (!PyArg_ParseTuple(args, ":_bind_torch")) return NULL;
  void *torch = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
  if (!torch) Py_RETURN_FALSE;
  symbol parallel_for = {dlsym(torch, "torch_parallel_for")},
         n_threads = {dlsym(torch, "torch_get_num_threads")};
  if (parallel_for.address && n_threads.address)
    sv_parallel_use_torch(&(sv_torch_pool){parallel_for.parallel_for, n_threads.n_threads});
  (void)dlclose(torch); /* torch itself keeps the library loaded */
  return PyBool_FromLong(parallel_for.address && n_threads.address);
}
