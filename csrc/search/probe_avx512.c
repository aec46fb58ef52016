/* probe_avx512.c — the arithmetic of the probe over vec_avx512.h. */
#include "attention/vec_avx512.h"

#include "search/probe_kernel.h"

const sv_probe_ops sv_probe_ops_avx512 = PROBE_OPS;
