/* test_attention.c — the engines at every level the machine has (or the one of SPARSE_VDIT_ISA) against double
 * precision: ragged sizes, all head sizes, three dtypes, orders, remainder, kv_len, strides; tensors end at guard
 * pages and inputs are read-only; hostile lists are refused. */
#define _GNU_SOURCE
#include <sys/wait.h>
#include <unistd.h>

#include "attention_case.h"
#include "base/cpu.h"
#include "base/scratch.h"

/* float32: exponentials and sums of a few hundred terms. Short formats: the rounding of the result (half a unit in
 * the last place of 1), twice that where the weights are rounded to bfloat16 too. */
static double tolerance(int32_t dtype) { return dtype == SV_F32 ? 4e-6 : dtype == SV_BF16 ? 8e-3 : 1e-3; }

/* A float32 logit near 80 is off by a few times 80 * 2^-24, and so is its exponential. */
#define LARGE_LOGITS 4e-5

static void compare_within(const attention_case *c, const char *what, double tolerated) {
  double expected[256], worst = 0.0, worst_lse = 0.0;
  const sv_tensor *out = &c->args.out;
  for (int64_t b = 0; b < out->shape[0]; b++)
    for (int64_t h = 0; h < out->shape[1]; h++)
      for (int64_t place = 0; place < c->n_tokens; place++) {
        double lse = case_expect(c, b, h, place, expected);
        int64_t i = case_token(c, h, place), at = case_at(out, b, h, i, 0);
        for (int64_t d = 0; d < out->shape[3]; d++) {
          double error = fabs(case_load(out, at + d) - expected[d]);
          worst = error <= worst ? worst : error; /* keeps NaN */
        }
        double ours = (double)((const float *)c->lse.data)[(b * out->shape[1] + h) * c->n_tokens + i];
        double error = lse == ours ? 0.0 : fabs(lse - ours) / (1.0 + fabs(lse));
        worst_lse = error <= worst_lse ? worst_lse : error;
      }
  CHECK(worst <= tolerated, "%s: off by %g", what, worst);
  CHECK(worst_lse <= (out->dtype == SV_F32 ? 2e-6 : 4e-3), "%s: lse off by %g", what, worst_lse);
}

static void compare(const attention_case *c, const char *what) {
  compare_within(c, what, tolerance(c->args.out.dtype));
}

static void run(const spec *s, const char *what) {
  attention_case c;
  case_make(s, &c);
  case_protect(&c);
  int64_t live = sv_scratch_live();
  CHECK_OK(sv_attention_cpu(&c.args));
  CHECK(sv_scratch_live() == live, "%s: scratch leaked", what);
  compare(&c, what);
  case_free(&c);
}

static spec random_spec(void) {
  static const int64_t blocks[] = {16, 32, 48, 64, 128, 144};
  static const int densities[] = {0, 10, 40, 80, 100};
  spec s = {.prefix = case_below(2) * case_below(40),
            .video = 1 + case_below(300),
            .suffix = case_below(2) * case_below(60)};
  s.block_q = blocks[case_below(6)];
  s.block_k = blocks[case_below(6)];
  s.n_samples = 1 + case_below(2);
  s.n_heads = 1 + case_below(3);
  s.head_dim = 8 * (1 + case_below(32));
  s.dtype = (int32_t)case_below(3);
  s.density = densities[case_below(5)];
  s.with_orders = case_below(2);
  s.with_remainder = case_below(2);
  s.with_kv_len = case_below(2);
  s.heads_inside = case_below(2);
  s.gain = 1.0f;
  return s;
}

static void describe(const spec *s, char *what, size_t n) {
  snprintf(what, n,
           "%lld+%lld+%lld blocks %lld x %lld B %lld H %lld D %lld %s density %d orders %d remainder %d "
           "kv_len %d inside %d",
           (long long)s->prefix, (long long)s->video, (long long)s->suffix, (long long)s->block_q,
           (long long)s->block_k, (long long)s->n_samples, (long long)s->n_heads, (long long)s->head_dim,
           sv_dtype_name(s->dtype), s->density, s->with_orders, s->with_remainder, s->with_kv_len,
           s->heads_inside);
}

static void test_random_cases(int n) {
  char what[200];
  for (int i = 0; i < n; i++) {
    spec s = random_spec();
    describe(&s, what, sizeof what);
    run(&s, what);
  }
}

