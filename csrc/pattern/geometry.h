/* geometry.h — the token layout of one attention call: [prefix | frames x height x width | suffix].
 * Definitions: video index v = (f * height + r) * width + c, sequence index = prefix + v; blocks are
 * consecutive places of block_q (block_k) tokens, the last one may be short. */
#ifndef SV_PATTERN_GEOMETRY_H
#define SV_PATTERN_GEOMETRY_H

#include <stdint.h>

#include "base/status.h"

SV_EXTERN_C_BEGIN

typedef struct sv_geometry {
  int64_t frames, height, width; /* tokens along each axis, >= 1 */
  int64_t prefix, suffix;        /* other tokens before and after the video, >= 0 */
  int64_t block_q, block_k;      /* tokens per block, multiples of 16 in 16..1024 */
} sv_geometry;

#define SV_GEOMETRY_INTS 7 /* the wire format: the seven fields in this order */
#define SV_MAX_TOKENS INT64_C(0x7fffffff)
#define SV_MAX_KEY_BLOCKS INT64_C(0x1000000)

SV_INLINE SV_HD int64_t sv_ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
SV_INLINE SV_HD int64_t sv_geometry_frame_tokens(const sv_geometry *g) { return g->height * g->width; }
SV_INLINE SV_HD int64_t sv_geometry_video_tokens(const sv_geometry *g) {
  return g->frames * g->height * g->width;
}
SV_INLINE SV_HD int64_t sv_geometry_tokens(const sv_geometry *g) {
  return g->prefix + sv_geometry_video_tokens(g) + g->suffix;
}
SV_INLINE SV_HD int64_t sv_geometry_query_blocks(const sv_geometry *g) {
  return sv_ceil_div(sv_geometry_tokens(g), g->block_q);
}
SV_INLINE SV_HD int64_t sv_geometry_key_blocks(const sv_geometry *g) {
  return sv_ceil_div(sv_geometry_tokens(g), g->block_k);
}

/* sv_geometry_check — limits of PATTERNS section 6; SV_ERR_ARG names field, got, expected. Overflow-safe. */
sv_status sv_geometry_check(const sv_geometry *geometry);

SV_EXTERN_C_END
#endif
