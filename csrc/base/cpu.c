/* cpu.c — cpuid for what the processor has, xgetbv for what the system saves across a switch. */
#include "base/cpu.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define N_ISAS 4
#define UNKNOWN (-1)

static const char *const isa_names[N_ISAS] = {"portable", "avx2", "avx512", "avx512bf16"};

#if defined(__x86_64__)
#include <cpuid.h>

#define XCR0_AVX 0x6u     /* xmm, ymm */
#define XCR0_AVX512 0xe6u /* and opmask, upper zmm, zmm 16..31 */

static unsigned saved_state(void) {
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

static int has(unsigned word, unsigned bits) { return (word & bits) == bits; }

static sv_isa ask_cpu(void) {
  unsigned a, b, c, d, b7, c7, d7, a71, unused;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !has(c, bit_FMA | bit_OSXSAVE | bit_AVX | bit_F16C))
    return SV_ISA_PORTABLE;
  unsigned saved = saved_state();
  if (!has(saved, XCR0_AVX) || !__get_cpuid_count(7, 0, &a, &b7, &c7, &d7) || !has(b7, bit_AVX2))
    return SV_ISA_PORTABLE;
  unsigned needed = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  if (!has(saved, XCR0_AVX512) || !has(b7, needed)) return SV_ISA_AVX2;
  if (a < 1 || !__get_cpuid_count(7, 1, &a71, &b, &c, &unused) || !has(a71, bit_AVX512BF16))
    return SV_ISA_AVX512;
  return SV_ISA_AVX512BF16;
}
#else
static sv_isa ask_cpu(void) { return SV_ISA_PORTABLE; }
#endif

static int wanted_isa(const char *word) {
  for (int isa = 0; isa < N_ISAS; isa++)
    if (strcmp(word, isa_names[isa]) == 0) return isa;
  return UNKNOWN;
}

sv_isa sv_cpu_best_isa(void) {
  static atomic_int cached = UNKNOWN;
  int isa = atomic_load(&cached);
  if (isa == UNKNOWN) atomic_store(&cached, isa = (int)ask_cpu());
  return (sv_isa)isa;
}

sv_isa sv_cpu_isa(void) {
  static atomic_int cached = UNKNOWN;
  int isa = atomic_load(&cached);
  if (isa != UNKNOWN) return (sv_isa)isa;
  const char *word = getenv("SPARSE_VDIT_ISA");
  int best = (int)sv_cpu_best_isa(), wanted = word ? wanted_isa(word) : UNKNOWN;
  isa = wanted != UNKNOWN && wanted < best ? wanted : best;
  atomic_store(&cached, isa);
  return (sv_isa)isa;
}

const char *sv_isa_name(sv_isa isa) {
  int i = (int)isa;
  return i >= 0 && i < N_ISAS ? isa_names[i] : "unknown";
}

sv_status sv_cpu_check(void) {
  const char *word = getenv("SPARSE_VDIT_ISA");
  if (!word || !*word || wanted_isa(word) != UNKNOWN) return SV_OK;
  return sv_fail(SV_ERR_ARG, "SPARSE_VDIT_ISA: got %.40s, expected portable, avx2, avx512 or avx512bf16",
                 word);
}
