/* probe.c — the door: checks, groups the candidates by order, finds the classes of each query block, hands (sample, head,
 * some rows) to the threads, adds up what they bring in a fixed order. */
#include "search/probe.h"

#include <math.h>
#include <string.h>

#include "base/cpu.h"
#include "base/scratch.h"
#include "search/probe_rows.h"

#define MAX_ROWS 64                    /* of a task: four panels of queries stay in the first-level cache */
#define ROOM_BYTES (INT64_C(32) << 20) /* logits and sums of a task; fewer rows where they are longer */

typedef struct call {
  sv_probe probe;
  int64_t n_samples, n_heads, n_chunks, n_slots; /* n_slots: query blocks of an order at most */
  int32_t n_rooms;
  size_t room_bytes, decode_bytes;
  char *rooms;
  double *sums;        /* [B, H, chunks][sv_probe_sums_count] */
  uint8_t *is_skip;    /* [C] */
  int32_t *candidates; /* [C] by order */
  sv_probe_order *orders;
  int32_t *order_slots;      /* [orders] query blocks in use */
  int32_t *query_slot;       /* [orders][R] */
  int32_t *slot_block;       /* [orders][n_slots] */
  int32_t *places;           /* [N] of the order at hand */
  int32_t *slot_of;          /* [nq] of the order at hand */
  sv_row *base_rows;         /* [nq] of the stripe without blocks */
  uint8_t *stripe_base;      /* [n_slots][nk] */
  sv_probe_classes *classes; /* [orders][n_slots] */
  char *class_rooms;
} call;

/* ---- sizes ---- */

static const sv_probe_ops *ops_for(sv_isa isa) {
#if defined(__x86_64__)
  if (isa >= SV_ISA_AVX512) return &sv_probe_ops_avx512;
  if (isa == SV_ISA_AVX2) return &sv_probe_ops_avx2;
#else
  (void)isa;
#endif
  return &sv_probe_ops_portable;
}

static int64_t count_of_order(const sv_probe_args *a, int64_t order) {
  int64_t n = 0;
  for (int64_t c = 0; c < a->n_candidates; c++) n += a->orders[c] == order;
  return n;
}

/* frame_major, and each other order that a candidate has. */
static int64_t count_orders(const sv_probe_args *a) {
  int64_t n = 1;
  for (int64_t o = 0; o < a->n_orders; o++) n += count_of_order(a, o) > 0;
  return n;
}

static void size_rows(call *c) {
  const sv_probe *p = &c->probe;
  int64_t row_bytes = (p->n_tokens + p->n_key_blocks * (p->width + 3)) * (int64_t)sizeof(float);
  int64_t most = ROOM_BYTES / row_bytes / SV_PANEL * SV_PANEL, n_rows = p->args->n_rows;
  most = most < SV_PANEL ? SV_PANEL : most > MAX_ROWS ? MAX_ROWS : most;
  c->n_chunks = sv_ceil_div(n_rows, most);
  c->probe.rows_per_task = sv_ceil_div(sv_ceil_div(n_rows, c->n_chunks), SV_PANEL) * SV_PANEL;
  c->n_chunks = sv_ceil_div(n_rows, c->probe.rows_per_task);
}