static void test_head_dims(void) {
  for (int64_t d = 8; d <= 256; d += 8)
    for (int32_t dtype = SV_F32; dtype <= (d % 56 == 8 ? SV_F16 : SV_F32); dtype++) {
      spec s = {.video = 70,
                .suffix = 7,
                .block_q = 32,
                .block_k = 32,
                .n_samples = 1,
                .n_heads = 1,
                .head_dim = d,
                .dtype = dtype,
                .density = 60,
                .with_remainder = true,
                .gain = 1.0f};
      run(&s, sv_dtype_name(dtype));
    }
}

/* Chunks of several sizes, many key blocks, query blocks taller than a pass. */
static void test_long(void) {
  spec dense = {.video = 1300,
                .suffix = 9,
                .block_q = 1024,
                .block_k = 1024,
                .n_samples = 1,
                .n_heads = 1,
                .head_dim = 64,
                .density = 100,
                .gain = 3.0f};
  run(&dense, "dense, long");
  spec sparse = {.prefix = 5,
                 .video = 900,
                 .block_q = 128,
                 .block_k = 16,
                 .n_samples = 1,
                 .n_heads = 2,
                 .head_dim = 128,
                 .density = 15,
                 .with_remainder = true,
                 .with_orders = true,
                 .gain = 3.0f};
  run(&sparse, "sparse, long");
}

/* Growing keys move the maximum at every chunk; logits of +-80 at the ends. */
static void test_large_logits(void) {
  spec s = {.video = 900,
            .block_q = 128,
            .block_k = 64,
            .n_samples = 1,
            .n_heads = 1,
            .head_dim = 64,
            .density = 100,
            .gain = 1.0f};
  attention_case c;
  case_make(&s, &c);
  for (int64_t i = 0; i < 900; i++)
    for (int64_t d = 0; d < 64; d++) {
      ((float *)c.q.data)[i * 64 + d] = 1.0f;
      ((float *)c.k.data)[i * 64 + d] = 10.0f * (float)(i - 450) / 450.0f;
    }
  CHECK_OK(sv_attention_cpu(&c.args));
  compare_within(&c, "logits to 80", LARGE_LOGITS);
  case_free(&c);
}

static bool all_finite(const sv_tensor *x, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (!isfinite(case_load(x, i))) return false;
  return true;
}

/* Biases that drown the keys, or drown in them, or would not fit float32; density 0: pseudo keys alone. */
static void test_betas(void) {
  static const float betas[] = {-80.0f, 80.0f, -1e4f, 1e4f, -3e38f, 3e38f};
  for (int i = 0; i < 12; i++) {
    spec s = {.video = 200,
              .suffix = 30,
              .block_q = 64,
              .block_k = 16,
              .n_samples = 1,
              .n_heads = 1,
              .head_dim = 40,
              .density = i < 6 ? 40 : 0,
              .with_remainder = true,
              .with_kv_len = true,
              .gain = 2.0f};
    attention_case c;
    case_make(&s, &c);
    float beta = ((sv_head *)c.heads.data)[0].beta = betas[i % 6];
    CHECK_OK(sv_attention_cpu(&c.args));
    /* half a unit in the last place of the logit is a relative error of the weight */
    if (fabsf(beta) < 1e30f) compare_within(&c, "large bias", fabsf(beta) > 100.0f ? 2e-3 : 4e-5);
    CHECK(all_finite(&c.args.out, c.n_tokens * 40), "beta %g: not finite", (double)beta);
    case_free(&c);
  }
}

/* A bad query spoils its own row, no other. */
static void test_bad_query(int32_t dtype, float bad) {
  spec s = {.video = 90,
            .block_q = 32,
            .block_k = 32,
            .n_samples = 1,
            .n_heads = 1,
            .head_dim = 24,
            .dtype = dtype,
            .density = 100,
            .gain = 1.0f};
  attention_case c;
  case_make(&s, &c);
  size_t row_bytes = 24 * (size_t)sv_dtype_bytes(dtype);
  char *out = c.out.data, *clean = malloc(90 * row_bytes);
  CHECK_OK(sv_attention_cpu(&c.args));
  memcpy(clean, out, 90 * row_bytes);
  case_store(&c.args.q, 37 * 24 + 5, bad);
  CHECK_OK(sv_attention_cpu(&c.args));
  for (size_t i = 0; i < 90; i++)
    CHECK(i == 37 || memcmp(out + i * row_bytes, clean + i * row_bytes, row_bytes) == 0, "row %zu", i);
  for (int64_t d = 0; d < 24; d++)
    CHECK(isnan(case_load(&c.args.out, 37 * 24 + d)), "column %lld", (long long)d);
  CHECK(isnan(((float *)c.lse.data)[37]), "lse is %g", (double)((float *)c.lse.data)[37]);
  free(clean);
  case_free(&c);
}

