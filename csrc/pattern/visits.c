/* visits.c — the rows of a pattern: per query block the blocks of the token rule (from the pattern's own
 * file) together with what all patterns share: other tokens, the token itself, sinks. Memory is O(key
 * blocks) for the row at hand, plus rows and codes. */
#include "pattern/visits.h"

#include "pattern/boxes.h"
#include "pattern/emit.h"
#include "pattern/visits_write.h"

sv_status sv_cover_blocks(sv_cover *cover, int64_t first, int64_t last) {
  return sv_runs_add(&cover->blocks, first, last, 0);
}

sv_status sv_cover_positions(sv_cover *cover, int64_t first, int64_t last) {
  const sv_geometry *g = cover->geometry;
  int64_t end = sv_geometry_video_tokens(g) - 1;
  if (first < 0) first = 0;
  if (last > end) last = end;
  if (first > last) return SV_OK;
  uint32_t block_k = (uint32_t)g->block_k; /* places fit 31 bits, and short divisions are quick */
  return sv_cover_blocks(cover, (uint32_t)(g->prefix + first) / block_k,
                         (uint32_t)(g->prefix + last) / block_k);
}

/* cover_first_frames — the first n frames of a slab: the first tokens of each of its boxes. */
static sv_status cover_first_frames(sv_cover *cover, const sv_boxes *b, int64_t slab, int64_t n) {
  int64_t thickness = sv_boxes_length(b, 0, slab), n_boxes = b->n[1] * b->n[2];
  for (int64_t s = 0; s < n_boxes; s++) {
    int64_t area = sv_boxes_area(b, s), start = sv_boxes_slab(b, slab) + thickness * area;
    SV_TRY(sv_cover_positions(cover, start, start + n * (sv_boxes_area(b, s + 1) - area) - 1));
  }
  return SV_OK;
}

static sv_status cover_sinks(sv_cover *cover, const sv_pattern *pattern) {
  int64_t n = pattern->sink_frames, frame_tokens = sv_geometry_frame_tokens(cover->geometry);
  if (n == 0) return SV_OK;
  if (pattern->order.kind == SV_ORDER_FRAME_MAJOR) return sv_cover_positions(cover, 0, n * frame_tokens - 1);
  sv_boxes b = sv_boxes_make(cover->geometry, &pattern->order);
  int64_t slab = n / b.side[0], left = n == cover->geometry->frames ? 0 : n % b.side[0];
  SV_TRY(sv_cover_positions(cover, 0, (n - (left ? left : 0)) * frame_tokens - 1));
  return left ? cover_first_frames(cover, &b, slab, left) : SV_OK;
}

static sv_status cover_other_keys(sv_cover *cover) {
  const sv_geometry *g = cover->geometry;
  if (g->prefix > 0) SV_TRY(sv_cover_blocks(cover, 0, (g->prefix - 1) / g->block_k));
  if (g->suffix == 0) return SV_OK;
  int64_t first = g->prefix + sv_geometry_video_tokens(g);
  return sv_cover_blocks(cover, first / g->block_k, sv_geometry_key_blocks(g) - 1);
}

typedef struct emission {
  const sv_geometry *geometry;
  const sv_pattern *pattern;
  const sv_emitter *emitter;
  sv_cover cover;
  sv_runs shared; /* what every query block of video tokens visits */
  sv_row_writer writer;
} emission;

static sv_status cover_shared(emission *e) {
  SV_TRY(cover_other_keys(&e->cover));
  SV_TRY(cover_sinks(&e->cover, e->pattern));
  if (e->emitter->emit_shared) SV_TRY(e->emitter->emit_shared(&e->cover, e->pattern));
  SV_TRY(sv_runs_normalise(&e->cover.blocks, &e->cover.spare));
  return sv_runs_copy(&e->cover.blocks, &e->shared);
}