static void size_call(const sv_probe_args *a, call *c) {
  sv_isa isa = sv_cpu_isa();
  *c = (call){.n_samples = a->q.shape[0], .n_heads = a->q.shape[1]};
  sv_probe *p = &c->probe;
  *p = (sv_probe){.args = a, .ops = ops_for(isa), .to_float = sv_block_ops_for(isa)->to_float};
  p->n_tokens = sv_geometry_tokens(&a->geometry);
  p->n_key_blocks = sv_geometry_key_blocks(&a->geometry);
  p->n_query_blocks = sv_geometry_query_blocks(&a->geometry);
  p->head_dim = a->q.shape[3];
  p->n_results = a->n_candidates + a->n_stripes;
  p->columns = (int32_t)(sv_ceil_div(p->head_dim, SV_PANEL) * SV_PANEL);
  p->width = (int32_t)(sv_ceil_div(p->head_dim + 1, SV_PANEL) * SV_PANEL);
  p->n_orders = count_orders(a);
  for (int64_t k = 0; k < a->n_betas; k++) p->factors[k] = exp(a->betas[k]);
  size_rows(c);
  int64_t n_tasks = c->n_samples * c->n_heads * c->n_chunks, n_threads = sv_parallel_threads(),
          nk = p->n_key_blocks;
  c->n_slots = a->n_rows < p->n_query_blocks ? a->n_rows : p->n_query_blocks;
  c->n_rooms = (int32_t)(n_tasks < n_threads ? n_tasks : n_threads);
  c->decode_bytes = ((size_t)(a->n_candidates * nk) + 63) / 64 * 64;
  c->room_bytes = sv_probe_rows_bytes(p);
  size_t needed = c->decode_bytes + (size_t)(3 * nk) * sizeof(int32_t);
  if (c->room_bytes < needed) c->room_bytes = (needed + 63) / 64 * 64;
}

static void *cut(char *room, size_t *used_bytes, int64_t bytes) {
  void *piece = room ? room + *used_bytes : NULL;
  *used_bytes += ((size_t)bytes + 63) / 64 * 64;
  return piece;
}

static int64_t class_bytes(const call *c) {
  const sv_probe_args *a = c->probe.args;
  const int64_t nk = c->probe.n_key_blocks;
  size_t bytes = sv_probe_classes_bytes(nk, count_of_order(a, -1));
  for (int64_t o = 0; o < a->n_orders; o++) {
    int64_t n = count_of_order(a, o);
    if (n > 0) bytes += sv_probe_classes_bytes(nk, n);
  }
  return (int64_t)bytes * c->n_slots;
}

static size_t place_scratch(call *c, char *room) {
  const sv_probe *p = &c->probe;
  const int64_t i = sizeof(int32_t), n_tasks = c->n_samples * c->n_heads * c->n_chunks;
  size_t used = 0;
  c->rooms = cut(room, &used, c->n_rooms * (int64_t)c->room_bytes);
  c->sums = cut(room, &used, n_tasks * sv_probe_sums_count(p) * (int64_t)sizeof(double));
  c->is_skip = cut(room, &used, p->args->n_candidates);
  c->candidates = cut(room, &used, p->args->n_candidates * i);
  c->orders = cut(room, &used, p->n_orders * (int64_t)sizeof(sv_probe_order));
  c->order_slots = cut(room, &used, p->n_orders * i);
  c->query_slot = cut(room, &used, p->n_orders * p->args->n_rows * i);
  c->slot_block = cut(room, &used, p->n_orders * c->n_slots * i);
  c->places = cut(room, &used, p->n_tokens * i);
  c->slot_of = cut(room, &used, p->n_query_blocks * i);
  c->base_rows = cut(room, &used, p->n_query_blocks * (int64_t)sizeof(sv_row));
  c->stripe_base = cut(room, &used, c->n_slots * p->n_key_blocks);
  c->classes = cut(room, &used, p->n_orders * c->n_slots * (int64_t)sizeof(sv_probe_classes));
  c->class_rooms = cut(room, &used, class_bytes(c));
  return used;
}

/* ---- what all heads share ---- */

static void find_skips(call *c) {
  const sv_probe_args *a = c->probe.args;
  const int64_t nq = c->probe.n_query_blocks;
  for (int64_t n = 0; n < a->n_candidates; n++) {
    c->is_skip[n] = 1;
    for (int64_t i = 0; i < nq && c->is_skip[n]; i++) c->is_skip[n] = a->visits[n * nq + i].n_blocks == 0;
  }
}

