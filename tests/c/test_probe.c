/* test_probe.c — the probe against attention in double precision, candidate by candidate: random masks, orders, dtypes and
 * strides, stripes by their definition; every input ends at a guard page; failing allocations, interrupts, threads. */
#define _GNU_SOURCE
#include "attention_case.h"
#include "base/parallel.h"
#include "base/scratch.h"
#include "search/probe.h"

#define K 3
#define S 2
#define MAX_HEADS 3
#define MAX_D 64

static const float betas[K] = {-2.0f, 0.0f, 1.5f};

typedef struct probe_case {
  attention_case base; /* its masks, one per head, are the candidates */
  sv_probe_args args;
  sv_probe_results out;
  guarded visits, codes, rows, orders, betas, stripes, counts, plain, curve, energy, mass;
  size_t plain_bytes, curve_bytes, energy_bytes, mass_bytes;
} probe_case;

static void make_visits(const spec *s, probe_case *c) {
  const attention_case *b = &c->base;
  sv_codes codes = {0};
  c->visits = guard_alloc((size_t)(s->n_heads * b->nq) * sizeof(sv_row));
  sv_row *rows = c->visits.data;
  for (int64_t h = 0; h < s->n_heads; h++)
    CHECK_OK(sv_visits_emit_mask(&b->args.geometry, b->mask + h * b->nq * b->nk, h % 2 == 0, rows + h * b->nq,
                                 &codes, NULL));
  c->codes = guard_alloc((size_t)codes.n * sizeof(uint32_t));
  if (codes.n > 0) memcpy(c->codes.data, codes.words, (size_t)codes.n * sizeof(uint32_t));
  c->args.visits = rows;
  c->args.n_candidates = s->n_heads;
  c->args.codes = c->codes.data;
  c->args.n_codes = codes.n;
  sv_codes_free(&codes);
}

static void make_rows(probe_case *c, int64_t n_rows) {
  c->rows = guard_alloc((size_t)n_rows * sizeof(int32_t));
  int32_t *rows = c->rows.data;
  for (int64_t i = 0; i < n_rows; i++) rows[i] = (int32_t)case_below(c->base.n_tokens);
  c->args.rows = rows;
  c->args.n_rows = n_rows;
}

static void make_stripes(const spec *s, probe_case *c) {
  const int64_t m = 3;
  c->stripes = guard_alloc((size_t)(s->n_heads * m) * sizeof(int32_t));
  c->counts = guard_alloc(S * sizeof(int32_t));
  int32_t *stripes = c->stripes.data, *counts = c->counts.data;
  for (int64_t i = 0; i < s->n_heads * m; i++) stripes[i] = (int32_t)case_below(c->base.nk);
  counts[0] = (int32_t)m;
  counts[1] = 1;
  c->args.stripes = stripes;
  c->args.n_stripe_blocks = m;
  c->args.stripe_counts = counts;
  c->args.n_stripes = S;
}

static double *make_out(size_t n, guarded *out, size_t *out_bytes) {
  *out_bytes = n * sizeof(double);
  *out = guard_alloc(*out_bytes);
  memset(out->data, 0x55, *out_bytes);
  return out->data;
}

static void make(const spec *s, int64_t n_rows, probe_case *c) {
  memset(c, 0, sizeof *c);
  case_make(s, &c->base);
  const sv_attention_args *a = &c->base.args;
  c->args = (sv_probe_args){.geometry = a->geometry,
                            .q = a->q,
                            .k = a->k,
                            .v = a->v,
                            .scale = a->scale,
                            .tokens = a->tokens,
                            .n_orders = a->n_orders,
                            .kv_len = a->kv_len,
                            .n_betas = K};
  make_visits(s, c);
  make_rows(c, n_rows);
  make_stripes(s, c);
  c->orders = guard_alloc((size_t)s->n_heads * sizeof(int32_t));
  c->betas = guard_alloc(K * sizeof(double));
  for (int64_t h = 0; h < s->n_heads; h++) ((int32_t *)c->orders.data)[h] = a->heads[h].order;
  for (int i = 0; i < K; i++) ((double *)c->betas.data)[i] = (double)betas[i];
  c->args.orders = c->orders.data;
  c->args.betas = c->betas.data;
  size_t n = (size_t)(s->n_heads * (s->n_heads + S));
  c->out.plain = make_out(n, &c->plain, &c->plain_bytes);
  c->out.curve = make_out(n * K, &c->curve, &c->curve_bytes);
  c->out.energy = make_out((size_t)s->n_heads, &c->energy, &c->energy_bytes);
  c->out.mass = make_out((size_t)(s->n_heads * c->base.nk), &c->mass, &c->mass_bytes);
}

