/* attention_case.h — random attention calls for the C tests: geometry, masks, orders, hand-written visit lists,
 * guarded tensors with odd strides; and the expected result in double precision, pseudo keys included. */
#ifndef SV_TESTS_ATTENTION_CASE_H
#define SV_TESTS_ATTENTION_CASE_H

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "attention/attention.h"
#include "base/half.h"
#include "check.h"
#include "guard.h"

static uint64_t case_state = 1;

static inline uint32_t case_random(void) { /* splitmix64 */
  uint64_t z = (case_state += UINT64_C(0x9e3779b97f4a7c15));
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return (uint32_t)((z ^ (z >> 31)) >> 32);
}
static inline int64_t case_below(int64_t n) { return (int64_t)(case_random() % (uint64_t)n); }
static inline float case_uniform(void) { return (float)case_random() / 2147483648.0f - 1.0f; }

typedef struct spec {
  int64_t prefix, video, suffix, block_q, block_k, n_samples, n_heads, head_dim;
  int32_t dtype;
  int density;                                                 /* percent of block pairs; 100 = ranges */
  bool with_orders, with_remainder, with_kv_len, heads_inside; /* heads_inside: [B, N, H, D] */
  float gain;                                                  /* of the logits */
} spec;

typedef struct attention_case {
  sv_attention_args args;
  guarded q, k, v, out, lse, items, codes, heads, tokens, kv_len;
  uint8_t *mask; /* [H, nq, nk] */
  int64_t n_tokens, nq, nk;
} attention_case;

static inline void case_store(const sv_tensor *x, int64_t at, float value) {
  if (x->dtype == SV_F32)
    ((float *)x->data)[at] = value;
  else
    ((uint16_t *)x->data)[at] = x->dtype == SV_BF16 ? sv_f32_to_bf16(value) : sv_f32_to_f16(value);
}
static inline double case_load(const sv_tensor *x, int64_t at) {
  if (x->dtype == SV_F32) return (double)((const float *)x->data)[at];
  uint16_t bits = ((const uint16_t *)x->data)[at];
  return (double)(x->dtype == SV_BF16 ? sv_bf16_to_f32(bits) : sv_f16_to_f32(bits));
}
static inline int64_t case_at(const sv_tensor *x, int64_t b, int64_t h, int64_t i, int64_t d) {
  return b * x->stride[0] + h * x->stride[1] + i * x->stride[2] + d * x->stride[3];
}

/* The last element of the tensor is the last of its buffer. */
static inline guarded case_tensor(const spec *s, int64_t n, int32_t dtype, bool heads_inside, float gain,
                                  sv_tensor *out) {
  int64_t h = s->n_heads, d = s->head_dim, size = s->n_samples * h * n * d;
  guarded g = guard_alloc((size_t)(size * sv_dtype_bytes(dtype)));
  *out = (sv_tensor){.data = g.data, .dtype = dtype, .ndim = 4, .shape = {s->n_samples, h, n, d}};
  const int64_t inside[4] = {h * n * d, d, h * d, 1}, outside[4] = {h * n * d, n * d, d, 1};
  memcpy(out->stride, heads_inside ? inside : outside, sizeof inside);
  for (int64_t i = 0; i < size; i++) case_store(out, i, gain * case_uniform());
  return g;
}

static inline void case_orders(const spec *s, attention_case *c) {
  int64_t n = c->n_tokens, n_orders = s->with_orders ? 2 : 0;
  c->tokens = guard_alloc((size_t)(n_orders * n) * sizeof(int32_t));
  int32_t *tokens = c->tokens.data;
  for (int64_t o = 0; o < n_orders; o++) {
    int32_t *t = tokens + o * n;
    for (int64_t i = 0; i < n; i++) t[i] = (int32_t)i;
    for (int64_t i = s->video - 1; i > 0; i--) {
      int64_t j = case_below(i + 1);
      int32_t kept = t[s->prefix + i];
      t[s->prefix + i] = t[s->prefix + j];
      t[s->prefix + j] = kept;
    }
  }
  c->args.tokens = tokens;
  c->args.n_orders = n_orders;
}

