/* block_ops.c — which table serves which instruction set. */
#include "attention/block_ops.h"

#include <stddef.h>

#include "attention/attention.h"

const sv_block_ops *sv_block_ops_for(sv_isa isa) {
#if defined(__x86_64__)
  if (isa >= SV_ISA_AVX512) return &sv_block_ops_avx512;
  if (isa == SV_ISA_AVX2) return &sv_block_ops_avx2;
#else
  (void)isa;
#endif
  return &sv_block_ops_portable;
}

const sv_block_ops *sv_block_ops_pairs(sv_isa isa, int32_t dtype, int64_t head_dim) {
  (void)head_dim;
#if defined(__x86_64__)
  if (isa >= SV_ISA_AVX512BF16 && dtype == SV_BF16) return &sv_block_ops_avx512bf16;
#else
  (void)isa, (void)dtype;
#endif
  return NULL;
}

const char *sv_attention_engine(int32_t dtype, int64_t head_dim) {
  sv_isa isa = sv_cpu_isa();
  const sv_block_ops *pairs = sv_block_ops_pairs(isa, dtype, head_dim);
  return pairs ? pairs->name : sv_block_ops_for(isa)->name;
}
