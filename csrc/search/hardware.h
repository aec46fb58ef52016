/* hardware.h — what a machine takes for the pieces of an attention call: the constants of one engine, dtype, head size
 * and pair of block sizes, measured by `sparse-vdit calibrate`. Times are microseconds of one worker, with all
 * workers busy. Outside the core the constants travel as SV_HARDWARE_N doubles in the order of the list. */
#ifndef SV_SEARCH_HARDWARE_H
#define SV_SEARCH_HARDWARE_H

#include <stdint.h>

#include "base/status.h"

SV_EXTERN_C_BEGIN

/*  workers     CPU threads, or multiprocessors
 *  tall_rows, low_rows   CPU: the two strips that the rows of a query block are cut into; 0 = never cut
 *  chunk_keys  CPU: keys multiplied at once; 0 = no chunks
 *  cache_tokens  tokens x heads x samples of a call that the last cache holds; 0 = all are far away
 *  launch_us   per call, on the calling thread
 *  head_us     per head and sample
 *  pack_us     per key block of keys and values packed
 *  far_us      added per key block for the part of the call that the cache does not hold
 *  reorder_us  per query block of tokens in another order: q, k, v in, the output back
 *  mean_us     per key block averaged for a remainder
 *  item_us     per item: queries in, results out (t0)
 *  chunk_us    per chunk of an item
 *  run_us      per run of consecutive key blocks
 *  full_us     per key block visited, a short one by its share of keys (t_full)
 *  partial_us  added for a short key block (t_partial)
 *  pooled_us   per SV_COST_POOLED pseudo keys
 *  tile_us     per pooled tile read
 *  zero_us     per query block of zeros written */
/* clang-format off */
#define SV_HARDWARE_FIELDS(FIELD) \
  FIELD(workers) FIELD(tall_rows) FIELD(low_rows) FIELD(chunk_keys) FIELD(cache_tokens) FIELD(launch_us) \
  FIELD(head_us) FIELD(pack_us) FIELD(far_us) FIELD(reorder_us) FIELD(mean_us) FIELD(item_us) \
  FIELD(chunk_us) FIELD(run_us) FIELD(full_us) FIELD(partial_us) FIELD(pooled_us) FIELD(tile_us) \
  FIELD(zero_us)
/* clang-format on */

typedef struct sv_hardware {
#define SV_HARDWARE_MEMBER(name) double name;
  SV_HARDWARE_FIELDS(SV_HARDWARE_MEMBER)
#undef SV_HARDWARE_MEMBER
} sv_hardware;

#define SV_HARDWARE_N ((int64_t)(sizeof(sv_hardware) / sizeof(double)))
#define SV_HARDWARE_MAX_WORKERS 65536

/* sv_hardware_name — of constant i in 0..SV_HARDWARE_N-1; static string. */
const char *sv_hardware_name(int64_t i);
/* sv_hardware_engine — what is known of the CPU engine without measuring: workers = threads in use, strips, chunks;
 * the times are 0. SV_ERR_UNSUPPORTED for a head_dim that no engine takes. */
sv_status sv_hardware_engine(int32_t dtype, int64_t head_dim, sv_hardware *out);
/* sv_hardware_read — from doubles, checked: finite, not negative; workers 1..65536, rows and keys whole numbers.
 * SV_ERR_ARG names the constant. */
sv_status sv_hardware_read(const double *constants, int64_t n, sv_hardware *out);

SV_EXTERN_C_END
#endif
