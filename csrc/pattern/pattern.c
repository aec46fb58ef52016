/* pattern.c — reads the wire format of a pattern and checks what all patterns share: kind, order, sinks,
 * lengths. What a payload must hold stands in the pattern's own file. */
#include "pattern/pattern.h"

#include <inttypes.h>

#include "pattern/emit.h"

const sv_emitter *sv_emitter_of(int64_t kind) {
  static const sv_emitter *const emitters[SV_N_PATTERNS] = {
      [SV_PATTERN_FULL] = &sv_emitter_full,
      [SV_PATTERN_SKIP] = &sv_emitter_skip,
      [SV_PATTERN_DIAGONAL] = &sv_emitter_diagonal,
      [SV_PATTERN_MULTI_DIAGONAL] = &sv_emitter_multi_diagonal,
      [SV_PATTERN_VERTICAL_STRIPE] = &sv_emitter_vertical_stripe,
      [SV_PATTERN_PERIODIC_TILES] = &sv_emitter_periodic_tiles,
      [SV_PATTERN_UNION] = &sv_emitter_union,
  };
  return kind >= 0 && kind < SV_N_PATTERNS ? emitters[kind] : NULL;
}

const char *sv_pattern_name(int64_t kind) {
  const sv_emitter *emitter = sv_emitter_of(kind);
  return emitter ? emitter->name : "unknown";
}

sv_pattern sv_pattern_view(const int64_t *ints) {
  return (sv_pattern){.kind = ints[0],
                      .order = {.kind = ints[1], .tile = {ints[2], ints[3], ints[4]}},
                      .sink_frames = ints[5],
                      .n_payload = ints[6],
                      .payload = ints + SV_PATTERN_HEADER_INTS};
}

sv_status sv_payload_check_empty(const char *who, const sv_geometry *g, const sv_pattern *pattern) {
  (void)g;
  if (pattern->n_payload == 0) return SV_OK;
  return sv_fail(SV_ERR_ARG, "%s: %s has %" PRId64 " parameters, expected none", who,
                 sv_pattern_name(pattern->kind), pattern->n_payload);
}

sv_status sv_payload_check_half_width(const char *who, const sv_geometry *g, const sv_pattern *pattern) {
  (void)g;
  if (pattern->n_payload != 1)
    return sv_fail(SV_ERR_ARG, "%s: %s has %" PRId64 " parameters, expected 1 (half_width)", who,
                   sv_pattern_name(pattern->kind), pattern->n_payload);
  if (pattern->payload[0] >= 0 && pattern->payload[0] <= SV_MAX_TOKENS) return SV_OK;
  return sv_fail(SV_ERR_ARG, "%s: half_width is %" PRId64 ", expected 0..%" PRId64, who, pattern->payload[0],
                 SV_MAX_TOKENS);
}

static const char *order_name(int64_t kind) {
  static const char *const names[] = {"frame_major", "token_major", "tiles"};
  return names[kind];
}

static sv_status check_order(const char *who, const sv_emitter *emitter, const sv_order *order) {
  SV_TRY(sv_order_check_of(who, order));
  if (emitter->order == SV_ORDER_ANY || emitter->order == order->kind) return SV_OK;
  return sv_fail(SV_ERR_ARG, "%s: the order of %s is %s, expected %s", who, emitter->name,
                 order_name(order->kind), order_name(emitter->order));
}

static sv_status check_sinks(const char *who, const sv_emitter *emitter, const sv_geometry *g,
                             const sv_pattern *pattern) {
  int64_t n = pattern->sink_frames;
  if (n == 0) return SV_OK;
  if (n < 0 || n > g->frames)
    return sv_fail(SV_ERR_ARG, "%s: sink_frames is %" PRId64 ", expected 0..%" PRId64 " (= frames)", who, n,
                   g->frames);
  if (pattern->order.kind == SV_ORDER_TOKEN_MAJOR)
    return sv_fail(SV_ERR_ARG,
                   "%s: sink_frames is %" PRId64
                   " in token_major order, expected 0: there a frame lies in every key "
                   "block, so the cover would be dense",
                   who, n);
  if (emitter->sinks) return SV_OK;
  return sv_fail(SV_ERR_ARG, "%s: sink_frames of %s is %" PRId64 ", expected 0", who, emitter->name, n);
}

sv_status sv_pattern_check(const char *who, const sv_geometry *g, const sv_pattern *pattern) {
  const sv_emitter *emitter = sv_emitter_of(pattern->kind);
  if (!emitter)
    return sv_fail(SV_ERR_ARG, "%s: kind is %" PRId64 ", expected 0..%d", who, pattern->kind,
                   SV_N_PATTERNS - 1);
  SV_TRY(check_order(who, emitter, &pattern->order));
  SV_TRY(check_sinks(who, emitter, g, pattern));
  return emitter->check_payload(who, g, pattern);
}

sv_status sv_pattern_parse(const char *who, const sv_geometry *g, const int64_t *ints, int64_t n,
                           sv_pattern *out) {
  SV_TRY(sv_geometry_check(g));
  if (n < SV_PATTERN_HEADER_INTS)
    return sv_fail(SV_ERR_ARG, "%s: %" PRId64 " integers, expected %d or more", who, n,
                   SV_PATTERN_HEADER_INTS);
  sv_pattern view = sv_pattern_view(ints);
  if (view.n_payload != n - SV_PATTERN_HEADER_INTS)
    return sv_fail(SV_ERR_ARG, "%s: n_payload is %" PRId64 ", expected %" PRId64 " (what follows the header)",
                   who, view.n_payload, n - SV_PATTERN_HEADER_INTS);
  SV_TRY(sv_pattern_check(who, g, &view));
  *out = view;
  return SV_OK;
}
