/* multi_diagonal.c — the band of diagonal.c in token_major order, where the tokens of one place in the
 * picture are neighbours: in frame_major order these are 2F - 1 evenly spaced diagonals. */
#include "pattern/emit.h"

const sv_emitter sv_emitter_multi_diagonal = {
    .name = "multi_diagonal",
    .order = SV_ORDER_TOKEN_MAJOR,
    .part = true,
    .check_payload = sv_payload_check_half_width,
    .emit_row = sv_emit_band,
};
