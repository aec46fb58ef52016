/* attention.c — the door: checks once, packs the heads in groups that fit a budget of scratch, hands the items
 * of a group to the threads, longest first, and fills what nothing is visited from with zeros. */
#include "attention/attention.h"

#include <math.h>
#include <string.h>

#include "attention/engine.h"
#include "attention/pack.h"
#include "attention/walk.h"
#include "base/scratch.h"

#define PACKED_BUDGET_BYTES ((size_t)256 << 20) /* packed heads at a time: O(N D), one head at least */
#define PACK_KEYS 1024                          /* keys per packing task */
#define END_OF_ITEMS 0xffffffffu
#define MAX_SCALE 1e30 /* scale * log2(e) is a float32 number */

typedef struct work {
  uint32_t item, sample;
} work;

typedef struct call {
  sv_pack pack;
  int64_t n_samples, n_heads, n_query_blocks, n_items;
  uint8_t *seen;   /* [H, query blocks]: an item names it */
  uint8_t *placed; /* [N] */
  work *works;
  char *rooms;
  size_t room_bytes;
  int32_t n_threads;
  int64_t n_rooms; /* threads that can have an item at once */
  char *packed;
  size_t packed_bytes; /* of one head */
  sv_packed_head *heads;
  int64_t first_pair, n_pairs, max_pairs; /* pair = sample * H + head; the group at hand */
  int64_t n_pack_tasks;                   /* per pair */
} call;

/* ---- checks ---- */

static sv_status check_tensor(const char *name, const sv_tensor *x, const sv_tensor *q, int64_t n_tokens) {
  if (x->ndim != 4) return sv_fail(SV_ERR_ARG, "attention: %s has %d dimensions, expected 4", name, x->ndim);
  if (x->dtype != q->dtype)
    return sv_fail(SV_ERR_TYPE, "attention: %s is %s, expected %s like q", name, sv_dtype_name(x->dtype),
                   sv_dtype_name(q->dtype));
  for (int i = 0; i < 4; i++) {
    int64_t expected = i == 2 ? n_tokens : q->shape[i];
    if (x->shape[i] != expected)
      return sv_fail(SV_ERR_ARG, "attention: %s.shape[%d] is %lld, expected %lld (= %s)", name, i,
                     (long long)x->shape[i], (long long)expected,
                     i == 2   ? "tokens of the geometry"
                     : i == 0 ? "q.shape[0]"
                     : i == 1 ? "q.shape[1]"
                              : "q.shape[3]");
  }
  bool is_empty = x->shape[0] == 0 || x->shape[1] == 0; /* strides of nothing mean nothing */
  if (x->stride[3] != 1 && !is_empty)
    return sv_fail(SV_ERR_ARG, "attention: %s.stride[3] is %lld, expected 1 (a contiguous last dimension)",
                   name, (long long)x->stride[3]);
  if ((uintptr_t)x->data % (uintptr_t)sv_dtype_bytes(x->dtype) != 0)
    return sv_fail(SV_ERR_ARG, "attention: %s is not aligned to its %lld-byte elements", name,
                   (long long)sv_dtype_bytes(x->dtype));
  return SV_OK;
}

static sv_status check_written(const char *name, const sv_tensor *x, int n_dims) {
  for (int i = 0; i < n_dims; i++)
    if (x->shape[i] > 1 && x->stride[i] == 0)
      return sv_fail(SV_ERR_ARG,
                     "attention: %s.stride[%d] is 0, expected every element in a place of its own", name, i);
  return SV_OK;
}

static sv_status check_lse(const sv_attention_args *a) {
  const sv_tensor *x = &a->lse;
  if (!x->data) return SV_OK;
  if (x->ndim != 3 || x->dtype != SV_F32)
    return sv_fail(x->ndim != 3 ? SV_ERR_ARG : SV_ERR_TYPE,
                   "attention: lse is %s with %d dimensions, expected float32 with 3",
                   sv_dtype_name(x->dtype), x->ndim);
  for (int i = 0; i < 3; i++)
    if (x->shape[i] != a->q.shape[i])
      return sv_fail(SV_ERR_ARG, "attention: lse.shape[%d] is %lld, expected %lld (= q.shape[%d])", i,
                     (long long)x->shape[i], (long long)a->q.shape[i], i);
  return check_written("lse", x, 3);
}

