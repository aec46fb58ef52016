/* union.c — any part keeps. The parts lie one after another in the payload, in the one order of all of
 * them; their runs are simply collected, visits.c joins them, so each block is visited once. */
#include <inttypes.h>
#include <stdio.h>

#include "pattern/emit.h"

/* next_part — the part at *offset, and the offset of the one behind it; false at the end. */
static bool next_part(const sv_pattern *whole, int64_t *offset, sv_pattern *out_part) {
  if (*offset >= whole->n_payload) return false;
  *out_part = sv_pattern_view(whole->payload + *offset);
  *offset += SV_PATTERN_HEADER_INTS + out_part->n_payload;
  return true;
}

static bool same_order(const sv_order *a, const sv_order *b) {
  return a->kind == b->kind && a->tile[0] == b->tile[0] && a->tile[1] == b->tile[1] &&
         a->tile[2] == b->tile[2];
}

/* check_fits — the part's ints lie inside what is left of the payload. */
static sv_status check_fits(const char *who, const sv_pattern *whole, int64_t offset) {
  int64_t left = whole->n_payload - offset;
  if (left < SV_PATTERN_HEADER_INTS)
    return sv_fail(SV_ERR_ARG, "%s: %" PRId64 " integers are left for it, expected %d or more", who, left,
                   SV_PATTERN_HEADER_INTS);
  int64_t n_payload = whole->payload[offset + SV_PATTERN_HEADER_INTS - 1];
  if (n_payload < 0 || n_payload > left - SV_PATTERN_HEADER_INTS)
    return sv_fail(SV_ERR_ARG, "%s: n_payload is %" PRId64 ", expected 0..%" PRId64, who, n_payload,
                   left - SV_PATTERN_HEADER_INTS);
  return SV_OK;
}

static sv_status check_part(const char *who, const sv_geometry *g, const sv_pattern *whole,
                            const sv_pattern *part) {
  const sv_emitter *emitter = sv_emitter_of(part->kind);
  if (emitter && !emitter->part)
    return sv_fail(SV_ERR_ARG,
                   "%s: kind is %s, expected diagonal, multi_diagonal, vertical_stripe or periodic_tiles",
                   who, emitter->name);
  SV_TRY(sv_pattern_check(who, g, part));
  if (part->sink_frames != 0)
    return sv_fail(SV_ERR_ARG, "%s: sink_frames is %" PRId64 ", expected 0: the union carries the sinks", who,
                   part->sink_frames);
  if (!same_order(&part->order, &whole->order))
    return sv_fail(SV_ERR_ARG, "%s: its order differs from the union's, expected one order for all parts",
                   who);
  return SV_OK;
}

static sv_status check_parts(const char *who, const sv_geometry *g, const sv_pattern *pattern) {
  int64_t offset = 0, n_parts = 0;
  if (pattern->n_payload == 0)
    return sv_fail(SV_ERR_ARG, "%s: union of 0 parts, expected 1..%d", who, SV_UNION_MAX_PARTS);
  while (offset < pattern->n_payload) {
    char part_who[96];
    sv_pattern part;
    if (n_parts == SV_UNION_MAX_PARTS)
      return sv_fail(SV_ERR_ARG, "%s: union of more than %d parts, expected 1..%d", who, SV_UNION_MAX_PARTS,
                     SV_UNION_MAX_PARTS);
    snprintf(part_who, sizeof part_who, "%.64s: part %" PRId64, who, n_parts);
    SV_TRY(check_fits(part_who, pattern, offset));
    next_part(pattern, &offset, &part);
    SV_TRY(check_part(part_who, g, pattern, &part));
    n_parts++;
  }
  return SV_OK;
}

static sv_status emit_shared_of_parts(sv_cover *cover, const sv_pattern *pattern) {
  sv_pattern part;
  for (int64_t offset = 0; next_part(pattern, &offset, &part);) {
    const sv_emitter *emitter = sv_emitter_of(part.kind);
    if (emitter->emit_shared) SV_TRY(emitter->emit_shared(cover, &part));
  }
  return SV_OK;
}

static sv_status emit_row_of_parts(sv_cover *cover, const sv_pattern *pattern, sv_span query) {
  sv_pattern part;
  for (int64_t offset = 0; next_part(pattern, &offset, &part);) {
    const sv_emitter *emitter = sv_emitter_of(part.kind);
    if (emitter->emit_row) SV_TRY(emitter->emit_row(cover, &part, query));
  }
  return SV_OK;
}

const sv_emitter sv_emitter_union = {
    .name = "union",
    .order = SV_ORDER_ANY,
    .sinks = true,
    .check_payload = check_parts,
    .emit_shared = emit_shared_of_parts,
    .emit_row = emit_row_of_parts,
};