static void release(probe_case *c) {
  guarded *all[] = {&c->visits, &c->codes, &c->rows,  &c->orders, &c->betas, &c->stripes,
                    &c->counts, &c->plain, &c->curve, &c->energy, &c->mass};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) guard_free(all[i]);
  case_free(&c->base);
}

/* ---- what is expected ---- */

/* Row `token` of head h in double precision, with a mask [nq, nk] in an order; NULL = all blocks. */
static void expect_row(const probe_case *c, int64_t b, int64_t h, const uint8_t *mask, int32_t order,
                       const float *beta, int64_t token, double *out) {
  attention_case one = c->base; /* head 0 of it is head h of the call */
  sv_head head = {order, beta ? SV_HEAD_REMAINDER : 0, beta ? *beta : 0.0f};
  sv_tensor *tensors[] = {&one.args.q, &one.args.k, &one.args.v};
  uint8_t *ones = malloc((size_t)(one.nq * one.nk));
  memset(ones, 1, (size_t)(one.nq * one.nk));
  for (int i = 0; i < 3; i++)
    tensors[i]->data =
        (char *)tensors[i]->data + h * tensors[i]->stride[1] * sv_dtype_bytes(tensors[i]->dtype);
  one.mask = mask ? (uint8_t *)(uintptr_t)mask : ones;
  one.args.heads = &head;
  int64_t place = 0;
  while (case_token(&one, 0, place) != token) place++;
  (void)case_expect(&one, b, 0, place, out);
  free(ones);
}

static double expect_error(const probe_case *c, int64_t h, const uint8_t *mask, int32_t order,
                           const float *beta) {
  double full[MAX_D], ours[MAX_D], sum = 0.0;
  for (int64_t b = 0; b < c->args.q.shape[0]; b++)
    for (int64_t r = 0; r < c->args.n_rows; r++) {
      expect_row(c, b, h, NULL, -1, NULL, c->args.rows[r], full);
      expect_row(c, b, h, mask, order, beta, c->args.rows[r], ours);
      for (int64_t d = 0; d < c->args.q.shape[3]; d++) sum += (ours[d] - full[d]) * (ours[d] - full[d]);
    }
  return sum;
}

static void stripe_mask(const probe_case *c, int64_t h, int32_t n, uint8_t *mask) {
  const sv_geometry *g = &c->args.geometry;
  const int64_t video = g->prefix + sv_geometry_video_tokens(g), nk = c->base.nk;
  for (int64_t a = 0; a < c->base.nq; a++)
    for (int64_t b = 0; b < nk; b++) {
      int64_t q0 = a * g->block_q, q1 = q0 + g->block_q, k0 = b * g->block_k, k1 = k0 + g->block_k;
      if (q1 > c->base.n_tokens) q1 = c->base.n_tokens;
      if (k1 > c->base.n_tokens) k1 = c->base.n_tokens;
      bool others = q0 < g->prefix || k0 < g->prefix || q1 > video || k1 > video;
      mask[a * nk + b] = others || (q0 < k1 && k0 < q1);
      for (int32_t i = 0; i < n; i++)
        if (c->args.stripes[h * c->args.n_stripe_blocks + i] == b) mask[a * nk + b] = 1;
    }
}

static bool is_skip(const uint8_t *mask, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (mask[i]) return false;
  return true;
}