static sv_status check_tensors(const sv_attention_args *a) {
  int64_t n_tokens = sv_geometry_tokens(&a->geometry);
  if (sv_dtype_bytes(a->q.dtype) == 0)
    return sv_fail(SV_ERR_TYPE, "attention: q is of an unknown dtype, expected float32, bfloat16 or float16");
  if (a->q.ndim == 4 && (a->q.shape[0] < 0 || a->q.shape[1] < 0 || a->q.shape[0] > INT32_MAX))
    return sv_fail(SV_ERR_ARG,
                   "attention: q.shape is [%lld, %lld, ...], expected 0..2147483647 samples and heads",
                   (long long)a->q.shape[0], (long long)a->q.shape[1]);
  if (a->q.ndim == 4 && a->q.shape[1] > 0xffffff)
    return sv_fail(SV_ERR_ARG, "attention: q.shape[1] is %lld, expected at most 16777215 heads",
                   (long long)a->q.shape[1]);
  SV_TRY(check_tensor("q", &a->q, &a->q, n_tokens));
  SV_TRY(check_tensor("k", &a->k, &a->q, n_tokens));
  SV_TRY(check_tensor("v", &a->v, &a->q, n_tokens));
  SV_TRY(check_tensor("out", &a->out, &a->q, n_tokens));
  SV_TRY(check_written("out", &a->out, 4));
  int64_t head_dim = a->q.shape[3];
  if (head_dim < 8 || head_dim > SV_MAX_HEAD_DIM || head_dim % 8 != 0)
    return sv_fail(SV_ERR_UNSUPPORTED, "attention: head_dim is %lld, expected a multiple of 8 in 8..%d",
                   (long long)head_dim, SV_MAX_HEAD_DIM);
  const void *out = a->out.data;
  if (out && (out == a->q.data || out == a->k.data || out == a->v.data))
    return sv_fail(SV_ERR_ARG, "attention: out shares the memory of q, k or v, expected memory of its own");
  return check_lse(a);
}

static sv_status check_heads(const sv_attention_args *a) {
  for (int64_t h = 0; h < a->q.shape[1]; h++) {
    if (a->heads[h].order < -1 || a->heads[h].order >= a->n_orders)
      return sv_fail(SV_ERR_ARG, "attention: heads[%lld].order is %d, expected -1..%lld", (long long)h,
                     a->heads[h].order, (long long)a->n_orders - 1);
    if ((a->heads[h].flags & SV_HEAD_REMAINDER) && !isfinite(a->heads[h].beta))
      return sv_fail(SV_ERR_ARG, "attention: betas[%lld] is %g, expected a finite number", (long long)h,
                     (double)a->heads[h].beta);
  }
  return SV_OK;
}

static sv_status check_kv_len(const sv_attention_args *a) {
  int64_t n_tokens = sv_geometry_tokens(&a->geometry), least = n_tokens - a->geometry.suffix;
  for (int64_t b = 0; a->kv_len && b < a->q.shape[0]; b++)
    if (a->kv_len[b] < least || a->kv_len[b] > n_tokens)
      return sv_fail(SV_ERR_ARG,
                     "attention: kv_len[%lld] is %lld, expected %lld..%lld (prefix + video .. tokens)",
                     (long long)b, (long long)a->kv_len[b], (long long)least, (long long)n_tokens);
  return SV_OK;
}

sv_status sv_attention_check(const sv_attention_args *a) {
  SV_TRY(sv_geometry_check(&a->geometry));
  SV_TRY(check_tensors(a));
  if (!isfinite(a->scale))
    return sv_fail(SV_ERR_ARG, "attention: scale is %g, expected a finite number", a->scale);
  if (fabs(a->scale) > MAX_SCALE)
    return sv_fail(SV_ERR_ARG, "attention: scale is %g, expected at most %g in size", a->scale, MAX_SCALE);
  if (a->n_items < 0 || a->n_codes < 0 || a->n_orders < 0)
    return sv_fail(SV_ERR_ARG, "attention: a count of items, codes or orders is negative");
  if (a->n_items > UINT32_MAX)
    return sv_fail(SV_ERR_ARG, "attention: there are %lld items, expected at most 4294967295",
                   (long long)a->n_items);
  return check_kv_len(a);
}

