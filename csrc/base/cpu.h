/* cpu.h — which instruction set the engines use: asked of cpuid and xgetbv once, lowered (never
 * raised) by the environment variable SPARSE_VDIT_ISA = portable | avx2 | avx512 | avx512bf16. */
#ifndef SV_BASE_CPU_H
#define SV_BASE_CPU_H

#include "base/status.h"

SV_EXTERN_C_BEGIN

typedef enum sv_isa { SV_ISA_PORTABLE = 0, SV_ISA_AVX2 = 1, SV_ISA_AVX512 = 2, SV_ISA_AVX512BF16 = 3 } sv_isa;

/* sv_cpu_isa — the level in use, cached. AVX2 means AVX2, FMA and F16C; AVX512 means F, BW, DQ, VL. An
 * unknown SPARSE_VDIT_ISA is reported by sv_cpu_check, here it counts as unset. */
sv_isa sv_cpu_isa(void);
/* sv_cpu_best_isa — what the machine could do, whatever the environment says. */
sv_isa sv_cpu_best_isa(void);
const char *sv_isa_name(sv_isa isa);
/* sv_cpu_check — SV_ERR_ARG with a sentence if SPARSE_VDIT_ISA holds a word that is not a level. */
sv_status sv_cpu_check(void);

SV_EXTERN_C_END
#endif