/* NaN where no query looks: the result does not change by one bit. */
static void test_poison(int32_t dtype) {
  spec s = {.video = 200,
            .suffix = 40,
            .block_q = 32,
            .block_k = 32,
            .n_samples = 1,
            .n_heads = 1,
            .head_dim = 64,
            .dtype = dtype,
            .density = 50,
            .with_kv_len = true,
            .gain = 1.0f};
  attention_case c;
  case_make(&s, &c);
  int64_t hidden = 3;
  for (int64_t r = 0; r < c.nq; r++) c.mask[r * c.nk + hidden] = 0;
  free(c.mask), c.mask = calloc(1, (size_t)(c.nq * c.nk));
  sv_item *items = c.items.data;
  uint32_t *codes = c.codes.data;
  CHECK(c.args.n_codes >= 6, "room for the list");
  codes[0] = SV_CODE_MAKE(0, 0, SV_FORM_RUN, 0), codes[1] = 3;
  codes[2] = SV_CODE_MAKE(4, 0, SV_FORM_RUN, 0), codes[3] = 3,
  codes[4] = SV_CODE_MAKE(7, 0, SV_FORM_BLOCK, 1);
  for (int64_t qb = 0; qb < c.nq; qb++) items[qb] = (sv_item){0, (uint32_t)qb, 0, 5};
  c.args.n_items = c.nq;
  for (int64_t i = 0; i < c.nq * c.nk; i++) c.mask[i] = i % c.nk != hidden;
  ((int64_t *)c.kv_len.data)[0] = 230;
  for (int64_t j = 0; j < c.n_tokens; j++)
    for (int64_t d = 0; d < 64; d++)
      if ((j >= 96 && j < 128) || j >= 230) {
        case_store(&c.args.k, j * 64 + d, NAN);
        case_store(&c.args.v, j * 64 + d, INFINITY);
      }
  CHECK_OK(sv_attention_cpu(&c.args));
  compare(&c, "poisoned keys");
  case_free(&c);
}

static void test_reference(void) {
  for (int32_t dtype = SV_F32; dtype <= SV_F16; dtype++) {
    spec s = {.video = 60,
              .suffix = 10,
              .block_q = 16,
              .block_k = 16,
              .n_samples = 2,
              .n_heads = 2,
              .head_dim = 16,
              .dtype = dtype,
              .density = 50,
              .with_kv_len = true,
              .heads_inside = true,
              .gain = 2.0f};
    attention_case c;
    case_make(&s, &c);
    int64_t n = c.n_tokens, rows = 4 * n;
    uint8_t *mask = malloc((size_t)(2 * n * n));
    double *out = malloc((size_t)(rows * 16) * sizeof(double)), *lse = malloc((size_t)rows * sizeof(double)),
           expected[256];
    for (int64_t i = 0; i < 2 * n * n; i++)
      mask[i] = c.mask[(i / (n * n) * c.nq + i / n % n / 16) * c.nk + i % n / 16];
    CHECK_OK(sv_attention_reference(&c.args.q, &c.args.k, &c.args.v, mask, c.args.kv_len, c.args.scale, NULL,
                                    out, lse));
    for (int64_t row = 0; row < rows; row++) {
      double l = case_expect(&c, row / n / 2, row / n % 2, row % n, expected);
      CHECK(l == lse[row] || fabs(l - lse[row]) < 1e-12, "lse of row %lld", (long long)row);
      for (int64_t d = 0; d < 16; d++)
        CHECK(fabs(out[row * 16 + d] - expected[d]) < 1e-12, "row %lld", (long long)row);
    }
    free(mask), free(out), free(lse);
    case_free(&c);
  }
}

/* The same bits whatever the number of threads. */
static void test_threads(void) {
  spec s = {.video = 700,
            .suffix = 30,
            .block_q = 32,
            .block_k = 32,
            .n_samples = 2,
            .n_heads = 3,
            .head_dim = 72,
            .density = 40,
            .with_remainder = true,
            .with_orders = true,
            .with_kv_len = true,
            .gain = 2.0f};
  attention_case c;
  case_make(&s, &c);
  size_t bytes = (size_t)(6 * c.n_tokens * 72) * sizeof(float);
  void *first = malloc(bytes);
  for (int32_t n_threads = 1; n_threads <= 7; n_threads += 3) {
    sv_parallel_set_threads(n_threads);
    CHECK_OK(sv_attention_cpu(&c.args));
    if (n_threads == 1) memcpy(first, c.out.data, bytes);
    CHECK(memcmp(first, c.out.data, bytes) == 0, "other bits on %d threads", n_threads);
  }
  sv_parallel_set_threads(0);
  free(first);
  case_free(&c);
}

