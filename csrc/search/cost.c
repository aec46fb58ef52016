/* cost.c — counts what a row visits, prices it, and plays the engine's schedule. */
#include "search/cost.h"

#include <inttypes.h>
#include <math.h>

#include "attention/walk.h"
#include "base/scratch.h"

#define US_PER_MS 1000.0
#define MAX_ITEMS (INT64_C(1) << 32) /* of a call: 2^32 items are numbered in 32 bits */

/* What one query block visits. */
typedef struct work {
  int64_t n_keys, n_runs, n_short, n_pooled, n_tiles;
} work;

typedef struct pricing {
  const sv_hardware *hardware;
  const sv_cost_pool *pool;
  int64_t n_tokens, n_rows, n_key_blocks;
  double pack_us; /* of a head and sample in the caller's order */
} pricing;

static pricing open_pricing(const sv_hardware *h, const sv_cost_pool *pool) {
  const sv_geometry *g = &pool->geometry;
  double n_tokens = (double)sv_geometry_tokens(g);
  double far_share = 1.0 - h->cache_tokens / (n_tokens * (double)pool->n_heads * (double)pool->n_samples);
  if (far_share < 0.0) far_share = 0.0;
  return (pricing){.hardware = h,
                   .pool = pool,
                   .n_tokens = sv_geometry_tokens(g),
                   .n_rows = sv_geometry_query_blocks(g),
                   .n_key_blocks = sv_geometry_key_blocks(g),
                   .pack_us =
                       h->head_us + n_tokens / (double)g->block_k * (h->pack_us + far_share * h->far_us)};
}

/* ---- one item ---- */

static int64_t count_bits(const uint32_t *bits, int64_t n_blocks) {
  int64_t n = 0;
  for (int64_t w = 0; w < sv_ceil_div(n_blocks, 32); w++)
    for (uint32_t rest = bits[w]; rest; rest &= rest - 1) n++;
  return n;
}

static void count_step(const pricing *p, const sv_step *step, work *w) {
  int64_t block_k = p->pool->geometry.block_k;
  if (step->kind == SV_STEP_POOLED) {
    w->n_tiles++;
    w->n_pooled += count_bits(step->bits, step->n_blocks);
    return;
  }
  int64_t end = (step->first_block + step->n_blocks) * block_k;
  w->n_runs++;
  w->n_keys += (end < p->n_tokens ? end : p->n_tokens) - step->first_block * block_k;
  w->n_short += end > p->n_tokens;
}

/* A short block has a code of its own: glued to the run before it, both are one run. */
static bool is_glued(const sv_step *step, int64_t end_before, const pricing *p) {
  return step->kind == SV_STEP_KEYS && step->first_block == end_before &&
         step->first_block == p->n_key_blocks - 1;
}

static sv_status count_row(const pricing *p, const sv_row *row, bool with_remainder, work *out) {
  const sv_attention_args lists = {
      .geometry = p->pool->geometry, .codes = p->pool->codes, .n_codes = p->pool->n_codes};
  bool is_range = row->n_words == 0 && row->n_blocks > 0;
  uint32_t n_pooled_words = with_remainder ? row->n_pooled_words : 0;
  sv_item item = {.head_kind = (uint32_t)(is_range ? SV_ITEM_RANGE : SV_ITEM_LIST) << 24,
                  .first = row->first,
                  .n = is_range ? row->n_blocks : row->n_words + n_pooled_words};
  sv_walk walk;
  sv_step step;
  int64_t end_before = -1;
  *out = (work){0};
  SV_TRY(sv_walk_open(&lists, &item, &walk));
  for (;;) {
    SV_TRY(sv_walk_next(&walk, &step));
    if (step.kind == SV_STEP_END) return SV_OK;
    if (is_glued(&step, end_before, p)) out->n_runs--;
    count_step(p, &step, out);
    end_before = step.first_block + step.n_blocks;
  }
}

