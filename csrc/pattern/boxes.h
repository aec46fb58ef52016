/* boxes.h — the boxes of order tiles(t, h, w): box (bt, br, bc) holds frames bt*t.., rows br*h.., columns
 * bc*w..; the boxes at the far edges are smaller. Boxes follow each other in the order (bt, br, bc), so
 *   first position of (bt, br, bc) = bt*t * H*W + thickness(bt) * area(br, bc)
 * with area = video tokens of one frame that lie in earlier boxes of the slab. */
#ifndef SV_PATTERN_BOXES_H
#define SV_PATTERN_BOXES_H

#include "pattern/order.h"

typedef struct sv_boxes {
  int64_t grid[3]; /* F, H, W */
  int64_t side[3]; /* t, h, w, cut at the grid */
  int64_t n[3];    /* boxes along each axis */
} sv_boxes;

SV_INLINE int64_t sv_least(int64_t a, int64_t b) { return a < b ? a : b; }

SV_INLINE sv_boxes sv_boxes_make(const sv_geometry *g, const sv_order *order) {
  sv_boxes b = {.grid = {g->frames, g->height, g->width}};
  for (int axis = 0; axis < 3; axis++) {
    b.side[axis] = sv_least(order->tile[axis], b.grid[axis]);
    b.n[axis] = sv_ceil_div(b.grid[axis], b.side[axis]);
  }
  return b;
}

/* sv_boxes_length — tokens of box number `i` along an axis. */
SV_INLINE int64_t sv_boxes_length(const sv_boxes *b, int axis, int64_t i) {
  return sv_least(b->side[axis], b->grid[axis] - i * b->side[axis]);
}

/* sv_boxes_area — tokens of one frame before the box with raster number `s` in 0..n[1]*n[2]. */
SV_INLINE int64_t sv_boxes_area(const sv_boxes *b, int64_t s) {
  int64_t br = s / b->n[2], bc = s - br * b->n[2];
  int64_t rows = sv_least(br * b->side[1], b->grid[1]);
  return rows * b->grid[2] + (bc == 0 ? 0 : sv_boxes_length(b, 1, br) * bc * b->side[2]);
}

/* sv_boxes_slab — first position of slab `bt`. */
SV_INLINE int64_t sv_boxes_slab(const sv_boxes *b, int64_t bt) {
  return bt * b->side[0] * b->grid[1] * b->grid[2];
}

/* sv_boxes_at — the box (bt, br, bc) that holds a position; returns what is left of the position in it. */
SV_INLINE int64_t sv_boxes_at(const sv_boxes *b, int64_t position, int64_t out_box[3]) {
  int64_t left = position, size = b->side[0] * b->grid[1] * b->grid[2];
  out_box[0] = left / size;
  left -= out_box[0] * size;
  size = sv_boxes_length(b, 0, out_box[0]) * b->side[1] * b->grid[2];
  out_box[1] = left / size;
  left -= out_box[1] * size;
  size = sv_boxes_length(b, 0, out_box[0]) * sv_boxes_length(b, 1, out_box[1]) * b->side[2];
  out_box[2] = left / size;
  return left - out_box[2] * size;
}

#endif
