/* pack.c — gathers rows by the head's order, converts and transposes them, panel by panel of 16 keys. */
#include "attention/pack.h"

#include <math.h>
#include <string.h>

#include "attention/remainder.h"

typedef struct rows_of_panel {
  const void *k[SV_PANEL], *v[SV_PANEL]; /* as the caller has them */
  const void *k_float[SV_PANEL], *v_float[SV_PANEL];
  int32_t n;
} rows_of_panel;

/* Rows turned into float32; a row's last component is the bias 0. */
typedef struct float_rows {
  _Alignas(64) float k[SV_PANEL][SV_LD_Q], v[SV_PANEL][SV_LD_Q];
} float_rows;

static size_t up(size_t bytes) { return (bytes + 63) / 64 * 64; }

static size_t key_bytes(const sv_pack *pack) { return up((size_t)(pack->n_tokens * pack->head_dim) * 4); }

/* Words from one panel of values to the next: long panels start 16 KiB apart modulo 64 KiB, so that the pieces of a
 * chunk do not compete for the same sets of the second-level cache. */
static int64_t panel_words(const sv_pack *pack) {
  const int64_t step = 1 << 12, period = 1 << 14;
  int64_t n = pack->n_tokens * (pack->pairs ? SV_PANEL / 2 : SV_PANEL);
  return n < period ? n : n + (step - n % period + period) % period;
}

static size_t value_bytes(const sv_pack *pack) {
  return up((size_t)(panel_words(pack) * pack->n_v_panels) * 4);
}
static size_t tail_k_bytes(const sv_pack *pack) { return up((size_t)(pack->head_dim + 1) * SV_PANEL * 4); }
static size_t tail_v_bytes(const sv_pack *pack) {
  return up((size_t)pack->n_v_panels * SV_PANEL * SV_PANEL * 4);
}
static size_t mean_k_bytes(const sv_pack *pack) {
  return up((size_t)(pack->n_key_blocks * (pack->head_dim + 1)) * 4);
}
static size_t mean_v_bytes(const sv_pack *pack) {
  return up((size_t)(pack->n_key_blocks * pack->n_v_panels * SV_PANEL) * 4);
}

size_t sv_pack_bytes(const sv_pack *pack) {
  return key_bytes(pack) + value_bytes(pack) + tail_k_bytes(pack) + tail_v_bytes(pack) + mean_k_bytes(pack) +
         mean_v_bytes(pack);
}

static float *cut(char **room, size_t bytes) {
  float *piece = (float *)(void *)*room;
  *room += bytes;
  return piece;
}

void sv_pack_place(const sv_pack *pack, int64_t b, int64_t h, void *room, sv_packed_head *out) {
  const sv_attention_args *args = pack->args;
  char *at = room;
  *out = (sv_packed_head){.depth = (int32_t)(pack->pairs ? pack->head_dim / 2 : pack->head_dim)};
  out->n_keys = args->kv_len ? args->kv_len[b] : pack->n_tokens;
  out->n_whole = out->n_keys / SV_PANEL * SV_PANEL;
  out->keeps_means = (args->heads[h].flags & SV_HEAD_REMAINDER) != 0;
  out->k = cut(&at, key_bytes(pack));
  out->v = cut(&at, value_bytes(pack));
  out->tail_k = cut(&at, tail_k_bytes(pack));
  out->tail_v = cut(&at, tail_v_bytes(pack));
  out->mean_k = cut(&at, mean_k_bytes(pack));
  out->mean_v = cut(&at, mean_v_bytes(pack));
  out->v_key_stride = pack->pairs ? SV_PANEL / 2 : SV_PANEL;
  out->v_panel_stride = panel_words(pack);
}

static void find_rows(const sv_pack *pack, int64_t b, int64_t h, int64_t place, int32_t n,
                      rows_of_panel *out) {
  const int32_t *tokens = sv_pack_tokens(pack->args, h, pack->n_tokens);
  sv_tensor k = sv_pack_head(&pack->args->k, b, h), v = sv_pack_head(&pack->args->v, b, h);
  out->n = n;
  for (int32_t j = 0; j < n; j++) {
    out->k[j] = out->k_float[j] = sv_pack_row(&k, tokens, place + j);
    out->v[j] = out->v_float[j] = sv_pack_row(&v, tokens, place + j);
  }
}

static void convert_rows(const sv_pack *pack, rows_of_panel *rows, float_rows *out) {
  int32_t dtype = pack->args->k.dtype;
  for (int32_t j = 0; j < rows->n; j++) {
    pack->ops->to_float(rows->k[j], dtype, pack->head_dim, 1.0f, out->k[j]);
    pack->ops->to_float(rows->v[j], dtype, pack->head_dim, 1.0f, out->v[j]);
    rows->k_float[j] = out->k[j];
    rows->v_float[j] = out->v[j];
  }
}