/* Rows that are multiplied for n rows: strips of two heights, as few empty rows as can be. */
static double multiplied_rows(const sv_hardware *h, int64_t n) {
  int64_t tall = (int64_t)h->tall_rows, low = (int64_t)h->low_rows, best = INT64_MAX;
  if (tall == 0 || low == 0) return 1.0;
  for (int64_t n_low = 0; n_low < tall; n_low++) {
    int64_t rest = n - n_low * low, rows = n_low * low + (rest > 0 ? sv_ceil_div(rest, tall) * tall : 0);
    if (rows < best) best = rows;
  }
  return (double)best;
}

static double price_work(const pricing *p, const work *w, int64_t n_rows) {
  const sv_hardware *h = p->hardware;
  const sv_geometry *g = &p->pool->geometry;
  double panels = ceil((double)w->n_pooled / SV_COST_POOLED);
  double keys = (double)w->n_keys + panels * SV_COST_POOLED;
  double chunks = h->chunk_keys > 0.0 ? ceil(keys / h->chunk_keys) : 0.0;
  double us = h->item_us + chunks * h->chunk_us + (double)w->n_runs * h->run_us +
              (double)w->n_keys / (double)g->block_k * h->full_us + (double)w->n_short * h->partial_us +
              panels * h->pooled_us + (double)w->n_tiles * h->tile_us;
  return us * multiplied_rows(h, n_rows) / multiplied_rows(h, g->block_q);
}

static int64_t rows_of_block(const pricing *p, int64_t query_block) {
  int64_t block_q = p->pool->geometry.block_q, left = p->n_tokens - query_block * block_q;
  return left < block_q ? left : block_q;
}

/* ---- one head ---- */

/* Microseconds of a head and sample before its items. */
static double price_packing(const pricing *p, int64_t pattern, bool with_remainder) {
  const sv_hardware *h = p->hardware;
  const sv_geometry *g = &p->pool->geometry;
  double us = p->pack_us;
  if (p->pool->orders[pattern] >= 0) us += (double)p->n_tokens / (double)g->block_q * h->reorder_us;
  if (with_remainder) us += (double)p->n_key_blocks * h->mean_us;
  return us;
}

static double price_zeros(const pricing *p, int64_t query_block) {
  return p->hardware->zero_us * (double)rows_of_block(p, query_block) / (double)p->pool->geometry.block_q;
}

/* Full and skip take no remainder: their rows hold no pooled tiles, and no means are made. */
static bool has_pooled(const pricing *p, int64_t pattern) {
  for (int64_t i = 0; i < p->n_rows; i++)
    if (p->pool->rows[pattern * p->n_rows + i].n_pooled_words > 0) return true;
  return false;
}

typedef struct head_price {
  double packing_us, zeros_us, items_us; /* per sample */
} head_price;

/* item_us [nq] or NULL. */
static sv_status price_head(const pricing *p, int64_t pattern, bool with_remainder, double *item_us,
                            head_price *out) {
  bool pooled = with_remainder && has_pooled(p, pattern);
  *out = (head_price){.packing_us = price_packing(p, pattern, pooled)};
  for (int64_t i = 0; i < p->n_rows; i++) {
    work w;
    SV_TRY(count_row(p, p->pool->rows + pattern * p->n_rows + i, pooled, &w));
    bool is_item = w.n_runs > 0 || w.n_pooled > 0;
    double us = is_item ? price_work(p, &w, rows_of_block(p, i)) : 0.0;
    if (!is_item) out->zeros_us += price_zeros(p, i);
    out->items_us += us;
    if (item_us) item_us[i] = us;
  }
  return SV_OK;
}

static double share_ms(const pricing *p, const head_price *head) {
  double us = head->packing_us + head->zeros_us + head->items_us;
  return us * (double)p->pool->n_samples / p->hardware->workers / US_PER_MS;
}

/* ---- the schedule ---- */

/* loads is a heap whose root is the least; its root has grown. */
static void sink_root(double *loads, int64_t n) {
  double load = loads[0];
  int64_t at = 0;
  for (;;) {
    int64_t child = 2 * at + 1;
    if (child >= n) break;
    if (child + 1 < n && loads[child + 1] < loads[child]) child++;
    if (loads[child] >= load) break;
    loads[at] = loads[child];
    at = child;
  }
  loads[at] = load;
}

