/* diagonal.c — one band around the main diagonal: |x_i - x_j| <= half_width in frame_major order. The
 * positions of a query block are consecutive, so the band of the block is one run. */
#include "pattern/emit.h"

sv_status sv_emit_band(sv_cover *cover, const sv_pattern *pattern, sv_span query) {
  int64_t half_width = pattern->payload[0];
  return sv_cover_positions(cover, query.first - half_width, query.last + half_width);
}

const sv_emitter sv_emitter_diagonal = {
    .name = "diagonal",
    .order = SV_ORDER_FRAME_MAJOR,
    .sinks = true,
    .part = true,
    .check_payload = sv_payload_check_half_width,
    .emit_row = sv_emit_band,
};
