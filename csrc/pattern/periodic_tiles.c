/* periodic_tiles.c — boxes attend to boxes whose numbers differ by what the windows allow, axis by axis:
 * (time, space) with the raster number of a frame, or (time, rows, columns).
 *
 * The boxes of a query block are consecutive, so they split into at most seven products of ranges
 * (part of a row, whole rows, whole slabs, ...). For a product the kept key boxes are again a product, of
 * one list of boxes per axis (windows.h). Columns and rows are first turned into runs of tokens of one
 * frame ("areas"), then every kept slab lays them out in its own thickness. Runs with a gap smaller than a
 * key block touch the same or neighbouring blocks, so they are joined early: a row of boxes of one token
 * costs no more than its key blocks. */
#include <inttypes.h>

#include "pattern/boxes.h"
#include "pattern/emit.h"
#include "pattern/windows.h"

typedef struct rule {
  sv_window windows[3]; /* time, rows, columns */
  int64_t n[3];         /* boxes: slabs, rows, columns; (slabs, 1, raster) in form 0 */
  sv_boxes boxes;
  int64_t gap_tokens; /* runs in position order with at most so many tokens between them are joined */
} rule;

typedef struct box_range {
  int64_t first[3], last[3];
} box_range;

static sv_window read_window(const int64_t *ints) {
  return (sv_window){.width = ints[0], .offset = ints[1], .period = ints[2]};
}

static sv_status check_window(const char *who, const char *name, const int64_t *ints) {
  static const char *const fields[SV_WINDOW_INTS] = {"width", "offset", "period"};
  for (int i = 0; i < SV_WINDOW_INTS; i++) {
    int64_t least = i == 0 ? 1 : 0;
    if (ints[i] < least)
      return sv_fail(SV_ERR_ARG, "%s: %s %s is %" PRId64 ", expected %" PRId64 " or more", who, name,
                     fields[i], ints[i], least);
  }
  return SV_OK;
}

static sv_status check_windows(const char *who, const sv_geometry *g, const sv_pattern *pattern) {
  static const char *const names[2][3] = {{"time", "space", NULL}, {"time", "rows", "columns"}};
  (void)g;
  int64_t form = pattern->n_payload > 0 ? pattern->payload[0] : -1;
  if (form != 0 && form != 1)
    return sv_fail(SV_ERR_ARG, "%s: form is %" PRId64 ", expected 0 (time, space) or 1 (time, rows, columns)",
                   who, form);
  int64_t n_windows = form + 2;
  if (pattern->n_payload != 1 + n_windows * SV_WINDOW_INTS)
    return sv_fail(SV_ERR_ARG,
                   "%s: periodic_tiles of form %" PRId64 " has %" PRId64 " parameters, expected %" PRId64,
                   who, form, pattern->n_payload, 1 + n_windows * SV_WINDOW_INTS);
  for (int64_t i = 0; i < n_windows; i++)
    SV_TRY(check_window(who, names[form][i], pattern->payload + 1 + i * SV_WINDOW_INTS));
  return SV_OK;
}

static rule make_rule(const sv_geometry *g, const sv_pattern *pattern) {
  const int64_t *windows = pattern->payload + 1;
  rule r = {.boxes = sv_boxes_make(g, &pattern->order), .gap_tokens = g->block_k - 1};
  int by_space = pattern->payload[0] == 0;
  r.windows[0] = read_window(windows);
  r.windows[1] = by_space ? (sv_window){.width = 1} : read_window(windows + SV_WINDOW_INTS);
  r.windows[2] = read_window(windows + (by_space ? 1 : 2) * SV_WINDOW_INTS);
  r.n[0] = r.boxes.n[0];
  r.n[1] = by_space ? 1 : r.boxes.n[1];
  r.n[2] = by_space ? r.boxes.n[1] * r.boxes.n[2] : r.boxes.n[2];
  return r;
}

