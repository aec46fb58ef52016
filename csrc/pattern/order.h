/* order.h — a permutation of the video tokens; other tokens keep their places.
 *   frame_major   position of (f, r, c) = v
 *   token_major   (r * W + c) * F + f
 *   tiles(t,h,w)  boxes in the order (f/t, r/h, c/w), inside a box (f, r, c); edge boxes are smaller
 * "Place" = index in the sequence after the permutation; "position" = place - prefix of a video token. */
#ifndef SV_PATTERN_ORDER_H
#define SV_PATTERN_ORDER_H

#include <stdint.h>

#include "base/parallel.h"
#include "pattern/geometry.h"

SV_EXTERN_C_BEGIN

typedef enum sv_order_kind {
  SV_ORDER_FRAME_MAJOR = 0,
  SV_ORDER_TOKEN_MAJOR = 1,
  SV_ORDER_TILES = 2
} sv_order_kind;

typedef struct sv_order {
  int64_t kind;    /* sv_order_kind */
  int64_t tile[3]; /* t, h, w of SV_ORDER_TILES, else 0 */
} sv_order;

#define SV_ORDER_INTS 4 /* wire format: kind, t, h, w */

sv_status sv_order_check(const sv_order *order);
/* sv_order_position — position of the video index v; sv_order_video_index is its inverse. */
int64_t sv_order_position(const sv_geometry *g, const sv_order *order, int64_t v);
int64_t sv_order_video_index(const sv_geometry *g, const sv_order *order, int64_t position);
/* sv_order_places — out_places[i] = place of sequence index i; out_tokens[p] = sequence index at place p.
 * Either may be NULL. [N] each. poll (or NULL) is asked now and then.
 *   contract [alloc none | errors INTERRUPTED | any thread] */
sv_status sv_order_places(const sv_geometry *g, const sv_order *order, const sv_poll *poll,
                          int32_t *out_places, int32_t *out_tokens);

SV_EXTERN_C_END
#endif
