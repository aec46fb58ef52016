/* info.c — what was built and what would run here; threads; the counters of the tests. */
#include "attention/attention.h"
#include "base/cpu.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "pyext/convert.h"
#include "pyext/layer.h"
#include "pyext/module.h"

#ifdef __clang__
#define COMPILER "clang " __clang_version__
#else
#define COMPILER "gcc " __VERSION__
#endif

static int put(PyObject *dict, const char *name, PyObject *value) {
  int failed = value ? PyDict_SetItemString(dict, name, value) : -1;
  Py_XDECREF(value);
  return failed;
}

static int put_text(PyObject *dict, const char *name, const char *text) {
  return put(dict, name, text ? PyUnicode_FromString(text) : Py_NewRef(Py_None));
}

static int put_engines(PyObject *info) {
  PyObject *engines = PyDict_New();
  if (!engines) return -1;
  for (int32_t dtype = SV_F32; dtype <= SV_F16; dtype++) {
    for (int64_t head_dim = 64; head_dim <= 128; head_dim += 64) {
      char name[32];
      (void)PyOS_snprintf(name, sizeof name, "%s d%d", sv_dtype_name(dtype), (int)head_dim);
      if (put_text(engines, name, sv_attention_engine(dtype, head_dim)) == 0) continue;
      Py_DECREF(engines);
      return -1;
    }
  }
  return put(info, "engines", engines);
}

static int fill_info(PyObject *info) {
  if (put_text(info, "version", SV_VERSION) != 0) return -1;
  if (put_text(info, "compiler", COMPILER) != 0 || put_text(info, "isa", sv_isa_name(sv_cpu_isa())) != 0)
    return -1;
  if (put_text(info, "isa_best", sv_isa_name(sv_cpu_best_isa())) != 0) return -1;
  if (put_text(info, "isa_env", getenv("SPARSE_VDIT_ISA")) != 0) return -1;
  if (put_text(info, "pool", sv_parallel_pool_name()) != 0) return -1;
  if (put(info, "threads", PyLong_FromLong(sv_parallel_threads())) != 0) return -1;
  if (put(info, "with_cuda", Py_NewRef(Py_False)) != 0 || put(info, "cuda_archs", PyTuple_New(0)) != 0)
    return -1;
  if (put_text(info, "without_cuda_because", SV_NO_CUDA_REASON) != 0) return -1;
  if (put(info, "api_version", PyLong_FromLong(SV_API_VERSION)) != 0) return -1;
  return put_engines(info);
}

SVPY_FUNCTION(svpy_build_info) {
  (void)keywords;
  if (!PyArg_ParseTuple(args, ":build_info")) return NULL;
  sv_status status = svpy_check_environment();
  if (status != SV_OK) return svpy_raise(module, status, NULL);
  PyObject *info = PyDict_New();
  if (info && fill_info(info) != 0) Py_CLEAR(info);
  return info;
}

SVPY_FUNCTION(svpy_fma_peak) {
  static char *names[] = {"dtype", "seconds", NULL};
  const char *dtype_name = "float32";
  double seconds = 0.2, gflops = 0.0;
  int32_t dtype;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "|sd:fma_peak", names, &dtype_name, &seconds)) return NULL;
  svpy_poll poll;
  svpy_poll_open(&poll);
  sv_status status = svpy_check_environment();
  if (status == SV_OK) status = svpy_to_dtype("fma_peak", "dtype", dtype_name, &dtype);
  if (status == SV_OK) {
    Py_BEGIN_ALLOW_THREADS;
    status = sv_fma_peak_gflops(dtype, seconds, &poll.poll, &gflops);
    Py_END_ALLOW_THREADS;
  }
  return status == SV_OK ? PyFloat_FromDouble(gflops) : svpy_raise(module, status, &poll);
}

SVPY_FUNCTION(svpy_set_threads) {
  static char *names[] = {"n", NULL};
  int n;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "i:set_threads", names, &n)) return NULL;
  sv_status status = SV_OK;
  if (n < 0 || n > 256)
    status = sv_fail(SV_ERR_ARG, "set_threads: n is %d, expected 0 (automatic) or 1..256", n);
  if (status == SV_OK) sv_parallel_set_threads(n);
  return svpy_finish(module, status, NULL, Py_NewRef(Py_None));
}

SVPY_FUNCTION(svpy_scratch_live) {
  (void)module, (void)keywords;
  return PyArg_ParseTuple(args, ":scratch_live") ? PyLong_FromLongLong(sv_scratch_live()) : NULL;
}

SVPY_FUNCTION(svpy_scratch_fail_at) {
  static char *names[] = {"n", NULL};
  long long n;
  (void)module;
  if (!PyArg_ParseTupleAndKeywords(args, keywords, "L:scratch_fail_at", names, &n)) return NULL;
  sv_scratch_fail_at(n);
  Py_RETURN_NONE;
}