static void test_refusals(void) {
  spec s = {.video = 90,
            .suffix = 20,
            .block_q = 16,
            .block_k = 16,
            .n_samples = 1,
            .n_heads = 2,
            .head_dim = 16,
            .density = 60,
            .with_remainder = true,
            .with_orders = true,
            .with_kv_len = true,
            .gain = 1.0f};
  attention_case c;
  case_make(&s, &c);
  sv_attention_args good = c.args, *a = &c.args;
  sv_item *items = c.items.data, item = items[0];
  uint32_t *codes = c.codes.data, kept = codes[item.first];
#define REFUSED(change, status, words)                                                                       \
  do {                                                                                                       \
    change;                                                                                                  \
    CHECK_FAILS(sv_attention_cpu(a), status, words);                                                         \
    c.args = good;                                                                                           \
    items[0] = item;                                                                                         \
    codes[item.first] = kept;                                                                                \
  } while (0)
  REFUSED(a->k.shape[2] = 109, SV_ERR_ARG,
          "attention: k.shape[2] is 109, expected 110 (= tokens of the geometry)");
  REFUSED(a->v.dtype = SV_F16, SV_ERR_TYPE, "attention: v is float16, expected float32 like q");
  REFUSED(a->q.stride[3] = 2, SV_ERR_ARG, "attention: q.stride[3] is 2, expected 1");
  REFUSED((a->q.shape[3] = a->k.shape[3] = a->v.shape[3] = a->out.shape[3] = 12), SV_ERR_UNSUPPORTED,
          "head_dim is 12");
  REFUSED(a->out.stride[1] = 0, SV_ERR_ARG, "out.stride[1] is 0");
  REFUSED(a->out.data = a->q.data, SV_ERR_ARG, "out shares the memory");
  REFUSED(a->q.data = (char *)a->q.data + 2, SV_ERR_ARG, "q is not aligned");
  REFUSED(a->scale = NAN, SV_ERR_ARG, "scale is nan");
  REFUSED(a->scale = -1e300, SV_ERR_ARG, "scale is -1e+300, expected at most 1e+30 in size");
  REFUSED(a->n_items = INT64_C(1) << 32, SV_ERR_ARG, "there are 4294967296 items");
  REFUSED(a->n_orders = 0, SV_ERR_ARG, "heads[1].order is 0, expected -1..-1");
  REFUSED(items[0].query_block = 7, SV_ERR_ARG, "names head 1, query block 7");
  REFUSED(items[0].head_kind = 5, SV_ERR_ARG, "names head 5");
  REFUSED(items[0].head_kind = 1 | 2u << 24, SV_ERR_ARG, "an item is of kind 2");
  REFUSED(items[0] = items[1], SV_ERR_ARG, "a second time");
  REFUSED(items[0].first = 0xfffffff0u, SV_ERR_ARG, "an item reads codes");
  REFUSED(items[0] = ((sv_item){1 | 1u << 24, item.query_block, 3, 0xffffffffu}), SV_ERR_ARG,
          "an item visits key blocks");
  REFUSED(codes[item.first] = SV_CODE_MAKE(9, 0, SV_FORM_BLOCK, 0), SV_ERR_ARG,
          "codes visit key blocks 9..9");
  REFUSED(codes[item.first] = SV_CODE_MAKE(0, 1, 0, 0), SV_ERR_ARG, "a code names source 1");
  REFUSED(codes[item.first] = SV_CODE_MAKE(0, 0, 5, 0), SV_ERR_ARG, "a code has form 5");
  REFUSED(codes[item.first] = SV_CODE_MAKE(8, 3, 0, 0), SV_ERR_ARG, "a code names pooled tile 8");
  ((int64_t *)c.kv_len.data)[0] = 80;
  REFUSED((void)0, SV_ERR_ARG, "kv_len[0] is 80, expected 90..110");
  ((int64_t *)c.kv_len.data)[0] = 100;
  ((int32_t *)c.tokens.data)[3] = 110;
  REFUSED((void)0, SV_ERR_ARG, "tokens[0, 3] is 110, expected each of 0..109 once");
  ((int32_t *)c.tokens.data)[3] = -1;
  REFUSED((void)0, SV_ERR_ARG, "tokens[0, 3] is -1");
  ((int32_t *)c.tokens.data)[3] = ((int32_t *)c.tokens.data)[2];
  REFUSED((void)0, SV_ERR_ARG, "tokens[0, 3] is ");
#undef REFUSED
  case_free(&c);
}