static void check_candidate(const probe_case *c, const char *name, int64_t h, int64_t number,
                            const uint8_t *mask, int32_t order) {
  const int64_t at = h * (c->args.n_candidates + S) + number;
  const double room = 1e-9 * c->out.energy[h];
  double plain = expect_error(c, h, mask, order, NULL);
  CHECK(fabs(c->out.plain[at] - plain) <= 1e-4 * plain + room,
        "%s: head %d, candidate %d: plain %g, expected %g", name, (int)h, (int)number, c->out.plain[at],
        plain);
  for (int k = 0; k < K; k++) {
    double ours = c->out.curve[at * K + k], curve = plain;
    if (!is_skip(mask, c->base.nq * c->base.nk)) curve = expect_error(c, h, mask, order, &betas[k]);
    CHECK(fabs(ours - curve) <= 1e-4 * curve + room, "%s: head %d, candidate %d, beta %g: %g, expected %g",
          name, (int)h, (int)number, (double)betas[k], ours, curve);
  }
}

static void check_mass(const probe_case *c, const char *name) {
  for (int64_t h = 0; h < c->args.q.shape[1]; h++) {
    double total = 0.0;
    for (int64_t b = 0; b < c->base.nk; b++) total += c->out.mass[h * c->base.nk + b];
    CHECK(fabs(total - 1.0) < 1e-5, "%s: mass of head %d is %g", name, (int)h, total);
  }
}

static void run_case(const char *name, const spec *s, int64_t n_rows) {
  probe_case c;
  make(s, n_rows, &c);
  case_protect(&c.base);
  CHECK_OK(sv_probe_cpu(&c.args, &c.out));
  uint8_t *mask = malloc((size_t)(c.base.nq * c.base.nk));
  for (int64_t h = 0; h < s->n_heads; h++) {
    for (int64_t n = 0; n < s->n_heads; n++)
      check_candidate(&c, name, h, n, c.base.mask + n * c.base.nq * c.base.nk, c.args.orders[n]);
    for (int64_t i = 0; i < S; i++) {
      stripe_mask(&c, h, c.args.stripe_counts[i], mask);
      check_candidate(&c, name, h, s->n_heads + i, mask, -1);
    }
  }
  check_mass(&c, name);
  free(mask);
  release(&c);
}

/* ---- the tests ---- */

#define SPEC                                                                                                 \
  .prefix = 3, .video = 70, .suffix = 11, .block_q = 32, .block_k = 16, .n_samples = 1, .n_heads = 3,        \
  .head_dim = 24, .density = 40, .gain = 3.0f

static void test_cases(void) {
  run_case("plain", &(spec){SPEC}, 9);
  run_case("orders", &(spec){SPEC, .with_orders = true}, 9);
  run_case("kv_len", &(spec){SPEC, .n_samples = 2, .with_orders = true, .with_kv_len = true}, 5);
  run_case("short dtype", &(spec){SPEC, .dtype = SV_BF16, .heads_inside = true}, 5);
  run_case("float16", &(spec){SPEC, .dtype = SV_F16, .with_orders = true}, 5);
  run_case("sparse", &(spec){SPEC, .density = 5}, 12);
  run_case("full", &(spec){SPEC, .density = 100}, 5);
  run_case("narrow", &(spec){SPEC, .head_dim = 8, .block_q = 16, .block_k = 48}, 7);
  run_case("wide", &(spec){SPEC, .head_dim = 64, .n_heads = 2}, 17);
  run_case("sharp", &(spec){SPEC, .gain = 12.0f, .density = 20}, 9);
  run_case("small", &(spec){SPEC, .prefix = 0, .video = 5, .suffix = 0}, 2);
}

static void fill_again(probe_case *c) {
  memset(c->plain.data, 0x55, c->plain_bytes);
  memset(c->curve.data, 0x55, c->curve_bytes);
  memset(c->energy.data, 0x55, c->energy_bytes);
  memset(c->mass.data, 0x55, c->mass_bytes);
}

static bool is_untouched(const probe_case *c) {
  const guarded *all[] = {&c->plain, &c->curve, &c->energy, &c->mass};
  const size_t bytes[] = {c->plain_bytes, c->curve_bytes, c->energy_bytes, c->mass_bytes};
  for (int i = 0; i < 4; i++)
    for (size_t at = 0; at < bytes[i]; at++)
      if (((const unsigned char *)all[i]->data)[at] != 0x55) return false;
  return true;
}

