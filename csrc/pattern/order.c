/* order.c — the three orders as closed forms for one token, and as maps over the whole sequence.
 * The maps are written in order of position, so that no token needs a division. */
#include "pattern/order.h"

#include <inttypes.h>

#include "pattern/boxes.h"
#include "pattern/emit.h"

sv_status sv_order_check_of(const char *who, const sv_order *order) {
  if (order->kind < SV_ORDER_FRAME_MAJOR || order->kind > SV_ORDER_TILES)
    return sv_fail(SV_ERR_ARG,
                   "%s: order kind is %" PRId64 ", expected 0 (frame_major), 1 (token_major) or 2 (tiles)",
                   who, order->kind);
  for (int axis = 0; axis < 3; axis++) {
    int64_t side = order->tile[axis];
    if (order->kind == SV_ORDER_TILES && side < 1)
      return sv_fail(SV_ERR_ARG, "%s: tile[%d] is %" PRId64 ", expected 1 or more", who, axis, side);
    if (order->kind != SV_ORDER_TILES && side != 0)
      return sv_fail(SV_ERR_ARG, "%s: tile[%d] is %" PRId64 " without order tiles, expected 0", who, axis,
                     side);
  }
  return SV_OK;
}

sv_status sv_order_check(const sv_order *order) { return sv_order_check_of("order", order); }

static int64_t tiles_position(const sv_boxes *b, int64_t f, int64_t r, int64_t c) {
  int64_t bt = f / b->side[0], br = r / b->side[1], bc = c / b->side[2];
  int64_t rows = sv_boxes_length(b, 1, br), columns = sv_boxes_length(b, 2, bc);
  int64_t start = sv_boxes_slab(b, bt) + sv_boxes_length(b, 0, bt) * sv_boxes_area(b, br * b->n[2] + bc);
  return start + ((f - bt * b->side[0]) * rows + (r - br * b->side[1])) * columns + (c - bc * b->side[2]);
}

static int64_t tiles_video_index(const sv_boxes *b, int64_t position) {
  int64_t box[3], inside = sv_boxes_at(b, position, box);
  int64_t rows = sv_boxes_length(b, 1, box[1]), columns = sv_boxes_length(b, 2, box[2]);
  int64_t f = box[0] * b->side[0] + inside / (rows * columns);
  int64_t r = box[1] * b->side[1] + inside / columns % rows;
  return (f * b->grid[1] + r) * b->grid[2] + box[2] * b->side[2] + inside % columns;
}

int64_t sv_order_position(const sv_geometry *g, const sv_order *order, int64_t v) {
  int64_t frame_tokens = sv_geometry_frame_tokens(g);
  if (order->kind == SV_ORDER_FRAME_MAJOR) return v;
  if (order->kind == SV_ORDER_TOKEN_MAJOR) return v % frame_tokens * g->frames + v / frame_tokens;
  sv_boxes b = sv_boxes_make(g, order);
  return tiles_position(&b, v / frame_tokens, v / g->width % g->height, v % g->width);
}

int64_t sv_order_video_index(const sv_geometry *g, const sv_order *order, int64_t position) {
  if (order->kind == SV_ORDER_FRAME_MAJOR) return position;
  if (order->kind == SV_ORDER_TOKEN_MAJOR)
    return position % g->frames * sv_geometry_frame_tokens(g) + position / g->frames;
  sv_boxes b = sv_boxes_make(g, order);
  return tiles_video_index(&b, position);
}

#define POLLED_TOKENS 0xffff /* asked once in so many tokens: about 0.1 ms */

typedef struct map_writer {
  int32_t *places, *tokens; /* [N], either may be NULL */
  int64_t place;            /* the next one to fill */
  const sv_poll *poll;
  bool is_stopped;
} map_writer;

static void put_range(map_writer *w, int64_t first, int64_t n) {
  for (int64_t token = first; token < first + n && !w->is_stopped; token++) {
    if (w->places) w->places[token] = (int32_t)w->place;
    if (w->tokens) w->tokens[w->place] = (int32_t)token;
    if ((++w->place & POLLED_TOKENS) == 0) w->is_stopped = sv_poll_interrupted(w->poll);
  }
}

static void put_token_major(map_writer *w, const sv_geometry *g) {
  int64_t frame_tokens = sv_geometry_frame_tokens(g);
  for (int64_t s = 0; s < frame_tokens && !w->is_stopped; s++)
    for (int64_t f = 0; f < g->frames; f++) put_range(w, g->prefix + f * frame_tokens + s, 1);
}

static void put_box(map_writer *w, const sv_geometry *g, const sv_boxes *b, int64_t bt, int64_t br,
                    int64_t bc) {
  int64_t f0 = bt * b->side[0], r0 = br * b->side[1], c0 = bc * b->side[2];
  int64_t frames = sv_boxes_length(b, 0, bt), rows = sv_boxes_length(b, 1, br);
  for (int64_t f = f0; f < f0 + frames && !w->is_stopped; f++)
    for (int64_t r = r0; r < r0 + rows; r++)
      put_range(w, g->prefix + (f * g->height + r) * g->width + c0, sv_boxes_length(b, 2, bc));
}

static void put_tiles(map_writer *w, const sv_geometry *g, const sv_boxes *b) {
  for (int64_t bt = 0; bt < b->n[0]; bt++)
    for (int64_t br = 0; br < b->n[1] && !w->is_stopped; br++)
      for (int64_t bc = 0; bc < b->n[2]; bc++) put_box(w, g, b, bt, br, bc);
}

sv_status sv_order_places(const sv_geometry *g, const sv_order *order, const sv_poll *poll,
                          int32_t *out_places, int32_t *out_tokens) {
  map_writer w = {.places = out_places, .tokens = out_tokens, .poll = poll};
  put_range(&w, 0, g->prefix);
  if (order->kind == SV_ORDER_FRAME_MAJOR) put_range(&w, g->prefix, sv_geometry_video_tokens(g));
  if (order->kind == SV_ORDER_TOKEN_MAJOR) put_token_major(&w, g);
  if (order->kind == SV_ORDER_TILES) {
    sv_boxes b = sv_boxes_make(g, order);
    put_tiles(&w, g, &b);
  }
  put_range(&w, g->prefix + sv_geometry_video_tokens(g), g->suffix);
  return w.is_stopped ? sv_fail(SV_ERR_INTERRUPTED, "order: interrupted") : SV_OK;
}
