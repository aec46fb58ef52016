/* test_parallel.c — every item once, the first failure, the poll, loops inside loops, loops beside loops, fork. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/parallel.h"
#include "check.h"

#define N 1000

static atomic_int counts[N];

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static sv_status count_item(int64_t i, int32_t thread, void *ctx) {
  int32_t n_threads = *(int32_t *)ctx;
  if (thread < 0 || thread >= n_threads)
    return sv_fail(SV_ERR_INTERNAL, "thread %d of %d", thread, n_threads);
  atomic_fetch_add(&counts[i], 1);
  return SV_OK;
}

static void test_each_item_once(void) {
  for (int32_t n_threads = 1; n_threads <= 7; n_threads += 3) {
    sv_parallel_set_threads(n_threads);
    CHECK(sv_parallel_threads() == n_threads, "%d threads", sv_parallel_threads());
    for (int round = 0; round < 50; round++) {
      memset(counts, 0, sizeof counts);
      CHECK_OK(sv_parallel_for(N, count_item, &n_threads, NULL));
      for (int i = 0; i < N; i++) CHECK(counts[i] == 1, "item %d ran %d times", i, counts[i]);
    }
  }
  int32_t one = 1;
  CHECK_OK(sv_parallel_for(0, count_item, &one, NULL));
  CHECK_OK(sv_parallel_for(-3, count_item, &one, NULL));
  sv_parallel_set_threads(2);
}

static sv_status fail_late(int64_t i, int32_t thread, void *ctx) {
  (void)thread, (void)ctx;
  return i >= 40 ? sv_fail(SV_ERR_ARG, "item %lld is bad", (long long)i) : SV_OK;
}

static void test_failure(void) {
  for (int round = 0; round < 20; round++)
    CHECK_FAILS(sv_parallel_for(N, fail_late, NULL, NULL), SV_ERR_ARG, "item 4");
}

/* Item 0 gives up when it hears that item 1 failed: the caller is told of the failure, not of the giving up. */
static sv_status fail_or_give_up(int64_t i, int32_t thread, void *ctx) {
  (void)thread, (void)ctx;
  if (i == 1) return sv_fail(SV_ERR_ARG, "item 1 is bad");
  double start = now_s();
  while (!sv_parallel_stopped() && now_s() - start < 5.0) {
  }
  return sv_fail(SV_ERR_INTERRUPTED, "item 0 gave up");
}

static void test_giving_up_is_no_failure(void) {
  sv_parallel_set_threads(2);
  CHECK_FAILS(sv_parallel_for(2, fail_or_give_up, NULL, NULL), SV_ERR_ARG, "item 1 is bad");
}

/* 1 to 256 threads, more than items or processors. */
static void test_many_threads(void) {
  for (int32_t n_threads = 1; n_threads <= 256; n_threads *= 4) {
    sv_parallel_set_threads(n_threads);
    memset(counts, 0, sizeof counts);
    CHECK_OK(sv_parallel_for(N, count_item, &n_threads, NULL));
    for (int i = 0; i < N; i++)
      CHECK(counts[i] == 1, "%d threads: item %d ran %d times", n_threads, i, counts[i]);
  }
  sv_parallel_set_threads(100000);
  CHECK(sv_parallel_threads() == 256, "%d threads", sv_parallel_threads());
  sv_parallel_set_threads(2);
}

typedef struct late {
  double at_s;
  atomic_int asked, ran;
} late;

static bool is_late(void *ctx) {
  late *l = ctx;
  atomic_fetch_add(&l->asked, 1);
  return now_s() > l->at_s;
}

static sv_status nap(int64_t i, int32_t thread, void *ctx) {
  (void)i, (void)thread;
  late *l = ctx;
  atomic_fetch_add(&l->ran, 1);
  struct timespec t = {.tv_nsec = 5000000};
  nanosleep(&t, NULL);
  return SV_OK;
}

static void test_interrupt(void) {
  double start = now_s();
  late l = {.at_s = start + 0.1};
  sv_poll poll = {is_late, &l};
  CHECK_FAILS(sv_parallel_for(100000, nap, &l, &poll), SV_ERR_INTERRUPTED, "interrupted");
  double took = now_s() - start;
  CHECK(took < 0.3, "%.3f s until the interrupt", took);
  CHECK(l.asked >= 2 && l.asked <= 20, "asked %d times in 0.1 s", l.asked);
  int ran = l.ran;
  nap(0, 0, &l);
  CHECK(l.ran == ran + 1, "a body ran after the return");
}

static sv_status long_body(int64_t i, int32_t thread, void *ctx) {
  (void)i, (void)thread, (void)ctx;
  while (!sv_parallel_stopped()) {
  }
  return SV_ERR_INTERRUPTED;
}

static void test_interrupt_inside_items(void) {
  double start = now_s();
  late l = {.at_s = start + 0.05};
  sv_poll poll = {is_late, &l};
  CHECK_FAILS(sv_parallel_for(2, long_body, NULL, &poll), SV_ERR_INTERRUPTED, "interrupted");
  CHECK(now_s() - start < 0.3, "%.3f s until the interrupt", now_s() - start);
  CHECK(!sv_parallel_stopped(), "nothing is stopped outside of loops");
}