/* Each order is a permutation: every token has one place. */
static sv_status check_orders(const call *c) {
  const sv_attention_args *a = c->pack.args;
  const int64_t n_tokens = c->pack.n_tokens;
  for (int64_t o = 0; o < a->n_orders; o++) {
    memset(c->placed, 0, (size_t)n_tokens);
    for (int64_t place = 0; place < n_tokens; place++) {
      int32_t token = a->tokens[o * n_tokens + place];
      if (token < 0 || token >= n_tokens || c->placed[token])
        return sv_fail(SV_ERR_ARG, "attention: tokens[%lld, %lld] is %d, expected each of 0..%lld once",
                       (long long)o, (long long)place, token, (long long)n_tokens - 1);
      c->placed[token] = 1;
    }
  }
  return SV_OK;
}

/* Every item and every code, before anything is written; marks what the items name. */
static sv_status check_items(call *c) {
  const sv_attention_args *a = c->pack.args;
  sv_walk walk;
  sv_step step;
  memset(c->seen, 0, (size_t)(c->n_heads * c->n_query_blocks));
  for (int64_t i = 0; i < c->n_items; i++) {
    const sv_item *item = &a->items[i];
    int64_t h = SV_ITEM_HEAD(*item), query_block = item->query_block;
    if (h >= c->n_heads || query_block >= c->n_query_blocks)
      return sv_fail(
          SV_ERR_ARG,
          "attention: items[%lld] names head %lld, query block %lld, expected less than %lld and %lld",
          (long long)i, (long long)h, (long long)query_block, (long long)c->n_heads,
          (long long)c->n_query_blocks);
    uint8_t *seen = &c->seen[h * c->n_query_blocks + query_block];
    if (*seen)
      return sv_fail(SV_ERR_ARG, "attention: items[%lld] names head %lld, query block %lld a second time",
                     (long long)i, (long long)h, (long long)query_block);
    *seen = 1;
    SV_TRY(sv_walk_open(a, item, &walk));
    do SV_TRY(sv_walk_next(&walk, &step));
    while (step.kind != SV_STEP_END);
  }
  return SV_OK;
}

/* ---- scratch ---- */

static int64_t count_items(const sv_attention_args *a) {
  int64_t n = 0;
  while (n < a->n_items && a->items[n].head_kind != END_OF_ITEMS) n++;
  return n;
}

static void size_call(const sv_attention_args *a, call *c) {
  sv_isa isa = sv_cpu_isa();
  *c = (call){.n_samples = a->q.shape[0], .n_heads = a->q.shape[1], .n_items = count_items(a)};
  c->n_query_blocks = sv_geometry_query_blocks(&a->geometry);
  c->pack = (sv_pack){.args = a,
                      .ops = sv_block_ops_for(isa),
                      .pairs = sv_block_ops_pairs(isa, a->q.dtype, a->q.shape[3]),
                      .n_tokens = sv_geometry_tokens(&a->geometry),
                      .n_key_blocks = sv_geometry_key_blocks(&a->geometry),
                      .head_dim = a->q.shape[3],
                      .n_v_panels = (int32_t)sv_ceil_div(a->q.shape[3], SV_PANEL)};
  c->n_pack_tasks = sv_ceil_div(c->pack.n_tokens, PACK_KEYS);
  c->packed_bytes = sv_pack_bytes(&c->pack);
  c->room_bytes = sv_engine_room_bytes(&c->pack);
  c->n_threads = sv_parallel_threads();
  int64_t n_works = c->n_items * c->n_samples;
  c->n_rooms = n_works < c->n_threads ? n_works : c->n_threads;
  int64_t n_pairs = c->n_samples * c->n_heads, fit = (int64_t)(PACKED_BUDGET_BYTES / c->packed_bytes);
  c->max_pairs = fit < 1 ? 1 : fit < n_pairs ? fit : n_pairs;
}

static char *cut(char *room, size_t *used_bytes, size_t bytes) {
  char *piece = room ? room + *used_bytes : NULL;
  *used_bytes += (bytes + 63) / 64 * 64;
  return piece;
}

