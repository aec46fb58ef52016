/* engine.c — walks the visits of a query block. Keys that lie together become segments, segments become chunks
 * that fit the second-level cache, and each strip of query rows passes over a chunk at once (block_ops.h).
 * The order of the arithmetic depends on the item alone, never on threads. */
#include "attention/engine.h"

#include <math.h>
#include <string.h>

#include "attention/walk.h"

#define BLOCK_ROWS 256 /* query rows at a time: their queries and sums share the second-level cache */
#define MAX_SEGMENTS (SV_MAX_CHUNK / SV_PANEL + 1)

typedef struct chunk {
  sv_segment segments[MAX_SEGMENTS];
  int32_t n_segments, n_keys; /* keys padded to panels */
  bool is_pairs;              /* holds bf16 pairs */
  float *pooled_k, *pooled_v; /* room for pseudo keys */
  int32_t n_pooled_panels;
} chunk;

typedef struct block {
  const sv_pack *pack;
  const sv_packed_head *head;
  int64_t b, h, first_place; /* of the query rows */
  int32_t n_rows, n_tall, n_low;
  bool is_first; /* no chunk has been multiplied yet */
  int32_t max_chunk;
  chunk chunk;
  const float *pooled[SV_PANEL]; /* rows of mean_k waiting for a full panel */
  const float *pooled_values[SV_PANEL];
  int32_t n_pooled;
  float *q, *o, *row_max, *row_sum, *p;
  uint16_t *q_pairs;
} block;

/* ---- room ---- */

static int64_t room_rows(const sv_pack *pack) {
  int64_t rows = pack->args->geometry.block_q < BLOCK_ROWS ? pack->args->geometry.block_q : BLOCK_ROWS;
  return rows + SV_MAX_STRIP;
}

/* A piece of the room, or NULL while only its size is asked for. */
static void *cut(char *room, size_t *used_bytes, int64_t bytes) {
  void *piece = room ? room + *used_bytes : NULL;
  *used_bytes += ((size_t)bytes + 63) / 64 * 64;
  return piece;
}

static size_t place_room(const sv_pack *pack, char *room, block *out) {
  const int64_t f = sizeof(float), rows = room_rows(pack), n_columns = pack->n_v_panels * SV_PANEL;
  size_t used = 0;
  out->max_chunk = sv_engine_chunk_keys(pack->head_dim);
  out->q = cut(room, &used, rows * SV_LD_Q * f);
  out->o = cut(room, &used, rows * n_columns * f);
  out->row_max = cut(room, &used, rows * f);
  out->row_sum = cut(room, &used, rows * f);
  out->p = cut(room, &used, SV_MAX_STRIP * SV_LD_P * f);
  out->chunk.pooled_k = cut(room, &used, out->max_chunk * (pack->head_dim + 1) * f);
  out->chunk.pooled_v = cut(room, &used, out->max_chunk * n_columns * f);
  out->q_pairs = pack->pairs ? cut(room, &used, rows * SV_LD_Q * 2) : NULL;
  return used;
}

size_t sv_engine_room_bytes(const sv_pack *pack) {
  block unused;
  return place_room(pack, NULL, &unused);
}

/* ---- queries in ---- */

/* As many tall strips as leave the fewest empty rows, low ones for the rest. */
static void plan_strips(block *b, const int32_t heights[2]) {
  int32_t best = INT32_MAX;
  for (int32_t low = 0; low < heights[0]; low++) {
    int32_t rest = b->n_rows - low * heights[1];
    int32_t tall = rest > 0 ? (rest + heights[0] - 1) / heights[0] : 0;
    if (tall * heights[0] + low * heights[1] >= best) continue;
    best = tall * heights[0] + low * heights[1];
    b->n_tall = tall;
    b->n_low = low;
  }
}

static void load_queries(block *b) {
  const sv_pack *pack = b->pack;
  const int32_t *tokens = sv_pack_tokens(pack->args, b->h, pack->n_tokens);
  sv_tensor q = sv_pack_head(&pack->args->q, b->b, b->h);
  int64_t head_dim = pack->head_dim;
  int32_t n_padded = b->n_tall * pack->ops->heights[0] + b->n_low * pack->ops->heights[1];
  float factor = (float)(pack->args->scale * SV_LOG2_E);
  for (int32_t r = 0; r < b->n_rows; r++) {
    const void *row = sv_pack_row(&q, tokens, b->first_place + r);
    pack->ops->to_float(row, q.dtype, head_dim, factor, b->q + r * SV_LD_Q);
    b->q[r * SV_LD_Q + head_dim] = 1.0f;
    if (pack->pairs) memcpy(b->q_pairs + r * SV_LD_Q, row, (size_t)head_dim * 2);
  }
  for (int32_t r = b->n_rows; r < n_padded; r++) {
    memset(b->q + r * SV_LD_Q, 0, (size_t)(head_dim + 1) * sizeof(float));
    if (pack->pairs) memset(b->q_pairs + r * SV_LD_Q, 0, (size_t)head_dim * 2);
  }
}

/* ---- chunks ---- */