static sv_status cover_row(emission *e, int64_t query_block) {
  const sv_geometry *g = e->geometry;
  int64_t n_video = sv_geometry_video_tokens(g);
  int64_t last_place = sv_least((query_block + 1) * g->block_q, sv_geometry_tokens(g)) - 1;
  sv_span query = {.first = query_block * g->block_q - g->prefix, .last = last_place - g->prefix};
  e->cover.blocks.n = 0;
  if (e->emitter->silent) return SV_OK;
  if (query.first < 0 || query.last >= n_video)
    return sv_cover_blocks(&e->cover, 0, sv_geometry_key_blocks(g) - 1);
  SV_TRY(sv_runs_copy(&e->shared, &e->cover.blocks));
  SV_TRY(sv_cover_positions(&e->cover, query.first, query.last)); /* itself */
  if (e->emitter->emit_row) SV_TRY(e->emitter->emit_row(&e->cover, e->pattern, query));
  return sv_runs_normalise(&e->cover.blocks, &e->cover.spare);
}

static sv_status emit_rows(emission *e, sv_row *out_rows, const sv_poll *poll) {
  int64_t n_rows = sv_geometry_query_blocks(e->geometry);
  SV_TRY(cover_shared(e));
  for (int64_t i = 0; i < n_rows; i++) {
    if (sv_poll_interrupted(poll)) return sv_fail(SV_ERR_INTERRUPTED, "visits: interrupted");
    SV_TRY(cover_row(e, i));
    SV_TRY(sv_row_write(&e->writer, &e->cover.blocks, &out_rows[i]));
  }
  return SV_OK;
}

static void free_emission(emission *e) {
  sv_runs *const runs[] = {&e->shared,        &e->cover.blocks, &e->cover.axes[0], &e->cover.axes[1],
                           &e->cover.axes[2], &e->cover.areas,  &e->cover.spare};
  for (size_t i = 0; i < sizeof runs / sizeof *runs; i++) sv_runs_free(runs[i]);
}

sv_status sv_visits_emit(const sv_geometry *g, const sv_pattern *pattern, int with_remainder,
                         sv_row *out_rows, sv_codes *codes, const sv_poll *poll) {
  SV_TRY(sv_geometry_check(g));
  SV_TRY(sv_pattern_check("visits", g, pattern));
  const sv_emitter *emitter = sv_emitter_of(pattern->kind);
  bool pooled = with_remainder && !emitter->silent;
  int64_t n_before = codes->n;
  emission e = {.geometry = g,
                .pattern = pattern,
                .emitter = emitter,
                .cover = {.geometry = g},
                .writer = sv_row_writer_make(g, pooled, codes)};
  sv_status status = emit_rows(&e, out_rows, poll);
  if (status != SV_OK) codes->n = n_before;
  free_emission(&e);
  return status;
}

static sv_status cover_mask_row(const uint8_t *mask, int64_t n_blocks, sv_runs *out) {
  out->n = 0;
  for (int64_t i = 0; i < n_blocks; i++)
    if (mask[i]) SV_TRY(sv_runs_add(out, i, i, 0));
  return SV_OK;
}

sv_status sv_visits_emit_mask(const sv_geometry *g, const uint8_t *mask, int with_remainder, sv_row *out_rows,
                              sv_codes *codes, const sv_poll *poll) {
  SV_TRY(sv_geometry_check(g));
  int64_t n_rows = sv_geometry_query_blocks(g), n_blocks = sv_geometry_key_blocks(g), n_before = codes->n;
  sv_row_writer writer = sv_row_writer_make(g, with_remainder != 0, codes);
  sv_runs runs = {0};
  sv_status status = SV_OK;
  for (int64_t i = 0; i < n_rows; i++) {
    if (sv_poll_interrupted(poll))
      SV_GOTO(status, sv_fail(SV_ERR_INTERRUPTED, "visits_from_masks: interrupted"));
    SV_GOTO(status, cover_mask_row(mask + i * n_blocks, n_blocks, &runs));
    SV_GOTO(status, sv_row_write(&writer, &runs, &out_rows[i]));
  }
done:
  if (status != SV_OK) codes->n = n_before;
  sv_runs_free(&runs);
  return status;
}
