/* runs.h — a growing list of integer intervals [first, last], the currency of the emitters: key blocks of
 * a query block, boxes along an axis. Made ascending and disjoint by one call; memory is kept for reuse. */
#ifndef SV_PATTERN_RUNS_H
#define SV_PATTERN_RUNS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

/* sv_runs — keys[i] = first << 32 | last, so that keys compare like their intervals. Zero-initialise. */
typedef struct sv_runs {
  uint64_t *keys;
  int64_t n;
  size_t capacity_bytes;
} sv_runs;

SV_INLINE int64_t sv_runs_first(const sv_runs *runs, int64_t i) { return (int64_t)(runs->keys[i] >> 32); }
SV_INLINE int64_t sv_runs_last(const sv_runs *runs, int64_t i) {
  return (int64_t)(runs->keys[i] & 0xffffffffu);
}

/* sv_runs_add — appends first..last, 0 <= first <= last < 2^32 - 1; joins it to the run before when it
 * does not start before that one and at most `gap` integers lie between them. */
sv_status sv_runs_add(sv_runs *runs, int64_t first, int64_t last, int64_t gap);
/* sv_runs_normalise — ascending and disjoint, neighbouring runs joined. `spare` is working memory. */
sv_status sv_runs_normalise(sv_runs *runs, sv_runs *spare);
sv_status sv_runs_copy(const sv_runs *runs, sv_runs *out);
void sv_runs_free(sv_runs *runs);

#endif
