/* walk.h — reads the visits of one work item, code by code, and trusts none of them: every number is held
 * against the geometry, order and lengths included, before anyone indexes with it. */
#ifndef SV_ATTENTION_WALK_H
#define SV_ATTENTION_WALK_H

#include "attention/attention.h"

typedef enum sv_step_kind { SV_STEP_END, SV_STEP_KEYS, SV_STEP_POOLED } sv_step_kind;

/* sv_step — the next visit: n_blocks key blocks from first_block, or the pooled tile whose first block is
 * first_block and whose bits say which of its blocks take part. */
typedef struct sv_step {
  sv_step_kind kind;
  int64_t first_block, n_blocks;
  const uint32_t *bits;
} sv_step;

typedef struct sv_walk {
  const uint32_t *codes, *end; /* NULL for a range */
  int64_t range_first, range_n;
  int64_t n_key_blocks, block_k;
  int64_t next_block;  /* visits ascend: no block below this one may follow */
  int64_t next_pooled; /* likewise for tiles; keys may not follow a tile */
} sv_walk;

/* sv_walk_open — SV_ERR_ARG if the item points outside the codes or the geometry. */
sv_status sv_walk_open(const sv_attention_args *args, const sv_item *item, sv_walk *out);
sv_status sv_walk_next(sv_walk *walk, sv_step *out);

#endif
