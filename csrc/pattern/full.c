/* full.c — every key block for every query block. */
#include "pattern/emit.h"

static sv_status emit_all(sv_cover *cover, const sv_pattern *pattern) {
  (void)pattern;
  return sv_cover_blocks(cover, 0, sv_geometry_key_blocks(cover->geometry) - 1);
}

const sv_emitter sv_emitter_full = {
    .name = "full",
    .order = SV_ORDER_FRAME_MAJOR,
    .check_payload = sv_payload_check_empty,
    .emit_shared = emit_all,
};