/* Codes of one row, by the format of visits.h; words = NULL counts them. */
static inline int64_t case_codes(const attention_case *c, const uint8_t *row, bool pooled, uint32_t *words) {
  int64_t n = 0, bk = c->args.geometry.block_k, last = c->nk - 1;
  bool short_last = c->n_tokens % bk != 0;
#define EMIT(word) (words ? (void)(words[n++] = (word)) : (void)n++)
  for (int64_t kb = 0; kb < c->nk;) {
    int64_t end = kb;
    while (end < c->nk && row[end] && !(short_last && end == last && end > kb)) end++;
    if (end == kb) {
      kb++;
      continue;
    }
    EMIT(SV_CODE_MAKE(kb, SV_SOURCE_KEYS, end - kb > 1 ? SV_FORM_RUN : SV_FORM_BLOCK,
                      short_last && end - 1 == last));
    if (end - kb > 1) EMIT((uint32_t)(end - kb));
    kb = end;
  }
  for (int64_t tile = 0; pooled && tile * bk < c->nk; tile++) {
    uint32_t bits[32] = {0}, any = 0;
    for (int64_t i = 0; i < bk && tile * bk + i < c->nk; i++)
      if (!row[tile * bk + i]) bits[i / 32] |= 1u << (i % 32), any = 1;
    if (!any) continue;
    EMIT(SV_CODE_MAKE(tile, SV_SOURCE_POOLED, 0, 1));
    for (int64_t w = 0; w < (bk + 31) / 32; w++) EMIT(bits[w]);
  }
#undef EMIT
  return n;
}

static inline void case_lists(const spec *s, attention_case *c) {
  int64_t n_rows = s->n_heads * c->nq, n_items = 0, n_codes = 0;
  c->mask = malloc((size_t)(n_rows * c->nk));
  for (int64_t i = 0; i < n_rows * c->nk; i++) c->mask[i] = case_below(100) < s->density;
  for (int64_t r = 0; r < n_rows; r++) n_codes += case_codes(c, c->mask + r * c->nk, s->with_remainder, NULL);
  c->codes = guard_alloc((size_t)n_codes * sizeof(uint32_t));
  c->items = guard_alloc((size_t)(n_rows + 1) * sizeof(sv_item));
  sv_item *items = c->items.data;
  uint32_t first = 0, *codes = c->codes.data;
  for (int64_t r = n_rows - 1; r >= 0; r--) { /* any order of items is legal */
    uint32_t head = (uint32_t)(r / c->nq), qb = (uint32_t)(r % c->nq);
    int64_t n = case_codes(c, c->mask + r * c->nk, s->with_remainder, codes + first);
    bool range = s->density == 100 && case_below(2) == 0;
    sv_item list = {head, qb, first, (uint32_t)n}, all = {head | SV_ITEM_RANGE << 24, qb, 0, (uint32_t)c->nk};
    if (n > 0) items[n_items++] = range ? all : list;
    first += (uint32_t)n;
  }
  for (int64_t i = n_items; i <= n_rows; i++) memset(&items[i], 0xff, sizeof(sv_item));
  c->args.items = items;
  c->args.n_items = n_rows + 1;
  c->args.codes = codes;
  c->args.n_codes = n_codes;
}

static inline void case_heads(const spec *s, attention_case *c) {
  c->heads = guard_alloc((size_t)s->n_heads * sizeof(sv_head));
  sv_head *heads = c->heads.data;
  for (int64_t h = 0; h < s->n_heads; h++) {
    heads[h].order = s->with_orders ? (int32_t)(h % 3) - 1 : -1;
    heads[h].flags = s->with_remainder ? SV_HEAD_REMAINDER : 0;
    heads[h].beta = s->with_remainder ? 2.0f * case_uniform() : 0.0f;
  }
  c->args.heads = heads;
}

static inline void case_make(const spec *s, attention_case *c) {
  memset(c, 0, sizeof *c);
  c->args.geometry = (sv_geometry){1, 1, s->video, s->prefix, s->suffix, s->block_q, s->block_k};
  c->n_tokens = s->prefix + s->video + s->suffix;
  c->nq = sv_geometry_query_blocks(&c->args.geometry);
  c->nk = sv_geometry_key_blocks(&c->args.geometry);
  c->q = case_tensor(s, c->n_tokens, s->dtype, s->heads_inside, s->gain, &c->args.q);
  c->k = case_tensor(s, c->n_tokens, s->dtype, s->heads_inside, s->gain, &c->args.k);
  c->v = case_tensor(s, c->n_tokens, s->dtype, s->heads_inside, 1.0f, &c->args.v);
  c->out = case_tensor(s, c->n_tokens, s->dtype, s->heads_inside, NAN, &c->args.out);
  c->lse = guard_alloc((size_t)(s->n_samples * s->n_heads * c->n_tokens) * sizeof(float));
  c->args.lse = (sv_tensor){.data = c->lse.data,
                            .dtype = SV_F32,
                            .ndim = 3,
                            .shape = {s->n_samples, s->n_heads, c->n_tokens},
                            .stride = {s->n_heads * c->n_tokens, c->n_tokens, 1}};
  memset(c->lse.data, 0xff, (size_t)(s->n_samples * s->n_heads * c->n_tokens) * sizeof(float));
  case_orders(s, c);
  case_lists(s, c);
  case_heads(s, c);
  c->kv_len = guard_alloc((size_t)s->n_samples * sizeof(int64_t));
  for (int64_t b = 0; b < s->n_samples; b++)
    ((int64_t *)c->kv_len.data)[b] = c->n_tokens - (s->suffix ? case_below(s->suffix + 1) : 0);
  c->args.kv_len = s->with_kv_len ? c->kv_len.data : NULL;
  c->args.scale = 1.0 / sqrt((double)s->head_dim);
}

