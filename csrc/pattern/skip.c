/* skip.c — nothing for nobody: the output of the head is zero, rows of other tokens included. */
#include "pattern/emit.h"

const sv_emitter sv_emitter_skip = {
    .name = "skip",
    .order = SV_ORDER_FRAME_MAJOR,
    .silent = true,
    .check_payload = sv_payload_check_empty,
};
