/* runs.c — intervals: append, sort, join. Sorting is a natural merge sort, since emitters append a few
 * ascending sequences: n log(sequences), stable, no recursion. */
#include "pattern/runs.h"

#include <string.h>

#include "base/scratch.h"

static uint64_t make_key(int64_t first, int64_t last) { return (uint64_t)first << 32 | (uint64_t)last; }

static sv_status reserve_runs(sv_runs *runs, int64_t n) {
  size_t bytes = (size_t)n * sizeof *runs->keys;
  if (bytes <= runs->capacity_bytes) return SV_OK;
  size_t twice = 2 * runs->capacity_bytes;
  return sv_scratch_grow("visits", (void **)&runs->keys, &runs->capacity_bytes,
                         (size_t)runs->n * sizeof *runs->keys, bytes > twice ? bytes + 1024 : twice);
}

sv_status sv_runs_add(sv_runs *runs, int64_t first, int64_t last, int64_t gap) {
  if (runs->n > 0) {
    int64_t before_first = sv_runs_first(runs, runs->n - 1), before_last = sv_runs_last(runs, runs->n - 1);
    if (first >= before_first && first <= before_last + 1 + gap) {
      if (last > before_last) runs->keys[runs->n - 1] = make_key(before_first, last);
      return SV_OK;
    }
  }
  SV_TRY(reserve_runs(runs, runs->n + 1));
  runs->keys[runs->n++] = make_key(first, last);
  return SV_OK;
}

/* ascending_end — end of the ascending sequence that starts at `i`. */
static int64_t ascending_end(const uint64_t *keys, int64_t n, int64_t i) {
  for (i++; i < n && keys[i - 1] <= keys[i]; i++) {
  }
  return i < n ? i : n;
}

static void merge_two(const uint64_t *a, int64_t n_a, const uint64_t *b, int64_t n_b, uint64_t *out) {
  int64_t i = 0, j = 0;
  while (i < n_a && j < n_b) {
    int take_b = b[j] < a[i];
    *out++ = take_b ? b[j] : a[i];
    j += take_b;
    i += !take_b;
  }
  memcpy(out, a + i, (size_t)(n_a - i) * sizeof *out);
  memcpy(out + n_a - i, b + j, (size_t)(n_b - j) * sizeof *out);
}

/* merge_pass — merges neighbouring ascending sequences two by two into `out`; how many are left. */
static int64_t merge_pass(const uint64_t *keys, int64_t n, uint64_t *out) {
  int64_t n_sequences = 0;
  for (int64_t begin = 0; begin < n; n_sequences++) {
    int64_t middle = ascending_end(keys, n, begin);
    int64_t end = middle < n ? ascending_end(keys, n, middle) : n;
    merge_two(keys + begin, middle - begin, keys + middle, end - middle, out + begin);
    begin = end;
  }
  return n_sequences;
}

static void swap_runs(sv_runs *a, sv_runs *b) {
  sv_runs t = *a;
  *a = *b;
  *b = t;
}

static sv_status sort_runs(sv_runs *runs, sv_runs *spare) {
  if (ascending_end(runs->keys, runs->n, 0) == runs->n) return SV_OK;
  spare->n = 0;
  SV_TRY(reserve_runs(spare, runs->n));
  int64_t n_sequences;
  do {
    n_sequences = merge_pass(runs->keys, runs->n, spare->keys);
    spare->n = runs->n;
    swap_runs(runs, spare);
  } while (n_sequences > 1);
  return SV_OK;
}

static void join_runs(sv_runs *runs) {
  int64_t n = 1;
  for (int64_t i = 1; i < runs->n; i++) {
    int64_t first = sv_runs_first(runs, i), last = sv_runs_last(runs, i);
    int64_t open_first = sv_runs_first(runs, n - 1), open_last = sv_runs_last(runs, n - 1);
    if (first > open_last + 1)
      runs->keys[n++] = runs->keys[i];
    else if (last > open_last)
      runs->keys[n - 1] = make_key(open_first, last);
  }
  runs->n = n;
}

sv_status sv_runs_normalise(sv_runs *runs, sv_runs *spare) {
  if (runs->n < 2) return SV_OK;
  SV_TRY(sort_runs(runs, spare));
  join_runs(runs);
  return SV_OK;
}

sv_status sv_runs_copy(const sv_runs *runs, sv_runs *out) {
  out->n = 0;
  if (runs->n == 0) return SV_OK;
  SV_TRY(reserve_runs(out, runs->n));
  memcpy(out->keys, runs->keys, (size_t)runs->n * sizeof *out->keys);
  out->n = runs->n;
  return SV_OK;
}

void sv_runs_free(sv_runs *runs) {
  sv_scratch_free(runs->keys);
  *runs = (sv_runs){0};
}