static sv_status invert(call *c, int64_t order, const int32_t *tokens) {
  const int64_t n = c->probe.n_tokens;
  memset(c->places, 0xff, (size_t)n * sizeof(int32_t)); /* -1 */
  for (int64_t place = 0; place < n; place++) {
    int32_t token = tokens ? tokens[place] : (int32_t)place;
    if (token < 0 || token >= n || c->places[token] >= 0)
      return sv_fail(SV_ERR_ARG, "probe: tokens[%lld, %lld] is %d, expected each of 0..%lld once",
                     (long long)order, (long long)place, (int)token, (long long)n - 1);
    c->places[token] = (int32_t)place;
  }
  return SV_OK;
}

/* Distinct query blocks of the rows, in the order of their first rows. */
static void find_slots(call *c, int64_t number) {
  const sv_probe_args *a = c->probe.args;
  int32_t *query_slot = c->query_slot + number * a->n_rows, n = 0;
  memset(c->slot_of, 0xff, (size_t)c->probe.n_query_blocks * sizeof(int32_t)); /* -1 */
  for (int64_t r = 0; r < a->n_rows; r++) {
    int64_t block = c->places[a->rows[r]] / a->geometry.block_q;
    if (c->slot_of[block] < 0) {
      c->slot_block[number * c->n_slots + n] = (int32_t)block;
      c->slot_of[block] = n++;
    }
    query_slot[r] = c->slot_of[block];
  }
  c->order_slots[number] = n;
}

static sv_status add_order(call *c, int64_t order, int64_t number, int32_t **candidates, char **class_room) {
  const sv_probe_args *a = c->probe.args;
  sv_probe_order *out = &c->orders[number];
  *out = (sv_probe_order){.tokens = order < 0 ? NULL : a->tokens + order * c->probe.n_tokens};
  out->candidates = *candidates;
  out->query_slot = c->query_slot + number * a->n_rows;
  out->classes = c->classes + number * c->n_slots;
  for (int64_t i = 0; i < a->n_candidates; i++)
    if (a->orders[i] == order) (*candidates)[out->n_candidates++] = (int32_t)i;
  *candidates += out->n_candidates;
  SV_TRY(invert(c, order, out->tokens));
  find_slots(c, number);
  for (int64_t slot = 0; slot < c->order_slots[number]; slot++) {
    sv_probe_classes_place(c->probe.n_key_blocks, out->n_candidates, *class_room, &out->classes[slot]);
    *class_room += sv_probe_classes_bytes(c->probe.n_key_blocks, out->n_candidates);
  }
  return SV_OK;
}

static sv_status make_orders(call *c) {
  const sv_probe_args *a = c->probe.args;
  int32_t *candidates = c->candidates;
  char *class_room = c->class_rooms;
  int64_t number = 0;
  for (int64_t order = -1; order < a->n_orders; order++)
    if (order < 0 || count_of_order(a, order) > 0)
      SV_TRY(add_order(c, order, number++, &candidates, &class_room));
  c->probe.orders = c->orders;
  return SV_OK;
}

/* Item i: a query block of an order. */
static sv_status classes_task(int64_t i, int32_t thread, void *ctx) {
  call *c = ctx;
  const sv_probe_args *a = c->probe.args;
  const int64_t number = i / c->n_slots, slot = i % c->n_slots, nk = c->probe.n_key_blocks;
  const sv_probe_order *order = &c->orders[number];
  char *room = c->rooms + (size_t)thread * c->room_bytes;
  uint8_t *masks = (uint8_t *)room;
  if (slot >= c->order_slots[number]) return SV_OK;
  for (int64_t n = 0; n < order->n_candidates; n++)
    SV_TRY(sv_visits_row_mask(&a->geometry, a->visits + order->candidates[n] * c->probe.n_query_blocks,
                              c->slot_block[i], a->codes, a->n_codes, masks + n * nk));
  sv_probe_classes_make(masks, (int32_t *)(void *)(room + c->decode_bytes), &order->classes[slot]);
  return SV_OK;
}

