/* walk.c — the reader of visit lists, with its checks. */
#include "attention/walk.h"

#include <stddef.h>

sv_status sv_walk_open(const sv_attention_args *args, const sv_item *item, sv_walk *out) {
  int64_t n_key_blocks = sv_geometry_key_blocks(&args->geometry);
  int64_t first = item->first, n = item->n;
  *out = (sv_walk){.n_key_blocks = n_key_blocks, .block_k = args->geometry.block_k};
  if (SV_ITEM_KIND(*item) == SV_ITEM_RANGE) {
    if (first + n > n_key_blocks)
      return sv_fail(SV_ERR_ARG, "attention: an item visits key blocks %lld..%lld, expected less than %lld",
                     (long long)first, (long long)(first + n - 1), (long long)n_key_blocks);
    out->range_first = first;
    out->range_n = n;
    return SV_OK;
  }
  if (SV_ITEM_KIND(*item) != SV_ITEM_LIST)
    return sv_fail(SV_ERR_ARG, "attention: an item is of kind %u, expected 0 (list) or 1 (range)",
                   SV_ITEM_KIND(*item));
  if (first + n > args->n_codes)
    return sv_fail(SV_ERR_ARG, "attention: an item reads codes %lld..%lld, expected less than %lld",
                   (long long)first, (long long)(first + n - 1), (long long)args->n_codes);
  if (n == 0) return SV_OK;
  out->codes = args->codes + first;
  out->end = out->codes + n;
  return SV_OK;
}

static sv_status step_keys(sv_walk *walk, uint32_t code, sv_step *out) {
  int64_t first = SV_CODE_NUMBER(code), n = 1;
  if (SV_CODE_FORM(code) == SV_FORM_RUN) {
    if (walk->codes == walk->end)
      return sv_fail(SV_ERR_ARG, "attention: a run of key blocks lacks its length, the item ends there");
    n = *walk->codes++;
  } else if (SV_CODE_FORM(code) != SV_FORM_BLOCK) {
    return sv_fail(SV_ERR_ARG, "attention: a code has form %u, expected 0 (block) or 1 (run)",
                   SV_CODE_FORM(code));
  }
  if (first < walk->next_block || first + n > walk->n_key_blocks || walk->next_pooled > 0)
    return sv_fail(SV_ERR_ARG,
                   "attention: codes visit key blocks %lld..%lld, expected ascending blocks from %lld, below "
                   "%lld, before any pooled tile",
                   (long long)first, (long long)(first + n - 1), (long long)walk->next_block,
                   (long long)walk->n_key_blocks);
  walk->next_block = first + n;
  *out = (sv_step){.kind = SV_STEP_KEYS, .first_block = first, .n_blocks = n};
  return SV_OK;
}

static int has_bit_at_or_above(const uint32_t *bits, int64_t n_words, int64_t limit) {
  for (int64_t w = limit / 32; w < n_words; w++)
    if ((w == limit / 32 ? bits[w] >> (limit % 32) : bits[w]) != 0) return 1;
  return 0;
}

static sv_status step_pooled(sv_walk *walk, uint32_t code, sv_step *out) {
  int64_t tile = SV_CODE_NUMBER(code), first = tile * walk->block_k, n_words = sv_ceil_div(walk->block_k, 32);
  int64_t n_blocks = walk->n_key_blocks - first < walk->block_k ? walk->n_key_blocks - first : walk->block_k;
  if (tile < walk->next_pooled || n_blocks <= 0)
    return sv_fail(SV_ERR_ARG,
                   "attention: a code names pooled tile %lld, expected ascending tiles from %lld, "
                   "below %lld",
                   (long long)tile, (long long)walk->next_pooled,
                   (long long)sv_ceil_div(walk->n_key_blocks, walk->block_k));
  if (walk->end - walk->codes < n_words)
    return sv_fail(SV_ERR_ARG,
                   "attention: pooled tile %lld lacks its %lld words of bits, the item ends there",
                   (long long)tile, (long long)n_words);
  if (has_bit_at_or_above(walk->codes, n_words, n_blocks))
    return sv_fail(SV_ERR_ARG, "attention: pooled tile %lld has a bit beyond its %lld key blocks",
                   (long long)tile, (long long)n_blocks);
  *out = (sv_step){.kind = SV_STEP_POOLED, .first_block = first, .n_blocks = n_blocks, .bits = walk->codes};
  walk->codes += n_words;
  walk->next_pooled = tile + 1;
  return SV_OK;
}

sv_status sv_walk_next(sv_walk *walk, sv_step *out) {
  *out = (sv_step){.kind = SV_STEP_END};
  if (walk->range_n > 0) {
    *out = (sv_step){.kind = SV_STEP_KEYS, .first_block = walk->range_first, .n_blocks = walk->range_n};
    walk->range_n = 0;
    return SV_OK;
  }
  if (walk->codes == walk->end) return SV_OK;
  uint32_t code = *walk->codes++;
  if (SV_CODE_SOURCE(code) == SV_SOURCE_KEYS) return step_keys(walk, code, out);
  if (SV_CODE_SOURCE(code) == SV_SOURCE_POOLED) return step_pooled(walk, code, out);
  return sv_fail(SV_ERR_ARG, "attention: a code names source %u, expected 0 (keys) or 3 (pooled)",
                 SV_CODE_SOURCE(code));
}
