/* vertical_stripe.c — chosen key blocks, by their place in the pattern's order, for all queries. */
#include <inttypes.h>

#include "pattern/emit.h"

static sv_status check_key_blocks(const char *who, const sv_geometry *g, const sv_pattern *pattern) {
  int64_t n_blocks = sv_geometry_key_blocks(g);
  for (int64_t i = 0; i < pattern->n_payload; i++) {
    int64_t block = pattern->payload[i];
    if (block < 0 || block >= n_blocks)
      return sv_fail(SV_ERR_ARG, "%s: key_blocks[%" PRId64 "] is %" PRId64 ", expected 0..%" PRId64, who, i,
                     block, n_blocks - 1);
    if (i > 0 && block <= pattern->payload[i - 1])
      return sv_fail(SV_ERR_ARG,
                     "%s: key_blocks[%" PRId64 "] is %" PRId64 " after %" PRId64
                     ", expected sorted and unique",
                     who, i, block, pattern->payload[i - 1]);
  }
  return SV_OK;
}

static sv_status emit_stripes(sv_cover *cover, const sv_pattern *pattern) {
  for (int64_t i = 0; i < pattern->n_payload; i++)
    SV_TRY(sv_cover_blocks(cover, pattern->payload[i], pattern->payload[i]));
  return SV_OK;
}

const sv_emitter sv_emitter_vertical_stripe = {
    .name = "vertical_stripe",
    .order = SV_ORDER_ANY,
    .sinks = true,
    .part = true,
    .check_payload = check_key_blocks,
    .emit_shared = emit_stripes,
};