static void test_threads_give_the_same_bits(void) {
  probe_case c;
  make(&(spec){SPEC, .n_samples = 2, .with_orders = true}, 150, &c);
  sv_parallel_set_threads(1);
  CHECK_OK(sv_probe_cpu(&c.args, &c.out));
  double *kept = malloc(c.curve_bytes);
  memcpy(kept, c.curve.data, c.curve_bytes);
  for (int32_t n = 2; n <= 5; n += 3) {
    fill_again(&c);
    sv_parallel_set_threads(n);
    CHECK_OK(sv_probe_cpu(&c.args, &c.out));
    CHECK(memcmp(kept, c.curve.data, c.curve_bytes) == 0, "%d threads give other bits than one", (int)n);
  }
  sv_parallel_set_threads(0);
  free(kept);
  release(&c);
}

static void test_every_failing_allocation(void) {
  probe_case c;
  make(&(spec){SPEC, .with_orders = true}, 9, &c);
  int64_t live = sv_scratch_live(), n_failed = 0;
  for (int64_t n = 1; n < 30; n++) {
    fill_again(&c);
    sv_scratch_fail_at(n);
    sv_status status = sv_probe_cpu(&c.args, &c.out);
    sv_scratch_fail_at(0);
    CHECK(sv_scratch_live() == live, "allocation %d: %d blocks stay", (int)n,
          (int)(sv_scratch_live() - live));
    if (status == SV_OK) break;
    n_failed++;
    CHECK(status == SV_ERR_NOMEM, "allocation %d: status %d", (int)n, (int)status);
    CHECK(is_untouched(&c), "allocation %d: results are written", (int)n);
  }
  CHECK(n_failed >= 2 && n_failed < 29, "%d allocations failed", (int)n_failed);
  release(&c);
}

static bool count_down(void *ctx) {
  int *left = ctx;
  return (*left)-- <= 0;
}

static void test_interrupts(void) {
  probe_case c;
  make(&(spec){SPEC, .with_orders = true}, 40, &c);
  int n_stopped = 0;
  for (int asks = 0; asks < 8; asks++) {
    int left = asks;
    const sv_poll poll = {count_down, &left};
    c.args.poll = &poll;
    fill_again(&c);
    sv_status status = sv_probe_cpu(&c.args, &c.out);
    if (status == SV_OK) continue;
    n_stopped++;
    CHECK(status == SV_ERR_INTERRUPTED, "after %d asks: status %d", asks, (int)status);
    CHECK(is_untouched(&c), "after %d asks: results are written", asks);
  }
  CHECK(n_stopped > 0, "no call was stopped");
  release(&c);
}

static void test_refusals(void) {
  probe_case c;
  make(&(spec){SPEC}, 4, &c);
  sv_probe_args a = c.args;
  a.n_rows = 0;
  CHECK_FAILS(sv_probe_cpu(&a, &c.out), SV_ERR_ARG, "there are 0 rows");
  a = c.args;
  a.q.shape[3] = a.k.shape[3] = a.v.shape[3] = 20;
  CHECK_FAILS(sv_probe_cpu(&a, &c.out), SV_ERR_UNSUPPORTED, "head_dim is 20");
  a = c.args;
  a.v.dtype = 7;
  CHECK_FAILS(sv_probe_cpu(&a, &c.out), SV_ERR_TYPE, "v has dtype number 7");
  a = c.args;
  a.n_codes = 0;
  CHECK_FAILS(sv_probe_cpu(&a, &c.out), SV_ERR_ARG, "expected its codes inside the pool");
  a = c.args;
  a.n_betas = 100;
  CHECK_FAILS(sv_probe_cpu(&a, &c.out), SV_ERR_ARG, "there are 100 betas");
  CHECK(is_untouched(&c), "a refusal writes results");
  release(&c);
}

int main(void) {
  test_cases();
  test_threads_give_the_same_bits();
  test_every_failing_allocation();
  test_interrupts();
  test_refusals();
  return check_result();
}
