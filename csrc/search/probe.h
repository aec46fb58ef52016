/* probe.h — the exact error of every candidate on sampled query rows, from one pass over the keys. The same arguments will
 * serve the CUDA twin: arrays, counts, no object of ours.
 *
 * For a query row i and a key block b of an order, with j over the keys of b before kv_len and n_b of them:
 *   N_b = sum_j e^{l_ij} v_j    D_b = sum_j e^{l_ij}    E_b = n_b e^{mean_j l_ij}    P_b = E_b mean_j v_j
 * (the pseudo key of the remainder: its logit, scale q_i mean(k), is the mean of the block's logits.) A candidate that
 * visits the blocks S gives, with t = e^beta (plain: t = 0),
 *   out = (sum_S N_b + t sum_notS P_b) / (sum_S D_b + t sum_notS E_b)
 * and so its squared distance from full attention, a quotient of quadratics in t: three dot products per row and candidate
 * hold the errors of all biases. */
#ifndef SV_SEARCH_PROBE_H
#define SV_SEARCH_PROBE_H

#include <stdint.h>

#include "base/parallel.h"
#include "base/tensor.h"
#include "pattern/visits.h"

SV_EXTERN_C_BEGIN

#define SV_PROBE_MAX_BETAS 64

typedef struct sv_probe_args {
  sv_geometry geometry;
  sv_tensor q, k,
      v; /* [B, H, N, D], float32, bfloat16 or float16, last dim contiguous; v may have a dtype of its own */
  const int32_t *rows; /* [R] sequence indices of the query rows, the same for all heads */
  int64_t n_rows;
  double scale;         /* finite */
  const sv_row *visits; /* [C, nq] of the candidates; pooled tiles are not read */
  int64_t n_candidates;
  const uint32_t *codes; /* [n_codes] */
  int64_t n_codes;
  const int32_t *orders; /* [C] row of tokens, or -1 = frame_major */
  const int32_t *tokens; /* [n_orders, N]: sequence index at each place, a permutation */
  int64_t n_orders;
  const int64_t *kv_len; /* [B] or NULL = N */
  const double *betas;   /* [K] finite, at most SV_PROBE_MAX_BETAS */
  int64_t n_betas;
  const int32_t *stripes;  /* [H, M] key blocks in frame_major order, or NULL when S = 0 */
  int64_t n_stripe_blocks; /* M */
  const int32_t *
      stripe_counts; /* [S]: candidate C + s visits the first stripe_counts[s] blocks of its head's stripes */
  int64_t n_stripes; /* S */
  const sv_poll *poll; /* or NULL */
} sv_probe_args;

/* sv_probe_results — sums over the rows and over B, all written. */
typedef struct sv_probe_results {
  double *plain; /* [H, C + S] sum |out_candidate - out_full|^2, no remainder */
  double *
      curve; /* [H, C + S, K] the same with the remainder's bias betas[k]; a row that visits everything, and skip
                     (a candidate that visits nothing anywhere), has no remainder: as plain */
  double *energy; /* [H] sum |out_full|^2 */
  double *mass;   /* [H, nk] attention weight of each key block in frame_major order, mean over rows and B */
} sv_probe_results;

/* sv_probe_cpu
 *   contract  [alloc scratch | errors ARG TYPE UNSUPPORTED NOMEM INTERRUPTED | any thread | no GIL |
 *             bitwise repeatable, whatever the number of threads]
 *   A mass stripe is vertical_stripe(key_blocks = its blocks) in frame_major order, own block and other tokens included.
 *   NaN or infinity in keys and values at or beyond kv_len never reach a result; NaN that takes part makes its head NaN. */
sv_status sv_probe_cpu(const sv_probe_args *args, const sv_probe_results *results);
/* sv_probe_check — the door's checks alone; data of q, k, v is not read. */
sv_status sv_probe_check(const sv_probe_args *args);

SV_EXTERN_C_END
#endif