double sv_cost_makespan(const double *times, int64_t n, int64_t workers, double *room) {
  double longest = 0.0;
  for (int64_t i = 0; i < workers; i++) room[i] = 0.0;
  for (int64_t i = 0; i < n; i++) {
    room[0] += times[i];
    if (room[0] > longest) longest = room[0];
    sink_root(room, workers);
  }
  return longest;
}

/* What the heads at hand have, priced once: slot [2P] of each (pattern, with remainder), -1 where no head has it. */
typedef struct priced {
  int32_t *slot;
  head_price *heads; /* [n_slots] */
  double *item_us;   /* [n_slots, nq] */
  int64_t n_slots;
} priced;

typedef struct schedule {
  sv_item *items; /* [H * nq] */
  double *times;  /* [H * nq * B] in the engine's order */
  double *loads;  /* [workers] */
  int64_t n_items;
} schedule;

static int64_t option_of(int32_t pattern, uint8_t with_remainder) {
  return 2 * (int64_t)pattern + (with_remainder != 0);
}

static sv_status count_slots(const pricing *p, int64_t n, const int32_t *choice, const uint8_t *remainder,
                             priced *out) {
  for (int64_t i = 0; i < 2 * p->pool->n_patterns; i++) out->slot[i] = -1;
  for (int64_t i = 0; i < n; i++) {
    if (choice[i] < 0 || choice[i] >= p->pool->n_patterns)
      return sv_fail(SV_ERR_ARG, "cost: choice[%" PRId64 "] is %d, expected 0..%" PRId64, i, (int)choice[i],
                     p->pool->n_patterns - 1);
    int32_t *slot = out->slot + option_of(choice[i], remainder[i]);
    if (*slot < 0) *slot = (int32_t)out->n_slots++;
  }
  return SV_OK;
}

static sv_status price_slots(const pricing *p, const sv_poll *poll, priced *out) {
  for (int64_t i = 0; i < 2 * p->pool->n_patterns; i++) {
    if (out->slot[i] < 0) continue;
    if (sv_poll_interrupted(poll)) return sv_fail(SV_ERR_INTERRUPTED, "cost: interrupted");
    SV_TRY(
        price_head(p, i / 2, i % 2 == 1, out->item_us + out->slot[i] * p->n_rows, out->heads + out->slot[i]));
  }
  return SV_OK;
}

static sv_status open_schedule(const pricing *p, int64_t n_slots, priced *prices, schedule *out,
                               void **block) {
  size_t n = (size_t)(p->pool->n_heads * p->n_rows), n_workers = (size_t)p->hardware->workers;
  size_t n_times = n * (size_t)p->pool->n_samples, n_priced = (size_t)(n_slots * p->n_rows);
  SV_TRY(sv_scratch_alloc("cost",
                          n * sizeof(sv_item) + (n_times + n_workers + n_priced) * sizeof(double) +
                              (size_t)n_slots * sizeof(head_price),
                          block));
  out->times = *block;
  out->loads = out->times + n_times;
  prices->item_us = out->loads + n_workers;
  prices->heads = (head_price *)(void *)(prices->item_us + n_priced);
  out->items = (sv_item *)(void *)(prices->heads + n_slots);
  return SV_OK;
}

/* The engine's order: longest first by visits, the samples of an item one after the other. */
static double play_schedule(const pricing *p, const priced *prices, const int32_t *choice,
                            const uint8_t *remainder, schedule *s) {
  int64_t n = 0;
  for (int64_t i = 0; i < s->n_items; i++) {
    int64_t head = (int64_t)SV_ITEM_HEAD(s->items[i]);
    int64_t slot = prices->slot[option_of(choice[head], remainder[head])];
    double us = prices->item_us[slot * p->n_rows + s->items[i].query_block];
    for (int64_t b = 0; b < p->pool->n_samples; b++) s->times[n++] = us;
  }
  return sv_cost_makespan(s->times, n, (int64_t)p->hardware->workers, s->loads);
}

