/* peak.c — what the multiply-add units give at best: the yardstick of the benchmarks. */
#define _GNU_SOURCE
#include <time.h>

#include "attention/attention.h"
#include "attention/block_ops.h"

#define ROUNDS 400000 /* some 1.5 milliseconds: shorter samples catch the clock at its luckiest */
#define MAX_THREADS 256

typedef struct peak {
  const sv_block_ops *ops;
  double seconds;
  double gflops[MAX_THREADS];
} peak;

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static sv_status measure(int64_t i, int32_t thread, void *ctx) {
  (void)thread;
  peak *p = ctx;
  double start = now_s(), end = start;
  while (end - start < p->seconds && !sv_parallel_stopped()) {
    double before = end, n_flops = p->ops->multiply_add(ROUNDS);
    end = now_s();
    double rate = n_flops / (end - before) * 1e-9;
    if (rate > p->gflops[i]) p->gflops[i] = rate;
  }
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