/* Random words as a list: refused or computed, never a step outside. */
static void test_hostile_codes(void) {
  spec s = {.video = 150,
            .block_q = 32,
            .block_k = 16,
            .n_samples = 1,
            .n_heads = 1,
            .head_dim = 8,
            .density = 50,
            .with_remainder = true,
            .gain = 1.0f};
  attention_case c;
  case_make(&s, &c);
  uint32_t *codes = c.codes.data;
  for (int round = 0; round < 1000; round++) {
    for (int64_t i = 0; i < c.args.n_codes; i++) {
      uint32_t r = case_random();
      codes[i] = case_below(3) ? SV_CODE_MAKE(r % 11, r >> 8 & 3 ? 0 : 3, r >> 12 & 1, r >> 16 & 1)
                               : r >> case_below(32);
    }
    (void)sv_attention_cpu(&c.args);
  }
  case_free(&c);
}

static bool always(void *ctx) {
  (void)ctx;
  return true;
}

static void test_interrupt(void) {
  spec s = {.video = 3000,
            .block_q = 1024,
            .block_k = 128,
            .n_samples = 1,
            .n_heads = 1,
            .head_dim = 256,
            .density = 100,
            .gain = 1.0f};
  attention_case c;
  case_make(&s, &c);
  sv_poll poll = {always, NULL};
  c.args.poll = &poll;
  CHECK_FAILS(sv_attention_cpu(&c.args), SV_ERR_INTERRUPTED, "interrupted");
  CHECK(sv_scratch_live() == 0, "scratch leaked");
  case_free(&c);
}

static void test_nothing(void) {
  spec s = {.video = 20,
            .block_q = 16,
            .block_k = 16,
            .n_samples = 0,
            .n_heads = 2,
            .head_dim = 16,
            .density = 50,
            .gain = 1.0f};
  run(&s, "no samples");
  s.n_samples = 1, s.n_heads = 0;
  run(&s, "no heads");
  s.n_heads = 2, s.density = 0;
  run(&s, "nothing visited");
}

/* Seconds on an emulated processor: every register tile, both strip heights, tails, pseudo keys, each dtype. */
static int test_level_briefly(void) {
  static const int64_t head_dims[] = {8, 40, 64};
  char what[200];
  for (int i = 0; i < 29; i++) {
    spec s = random_spec();
    s.n_samples = s.n_heads = 1;
    s.video = 1 + s.video % 70;
    s.head_dim = i < 9 ? head_dims[i / 3] : s.head_dim % 136 + 8;
    s.dtype = i % 3;
    describe(&s, what, sizeof what);
    run(&s, what);
  }
  test_betas();
  for (int32_t dtype = SV_F32; dtype <= SV_F16; dtype++) test_bad_query(dtype, NAN);
  fprintf(stderr, "%s: %s\n", sv_attention_engine(SV_BF16, 64), check_failures ? "failed" : "ok");
  return check_result();
}

static int test_level(int n) {
  if (n == 0) return test_level_briefly();
  test_reference();
  test_nothing();
  test_head_dims();
  test_random_cases(n);
  test_long();
  test_large_logits();
  test_betas();
  for (int32_t dtype = SV_F32; dtype <= SV_F16; dtype++) {
    test_poison(dtype);
    test_bad_query(dtype, NAN);
    test_bad_query(dtype, INFINITY);
  }
  test_threads();
  test_refusals();
  test_hostile_codes();
  test_interrupt();
  fprintf(stderr, "%s: %s\n", sv_attention_engine(SV_BF16, 64), check_failures ? "failed" : "ok");
  return check_result();
}

/* A process per level, since the level is read once. */
static int test_all_levels(int n) {
  int failed = 0, status;
  for (int isa = SV_ISA_PORTABLE; isa <= (int)sv_cpu_best_isa(); isa++) {
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
      setenv("SPARSE_VDIT_ISA", sv_isa_name((sv_isa)isa), 1);
      exit(test_level(n));
    }
    waitpid(pid, &status, 0);
    failed |= !WIFEXITED(status) || WEXITSTATUS(status) != 0;
  }
  return failed;
}

int main(int argc, char **argv) {
  int n = argc > 1 ? atoi(argv[1]) : 30;
  return getenv("SPARSE_VDIT_ISA") ? test_level(n) : test_all_levels(n);
}
