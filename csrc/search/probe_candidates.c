/* probe_candidates.c — one row at a time: sums of the classes, minus their weight times the full output, so that the sum
 * over a candidate's classes is its distance from full attention; then three dot products per candidate. */
#include "search/probe_candidates.h"

#include <string.h>

#define NARROW                                                                                               \
  60.0f /* powers of two between the classes of a row: float32 holds them all without losing one */
#define LOST 100.0f /* powers of two below which a float32 sum cannot see a term */

enum { VISITED, POOLED, N_SIDES };

/* One row of one order. */
typedef struct row {
  const sv_probe *probe;
  const sv_probe_rows *rows;
  int64_t r;
  const sv_probe_classes *classes;
  float *block_factors;          /* [nk] */
  float *sums[N_SIDES];          /* [classes][width] */
  float *exponents[N_SIDES];     /* [classes] */
  float *factors[N_SIDES];       /* [classes] */
  float top[N_SIDES];            /* the highest exponent */
  bool is_narrow[N_SIDES];       /* factors serve all candidates */
  float *full, *picked[N_SIDES]; /* [width] */
  int32_t *all;                  /* [nk] 0, 1, 2 ... */
  double energy;
  uint8_t *masks; /* [S][nk] of the stripes */
  int32_t *work;  /* [3 nk] */
  void *stripe_room;
} row;

static void *cut(char *room, size_t *used_bytes, int64_t bytes) {
  void *piece = room ? room + *used_bytes : NULL;
  *used_bytes += ((size_t)bytes + 63) / 64 * 64;
  return piece;
}

static size_t place_room(const sv_probe *p, char *room, row *out) {
  const int64_t f = sizeof(float), nk = p->n_key_blocks, n_stripes = p->args->n_stripes;
  size_t used = 0;
  out->block_factors = cut(room, &used, nk * f);
  for (int side = 0; side < N_SIDES; side++) {
    out->sums[side] = cut(room, &used, nk * p->width * f);
    out->exponents[side] = cut(room, &used, nk * f);
    out->factors[side] = cut(room, &used, nk * f);
    out->picked[side] = cut(room, &used, p->width * f);
  }
  out->full = cut(room, &used, p->width * f);
  out->all = cut(room, &used, nk * (int64_t)sizeof(int32_t));
  out->masks = cut(room, &used, n_stripes * nk);
  out->work = cut(room, &used, 3 * nk * (int64_t)sizeof(int32_t));
  out->stripe_room = cut(room, &used, (int64_t)sv_probe_classes_bytes(nk, n_stripes));
  return used;
}

size_t sv_probe_candidates_bytes(const sv_probe *probe) {
  row unused;
  return place_room(probe, NULL, &unused);
}

/* 2^n of a whole n <= 0; 0 where it would be lost. */
static float power_of_two(float n) {
  union {
    uint32_t bits;
    float value;
  } power = {.bits = n >= -LOST ? (uint32_t)(127 + (int32_t)n) << 23 : 0u};
  return power.value;
}

static double double_power_of_two(double n) {
  union {
    uint64_t bits;
    double value;
  } power = {.bits = n >= -1022.0 ? (uint64_t)(1023 + (int64_t)n) << 52 : 0u};
  return power.value;
}

static float highest(const float *exponents, int64_t stride, const int32_t *list, int32_t n) {
  float top = SV_PROBE_LOWEST;
  for (int32_t i = 0; i < n; i++) {
    float e = exponents[list[i] * stride];
    if (e > top) top = e;
  }
  return top;
}

/* ---- classes ---- */