static void multiply_chunk(block *b) {
  const sv_pack *pack = b->pack;
  const chunk *now = &b->chunk;
  const sv_block_ops *ops = now->is_pairs ? pack->pairs : pack->ops;
  int64_t n_columns = pack->n_v_panels * SV_PANEL, row = 0;
  int32_t n_strips = b->n_tall + b->n_low;
  sv_strip strip = {.n_v_panels = pack->n_v_panels, .is_first = b->is_first, .p = b->p};
  strip.scale = (float)(pack->args->scale * SV_LOG2_E);
  for (int32_t s = 0; s < n_strips; s++, row += strip.rows) {
    strip.rows = ops->heights[s < b->n_tall ? 0 : 1];
    strip.q = now->is_pairs ? (const void *)(b->q_pairs + row * SV_LD_Q) : b->q + row * SV_LD_Q;
    strip.o = b->o + row * n_columns;
    strip.row_max = b->row_max + row;
    strip.row_sum = b->row_sum + row;
    ops->strip(&strip, now->segments, now->n_segments);
  }
  b->is_first = false;
}

static void empty_chunk(chunk *c) { c->n_segments = c->n_keys = c->n_pooled_panels = 0; }

static sv_status close_chunk(block *b) {
  if (b->chunk.n_segments == 0) return SV_OK;
  if (sv_parallel_stopped()) return sv_fail(SV_ERR_INTERRUPTED, "attention: interrupted");
  multiply_chunk(b);
  empty_chunk(&b->chunk);
  return SV_OK;
}

static int32_t padded(int32_t n_keys) { return (n_keys + SV_PANEL - 1) / SV_PANEL * SV_PANEL; }

/* A chunk never mixes bf16 pairs with float32; room = keys it must still take. */
static sv_status make_room(block *b, int32_t room, bool is_pairs) {
  const chunk *c = &b->chunk;
  bool fits = c->n_segments == 0 || (c->is_pairs == is_pairs && c->n_keys + room <= b->max_chunk);
  if (!fits) SV_TRY(close_chunk(b));
  b->chunk.is_pairs = is_pairs;
  return SV_OK;
}

static void add_segment(block *b, const sv_segment *segment) {
  chunk *c = &b->chunk;
  c->segments[c->n_segments++] = *segment;
  c->n_keys += padded(segment->n_keys);
}

static sv_status add_whole_panels(block *b, int64_t first, int64_t end) {
  const sv_packed_head *head = b->head;
  while (first < end) {
    SV_TRY(make_room(b, SV_PANEL, b->pack->pairs != NULL));
    int64_t left = b->max_chunk - b->chunk.n_keys, n = end - first < left ? end - first : left;
    sv_segment segment = {.k = head->k + first * head->depth,
                          .v = head->v + first * head->v_key_stride,
                          .v_key_stride = head->v_key_stride,
                          .v_panel_stride = head->v_panel_stride,
                          .n_keys = (int32_t)n,
                          .depth = head->depth};
    add_segment(b, &segment);
    first += n;
  }
  return SV_OK;
}

static sv_status add_tail(block *b) {
  sv_segment segment = {.k = b->head->tail_k,
                        .v = b->head->tail_v,
                        .v_key_stride = b->pack->n_v_panels * SV_PANEL,
                        .v_panel_stride = SV_PANEL,
                        .n_keys = (int32_t)(b->head->n_keys - b->head->n_whole),
                        .depth = (int32_t)b->pack->head_dim + 1};
  SV_TRY(make_room(b, SV_PANEL, false));
  add_segment(b, &segment);
  return SV_OK;
}

static sv_status add_keys(block *b, const sv_step *step) {
  const sv_packed_head *head = b->head;
  int64_t block_k = b->pack->args->geometry.block_k;
  int64_t first = step->first_block * block_k, end = first + step->n_blocks * block_k;
  SV_TRY(add_whole_panels(b, first, end < head->n_whole ? end : head->n_whole));
  bool has_tail = head->n_whole < head->n_keys && first <= head->n_whole && head->n_whole < end;
  return has_tail ? add_tail(b) : SV_OK;
}

/* ---- pseudo keys ---- */

/* Set bits lie anywhere: 16 of them make a dense panel, so that the cost follows their number. */
static sv_status flush_pooled(block *b) {
  if (b->n_pooled == 0) return SV_OK;
  const sv_pack *pack = b->pack;
  int64_t depth = pack->head_dim + 1, n_columns = pack->n_v_panels * SV_PANEL;
  float nothing[SV_MAX_HEAD_DIM + 1] = {0};
  nothing[pack->head_dim] = -INFINITY;
  SV_TRY(make_room(b, SV_PANEL, false));
  float *k = b->chunk.pooled_k + b->chunk.n_pooled_panels * depth * SV_PANEL;
  float *v = b->chunk.pooled_v + b->chunk.n_pooled_panels * n_columns * SV_PANEL;
  for (int32_t j = 0; j < b->n_pooled; j++)
    memcpy(v + j * n_columns, b->pooled_values[j], (size_t)n_columns * sizeof(float));
  for (int32_t j = b->n_pooled; j < SV_PANEL; j++) b->pooled[j] = nothing;
  pack->ops->pack_words((const void *const *)b->pooled, depth, k);
  sv_segment segment = {.k = k,
                        .v = v,
                        .v_key_stride = n_columns,
                        .v_panel_stride = SV_PANEL,
                        .n_keys = b->n_pooled,
                        .depth = (int32_t)depth};
  b->n_pooled = 0;
  b->chunk.n_pooled_panels++;
  add_segment(b, &segment);
  return SV_OK;
}