static sv_status nested(int64_t i, int32_t thread, void *ctx) {
  (void)i, (void)thread, (void)ctx;
  int32_t one = 1; /* alone: the only thread index is 0 */
  return sv_parallel_for(N, count_item, &one, NULL);
}

static void test_nested(void) {
  memset(counts, 0, sizeof counts);
  CHECK_OK(sv_parallel_for(8, nested, NULL, NULL));
  for (int i = 0; i < N; i++) CHECK(counts[i] == 8, "item %d ran %d times", i, counts[i]);
}

static sv_status add_item(int64_t i, int32_t thread, void *ctx) {
  (void)thread;
  atomic_fetch_add((atomic_int_fast64_t *)ctx, i);
  return SV_OK;
}

static void *many_loops(void *failures) {
  for (int round = 0; round < 200; round++) {
    atomic_int_fast64_t sum = 0;
    if (sv_parallel_for(N, add_item, &sum, NULL) != SV_OK || sum != N * (N - 1) / 2) ++*(int *)failures;
  }
  return NULL;
}

static void test_callers_beside_each_other(void) {
  pthread_t threads[4];
  int failures[4] = {0};
  for (int t = 0; t < 4; t++) pthread_create(&threads[t], NULL, many_loops, &failures[t]);
  for (int t = 0; t < 4; t++) pthread_join(threads[t], NULL);
  for (int t = 0; t < 4; t++) CHECK(failures[t] == 0, "%d wrong loops on thread %d", failures[t], t);
}

static int child_works(void) {
  int failures = 0;
  alarm(20); /* a hang ends the child */
  many_loops(&failures);
  return failures == 0 && strcmp(sv_parallel_pool_name(), "own") == 0 ? 0 : 1;
}

static void test_fork(void) {
  pthread_t busy;
  int failures = 0, status;
  pthread_create(&busy, NULL, many_loops, &failures);
  for (int round = 0; round < 10; round++) {
    pid_t pid = fork();
    if (pid == 0) _exit(child_works());
    waitpid(pid, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child ended with %x", status);
  }
  pthread_join(busy, NULL);
  many_loops(&failures);
  CHECK(failures == 0, "%d wrong loops in the parent", failures);
}

/* Stands in for torch's pool: cuts the range in two halves, the second first. */
static int32_t torch_calls;
static int32_t halves(int64_t begin, int64_t end, int64_t grain, sv_torch_range_body body, void *ctx) {
  (void)grain;
  torch_calls++;
  body((begin + end) / 2, end, ctx);
  body(begin, (begin + end) / 2, ctx);
  return 0;
}
static int32_t three(uint32_t *out) {
  *out = 3;
  return 0;
}

static void test_torch_pool(void) {
  sv_torch_pool pool = {halves, three};
  sv_parallel_set_threads(0);
  sv_parallel_use_torch(&pool);
  CHECK(strcmp(sv_parallel_pool_name(), "torch") == 0, "%s", sv_parallel_pool_name());
  int32_t n_threads = sv_parallel_threads();
  if (!getenv("SPARSE_VDIT_THREADS")) CHECK(n_threads == 3, "%d threads", n_threads);
  memset(counts, 0, sizeof counts);
  CHECK_OK(sv_parallel_for(N, count_item, &n_threads, NULL));
  for (int i = 0; i < N; i++) CHECK(counts[i] == 1, "item %d ran %d times", i, counts[i]);
  CHECK(n_threads == 1 || torch_calls == 1, "torch's pool was called %d times", torch_calls);
  int status;
  pid_t pid = fork();
  if (pid == 0) {
    sv_parallel_use_torch(&pool); /* ignored in a forked child */
    _exit(child_works());
  }
  waitpid(pid, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "child ended with %x", status);
  sv_parallel_use_torch(NULL);
  CHECK(strcmp(sv_parallel_pool_name(), "own") == 0, "%s", sv_parallel_pool_name());
}

static void test_bad_environment(void) {
  char *before = getenv("SPARSE_VDIT_THREADS"), *kept = before ? strdup(before) : NULL;
  setenv("SPARSE_VDIT_THREADS", "many", 1);
  CHECK_FAILS(sv_parallel_check(), SV_ERR_ARG, "SPARSE_VDIT_THREADS: got many, expected a number in 1..256");
  static const char *const nonsense[] = {"0", "-1", "257", "3 ", "0x2", "2.5", "99999999999999999999"};
  for (size_t i = 0; i < sizeof nonsense / sizeof *nonsense; i++) {
    setenv("SPARSE_VDIT_THREADS", nonsense[i], 1);
    CHECK_FAILS(sv_parallel_check(), SV_ERR_ARG, nonsense[i]);
  }
  setenv("SPARSE_VDIT_THREADS", "3", 1);
  CHECK_OK(sv_parallel_check());
  if (kept)
    setenv("SPARSE_VDIT_THREADS", kept, 1);
  else
    unsetenv("SPARSE_VDIT_THREADS");
  free(kept);
}

int main(void) {
  test_each_item_once();
  test_failure();
  test_giving_up_is_no_failure();
  test_interrupt();
  test_interrupt_inside_items();
  test_nested();
  test_callers_beside_each_other();
  test_fork();
  test_torch_pool();
  test_many_threads();
  test_bad_environment();
  return check_result();
}