static void sum_class(row *w, int side, int32_t number) {
  const sv_probe *p = w->probe;
  const sv_probe_sums *s = w->rows->sums;
  const int64_t ld = w->rows->ld, r = w->r;
  const int32_t *blocks = w->classes->blocks + w->classes->first[number];
  const int32_t n = w->classes->first[number + 1] - w->classes->first[number];
  const float *exponents = (side == VISITED ? s->exponents : s->pooled_exponents) + r;
  const float *x = side == VISITED ? s->numerators + r * p->n_key_blocks * p->width : s->means;
  float top = highest(exponents, ld, blocks, n);
  for (int32_t i = 0; i < n; i++) {
    float factor = power_of_two(exponents[blocks[i] * ld] - top);
    w->block_factors[blocks[i]] = side == VISITED ? factor : factor * s->pooled[blocks[i] * ld + r];
  }
  p->ops->combine(x, w->block_factors, blocks, n, p->width, w->sums[side] + number * p->width);
  w->exponents[side][number] = top;
}

/* Factors that bring all classes to one exponent, if float32 holds what comes of it. Classes without keys lie at
 * SV_PROBE_LOWEST. */
static void align_classes(row *w, int side) {
  const float *exponents = w->exponents[side];
  float top = highest(exponents, 1, w->all, w->classes->n), low = top;
  for (int32_t i = 0; i < w->classes->n; i++)
    if (exponents[i] < low && exponents[i] > SV_PROBE_LOWEST) low = exponents[i];
  w->top[side] = top;
  w->is_narrow[side] = top - low <= NARROW;
  for (int32_t i = 0; i < w->classes->n; i++) w->factors[side][i] = power_of_two(exponents[i] - top);
}

static void find_full(row *w) {
  const sv_probe *p = w->probe;
  p->ops->combine(w->sums[VISITED], w->factors[VISITED], w->all, w->classes->n, p->width, w->full);
  w->energy = 0.0;
  for (int64_t d = 0; d < p->head_dim; d++) {
    w->full[d] /= w->full[p->head_dim];
    w->energy += (double)w->full[d] * (double)w->full[d];
  }
}

static void open_row(row *w) {
  const sv_probe *p = w->probe;
  for (int side = 0; side < N_SIDES; side++) {
    for (int32_t i = 0; i < w->classes->n; i++) sum_class(w, side, i);
    align_classes(w, side);
  }
  find_full(w);
  for (int side = 0; side < N_SIDES; side++)
    p->ops->subtract(w->sums[side], w->classes->n, p->width, (int32_t)p->head_dim, w->full);
}

/* ---- candidates ---- */

/* Sum over the classes of a list into picked[side], and its exponent. */
static float pick(row *w, int side, const int32_t *list, int32_t n) {
  float top = w->top[side];
  if (!w->is_narrow[side]) {
    top = highest(w->exponents[side], 1, list, n);
    for (int32_t i = 0; i < n; i++)
      w->factors[side][list[i]] = power_of_two(w->exponents[side][list[i]] - top);
  }
  w->probe->ops->combine(w->sums[side], w->factors[side], list, n, w->probe->width, w->picked[side]);
  return top;
}

static void repeat(double error, int64_t n, double *sums) {
  for (int64_t k = 0; k < n; k++) sums[k] += error;
}

/* sums [1 + K]: plain, then the curve. A sum without keys weighs exactly nothing. */
static void add_candidate(row *w, int64_t number, bool is_skip, double *sums) {
  const sv_probe *p = w->probe;
  const int64_t n_betas = p->args->n_betas;
  const int32_t *list = w->classes->lists + number * w->classes->n, n = w->classes->n_visited[number];
  float top = pick(w, VISITED, list, n), pooled_top = pick(w, POOLED, list + n, w->classes->n - n);
  sv_probe_terms t = {.d = w->picked[VISITED][p->head_dim], .e = w->picked[POOLED][p->head_dim]};
  if (t.e == 0.0) return; /* everything is visited: full attention */
  p->ops->dots(w->picked[VISITED], w->picked[POOLED], p->head_dim, &t);
  double plain = t.d == 0.0 ? w->energy : t.aa / (t.d * t.d);
  sums[0] += plain;
  if (is_skip) {
    repeat(plain, n_betas, sums + 1);
    return;
  }
  double common = t.d == 0.0 || pooled_top > top ? pooled_top : top;
  double x = t.d == 0.0 ? 0.0 : double_power_of_two(top - common),
         y = double_power_of_two(pooled_top - common);
  const sv_probe_terms aligned = {x * x * t.aa, x * y * t.ac, y * y * t.cc, x * t.d, y * t.e};
  p->ops->add_errors(&aligned, p->factors, (int32_t)n_betas, sums + 1);
}

