/* hardware.c — the constants of a machine: names, and the checks at the door. */
#include "search/hardware.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "attention/engine.h"
#include "base/parallel.h"

#define MAX_COUNT 1e6 /* rows of a strip, keys of a chunk */

static const char *const names[] = {
#define NAME(name) #name,
    SV_HARDWARE_FIELDS(NAME)
#undef NAME
};

const char *sv_hardware_name(int64_t i) { return i >= 0 && i < SV_HARDWARE_N ? names[i] : ""; }

sv_status sv_hardware_engine(int32_t dtype, int64_t head_dim, sv_hardware *out) {
  if (head_dim < 8 || head_dim > SV_MAX_HEAD_DIM || head_dim % 8 != 0)
    return sv_fail(SV_ERR_UNSUPPORTED, "hardware: head_dim is %" PRId64 ", expected a multiple of 8 in 8..%d",
                   head_dim, SV_MAX_HEAD_DIM);
  sv_isa isa = sv_cpu_isa();
  const sv_block_ops *pairs = sv_block_ops_pairs(isa, dtype, head_dim);
  const sv_block_ops *ops = pairs ? pairs : sv_block_ops_for(isa);
  *out = (sv_hardware){.workers = sv_parallel_threads(),
                       .tall_rows = ops->heights[0],
                       .low_rows = ops->heights[1],
                       .chunk_keys = sv_engine_chunk_keys(head_dim)};
  return SV_OK;
}

static sv_status check_count(const char *name, double value, double least, double most) {
  if (value >= least && value <= most && floor(value) == value) return SV_OK;
  return sv_fail(SV_ERR_ARG, "hardware: %s is %g, expected a whole number in %g..%g", name, value, least,
                 most);
}

sv_status sv_hardware_read(const double *constants, int64_t n, sv_hardware *out) {
  if (n != SV_HARDWARE_N)
    return sv_fail(SV_ERR_ARG, "hardware: there are %" PRId64 " constants, expected %" PRId64, n,
                   SV_HARDWARE_N);
  for (int64_t i = 0; i < n; i++)
    if (!isfinite(constants[i]) || constants[i] < 0.0)
      return sv_fail(SV_ERR_ARG, "hardware: %s is %g, expected a finite number, not negative", names[i],
                     constants[i]);
  memcpy(out, constants, sizeof *out);
  SV_TRY(check_count("workers", out->workers, 1.0, SV_HARDWARE_MAX_WORKERS));
  SV_TRY(check_count("tall_rows", out->tall_rows, 0.0, MAX_COUNT));
  SV_TRY(check_count("low_rows", out->low_rows, 0.0, MAX_COUNT));
  return check_count("chunk_keys", out->chunk_keys, 0.0, MAX_COUNT);
}