/* Values of whole panels: row j of the head goes, 16 columns at a time, into each of its panels. */
static void place_values(const sv_pack *pack, const rows_of_panel *rows, int64_t place,
                         sv_packed_head *head) {
  const int64_t n_whole = pack->head_dim / SV_PANEL;
  const size_t n_rest = (size_t)(pack->head_dim % SV_PANEL);
  for (int32_t j = 0; j < rows->n; j++) {
    const float *from = rows->v_float[j];
    float *to = head->v + (place + j) * SV_PANEL;
    for (int64_t p = 0; p < n_whole; p++, from += SV_PANEL, to += head->v_panel_stride)
      memcpy(to, from, SV_PANEL * sizeof(float));
    if (n_rest == 0) continue;
    memset(to, 0, SV_PANEL * sizeof(float));
    memcpy(to, from, n_rest * sizeof(float));
  }
}

/* The same in pairs of keys: the word at column c holds key 2j below and key 2j+1 above. */
static void place_value_pairs(const sv_pack *pack, const rows_of_panel *rows, int64_t place,
                              sv_packed_head *head) {
  for (int32_t j = 0; j < rows->n; j += 2) {
    const uint16_t *low = rows->v[j], *high = rows->v[j + 1];
    uint32_t *to = (uint32_t *)(void *)head->v + (place + j) / 2 * SV_PANEL;
    for (int64_t d = 0; d < pack->head_dim; d += SV_PANEL, to += head->v_panel_stride) {
      int64_t n = pack->head_dim - d < SV_PANEL ? pack->head_dim - d : SV_PANEL;
      for (int64_t c = 0; c < n; c++) to[c] = (uint32_t)low[d + c] | (uint32_t)high[d + c] << 16;
      for (int64_t c = n; c < SV_PANEL; c++) to[c] = 0;
    }
  }
}

static void pack_whole(const sv_pack *pack, const rows_of_panel *rows, int64_t place, sv_packed_head *head) {
  const void *const *k = pack->pairs ? rows->k : rows->k_float;
  pack->ops->pack_words(k, head->depth, head->k + place * head->depth);
  if (pack->pairs)
    place_value_pairs(pack, rows, place, head);
  else
    place_values(pack, rows, place, head);
}

/* Missing keys of the tail get the bias -inf and values 0. */
static void pack_tail(const sv_pack *pack, const rows_of_panel *rows, sv_packed_head *head) {
  float keys[SV_PANEL][SV_MAX_HEAD_DIM + 1];
  const void *k[SV_PANEL];
  size_t n_columns = (size_t)pack->n_v_panels * SV_PANEL, row_bytes = (size_t)pack->head_dim * sizeof(float);
  memset(keys, 0, sizeof keys);
  memset(head->tail_v, 0, SV_PANEL * n_columns * sizeof(float));
  for (int32_t j = 0; j < SV_PANEL; j++) {
    k[j] = keys[j];
    keys[j][pack->head_dim] = j < rows->n ? 0.0f : -INFINITY;
    if (j >= rows->n) continue;
    memcpy(keys[j], rows->k_float[j], row_bytes);
    memcpy(head->tail_v + (size_t)j * n_columns, rows->v_float[j], row_bytes);
  }
  pack->ops->pack_words(k, pack->head_dim + 1, head->tail_k);
}

void sv_pack_blocks(const sv_pack *pack, int64_t b, int64_t h, int64_t first, int64_t n,
                    sv_packed_head *head) {
  rows_of_panel rows;
  float_rows converted;
  int64_t block_k = pack->args->geometry.block_k;
  bool needs_floats = pack->args->k.dtype != SV_F32;
  for (int64_t kb = first; kb < first + n; kb++) {
    sv_mean mean;
    int64_t end = (kb + 1) * block_k < head->n_keys ? (kb + 1) * block_k : head->n_keys;
    sv_mean_open(&mean, pack->head_dim);
    for (int64_t place = kb * block_k; place < end; place += SV_PANEL) {
      int32_t n_rows = end - place < SV_PANEL ? (int32_t)(end - place) : SV_PANEL;
      find_rows(pack, b, h, place, n_rows, &rows);
      if (needs_floats && (!pack->pairs || head->keeps_means || n_rows < SV_PANEL))
        convert_rows(pack, &rows, &converted);
      if (n_rows == SV_PANEL)
        pack_whole(pack, &rows, place, head);
      else
        pack_tail(pack, &rows, head);
      if (head->keeps_means) sv_mean_add(&mean, rows.k_float, rows.v_float, n_rows);
    }
    if (head->keeps_means) sv_mean_close(&mean, pack, h, kb, head);
  }
}
