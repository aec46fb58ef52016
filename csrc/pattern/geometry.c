/* geometry.c — the limits of a geometry, checked once at every door. All products are formed only after
 * their factors are known to be small, so hostile integers cannot overflow. */
#include "pattern/geometry.h"

#include <inttypes.h>

static sv_status check_at_least(const char *field, int64_t value, int64_t least) {
  if (value >= least && value <= SV_MAX_TOKENS) return SV_OK;
  return sv_fail(SV_ERR_ARG, "geometry: %s is %" PRId64 ", expected %" PRId64 "..%" PRId64, field, value,
                 least, SV_MAX_TOKENS);
}

static sv_status check_block(const char *field, int64_t value) {
  if (value >= 16 && value <= 1024 && value % 16 == 0) return SV_OK;
  return sv_fail(SV_ERR_ARG, "geometry: %s is %" PRId64 ", expected a multiple of 16 in 16..1024", field,
                 value);
}

static sv_status check_tokens(const sv_geometry *g) {
  int64_t n = g->frames * g->height; /* both below 2^31 */
  if (n <= SV_MAX_TOKENS) n *= g->width;
  if (n <= SV_MAX_TOKENS) n += g->prefix + g->suffix;
  if (n <= SV_MAX_TOKENS) return SV_OK;
  return sv_fail(SV_ERR_ARG,
                 "geometry: %" PRId64 " + %" PRId64 " x %" PRId64 " x %" PRId64 " + %" PRId64
                 " tokens are too many, expected at most %" PRId64,
                 g->prefix, g->frames, g->height, g->width, g->suffix, SV_MAX_TOKENS);
}

sv_status sv_geometry_check(const sv_geometry *g) {
  SV_TRY(check_at_least("frames", g->frames, 1));
  SV_TRY(check_at_least("height", g->height, 1));
  SV_TRY(check_at_least("width", g->width, 1));
  SV_TRY(check_at_least("prefix", g->prefix, 0));
  SV_TRY(check_at_least("suffix", g->suffix, 0));
  SV_TRY(check_block("block_q", g->block_q));
  SV_TRY(check_block("block_k", g->block_k));
  SV_TRY(check_tokens(g));
  if (sv_geometry_key_blocks(g) <= SV_MAX_KEY_BLOCKS) return SV_OK;
  return sv_fail(SV_ERR_ARG,
                 "geometry: block_k is %" PRId64 " for %" PRId64 " tokens, %" PRId64
                 " key blocks, expected at most %" PRId64 " key blocks",
                 g->block_k, sv_geometry_tokens(g), sv_geometry_key_blocks(g), SV_MAX_KEY_BLOCKS);
}
