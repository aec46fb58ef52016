/* hulls.c — one pass over the errors of each decision, fastest option first: the times are shared by a group, so
 * they are sorted once per group, and a row of errors (a few cache lines) is read once. Decisions in parallel. */
#include "search/hulls.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "base/scratch.h"

#define CHUNK ((int64_t)1 << SV_HULL_CHUNK_BITS)

typedef struct ranked {
  double time_ms;
  int32_t option;
} ranked;

static int compare_ranked(const void *a, const void *b) {
  const ranked *x = a, *y = b;
  if (x->time_ms != y->time_ms) return x->time_ms < y->time_ms ? -1 : 1;
  return (x->option > y->option) - (x->option < y->option);
}

static void rank_groups(const sv_budget_args *args, ranked *out) {
  int64_t n_options = args->n_options;
  for (int64_t g = 0; g < args->n_groups; g++, out += n_options) {
    for (int64_t p = 0; p < n_options; p++) out[p] = (ranked){args->times_ms[g * n_options + p], (int32_t)p};
    qsort(out, (size_t)n_options, sizeof *out, compare_ranked);
  }
}

typedef struct job {
  const sv_budget_args *args;
  const ranked *order; /* [G, P] */
  sv_hulls *hulls;
} job;

/* Slopes fall as computed, not only in exact arithmetic: a point stays unless the step to the next one is steeper
 * than the step to it, or takes no time. */
static sv_status build_chain(const job *j, int64_t i, sv_hull_point *chain, int32_t *out_count) {
  const int64_t n_options = j->args->n_options;
  const float *errors = j->args->errors + i * n_options;
  const double *times = j->args->times_ms + j->args->groups[i] * n_options;
  const ranked *order = j->order + j->args->groups[i] * n_options;
  float last = INFINITY;
  int32_t n = 0;
  for (int64_t at = 0; at < n_options; at++) {
    int32_t option = order[at].option;
    float error = errors[option];
    if (!(error < last)) continue; /* NaN and infinity too */
    if (error < 0)
      return sv_fail(SV_ERR_ARG, "select_budget: errors[%lld, %d] is %g, expected numbers from 0 on or NaN",
                     (long long)i, option, (double)error);
    double slope = INFINITY;
    while (n > 0) {
      const sv_hull_point *top = &chain[n - 1];
      slope = ((double)top->error - (double)error) / (order[at].time_ms - times[top->option]);
      if (slope <= top->slope && slope < (double)INFINITY) break;
      n--;
    }
    chain[n] = (sv_hull_point){n > 0 ? slope : (double)INFINITY, error, option};
    last = error;
    n++;
  }
  *out_count = n;
  if (n > 0) return SV_OK;
  return sv_fail(SV_ERR_ARG, "select_budget: decision %lld has no allowed option, expected one finite error",
                 (long long)i);
}

/* The weight is a factor of all slopes of a chain; clamped, so that none is 0 or infinite. */
static int32_t weigh_chain(double weight, sv_hull_point *chain, int32_t n) {
  if (weight == 0) return 1;
  for (int32_t k = 1; k < n; k++) {
    double slope = chain[k].slope * weight;
    chain[k].slope = slope > DBL_MAX ? DBL_MAX : slope < DBL_MIN ? DBL_MIN : slope;
  }
  return n;
}

static sv_status build_chunk(int64_t chunk, int32_t thread, void *ctx) {
  (void)thread;
  const job *j = ctx;
  sv_hulls *hulls = j->hulls;
  int64_t begin = chunk * CHUNK, end = begin + CHUNK;
  if (end > j->args->n_decisions) end = j->args->n_decisions;
  size_t row = (size_t)j->args->n_options, used = 0, bytes = 0;
  for (int64_t i = begin; i < end; i++) {
    void *block = hulls->blocks[chunk];
    SV_TRY(sv_scratch_grow("select_budget", &block, &bytes, used * sizeof(sv_hull_point),
                           (used + row) * sizeof(sv_hull_point)));
    hulls->blocks[chunk] = block;
    sv_hull_point *chain = hulls->blocks[chunk] + used;
    int32_t n;
    SV_TRY(build_chain(j, i, chain, &n));
    hulls->first[i] = (int32_t)used;
    hulls->count[i] = weigh_chain(j->args->weights[i], chain, n);
    used += (size_t)hulls->count[i];
  }
  return SV_OK;
}

static sv_status alloc_hulls(const sv_budget_args *args, sv_hulls *out) {
  size_t n = (size_t)args->n_decisions;
  void *block;
  int64_t n_blocks = (args->n_decisions + CHUNK - 1) / CHUNK;
  SV_TRY(sv_scratch_alloc("select_budget", (size_t)n_blocks * sizeof *out->blocks, &block));
  out->blocks = block;
  out->n_blocks = n_blocks;
  for (int64_t b = 0; b < n_blocks; b++) out->blocks[b] = NULL;
  SV_TRY(sv_scratch_alloc("select_budget", n * 2 * sizeof(int32_t), &block));
  out->first = block;
  out->count = out->first + n;
  return SV_OK;
}

sv_status sv_hulls_make(const sv_budget_args *args, sv_hulls *out) {
  *out = (sv_hulls){0};
  SV_TRY(alloc_hulls(args, out));
  void *order;
  SV_TRY(
      sv_scratch_alloc("select_budget", (size_t)(args->n_groups * args->n_options) * sizeof(ranked), &order));
  rank_groups(args, order);
  job j = {args, order, out};
  sv_status status = sv_parallel_for(out->n_blocks, build_chunk, &j, args->poll);
  sv_scratch_free(order);
  return status;
}

void sv_hulls_free(sv_hulls *hulls) {
  for (int64_t b = 0; b < hulls->n_blocks; b++) sv_scratch_free(hulls->blocks[b]);
  sv_scratch_free(hulls->blocks);
  sv_scratch_free(hulls->first);
  *hulls = (sv_hulls){0};
}
