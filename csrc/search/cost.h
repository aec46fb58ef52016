/* cost.h — milliseconds of an attention call before it is run: the visits are counted, each item is priced by the
 * constants of the machine, and the items are handed to the workers as the engine does, longest first.
 *
 *   item      item + chunks chunk + runs run + keys/block_k full + short partial + ceil(pooled/16) pooled
 *             + tiles tile, times the rows that are really multiplied over those of a whole query block
 *   head      head + key blocks (pack + far max(0, 1 - cache_tokens / (B H N))) + its order (reorder) + its
 *             remainder (mean), once per sample
 *   layer     launch + (zeros + heads) / workers + makespan of the items
 *   It knows nothing of errors; of memory only what the constants hold. Next: select.h. */
#ifndef SV_SEARCH_COST_H
#define SV_SEARCH_COST_H

#include "base/parallel.h"
#include "pattern/visits.h"
#include "search/hardware.h"

SV_EXTERN_C_BEGIN

#define SV_COST_POOLED 16 /* pseudo keys that are multiplied together */

/* sv_cost_pool — the distinct patterns, made with remainder wherever one is asked for. */
typedef struct sv_cost_pool {
  sv_geometry geometry;
  const sv_row *rows; /* [P, nq] */
  int64_t n_patterns;
  const uint32_t *codes; /* [n_codes], checked as they are read */
  int64_t n_codes;
  const int32_t *orders; /* [P]: -1 = the caller's own order, no reordering */
  int64_t n_samples;     /* B of the call */
  int64_t n_heads;       /* H of the layer */
} sv_cost_pool;

/* sv_cost_layers — calls with any mixes of patterns; a pattern is priced once however many heads have it.
 *   choice      [L, H] in 0..P-1  remainder [L, H] 0/1: with pseudo keys (no matter where the visits have none)
 *   out_ms      [L] each call; out_head_ms [L, H] additive share of each head: its own work over the workers
 *   equation    out_ms >= launch + sum of its out_head_ms, equal for one worker
 *   contract    [alloc scratch O(P + min(2P, L H) nq + B H nq) | errors ARG NOMEM INTERRUPTED | any thread | no GIL |
 *               bitwise repeatable, the same for a layer alone and among others] */
sv_status sv_cost_layers(const sv_hardware *hardware, const sv_cost_pool *pool, int64_t n_layers,
                         const int32_t *choice, const uint8_t *remainder, const sv_poll *poll, double *out_ms,
                         double *out_head_ms);
/* sv_cost_heads — the additive share of a head with each pattern.
 *   out_ms      [P, 2]: plain, with remainder
 *   contract    [no alloc | errors ARG INTERRUPTED | any thread | no GIL | bitwise repeatable] */
sv_status sv_cost_heads(const sv_hardware *hardware, const sv_cost_pool *pool, const sv_poll *poll,
                        double *out_ms);
/* sv_cost_makespan — the longest sum of a worker when items, in this order, go to whoever is free first.
 *   room        [workers] doubles, any content */
double sv_cost_makespan(const double *times, int64_t n, int64_t workers, double *room);

SV_EXTERN_C_END
#endif
