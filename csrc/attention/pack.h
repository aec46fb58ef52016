/* pack.h — the keys and values of one head of one sample, laid out for the block operations (block_ops.h), in
 * the head's order and cut at kv_len. */
#ifndef SV_ATTENTION_PACK_H
#define SV_ATTENTION_PACK_H

#include <stddef.h>

#include "attention/attention.h"
#include "attention/block_ops.h"

typedef struct sv_packed_head {
  int64_t n_keys;                       /* keys that take part: places 0 .. n_keys-1 */
  int64_t n_whole;                      /* of them in whole panels; the rest is the tail */
  int32_t depth;                        /* 32-bit words of a key: D, or D/2 in pairs of bfloat16 */
  bool keeps_means;                     /* a remainder reads mean_k, mean_v */
  float *k;                             /* [n_whole/16][depth][16] */
  float *v;                             /* [panels][n_whole][16], bf16 pairs [panels][n_whole/2][16] words */
  int64_t v_key_stride, v_panel_stride; /* 32-bit words */
  float *tail_k;                        /* [D+1][16], float32 always */
  float *tail_v;                        /* [16][16*panels] */
  float *mean_k;                        /* [key blocks][D+1], the last one is the bias in the log2 domain */
  float *mean_v;                        /* [key blocks][16*panels] */
} sv_packed_head;

/* sv_pack — what all heads of a call share. */
typedef struct sv_pack {
  const sv_attention_args *args;
  const sv_block_ops *ops;   /* float32 arithmetic */
  const sv_block_ops *pairs; /* bf16 products, or NULL */
  int64_t n_tokens, n_key_blocks, head_dim;
  int32_t n_v_panels;
} sv_pack;

SV_INLINE int64_t sv_pack_element_bytes(const sv_tensor *x) { return x->dtype == SV_F32 ? 4 : 2; }
SV_INLINE sv_tensor sv_pack_head(const sv_tensor *x, int64_t b, int64_t h) {
  sv_tensor head = *x;
  head.data = (char *)x->data + (b * x->stride[0] + h * x->stride[1]) * sv_pack_element_bytes(x);
  return head;
}
SV_INLINE void *sv_pack_row(const sv_tensor *head, const int32_t *tokens, int64_t place) {
  int64_t i = tokens ? tokens[place] : place;
  return (char *)head->data + i * head->stride[2] * sv_pack_element_bytes(head);
}
SV_INLINE const int32_t *sv_pack_tokens(const sv_attention_args *args, int64_t h, int64_t n_tokens) {
  int32_t order = args->heads[h].order;
  return order < 0 ? NULL : args->tokens + order * n_tokens;
}

/* sv_pack_bytes — room of one head at most; sv_pack_place — cuts that room up (64-byte pieces). */
size_t sv_pack_bytes(const sv_pack *pack);
void sv_pack_place(const sv_pack *pack, int64_t b, int64_t h, void *room, sv_packed_head *out);
/* sv_pack_blocks — packs key blocks first .. first+n-1, their means too; ranges are independent. */
void sv_pack_blocks(const sv_pack *pack, int64_t b, int64_t h, int64_t first, int64_t n,
                    sv_packed_head *head);

#endif