static sv_status price_layer(const pricing *p, const priced *prices, const int32_t *choice,
                             const uint8_t *remainder, const sv_poll *poll, schedule *s, double *out_ms,
                             double *out_head_ms) {
  const sv_cost_pool *pool = p->pool;
  double packing_us = 0.0, zeros_us = 0.0, n_samples = (double)pool->n_samples;
  SV_TRY(sv_visits_items(&pool->geometry, pool->rows, pool->n_patterns, choice, remainder, pool->n_heads,
                         poll, s->items, &s->n_items));
  for (int64_t h = 0; h < pool->n_heads; h++) {
    const head_price *head = prices->heads + prices->slot[option_of(choice[h], remainder[h])];
    packing_us += head->packing_us;
    zeros_us += head->zeros_us;
    out_head_ms[h] = share_ms(p, head);
  }
  double shared_us = (packing_us + zeros_us) * n_samples / p->hardware->workers;
  *out_ms = (p->hardware->launch_us + shared_us + play_schedule(p, prices, choice, remainder, s)) / US_PER_MS;
  return SV_OK;
}

static sv_status price_layers(const pricing *p, const priced *prices, int64_t n_layers, const int32_t *choice,
                              const uint8_t *remainder, const sv_poll *poll, schedule *s, double *out_ms,
                              double *out_head_ms) {
  for (int64_t l = 0; l < n_layers; l++) {
    int64_t first = l * p->pool->n_heads;
    SV_TRY(
        price_layer(p, prices, choice + first, remainder + first, poll, s, out_ms + l, out_head_ms + first));
  }
  return SV_OK;
}

/* ---- the doors ---- */

static sv_status check_pool(const sv_cost_pool *pool) {
  SV_TRY(sv_geometry_check(&pool->geometry));
  if (pool->n_samples < 1 || pool->n_samples > 0xffff)
    return sv_fail(SV_ERR_ARG, "cost: batch is %" PRId64 ", expected 1..65535", pool->n_samples);
  if (pool->n_heads < 1 || pool->n_heads > 0xffffff)
    return sv_fail(SV_ERR_ARG, "cost: there are %" PRId64 " heads, expected 1..16777215", pool->n_heads);
  if (pool->n_heads > MAX_ITEMS / pool->n_samples / sv_geometry_query_blocks(&pool->geometry))
    return sv_fail(SV_ERR_ARG,
                   "cost: %" PRId64 " heads of %" PRId64
                   " samples have too many items, expected at most %" PRId64,
                   pool->n_heads, pool->n_samples, MAX_ITEMS);
  return SV_OK;
}

sv_status sv_cost_layers(const sv_hardware *hardware, const sv_cost_pool *pool, int64_t n_layers,
                         const int32_t *choice, const uint8_t *remainder, const sv_poll *poll, double *out_ms,
                         double *out_head_ms) {
  SV_TRY(check_pool(pool));
  pricing p = open_pricing(hardware, pool);
  priced prices = {0};
  schedule s = {0};
  void *slots = NULL, *block = NULL;
  SV_TRY(sv_scratch_alloc("cost", 2 * (size_t)pool->n_patterns * sizeof(int32_t), &slots));
  prices.slot = slots;
  sv_status status = count_slots(&p, n_layers * pool->n_heads, choice, remainder, &prices);
  if (status == SV_OK) status = open_schedule(&p, prices.n_slots, &prices, &s, &block);
  if (status == SV_OK) status = price_slots(&p, poll, &prices);
  if (status == SV_OK)
    status = price_layers(&p, &prices, n_layers, choice, remainder, poll, &s, out_ms, out_head_ms);
  sv_scratch_free(block);
  sv_scratch_free(slots);
  return status;
}

sv_status sv_cost_heads(const sv_hardware *hardware, const sv_cost_pool *pool, const sv_poll *poll,
                        double *out_ms) {
  SV_TRY(check_pool(pool));
  pricing p = open_pricing(hardware, pool);
  for (int64_t i = 0; i < pool->n_patterns; i++) {
    if (sv_poll_interrupted(poll)) return sv_fail(SV_ERR_INTERRUPTED, "cost: interrupted");
    for (int r = 0; r < 2; r++) {
      head_price head;
      SV_TRY(price_head(&p, i, r == 1, NULL, &head));
      out_ms[2 * i + r] = share_ms(&p, &head);
    }
  }
  return SV_OK;
}