/* ---- stripes ---- */

static void mark_stripes(const row *w, int64_t slot) {
  const sv_probe_args *a = w->probe->args;
  const int64_t nk = w->probe->n_key_blocks;
  const int32_t *blocks = a->stripes + w->rows->h * a->n_stripe_blocks;
  for (int64_t s = 0; s < a->n_stripes; s++) {
    memcpy(w->masks + s * nk, w->probe->stripe_base + slot * nk, (size_t)nk);
    for (int32_t i = 0; i < a->stripe_counts[s]; i++) w->masks[s * nk + blocks[i]] = 1;
  }
}

/* Rows of one query block that follow each other share the classes. */
static sv_status run_stripes(row *w, double *results) {
  const sv_probe *p = w->probe;
  const sv_probe_order *order = &p->orders[0];
  sv_probe_classes classes;
  int64_t open_slot = -1;
  sv_probe_classes_place(p->n_key_blocks, p->args->n_stripes, w->stripe_room, &classes);
  w->classes = &classes;
  for (w->r = 0; w->r < w->rows->n; w->r++) {
    if (sv_parallel_stopped()) return sv_fail(SV_ERR_INTERRUPTED, "probe: interrupted");
    int64_t slot = order->query_slot[w->rows->first + w->r];
    if (slot != open_slot) {
      mark_stripes(w, slot);
      sv_probe_classes_make(w->masks, w->work, &classes);
      open_slot = slot;
    }
    open_row(w);
    for (int64_t s = 0; s < p->args->n_stripes; s++)
      add_candidate(w, s, false, results + (p->args->n_candidates + s) * (1 + p->args->n_betas));
  }
  return SV_OK;
}

/* ---- the door ---- */

static void add_mass(const row *w, double *mass) {
  const sv_probe *p = w->probe;
  const sv_probe_sums *s = w->rows->sums;
  const double total = w->full[p->head_dim];
  const float *sum = s->numerators + w->r * p->n_key_blocks * p->width + p->head_dim;
  for (int64_t b = 0; b < p->n_key_blocks; b++)
    mass[b] += sum[b * p->width] *
               double_power_of_two((double)s->exponents[b * w->rows->ld + w->r] - w->top[VISITED]) / total;
}

sv_status sv_probe_candidates_run(const sv_probe *probe, const sv_probe_rows *rows, void *room,
                                  double *sums) {
  const sv_probe_order *order = &probe->orders[rows->order];
  const int64_t n_numbers = 1 + probe->args->n_betas;
  double *results = sums + 1 + probe->n_key_blocks;
  row w = {.probe = probe, .rows = rows};
  (void)place_room(probe, room, &w);
  for (int32_t b = 0; b < probe->n_key_blocks; b++) w.all[b] = b;
  for (w.r = 0; w.r < rows->n; w.r++) {
    if (sv_parallel_stopped()) return sv_fail(SV_ERR_INTERRUPTED, "probe: interrupted");
    w.classes = &order->classes[order->query_slot[rows->first + w.r]];
    open_row(&w);
    if (rows->order == 0) {
      sums[0] += w.energy;
      add_mass(&w, sums + 1);
    }
    for (int64_t i = 0; i < order->n_candidates; i++) {
      int32_t number = order->candidates[i];
      add_candidate(&w, i, probe->is_skip[number], results + number * n_numbers);
    }
  }
  return rows->order == 0 && probe->args->n_stripes > 0 ? run_stripes(&w, results) : SV_OK;
}