static inline void case_protect(attention_case *c) {
  guarded *inputs[] = {&c->q, &c->k, &c->v, &c->items, &c->codes, &c->heads, &c->tokens, &c->kv_len};
  for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) guard_read_only(inputs[i]);
}

static inline void case_free(attention_case *c) {
  guarded *all[] = {&c->q,     &c->k,     &c->v,     &c->out,    &c->lse,
                    &c->items, &c->codes, &c->heads, &c->tokens, &c->kv_len};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) guard_free(all[i]);
  free(c->mask);
}

static inline int64_t case_kv_len(const attention_case *c, int64_t b) {
  return c->args.kv_len ? c->args.kv_len[b] : c->n_tokens;
}
static inline int64_t case_token(const attention_case *c, int64_t h, int64_t place) {
  int32_t order = c->args.heads[h].order;
  return order < 0 ? place : c->args.tokens[order * c->n_tokens + place];
}

/* A key of the expected sum: its vector, its value, its bias. */
static inline void case_add_key(double logit, const double *value, int64_t d, double *max, double *sum,
                                double *out) {
  double m = logit > *max ? logit : *max, old = exp(*max - m), p = exp(logit - m);
  for (int64_t i = 0; i < d; i++) out[i] = out[i] * old + p * value[i];
  *sum = *sum * old + p;
  *max = m;
}

static inline double case_row(const attention_case *c, const sv_tensor *x, int64_t b, int64_t h,
                              int64_t place, double *row) {
  int64_t at = case_at(x, b, h, case_token(c, h, place), 0);
  for (int64_t d = 0; d < x->shape[3]; d++) row[d] = case_load(x, at + d);
  return 0.0;
}

static inline double case_dot(const double *a, const double *b, int64_t n) {
  double sum = 0.0;
  for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
  return sum;
}

static inline void case_pseudo_key(const attention_case *c, int64_t b, int64_t h, int64_t first, int64_t end,
                                   const double *q, double *max, double *sum, double *out) {
  double k[256] = {0}, v[256] = {0}, row[256];
  int64_t d = c->args.q.shape[3];
  for (int64_t j = first; j < end; j++) {
    case_row(c, &c->args.k, b, h, j, row);
    for (int64_t i = 0; i < d; i++) k[i] += row[i] / (double)(end - first);
    case_row(c, &c->args.v, b, h, j, row);
    for (int64_t i = 0; i < d; i++) v[i] += row[i] / (double)(end - first);
  }
  double bias = log((double)(end - first)) + (double)c->args.heads[h].beta;
  case_add_key(c->args.scale * case_dot(q, k, d) + bias, v, d, max, sum, out);
}

/* One output row in double precision; returns its log-sum-exp. */
static inline double case_expect(const attention_case *c, int64_t b, int64_t h, int64_t place, double *out) {
  double q[256], k[256], v[256], max = -INFINITY, sum = 0.0;
  int64_t d = c->args.q.shape[3], bk = c->args.geometry.block_k, kv_len = case_kv_len(c, b);
  const uint8_t *row = c->mask + (h * c->nq + place / c->args.geometry.block_q) * c->nk;
  case_row(c, &c->args.q, b, h, place, q);
  memset(out, 0, (size_t)d * sizeof *out);
  for (int64_t kb = 0; kb < c->nk; kb++) {
    int64_t first = kb * bk, end = first + bk < kv_len ? first + bk : kv_len;
    if (first >= end) continue;
    if (!row[kb] && (c->args.heads[h].flags & SV_HEAD_REMAINDER))
      case_pseudo_key(c, b, h, first, end, q, &max, &sum, out);
    for (int64_t j = first; row[kb] && j < end; j++) {
      case_row(c, &c->args.k, b, h, j, k);
      case_row(c, &c->args.v, b, h, j, v);
      case_add_key(c->args.scale * case_dot(q, k, d), v, d, &max, &sum, out);
    }
  }
  for (int64_t i = 0; i < d && sum > 0.0; i++) out[i] /= sum;
  return sum > 0.0 ? max + log(sum) : -INFINITY;
}

#endif
