/* test_faults.c — bad weather: every allocation of every call fails once; the status is NOMEM, the sentence names the
 * call, nothing leaks, outputs stay untouched, and the next call works. */
#define _GNU_SOURCE
#include "attention_case.h"
#include "base/scratch.h"
#include "pattern/visits.h"

#define MOST_ALLOCATIONS 1000

static attention_case kase;

static sv_status call_attention(void) { return sv_attention_cpu(&kase.args); }

static sv_status call_reference(void) {
  static double out[64 * 16], lse[64];
  sv_tensor x = {.dtype = SV_F32, .ndim = 4, .shape = {1, 1, 64, 16}, .stride = {1024, 1024, 16, 1}};
  static float data[64 * 16];
  x.data = data;
  return sv_attention_reference(&x, &x, &x, NULL, NULL, 0.25, NULL, out, lse);
}

static sv_status call_visits(void) {
  static sv_row rows[64];
  const int64_t wire[] = {SV_PATTERN_DIAGONAL, 0, 0, 0, 0, 0, 1, 40};
  sv_geometry g = {4, 8, 16, 3, 5, 32, 16};
  sv_pattern pattern;
  sv_codes codes = {0};
  SV_TRY(sv_pattern_parse("test", &g, wire, 8, &pattern));
  sv_status status = sv_visits_emit(&g, &pattern, 1, rows, &codes, NULL);
  sv_codes_free(&codes);
  return status;
}

/* Fails the first allocation, then the second, ... until a call gets through. */
static void walk(const char *name, sv_status (*call)(void)) {
  int64_t live = sv_scratch_live();
  int n = 0;
  for (;;) {
    sv_scratch_fail_at(++n);
    sv_status status = call();
    sv_scratch_fail_at(0);
    CHECK(sv_scratch_live() == live, "%s: allocation %d failed, %lld blocks leak", name, n,
          (long long)(sv_scratch_live() - live));
    if (status == SV_OK || n == MOST_ALLOCATIONS) break;
    CHECK(status == SV_ERR_NOMEM, "%s: status %d, %s", name, (int)status, sv_last_error());
    CHECK(strstr(sv_last_error(), "could not allocate") != NULL, "%s: said %s", name, sv_last_error());
  }
  CHECK(n > 1, "%s: no allocation was made to fail", name);
  CHECK(n < MOST_ALLOCATIONS, "%s: still failing", name);
  CHECK_OK(call());
}

static void test_outputs_untouched(void) {
  size_t bytes = (size_t)(kase.n_tokens * 2 * 40) * sizeof(float);
  memset(kase.out.data, 0x5a, bytes);
  sv_scratch_fail_at(1);
  CHECK_FAILS(sv_attention_cpu(&kase.args), SV_ERR_NOMEM, "attention: could not allocate");
  for (size_t i = 0; i < bytes; i++) CHECK(((uint8_t *)kase.out.data)[i] == 0x5a, "byte %zu was written", i);
}

int main(void) {
  spec s = {.video = 100,
            .suffix = 9,
            .block_q = 32,
            .block_k = 16,
            .n_samples = 1,
            .n_heads = 2,
            .head_dim = 40,
            .density = 50,
            .with_remainder = true,
            .with_orders = true,
            .gain = 1.0f};
  case_make(&s, &kase);
  test_outputs_untouched();
  walk("attention", call_attention);
  walk("reference", call_reference);
  walk("visits", call_visits);
  case_free(&kase);
  return check_result();
}
