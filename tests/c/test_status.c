/* test_status.c — sentences, names, half precision and scratch. */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/cpu.h"
#include "base/half.h"
#include "base/scratch.h"
#include "base/tensor.h"
#include "check.h"

static void *say_other(void *unused) {
  (void)unused;
  sv_fail(SV_ERR_TYPE, "other: got %d", 7);
  return NULL;
}

static void test_sentences(void) {
  CHECK(sv_fail(SV_ERR_ARG, "who: got %d, expected %d", 1, 2) == SV_ERR_ARG, "the status is handed back");
  CHECK(strcmp(sv_last_error(), "who: got 1, expected 2") == 0, "said %s", sv_last_error());
  pthread_t thread;
  pthread_create(&thread, NULL, say_other, NULL);
  pthread_join(thread, NULL);
  CHECK(strcmp(sv_last_error(), "who: got 1, expected 2") == 0, "another thread's sentence: %s",
        sv_last_error());
  char longer[2000];
  memset(longer, 'x', sizeof longer - 1);
  longer[sizeof longer - 1] = '\0';
  sv_fail(SV_ERR_ARG, "%s", longer);
  CHECK(strlen(sv_last_error()) == 511, "%zu characters", strlen(sv_last_error()));
}

static void test_names(void) {
  CHECK(strcmp(sv_dtype_name(SV_BF16), "bfloat16") == 0 && sv_dtype_bytes(SV_F16) == 2, "dtype table");
  CHECK(strcmp(sv_dtype_name(9), "unknown") == 0 && sv_dtype_bytes(-1) == 0, "unknown dtype");
  CHECK(strcmp(sv_isa_name(SV_ISA_AVX512BF16), "avx512bf16") == 0, "isa table");
  CHECK(sv_cpu_isa() <= sv_cpu_best_isa(), "the environment may lower the level, never raise it");
}

static void test_bad_isa(void) {
  char *before = getenv("SPARSE_VDIT_ISA"), *kept = before ? strdup(before) : NULL;
  setenv("SPARSE_VDIT_ISA", "sse9", 1);
  CHECK_FAILS(sv_cpu_check(), SV_ERR_ARG, "SPARSE_VDIT_ISA: got sse9, expected portable");
  setenv("SPARSE_VDIT_ISA", "avx2", 1);
  CHECK_OK(sv_cpu_check());
  if (kept)
    setenv("SPARSE_VDIT_ISA", kept, 1);
  else
    unsetenv("SPARSE_VDIT_ISA");
  free(kept);
}

/* The nearest neighbour, found by trying the two around it. */
static void test_half_round_trip(void) {
  for (uint32_t h = 0; h < 0x10000; h++) {
    float b = sv_bf16_to_f32((uint16_t)h), f = sv_f16_to_f32((uint16_t)h);
    if (isnan(b))
      CHECK(isnan(sv_bf16_to_f32(sv_f32_to_bf16(b))), "bf16 NaN %04x", h);
    else
      CHECK(sv_f32_to_bf16(b) == h, "bf16 %04x", h);
    if (isnan(f))
      CHECK(isnan(sv_f16_to_f32(sv_f32_to_f16(f))), "f16 NaN %04x", h);
    else
      CHECK(sv_f32_to_f16(f) == h, "f16 %04x gives %04x", h, sv_f32_to_f16(f));
  }
}

static void test_half_rounding(void) {
  for (uint32_t h = 0; h < 0x7bff; h++) { /* halfway between neighbours: to even; a little beyond: up */
    float low = sv_f16_to_f32((uint16_t)h), high = sv_f16_to_f32((uint16_t)(h + 1)),
          middle = 0.5f * (low + high);
    CHECK(sv_f32_to_f16(middle) == (h + (h & 1)), "f16 tie above %04x", h);
    CHECK(sv_f32_to_f16(nextafterf(middle, 1e30f)) == h + 1, "f16 above the tie at %04x", h);
    CHECK(sv_f32_to_f16(nextafterf(middle, 0.0f)) == h, "f16 below the tie at %04x", h);
  }
  CHECK(sv_f32_to_f16(65519.99f) == 0x7bff && sv_f32_to_f16(65520.0f) == 0x7c00, "f16 overflow");
  CHECK(sv_f32_to_f16(-1e-9f) == 0x8000 && sv_f32_to_f16(0x1p-25f) == 0 && sv_f32_to_f16(0x1.8p-25f) == 1,
        "f16 tiny");
  CHECK(sv_f32_to_bf16(1.00390625f) == 0x3f80 && sv_f32_to_bf16(1.01171875f) == 0x3f82, "bf16 ties to even");
  CHECK(sv_f32_to_bf16(3.4e38f) == 0x7f80, "bf16 overflow");
}

static void test_scratch(void) {
  void *block, *none;
  int64_t live = sv_scratch_live();
  CHECK_OK(sv_scratch_alloc("test", 0, &block));
  CHECK(block && (uintptr_t)block % 64 == 0 && sv_scratch_live() == live + 1, "aligned and counted");
  size_t capacity = 0;
  CHECK_OK(sv_scratch_grow("test", &block, &capacity, 0, 100));
  memset(block, 5, 100);
  CHECK_OK(sv_scratch_grow("test", &block, &capacity, 100, 10000));
  CHECK(capacity >= 10000 && ((char *)block)[99] == 5, "grown with its contents");
  sv_scratch_fail_at(2);
  void *first;
  CHECK_OK(sv_scratch_alloc("test", 64, &first));
  CHECK_FAILS(sv_scratch_alloc("test", 64, &none), SV_ERR_NOMEM,
              "test: could not allocate 64 bytes of scratch");
  CHECK_OK(sv_scratch_alloc("test", 64, &none));
  sv_scratch_free(none);
  CHECK_FAILS(sv_scratch_alloc("test", SIZE_MAX - 8, &none), SV_ERR_NOMEM, "could not allocate");
  CHECK(none == NULL, "a failed allocation gives NULL");
  sv_scratch_free(first);
  sv_scratch_free(block);
  sv_scratch_free(NULL);
}

static void test_scratch_leak(void) {
  void *block;
  int64_t live = sv_scratch_live();
  CHECK_OK(sv_scratch_alloc("test", (size_t)9 << 20, &block));
  memset(block, 1, (size_t)9 << 20);
  sv_scratch_free(block);
  CHECK(sv_scratch_live() == live, "%lld blocks live", (long long)(sv_scratch_live() - live));
}

int main(void) {
  test_sentences();
  test_names();
  test_bad_isa();
  test_half_round_trip();
  test_half_rounding();
  test_scratch();
  test_scratch_leak();
  return check_result();
}