/* What a stripe visits besides its blocks: the own block, other tokens. */
static sv_status make_stripe_base(call *c) {
  const sv_probe_args *a = c->probe.args;
  const sv_pattern empty = {.kind = SV_PATTERN_VERTICAL_STRIPE};
  sv_codes codes = {0};
  c->probe.stripe_base = c->stripe_base;
  if (a->n_stripes == 0) return SV_OK;
  sv_status status = sv_visits_emit(&a->geometry, &empty, 0, c->base_rows, &codes, a->poll);
  for (int64_t slot = 0; status == SV_OK && slot < c->order_slots[0]; slot++)
    status = sv_visits_row_mask(&a->geometry, c->base_rows, c->slot_block[slot], codes.words, codes.n,
                                c->stripe_base + slot * c->probe.n_key_blocks);
  sv_codes_free(&codes);
  return status;
}

/* ---- the loop ---- */

static sv_status rows_task(int64_t i, int32_t thread, void *ctx) {
  call *c = ctx;
  const sv_probe *p = &c->probe;
  const int64_t chunk = i % c->n_chunks, pair = i / c->n_chunks, first = chunk * p->rows_per_task;
  int64_t n = p->args->n_rows - first < p->rows_per_task ? p->args->n_rows - first : p->rows_per_task;
  return sv_probe_rows_run(p, pair / c->n_heads, pair % c->n_heads, first, n,
                           c->rooms + (size_t)thread * c->room_bytes, c->sums + i * sv_probe_sums_count(p));
}

static void add_task(const sv_probe *p, const double *sums, int64_t h, const sv_probe_results *out) {
  const int64_t nk = p->n_key_blocks, n = p->n_results, n_betas = p->args->n_betas;
  const double *results = sums + 1 + nk;
  out->energy[h] += sums[0];
  for (int64_t b = 0; b < nk; b++) out->mass[h * nk + b] += sums[1 + b];
  for (int64_t i = 0; i < n; i++, results += 1 + n_betas) {
    out->plain[h * n + i] += results[0];
    for (int64_t k = 0; k < n_betas; k++) out->curve[(h * n + i) * n_betas + k] += results[1 + k];
  }
}

static void add_up(const call *c, const sv_probe_results *out) {
  const sv_probe *p = &c->probe;
  const int64_t n_counts = sv_probe_sums_count(p), n = c->n_heads * p->n_results, nk = p->n_key_blocks;
  memset(out->energy, 0, (size_t)c->n_heads * sizeof(double));
  memset(out->mass, 0, (size_t)(c->n_heads * nk) * sizeof(double));
  memset(out->plain, 0, (size_t)n * sizeof(double));
  memset(out->curve, 0, (size_t)(n * p->args->n_betas) * sizeof(double));
  for (int64_t pair = 0; pair < c->n_samples * c->n_heads; pair++)
    for (int64_t chunk = 0; chunk < c->n_chunks; chunk++)
      add_task(p, c->sums + (pair * c->n_chunks + chunk) * n_counts, pair % c->n_heads, out);
  for (int64_t i = 0; i < c->n_heads * nk; i++) out->mass[i] /= (double)(p->args->n_rows * c->n_samples);
}

static sv_status run_call(call *c, const sv_probe_results *out) {
  const sv_poll *poll = c->probe.args->poll;
  find_skips(c);
  c->probe.is_skip = c->is_skip;
  SV_TRY(make_orders(c));
  SV_TRY(make_stripe_base(c));
  SV_TRY(sv_parallel_for_on(c->n_rooms, c->probe.n_orders * c->n_slots, classes_task, c, poll));
  SV_TRY(sv_parallel_for_on(c->n_rooms, c->n_samples * c->n_heads * c->n_chunks, rows_task, c, poll));
  add_up(c, out);
  return SV_OK;
}

sv_status sv_probe_cpu(const sv_probe_args *args, const sv_probe_results *results) {
  SV_TRY(sv_probe_check(args));
  call c;
  void *scratch = NULL;
  size_call(args, &c);
  SV_TRY(sv_scratch_alloc("probe", place_scratch(&c, NULL), &scratch));
  (void)place_scratch(&c, scratch);
  sv_status status = run_call(&c, results);
  sv_scratch_free(scratch);
  return status;
}
