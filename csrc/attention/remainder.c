/* remainder.c — sums in two levels (16 rows, then a block), so that the error of a mean stays near one unit in
 * the last place of its terms. */
#include "attention/remainder.h"

#include <math.h>
#include <string.h>

#define MAX_BIAS 1e30 /* a finite beta must not become infinite in float32: inf - inf is NaN */

void sv_mean_open(sv_mean *mean, int64_t head_dim) {
  memset(mean, 0, sizeof *mean);
  mean->head_dim = head_dim;
}

static void add_four(const float *SV_RESTRICT a, const float *SV_RESTRICT b, const float *SV_RESTRICT c,
                     const float *SV_RESTRICT d, int64_t n, float *SV_RESTRICT sum) {
  for (int64_t i = 0; i < n; i++) sum[i] += (a[i] + b[i]) + (c[i] + d[i]);
}

static void add_rows(const void *const rows[SV_PANEL], int32_t n_rows, int64_t n, float *SV_RESTRICT sum) {
  float panel[SV_MAX_HEAD_DIM] = {0};
  int32_t j = 0;
  for (; j + 4 <= n_rows; j += 4) add_four(rows[j], rows[j + 1], rows[j + 2], rows[j + 3], n, panel);
  for (; j < n_rows; j++)
    for (int64_t i = 0; i < n; i++) panel[i] += ((const float *)rows[j])[i];
  for (int64_t i = 0; i < n; i++) sum[i] += panel[i];
}

void sv_mean_add(sv_mean *mean, const void *const k[SV_PANEL], const void *const v[SV_PANEL], int32_t n) {
  add_rows(k, n, mean->head_dim, mean->k);
  add_rows(v, n, mean->head_dim, mean->v);
  mean->n += n;
}

void sv_mean_close(const sv_mean *mean, const sv_pack *pack, int64_t h, int64_t kb, sv_packed_head *head) {
  if (mean->n == 0) return;
  int64_t head_dim = mean->head_dim, n_columns = pack->n_v_panels * SV_PANEL;
  float *k = head->mean_k + kb * (head_dim + 1), *v = head->mean_v + kb * n_columns;
  float n = (float)mean->n;
  for (int64_t d = 0; d < head_dim; d++) k[d] = mean->k[d] / n;
  for (int64_t d = 0; d < head_dim; d++) v[d] = mean->v[d] / n;
  for (int64_t d = head_dim; d < n_columns; d++) v[d] = 0.0f;
  double bias = log2((double)mean->n) + (double)pack->args->heads[h].beta * SV_LOG2_E;
  k[head_dim] = (float)fmin(fmax(bias, -MAX_BIAS), MAX_BIAS);
}
