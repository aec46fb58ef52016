/* remainder.h — the pseudo keys of what is not visited: the mean key and the mean value of each key block, over
 * its keys before kv_len, with the bias log(n) + beta. Made once per head and call, while the rows are packed. */
#ifndef SV_ATTENTION_REMAINDER_H
#define SV_ATTENTION_REMAINDER_H

#include "attention/pack.h"

typedef struct sv_mean {
  float k[SV_MAX_HEAD_DIM], v[SV_MAX_HEAD_DIM]; /* sums so far */
  int64_t head_dim, n;
} sv_mean;

void sv_mean_open(sv_mean *mean, int64_t head_dim);
void sv_mean_add(sv_mean *mean, const void *const k[SV_PANEL], const void *const v[SV_PANEL], int32_t n);
/* sv_mean_close — writes row kb of mean_k (bias included) and of mean_v. */
void sv_mean_close(const sv_mean *mean, const sv_pack *pack, int64_t h, int64_t kb, sv_packed_head *head);

#endif