/* keep_along — the boxes of one axis near the query's, runs joined across `gap` boxes. */
static sv_status keep_along(sv_cover *cover, const rule *r, const box_range *query, int axis, int64_t gap) {
  return sv_window_emit(&r->windows[axis], r->n[axis], query->first[axis], query->last[axis], gap,
                        &cover->axes[axis], &cover->spare);
}

/* add_area — boxes first..last of the raster as a run of tokens of one frame. */
static sv_status add_area(sv_cover *cover, const rule *r, int64_t first, int64_t last, int64_t gap) {
  return sv_runs_add(&cover->areas, sv_boxes_area(&r->boxes, first), sv_boxes_area(&r->boxes, last + 1) - 1,
                     gap);
}

/* joinable — runs with `between` tokens from one line (a row, a slab) of `line_tokens` to the next: how many
 * unvisited lines may lie between two visited ones so that their runs are still joined; -1: not even none. */
static int64_t joinable(int64_t between, int64_t line_tokens, int64_t gap) {
  return between > gap ? -1 : (gap - between) / line_tokens;
}

/* joinable_rows — when every kept row holds one run of columns. */
static int64_t joinable_rows(const sv_cover *cover, const rule *r, int64_t gap) {
  const sv_runs *columns = &cover->axes[2];
  if (columns->n != 1) return -1;
  int64_t boxes_between = sv_runs_first(columns, 0) + r->n[2] - 1 - sv_runs_last(columns, 0);
  int64_t area = r->boxes.side[1] * r->boxes.side[2];
  return joinable(boxes_between * area, r->n[2] * area, gap);
}

static sv_status add_areas_of_rows(sv_cover *cover, const rule *r, int64_t first_row, int64_t last_row,
                                   int64_t gap) {
  const sv_runs *columns = &cover->axes[2];
  for (int64_t row = first_row; row <= last_row; row++)
    for (int64_t i = 0; i < columns->n; i++)
      SV_TRY(add_area(cover, r, row * r->n[2] + sv_runs_first(columns, i),
                      row * r->n[2] + sv_runs_last(columns, i), gap));
  return SV_OK;
}

/* collect_areas — kept rows x kept columns as runs of tokens of one frame, ascending. */
static sv_status collect_areas(sv_cover *cover, const rule *r, const box_range *query) {
  const sv_runs *rows = &cover->axes[1], *columns = &cover->axes[2];
  int64_t gap = r->gap_tokens / r->boxes.side[0];
  SV_TRY(keep_along(cover, r, query, 2, gap / (r->boxes.side[1] * r->boxes.side[2])));
  int64_t join = joinable_rows(cover, r, gap);
  SV_TRY(keep_along(cover, r, query, 1, join < 0 ? 0 : join));
  cover->areas.n = 0;
  for (int64_t i = 0; i < rows->n && columns->n > 0; i++) {
    int64_t first = sv_runs_first(rows, i), last = sv_runs_last(rows, i);
    if (join >= 0)
      SV_TRY(add_area(cover, r, first * r->n[2] + sv_runs_first(columns, 0),
                      last * r->n[2] + sv_runs_last(columns, 0), gap));
    else
      SV_TRY(add_areas_of_rows(cover, r, first, last, gap));
  }
  return SV_OK;
}

/* joinable_slabs — when every kept slab holds one run. */
static int64_t joinable_slabs(const sv_cover *cover, const rule *r) {
  if (cover->areas.n != 1) return -1;
  int64_t frame_tokens = r->boxes.grid[1] * r->boxes.grid[2];
  int64_t between = sv_runs_first(&cover->areas, 0) + frame_tokens - 1 - sv_runs_last(&cover->areas, 0);
  return joinable(between * r->boxes.side[0], frame_tokens * r->boxes.side[0], r->gap_tokens);
}

static int64_t area_start(const sv_cover *cover, const rule *r, int64_t slab, int64_t i) {
  return sv_boxes_slab(&r->boxes, slab) +
         sv_boxes_length(&r->boxes, 0, slab) * sv_runs_first(&cover->areas, i);
}

