/* probe_rows.c — one task: logits of the rows against all keys once; then per order the sums of every key block, and per
 * row the sums of the classes and of the candidates. Next: probe_kernel.h, probe_candidates.c. */
#include "search/probe_rows.h"

#include <string.h>

#include "search/probe_candidates.h"

#define KEYS_AT_ONCE 42 /* whole tiles of 6 and of 14 keys */

/* The room of a task, cut up. `rows` = rows_per_task. */
typedef struct task {
  const sv_probe *probe;
  int64_t b, h, first, n_rows, n_keys; /* n_keys = kv_len of the sample */
  int32_t ld;
  sv_tensor q, k, v;  /* of the head: data moved */
  float *queries;     /* [rows / 16][D][16] */
  float *logits;      /* [N][ld] */
  float *keys;        /* [KEYS_AT_ONCE][D] */
  float *weights;     /* [block_k][ld] */
  float *values;      /* [block_k][columns] */
  int32_t *numbers;   /* [block_k] sequence indices of a block's keys that take part */
  sv_probe_sums sums; /* of the blocks of an order */
  float *sum;         /* [ld] */
  void *candidates;   /* room of probe_candidates.c */
} task;

/* ---- room ---- */

static void *cut(char *room, size_t *used_bytes, int64_t bytes) {
  void *piece = room ? room + *used_bytes : NULL;
  *used_bytes += ((size_t)bytes + 63) / 64 * 64;
  return piece;
}

static size_t place_room(const sv_probe *p, char *room, task *t) {
  const int64_t f = sizeof(float), rows = p->rows_per_task, block_k = p->args->geometry.block_k;
  const int64_t nk = p->n_key_blocks;
  size_t used = 0;
  t->queries = cut(room, &used, rows * p->head_dim * f);
  t->logits = cut(room, &used, rows * p->n_tokens * f);
  t->keys = cut(room, &used, KEYS_AT_ONCE * p->head_dim * f);
  t->weights = cut(room, &used, rows * block_k * f);
  t->values = cut(room, &used, block_k * p->columns * f);
  t->numbers = cut(room, &used, block_k * (int64_t)sizeof(int32_t));
  t->sum = cut(room, &used, rows * f);
  t->sums.numerators = cut(room, &used, rows * nk * p->width * f);
  t->sums.exponents = cut(room, &used, rows * nk * f);
  t->sums.pooled = cut(room, &used, rows * nk * f);
  t->sums.pooled_exponents = cut(room, &used, rows * nk * f);
  t->sums.means = cut(room, &used, nk * p->width * f);
  t->candidates = cut(room, &used, (int64_t)sv_probe_candidates_bytes(p));
  return used;
}

size_t sv_probe_rows_bytes(const sv_probe *probe) {
  task unused;
  return place_room(probe, NULL, &unused);
}

int64_t sv_probe_sums_count(const sv_probe *probe) {
  return 1 + probe->n_key_blocks + probe->n_results * (1 + probe->args->n_betas);
}

/* ---- logits ---- */

static sv_tensor head_of(const sv_tensor *x, int64_t b, int64_t h) {
  sv_tensor head = *x;
  head.data = (char *)x->data + (b * x->stride[0] + h * x->stride[1]) * sv_dtype_bytes(x->dtype);
  return head;
}

static const void *row_of(const sv_tensor *head, int64_t i) {
  return (const char *)head->data + i * head->stride[2] * sv_dtype_bytes(head->dtype);
}

/* Lanes without a row hold zeros. */
static void load_queries(task *t) {
  const sv_probe *p = t->probe;
  const int64_t head_dim = p->head_dim;
  const float factor = (float)(p->args->scale * SV_LOG2_E);
  float row[SV_MAX_HEAD_DIM];
  memset(t->queries, 0, (size_t)(t->ld * head_dim) * sizeof(float));
  for (int64_t r = 0; r < t->n_rows; r++) {
    float *to = t->queries + r / SV_PANEL * SV_PANEL * head_dim + r % SV_PANEL;
    p->to_float(row_of(&t->q, p->args->rows[t->first + r]), t->q.dtype, head_dim, factor, row);
    for (int64_t d = 0; d < head_dim; d++) to[d * SV_PANEL] = row[d];
  }
}

static sv_status score(task *t) {
  const sv_probe *p = t->probe;
  for (int64_t first = 0; first < t->n_keys; first += KEYS_AT_ONCE) {
    int64_t n = t->n_keys - first < KEYS_AT_ONCE ? t->n_keys - first : KEYS_AT_ONCE;
    if (sv_parallel_stopped()) return sv_fail(SV_ERR_INTERRUPTED, "probe: interrupted");
    for (int64_t j = 0; j < n; j++)
      p->to_float(row_of(&t->k, first + j), t->k.dtype, p->head_dim, 1.0f, t->keys + j * p->head_dim);
    p->ops->scores(t->keys, n, p->head_dim, t->queries, t->ld, t->logits + first * t->ld);
  }
  return SV_OK;
}

/* ---- blocks ---- */