static sv_status add_pooled(block *b, const sv_step *step) {
  int64_t block_k = b->pack->args->geometry.block_k, n_columns = b->pack->n_v_panels * SV_PANEL;
  if (!b->head->keeps_means) return SV_OK;
  for (int64_t i = 0; i < step->n_blocks; i++) {
    int64_t kb = step->first_block + i;
    if (!(step->bits[i / 32] >> (i % 32) & 1u) || kb * block_k >= b->head->n_keys) continue;
    b->pooled[b->n_pooled] = b->head->mean_k + kb * (b->pack->head_dim + 1);
    b->pooled_values[b->n_pooled++] = b->head->mean_v + kb * n_columns;
    if (b->n_pooled == SV_PANEL) SV_TRY(flush_pooled(b));
  }
  return SV_OK;
}

/* ---- results out ---- */

/* Rows of one head of the results. */
typedef struct results {
  const sv_pack *pack;
  const int32_t *tokens;
  sv_tensor out, lse;
} results;

static results open_results(const sv_pack *pack, int64_t b, int64_t h) {
  const sv_attention_args *args = pack->args;
  results to = {.pack = pack, .tokens = sv_pack_tokens(args, h, pack->n_tokens)};
  to.out = sv_pack_head(&args->out, b, h);
  if (args->lse.data) to.lse = sv_pack_head(&args->lse, b, h);
  return to;
}

static void store_row(const results *to, int64_t place, const float *o, float factor, double lse) {
  void *row = sv_pack_row(&to->out, to->tokens, place);
  to->pack->ops->from_float(o, to->pack->head_dim, factor, to->out.dtype, row);
  if (to->lse.data) *(float *)sv_pack_row(&to->lse, to->tokens, place) = (float)lse;
}

static void store_block(const block *b) {
  int64_t n_columns = b->pack->n_v_panels * SV_PANEL;
  const results to = open_results(b->pack, b->b, b->h);
  for (int32_t r = 0; r < b->n_rows; r++) {
    float sum = b->row_sum[r];
    double lse = to.lse.data ? ((double)b->row_max[r] + log2((double)sum)) * SV_LN_2 : 0.0;
    store_row(&to, b->first_place + r, b->o + r * n_columns, 1.0f / sum, lse);
  }
}

static void zero_rows(const sv_pack *pack, int64_t b, int64_t h, int64_t place, int64_t n_rows) {
  static const float zeros[SV_MAX_HEAD_DIM];
  const results to = open_results(pack, b, h);
  for (int64_t r = 0; r < n_rows; r++) store_row(&to, place + r, zeros, 1.0f, -(double)INFINITY);
}

/* ---- the door ---- */

static sv_status run_rows(block *b, const sv_item *item) {
  sv_walk walk;
  sv_step step;
  b->is_first = true;
  b->n_pooled = 0;
  empty_chunk(&b->chunk);
  plan_strips(b, b->pack->ops->heights);
  load_queries(b);
  SV_TRY(sv_walk_open(b->pack->args, item, &walk));
  for (;;) {
    SV_TRY(sv_walk_next(&walk, &step));
    if (step.kind == SV_STEP_END) break;
    SV_TRY(step.kind == SV_STEP_KEYS ? add_keys(b, &step) : add_pooled(b, &step));
  }
  SV_TRY(flush_pooled(b));
  SV_TRY(close_chunk(b));
  if (b->is_first)
    zero_rows(b->pack, b->b, b->h, b->first_place, b->n_rows);
  else
    store_block(b);
  return SV_OK;
}

sv_status sv_engine_run(const sv_pack *pack, const sv_packed_head *head, const sv_item *item, int64_t b,
                        void *room) {
  block rows = {.pack = pack, .head = head, .b = b, .h = SV_ITEM_HEAD(*item)};
  int64_t block_q = pack->args->geometry.block_q, first = item->query_block * block_q;
  int64_t end = first + block_q < pack->n_tokens ? first + block_q : pack->n_tokens;
  (void)place_room(pack, room, &rows);
  for (; first < end; first += BLOCK_ROWS) {
    rows.first_place = first;
    rows.n_rows = end - first < BLOCK_ROWS ? (int32_t)(end - first) : BLOCK_ROWS;
    SV_TRY(run_rows(&rows, item));
  }
  return SV_OK;
}

void sv_engine_zero(const sv_pack *pack, int64_t b, int64_t h, int64_t query_block) {
  int64_t block_q = pack->args->geometry.block_q, first = query_block * block_q;
  int64_t end = first + block_q < pack->n_tokens ? first + block_q : pack->n_tokens;
  zero_rows(pack, b, h, first, end - first);
}
