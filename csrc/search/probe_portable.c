/* probe_portable.c — the arithmetic of the probe over vec_portable.h. */
#include "attention/vec_portable.h"

#include "search/probe_kernel.h"

const sv_probe_ops sv_probe_ops_portable = PROBE_OPS;
