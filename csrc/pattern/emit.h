/* emit.h — what a pattern must say of itself, once, for every engine: its rules and, for a query block,
 * the key blocks that its token rule touches. visits.c adds what all patterns share: other tokens, the
 * token itself, sinks, the codes. One file per pattern fills one sv_emitter. */
#ifndef SV_PATTERN_EMIT_H
#define SV_PATTERN_EMIT_H

#include <stdbool.h>
#include <stdint.h>

#include "pattern/pattern.h"
#include "pattern/runs.h"

/* sv_span — video positions first..last of a query block, both included. */
typedef struct sv_span {
  int64_t first, last;
} sv_span;

/* sv_cover — the key blocks of one query block, being collected; the rest is working memory. */
typedef struct sv_cover {
  const sv_geometry *geometry;
  sv_runs blocks;
  sv_runs axes[3], areas, spare;
} sv_cover;

/* sv_cover_blocks — key blocks first..last are visited. */
sv_status sv_cover_blocks(sv_cover *cover, int64_t first, int64_t last);
/* sv_cover_positions — the key blocks of video positions first..last, cut at the ends of the video. */
sv_status sv_cover_positions(sv_cover *cover, int64_t first, int64_t last);

#define SV_ORDER_ANY INT64_C(-1)

typedef struct sv_emitter {
  const char *name;
  int64_t order; /* the only legal order, or SV_ORDER_ANY */
  bool sinks;    /* may have sink_frames */
  bool part;     /* may be a part of a union */
  bool silent;   /* no query attends to anything, other tokens included */
  /* check_payload — the pattern's own rules; the header of the wire array is checked already. */
  sv_status (*check_payload)(const char *who, const sv_geometry *g, const sv_pattern *pattern);
  /* emit_shared — blocks that every query block visits; NULL = none. */
  sv_status (*emit_shared)(sv_cover *cover, const sv_pattern *pattern);
  /* emit_row — blocks that depend on the query block, in any order, overlaps allowed; NULL = none. */
  sv_status (*emit_row)(sv_cover *cover, const sv_pattern *pattern, sv_span query);
} sv_emitter;

extern const sv_emitter sv_emitter_full, sv_emitter_skip, sv_emitter_diagonal, sv_emitter_multi_diagonal,
    sv_emitter_vertical_stripe, sv_emitter_periodic_tiles, sv_emitter_union;

/* sv_emitter_of — NULL when `kind` is not a pattern. */
const sv_emitter *sv_emitter_of(int64_t kind);
/* sv_pattern_check — the rules of a parsed view, parts of a union included. */
sv_status sv_pattern_check(const char *who, const sv_geometry *g, const sv_pattern *pattern);
/* sv_pattern_view — a view of ints that hold at least a header; nothing is checked. */
sv_pattern sv_pattern_view(const int64_t *ints);

sv_status sv_order_check_of(const char *who, const sv_order *order);
sv_status sv_payload_check_empty(const char *who, const sv_geometry *g, const sv_pattern *pattern);
sv_status sv_payload_check_half_width(const char *who, const sv_geometry *g, const sv_pattern *pattern);
/* sv_emit_band — positions query.first - half_width .. query.last + half_width. */
sv_status sv_emit_band(sv_cover *cover, const sv_pattern *pattern, sv_span query);

#endif