static size_t place_scratch(call *c, char *room) {
  size_t used = 0;
  c->packed = cut(room, &used, (size_t)c->max_pairs * c->packed_bytes);
  c->rooms = cut(room, &used, (size_t)c->n_rooms * c->room_bytes);
  c->works = (work *)(void *)cut(room, &used, (size_t)(c->n_items * c->n_samples) * sizeof(work));
  c->heads = (sv_packed_head *)(void *)cut(room, &used, (size_t)c->max_pairs * sizeof(sv_packed_head));
  c->placed = (uint8_t *)cut(room, &used, (size_t)c->pack.n_tokens);
  c->seen = (uint8_t *)cut(room, &used, (size_t)(c->n_heads * c->n_query_blocks));
  return used;
}

/* ---- the loops ---- */

static sv_status pack_task(int64_t i, int32_t thread, void *ctx) {
  (void)thread;
  call *c = ctx;
  int64_t in_group = i / c->n_pack_tasks, part = i % c->n_pack_tasks, pair = c->first_pair + in_group;
  int64_t n = c->pack.n_key_blocks, first = n * part / c->n_pack_tasks,
          end = n * (part + 1) / c->n_pack_tasks;
  sv_pack_blocks(&c->pack, pair / c->n_heads, pair % c->n_heads, first, end - first, &c->heads[in_group]);
  return SV_OK;
}

static sv_status item_task(int64_t i, int32_t thread, void *ctx) {
  call *c = ctx;
  const sv_item *item = &c->pack.args->items[c->works[i].item];
  int64_t b = c->works[i].sample, pair = b * c->n_heads + SV_ITEM_HEAD(*item);
  return sv_engine_run(&c->pack, &c->heads[pair - c->first_pair], item, b,
                       c->rooms + (size_t)thread * c->room_bytes);
}

static sv_status zero_task(int64_t pair, int32_t thread, void *ctx) {
  (void)thread;
  call *c = ctx;
  int64_t b = pair / c->n_heads, h = pair % c->n_heads;
  for (int64_t qb = 0; qb < c->n_query_blocks; qb++)
    if (!c->seen[h * c->n_query_blocks + qb]) sv_engine_zero(&c->pack, b, h, qb);
  return SV_OK;
}

static int64_t list_works(call *c) {
  int64_t n = 0, end = c->first_pair + c->n_pairs;
  for (int64_t i = 0; i < c->n_items; i++)
    for (int64_t b = 0; b < c->n_samples; b++) {
      int64_t pair = b * c->n_heads + SV_ITEM_HEAD(c->pack.args->items[i]);
      if (pair >= c->first_pair && pair < end) c->works[n++] = (work){(uint32_t)i, (uint32_t)b};
    }
  return n;
}

static sv_status run_group(call *c) {
  const sv_poll *poll = c->pack.args->poll;
  int64_t n_works = list_works(c);
  if (n_works == 0) return SV_OK;
  for (int64_t i = 0; i < c->n_pairs; i++) {
    int64_t pair = c->first_pair + i;
    sv_pack_place(&c->pack, pair / c->n_heads, pair % c->n_heads, c->packed + (size_t)i * c->packed_bytes,
                  &c->heads[i]);
  }
  SV_TRY(sv_parallel_for_on(c->n_threads, c->n_pairs * c->n_pack_tasks, pack_task, c, poll));
  return sv_parallel_for_on(c->n_threads, n_works, item_task, c, poll);
}

static sv_status run_call(call *c) {
  int64_t n_pairs = c->n_samples * c->n_heads;
  SV_TRY(check_orders(c));
  SV_TRY(check_items(c));
  SV_TRY(sv_parallel_for_on(c->n_threads, n_pairs, zero_task, c, c->pack.args->poll));
  for (c->first_pair = 0; c->first_pair < n_pairs; c->first_pair += c->n_pairs) {
    c->n_pairs = n_pairs - c->first_pair < c->max_pairs ? n_pairs - c->first_pair : c->max_pairs;
    SV_TRY(run_group(c));
  }
  return SV_OK;
}

sv_status sv_attention_cpu(const sv_attention_args *args) {
  SV_TRY(sv_attention_check(args));
  SV_TRY(check_heads(args));
  call c;
  void *scratch = NULL;
  size_call(args, &c);
  if (c.n_samples == 0 || c.n_heads == 0) return SV_OK;
  SV_TRY(sv_scratch_alloc("attention", place_scratch(&c, NULL), &scratch));
  (void)place_scratch(&c, scratch);
  sv_status status = run_call(&c);
  sv_scratch_free(scratch);
  return status;
}
