/* parallel.c — one counter hands out the items of a loop; whoever is free takes the next one. The calling
 * thread works too and asks the poll. Helpers come from torch's pool or from our own; a caller that finds
 * our own pool busy (another thread's loop, or a loop inside a loop) does its items alone. */
#define _GNU_SOURCE
#include "base/parallel.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MAX_THREADS 256
#define POLL_NS INT64_C(20000000)

typedef struct loop {
  int64_t n;
  sv_body body;
  void *ctx;
  const sv_poll *poll;
  pthread_t caller;
  int64_t next_poll_ns; /* read and written by the caller only */
  atomic_int_fast64_t next;
  atomic_bool stopped;
  pthread_mutex_t lock; /* guards the three fields below */
  int64_t failed_item;
  sv_status status;
  char sentence[512];
} loop;

static struct {
  pthread_mutex_t lock;
  pthread_cond_t work, done;
  loop *job; /* NULL = nothing to join */
  int32_t next_slot, n_slots, n_joined, n_workers;
  bool busy;
} pool = {
    .lock = PTHREAD_MUTEX_INITIALIZER, .work = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static _Thread_local loop *current; /* the loop whose body this thread runs */
static atomic_int set_threads_to;
static _Atomic(const sv_torch_pool *) torch_pool;
static sv_torch_pool torch_pool_copy;
static atomic_bool is_forked_child;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int32_t env_threads, omp_threads; /* 0 = not said */

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

/* ---- the pool's life ---- */

static int32_t parse_threads(const char *word) {
  char *end;
  if (!word || !*word) return 0;
  long n = strtol(word, &end, 10);
  return *end == '\0' && n >= 1 && n <= MAX_THREADS ? (int32_t)n : 0;
}

static void before_fork(void) { pthread_mutex_lock(&pool.lock); }
static void after_fork_parent(void) { pthread_mutex_unlock(&pool.lock); }

static void after_fork_child(void) {
  pthread_mutex_init(&pool.lock, NULL);
  pthread_cond_init(&pool.work, NULL);
  pthread_cond_init(&pool.done, NULL);
  pool.job = NULL;
  pool.n_joined = pool.n_workers = 0;
  pool.busy = false;
  current = NULL;
  atomic_store(&is_forked_child, true);
  atomic_store(&torch_pool, NULL);
}

static void start_once(void) {
  env_threads = parse_threads(getenv("SPARSE_VDIT_THREADS"));
  omp_threads = parse_threads(getenv("OMP_NUM_THREADS"));
  (void)pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

static int32_t affinity_threads(void) {
#ifdef __linux__
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return 1;
}

static int32_t clamp_threads(int64_t n) { return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : (int32_t)n; }

int32_t sv_parallel_threads(void) {
  pthread_once(&once, start_once);
  int32_t n = atomic_load(&set_threads_to);
  if (n > 0) return clamp_threads(n);
  if (env_threads > 0) return env_threads;
  const sv_torch_pool *torch = atomic_load(&torch_pool);
  uint32_t torch_threads = 0;
  if (torch && torch->n_threads(&torch_threads) == 0) return clamp_threads(torch_threads);
  return omp_threads > 0 ? omp_threads : clamp_threads(affinity_threads());
}

void sv_parallel_set_threads(int32_t n_threads) {
  atomic_store(&set_threads_to, n_threads > 0 ? n_threads : 0);
}

sv_status sv_parallel_check(void) {
  const char *word = getenv("SPARSE_VDIT_THREADS");
  if (!word || !*word || parse_threads(word)) return SV_OK;
  return sv_fail(SV_ERR_ARG, "SPARSE_VDIT_THREADS: got %.40s, expected a number in 1..%d", word, MAX_THREADS);
}

void sv_parallel_use_torch(const sv_torch_pool *torch) {
  pthread_once(&once, start_once);
  if (atomic_load(&is_forked_child)) return;
  if (torch) torch_pool_copy = *torch;
  atomic_store(&torch_pool, torch ? &torch_pool_copy : NULL);
}

const char *sv_parallel_pool_name(void) { return atomic_load(&torch_pool) ? "torch" : "own"; }

/* ---- one loop ---- */

static void note_failure(loop *job, int64_t item, sv_status status, const char *sentence) {
  pthread_mutex_lock(&job->lock);
  if (job->status == SV_OK || item < job->failed_item) {
    job->status = status;
    job->failed_item = item;
    (void)snprintf(job->sentence, sizeof job->sentence, "%s", sentence);
  }
  pthread_mutex_unlock(&job->lock);
  atomic_store(&job->stopped, true);
}

static void ask_poll(loop *job) {
  if (!job->poll || atomic_load_explicit(&job->stopped, memory_order_relaxed)) return;
  int64_t now = now_ns();
  if (now < job->next_poll_ns) return;
  if (job->poll->interrupted(job->poll->ctx))
    note_failure(job, -1, SV_ERR_INTERRUPTED, "parallel: interrupted");
  job->next_poll_ns = now_ns() + POLL_NS;
}

static bool is_stopped(loop *job) {
  if (pthread_equal(job->caller, pthread_self())) ask_poll(job);
  return atomic_load_explicit(&job->stopped, memory_order_relaxed);
}

bool sv_parallel_stopped(void) { return current && is_stopped(current); }

static void take_items(loop *job, int32_t slot) {
  loop *outer = current;
  current = job;
  while (!is_stopped(job)) {
    int64_t i = (int64_t)atomic_fetch_add(&job->next, 1);
    if (i >= job->n) break;
    sv_status status = job->body(i, slot, job->ctx);
    bool gave_up = status == SV_ERR_INTERRUPTED && atomic_load(&job->stopped);
    if (status != SV_OK && !gave_up) note_failure(job, i, status, sv_last_error());
  }
  current = outer;
}

/* ---- our own helpers ---- */

static void *work(void *unused) {
  (void)unused;
  pthread_mutex_lock(&pool.lock);
  for (;;) {
    while (!pool.job || pool.next_slot >= pool.n_slots) pthread_cond_wait(&pool.work, &pool.lock);
    loop *job = pool.job;
    int32_t slot = pool.next_slot++;
    pool.n_joined++;
    pthread_mutex_unlock(&pool.lock);
    take_items(job, slot);
    pthread_mutex_lock(&pool.lock);
    if (--pool.n_joined == 0) pthread_cond_signal(&pool.done);
  }
  return NULL;
}

/* Signals belong to the threads of the program: ours block them all. */
static void start_workers(int32_t wanted) {
  sigset_t all, before;
  sigfillset(&all);
  if (pool.n_workers >= wanted || pthread_sigmask(SIG_SETMASK, &all, &before) != 0) return;
  pthread_attr_t detached;
  pthread_attr_init(&detached);
  pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
  for (pthread_t id; pool.n_workers < wanted; pool.n_workers++)
    if (pthread_create(&id, &detached, work, NULL) != 0) break;
  pthread_attr_destroy(&detached);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static bool open_pool(loop *job, int32_t n_threads) {
  pthread_mutex_lock(&pool.lock);
  bool is_ours = !pool.busy;
  if (is_ours) {
    pool.busy = true;
    start_workers(n_threads - 1);
    pool.next_slot = 1;
    pool.n_slots = n_threads;
    pool.job = job;
    pthread_cond_broadcast(&pool.work);
  }
  pthread_mutex_unlock(&pool.lock);
  return is_ours;
}

static void wait_a_while(void) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until);
  until.tv_nsec += POLL_NS / 2;
  if (until.tv_nsec >= 1000000000) until.tv_sec++, until.tv_nsec -= 1000000000;
  pthread_cond_timedwait(&pool.done, &pool.lock, &until);
}

static void close_pool(loop *job) {
  pthread_mutex_lock(&pool.lock);
  pool.job = NULL;
  while (pool.n_joined > 0) {
    wait_a_while();
    pthread_mutex_unlock(&pool.lock);
    ask_poll(job);
    pthread_mutex_lock(&pool.lock);
  }
  pool.busy = false;
  pthread_mutex_unlock(&pool.lock);
}

/* ---- the door ---- */

static void run_torch_slots(int64_t begin, int64_t end, void *ctx) {
  for (int64_t slot = begin; slot < end; slot++) take_items((loop *)ctx, (int32_t)slot);
}

static void run(loop *job, int32_t n_threads) {
  const sv_torch_pool *torch = atomic_load(&torch_pool);
  if (current || n_threads <= 1 || job->n <= 1) {
    take_items(job, 0);
  } else if (torch) {
    if (torch->parallel_for(0, n_threads, 1, run_torch_slots, job) != 0)
      note_failure(job, -1, SV_ERR_INTERNAL, "parallel: torch_parallel_for failed");
  } else if (open_pool(job, n_threads)) {
    take_items(job, 0);
    close_pool(job);
  } else {
    take_items(job, 0);
  }
}

sv_status sv_parallel_for_on(int32_t n_threads, int64_t n, sv_body body, void *ctx, const sv_poll *poll) {
  pthread_once(&once, start_once);
  if (n <= 0) return SV_OK;
  loop job = {.n = n, .body = body, .ctx = ctx, .poll = poll, .caller = pthread_self()};
  job.next_poll_ns = now_ns() + POLL_NS;
  pthread_mutex_init(&job.lock, NULL);
  run(&job, n < n_threads ? (int32_t)n : n_threads);
  pthread_mutex_destroy(&job.lock);
  return job.status == SV_OK ? SV_OK : sv_fail(job.status, "%s", job.sentence);
}

sv_status sv_parallel_for(int64_t n, sv_body body, void *ctx, const sv_poll *poll) {
  return sv_parallel_for_on(sv_parallel_threads(), n, body, ctx, poll);
}
