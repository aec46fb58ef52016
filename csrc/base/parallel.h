/* parallel.h — one loop over independent items: a small pthread pool, or torch's own pool once handed
 * in. Items are handed out one by one from a counter, so a list sorted longest first balances itself;
 * which thread takes an item never changes what it computes. Fork-safe: a child starts with a fresh
 * pool and without torch's. Any long call can be interrupted through sv_poll. */
#ifndef SV_BASE_PARALLEL_H
#define SV_BASE_PARALLEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

SV_EXTERN_C_BEGIN

/* sv_body — work on item `i`; `thread` in 0..sv_parallel_threads()-1 names scratch. A status other than
 * SV_OK stops the loop; the sentence of the first failing item (lowest i seen) reaches the caller. */
typedef sv_status (*sv_body)(int64_t i, int32_t thread, void *ctx);

/* sv_poll — asked by the calling thread between items, at most every 20 ms; true = stop. NULL = never. */
typedef struct sv_poll {
  bool (*interrupted)(void *ctx);
  void *ctx;
} sv_poll;

/* sv_poll_interrupted — cheap enough for every row of a loop: the callback looks at its clock first. */
SV_INLINE bool sv_poll_interrupted(const sv_poll *poll) { return poll && poll->interrupted(poll->ctx); }

/* sv_parallel_for — body(i) for i in 0..n-1. SV_ERR_INTERRUPTED if poll said so; no body runs after the
 * return. Nested calls run in the calling thread. Nothing is allocated after the pool exists. */
sv_status sv_parallel_for(int64_t n, sv_body body, void *ctx, const sv_poll *poll);
/* sv_parallel_for_on — on at most n_threads threads: for owners of scratch per thread, since the count of
 * sv_parallel_threads may be changed by another thread at any time. */
sv_status sv_parallel_for_on(int32_t n_threads, int64_t n, sv_body body, void *ctx, const sv_poll *poll);

/* sv_parallel_stopped — for a body between its steps: true = return now (SV_ERR_INTERRUPTED will do), since
 * the loop was interrupted or another item failed, whose status stands. On the calling thread it asks the
 * poll. False outside. */
bool sv_parallel_stopped(void);

/* sv_parallel_threads — threads a loop may use now: SPARSE_VDIT_THREADS, else torch's count if torch's
 * pool is in use, else OMP_NUM_THREADS, else the CPUs of this process's affinity mask; 1..256. */
int32_t sv_parallel_threads(void);
/* sv_parallel_set_threads — overrides the count for this process; 0 returns to the rule above. */
void sv_parallel_set_threads(int32_t n_threads);
/* sv_parallel_check — SV_ERR_ARG with a sentence if SPARSE_VDIT_THREADS is no number in 1..256. */
sv_status sv_parallel_check(void);

/* torch's pool (torch_parallel_for cuts statically, so it is called over [0, threads) with grain 1). */
typedef void (*sv_torch_range_body)(int64_t begin, int64_t end, void *ctx);
typedef struct sv_torch_pool {
  int32_t (*parallel_for)(int64_t begin, int64_t end, int64_t grain, sv_torch_range_body body, void *ctx);
  int32_t (*n_threads)(uint32_t *out);
} sv_torch_pool;
/* sv_parallel_use_torch — NULL goes back to our own pool. Ignored in a forked child, for good. */
void sv_parallel_use_torch(const sv_torch_pool *pool);
/* sv_parallel_pool_name — "own" or "torch". */
const char *sv_parallel_pool_name(void);

SV_EXTERN_C_END
#endif