/* Keys of block kb that take part; their number. */
static int32_t find_keys(task *t, const int32_t *tokens, int64_t kb) {
  const int64_t block_k = t->probe->args->geometry.block_k, first = kb * block_k;
  int64_t end = first + block_k < t->probe->n_tokens ? first + block_k : t->probe->n_tokens;
  int32_t n = 0;
  for (int64_t place = first; place < end; place++) {
    int32_t token = tokens ? tokens[place] : (int32_t)place;
    if (token < t->n_keys) t->numbers[n++] = token;
  }
  return n;
}

/* Values of the block as float32 and their mean, which has weight 1 at [D]. */
static void load_values(task *t, int32_t n, float *mean) {
  const sv_probe *p = t->probe;
  for (int32_t j = 0; j < n; j++)
    p->to_float(row_of(&t->v, t->numbers[j]), t->v.dtype, p->head_dim, 1.0f, t->values + j * p->columns);
  p->ops->mean(t->values, n, p->columns, mean);
  if (p->width > p->columns) memset(mean + p->columns, 0, SV_PANEL * sizeof(float));
  mean[p->head_dim] = 1.0f;
}

static void fill(float *x, int64_t n, float value) {
  for (int64_t i = 0; i < n; i++) x[i] = value;
}

/* A block whose keys all lie at or beyond kv_len. */
static void set_empty(task *t, int64_t kb) {
  const sv_probe *p = t->probe;
  const sv_probe_sums *s = &t->sums;
  for (int64_t r = 0; r < t->n_rows; r++)
    memset(s->numerators + (r * p->n_key_blocks + kb) * p->width, 0, (size_t)p->width * sizeof(float));
  fill(s->exponents + kb * t->ld, t->ld, SV_PROBE_LOWEST);
  fill(s->pooled_exponents + kb * t->ld, t->ld, SV_PROBE_LOWEST);
  fill(s->pooled + kb * t->ld, t->ld, 0.0f);
  memset(s->means + kb * p->width, 0, (size_t)p->width * sizeof(float));
}

static void sum_block(task *t, const int32_t *tokens, int64_t kb) {
  const sv_probe *p = t->probe;
  const sv_probe_sums *s = &t->sums;
  const int64_t stride = p->n_key_blocks * p->width;
  float *out = s->numerators + kb * p->width;
  int32_t n = find_keys(t, tokens, kb);
  if (n == 0) {
    set_empty(t, kb);
    return;
  }
  const sv_probe_block block = {.logits = t->logits,
                                .keys = t->numbers,
                                .n = n,
                                .ld = t->ld,
                                .weights = t->weights,
                                .sum = t->sum,
                                .exponent = s->exponents + kb * t->ld,
                                .pooled_sum = s->pooled + kb * t->ld,
                                .pooled_exponent = s->pooled_exponents + kb * t->ld};
  p->ops->weigh(&block);
  load_values(t, n, s->means + kb * p->width);
  p->ops->numerators(t->weights, t->ld, (int32_t)t->n_rows, t->values, p->columns, n, out, stride);
  for (int64_t r = 0; r < t->n_rows; r++) {
    float *sum = out + r * stride;
    if (p->width > p->columns) memset(sum + p->columns, 0, SV_PANEL * sizeof(float));
    sum[p->head_dim] = t->sum[r];
  }
}

static sv_status run_order(task *t, int64_t order, double *sums) {
  const sv_probe *p = t->probe;
  for (int64_t kb = 0; kb < p->n_key_blocks; kb++) {
    if (sv_parallel_stopped()) return sv_fail(SV_ERR_INTERRUPTED, "probe: interrupted");
    sum_block(t, p->orders[order].tokens, kb);
  }
  const sv_probe_rows rows = {
      .first = t->first, .n = t->n_rows, .h = t->h, .order = order, .ld = t->ld, .sums = &t->sums};
  return sv_probe_candidates_run(p, &rows, t->candidates, sums);
}

sv_status sv_probe_rows_run(const sv_probe *probe, int64_t b, int64_t h, int64_t first, int64_t n, void *room,
                            double *sums) {
  const sv_probe_args *args = probe->args;
  task t = {.probe = probe, .b = b, .h = h, .first = first, .n_rows = n};
  (void)place_room(probe, room, &t);
  t.n_keys = args->kv_len ? args->kv_len[b] : probe->n_tokens;
  t.ld = (int32_t)((n + SV_PANEL - 1) / SV_PANEL * SV_PANEL);
  t.q = head_of(&args->q, b, h);
  t.k = head_of(&args->k, b, h);
  t.v = head_of(&args->v, b, h);
  memset(t.values, 0, (size_t)(args->geometry.block_k * probe->columns) * sizeof(float));
  memset(sums, 0, (size_t)sv_probe_sums_count(probe) * sizeof(double));
  load_queries(&t);
  SV_TRY(score(&t));
  for (int64_t order = 0; order < probe->n_orders; order++) SV_TRY(run_order(&t, order, sums));
  return SV_OK;
}
