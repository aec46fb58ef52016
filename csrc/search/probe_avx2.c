/* probe_avx2.c — the arithmetic of the probe over vec_avx2.h. */
#include "attention/vec_avx2.h"

#include "search/probe_kernel.h"

const sv_probe_ops sv_probe_ops_avx2 = PROBE_OPS;
