/* engine.h — one work item: a query block of a head against what it visits. */
#ifndef SV_ATTENTION_ENGINE_H
#define SV_ATTENTION_ENGINE_H

#include "attention/pack.h"

#define SV_CHUNK_WORDS 32768 /* keys * D of a chunk: 128 KiB of keys and as much of values (measured) */

/* sv_engine_chunk_keys — keys that a chunk holds at most. */
SV_INLINE int32_t sv_engine_chunk_keys(int64_t head_dim) {
  int64_t n = SV_CHUNK_WORDS / head_dim / SV_PANEL * SV_PANEL;
  return n > SV_MAX_CHUNK ? SV_MAX_CHUNK : (int32_t)n;
}

/* sv_engine_room_bytes — working room of one thread. */
size_t sv_engine_room_bytes(const sv_pack *pack);
/* sv_engine_run — computes and writes the rows of `item` for sample b. SV_ERR_INTERRUPTED if the loop it runs
 * in was stopped; the item and its codes have been checked. */
sv_status sv_engine_run(const sv_pack *pack, const sv_packed_head *head, const sv_item *item, int64_t b,
                        void *room);
/* sv_engine_zero — zeros and -inf for a query block that nothing is visited from. */
void sv_engine_zero(const sv_pack *pack, int64_t b, int64_t h, int64_t query_block);

#endif