static int64_t area_end(const sv_cover *cover, const rule *r, int64_t slab, int64_t i) {
  return sv_boxes_slab(&r->boxes, slab) +
         sv_boxes_length(&r->boxes, 0, slab) * (sv_runs_last(&cover->areas, i) + 1) - 1;
}

static sv_status cover_slabs(sv_cover *cover, const rule *r, int64_t first_slab, int64_t last_slab) {
  for (int64_t slab = first_slab; slab <= last_slab; slab++)
    for (int64_t i = 0; i < cover->areas.n; i++)
      SV_TRY(sv_cover_positions(cover, area_start(cover, r, slab, i), area_end(cover, r, slab, i)));
  return SV_OK;
}

/* cover_product — the key blocks of all query boxes in a product of ranges. */
static sv_status cover_product(sv_cover *cover, const rule *r, const box_range *query) {
  const sv_runs *slabs = &cover->axes[0];
  SV_TRY(collect_areas(cover, r, query));
  int64_t join = joinable_slabs(cover, r);
  SV_TRY(keep_along(cover, r, query, 0, join < 0 ? 0 : join));
  for (int64_t i = 0; i < slabs->n && cover->areas.n > 0; i++) {
    int64_t first = sv_runs_first(slabs, i), last = sv_runs_last(slabs, i);
    if (join >= 0)
      SV_TRY(sv_cover_positions(cover, area_start(cover, r, first, 0), area_end(cover, r, last, 0)));
    else
      SV_TRY(cover_slabs(cover, r, first, last));
  }
  return SV_OK;
}

static sv_status cover_columns(sv_cover *cover, const rule *r, int64_t slab, int64_t row, int64_t first,
                               int64_t last) {
  return cover_product(cover, r, &(box_range){.first = {slab, row, first}, .last = {slab, row, last}});
}

/* cover_slab — boxes (row, column) `first`..`last` of a slab: part of a row, whole rows, part of a row. */
static sv_status cover_slab(sv_cover *cover, const rule *r, int64_t slab, const int64_t first[2],
                            const int64_t last[2]) {
  int64_t last_column = r->n[2] - 1;
  if (first[0] == last[0]) return cover_columns(cover, r, slab, first[0], first[1], last[1]);
  SV_TRY(cover_columns(cover, r, slab, first[0], first[1], last_column));
  if (last[0] - first[0] > 1)
    SV_TRY(cover_product(
        cover, r, &(box_range){.first = {slab, first[0] + 1, 0}, .last = {slab, last[0] - 1, last_column}}));
  return cover_columns(cover, r, slab, last[0], 0, last[1]);
}

/* box_of — (slab, row, column) in the form of the rule. */
static void box_of(const rule *r, int64_t position, int64_t out[3]) {
  sv_boxes_at(&r->boxes, position, out);
  if (r->n[1] == 1) out[2] += out[1] * r->boxes.n[2], out[1] = 0;
}

static sv_status emit_near_boxes(sv_cover *cover, const sv_pattern *pattern, sv_span query) {
  rule r = make_rule(cover->geometry, pattern);
  int64_t first[3], last[3], start[2] = {0, 0}, end[2] = {r.n[1] - 1, r.n[2] - 1};
  box_of(&r, query.first, first);
  box_of(&r, query.last, last);
  if (first[0] == last[0]) return cover_slab(cover, &r, first[0], first + 1, last + 1);
  SV_TRY(cover_slab(cover, &r, first[0], first + 1, end));
  if (last[0] - first[0] > 1)
    SV_TRY(cover_product(cover, &r,
                         &(box_range){.first = {first[0] + 1, 0, 0}, .last = {last[0] - 1, end[0], end[1]}}));
  return cover_slab(cover, &r, last[0], start, last + 1);
}

const sv_emitter sv_emitter_periodic_tiles = {
    .name = "periodic_tiles",
    .order = SV_ORDER_TILES,
    .sinks = true,
    .part = true,
    .check_payload = check_windows,
    .emit_row = emit_near_boxes,
};
