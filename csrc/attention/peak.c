/* peak.c — what the multiply-add units give at best: the yardstick of the benchmarks. Rates are over the seconds of
 * the thread, so that a neighbour on the same core does not lower them. */
#define _GNU_SOURCE
#include <time.h>

#include "attention/attention.h"
#include "attention/block_ops.h"

#define ROUNDS 20000 /* some 70 microseconds between two looks at the clock */
#define MAX_THREADS 256

typedef struct peak {
  const sv_block_ops *ops;
  double seconds;
  double gflops[MAX_THREADS];
} peak;

static double thread_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static sv_status measure(int64_t i, int32_t thread, void *ctx) {
  (void)thread;
  peak *p = ctx;
  double start = thread_s(), now = start, n_flops = 0.0;
  while (now - start < p->seconds && !sv_parallel_stopped()) {
    n_flops += p->ops->multiply_add(ROUNDS);
    now = thread_s();
  }
  p->gflops[i] = n_flops / (now - start) * 1e-9;
  return SV_OK;
}

sv_status sv_fma_peak_gflops(int32_t dtype, double seconds, const sv_poll *poll, double *out_gflops) {
  if (!(seconds > 0.0 && seconds <= 60.0))
    return sv_fail(SV_ERR_ARG, "fma_peak: seconds is %g, expected more than 0, at most 60", seconds);
  if (sv_dtype_bytes(dtype) == 0)
    return sv_fail(SV_ERR_TYPE, "fma_peak: unknown dtype, expected float32, bfloat16 or float16");
  sv_isa isa = sv_cpu_isa();
  const sv_block_ops *pairs = sv_block_ops_pairs(isa, dtype, SV_MAX_HEAD_DIM);
  peak p = {.ops = pairs ? pairs : sv_block_ops_for(isa), .seconds = seconds};
  int32_t n_threads = sv_parallel_threads();
  SV_TRY(sv_parallel_for_on(n_threads, n_threads, measure, &p, poll));
  *out_gflops = 0.0;
  for (int32_t i = 0; i < n_threads; i++) *out_gflops += p.gflops[i];
  return SV_OK;
}
