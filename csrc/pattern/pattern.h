/* pattern.h — where a head looks. A pattern is a value: the same integers in C, Python and plan.json.
 * The remainder's bias is not part of it; it stands beside the work items (attention/attention.h).
 *
 * Wire format, int64 each:  kind, order (4), sink_frames, n_payload, payload[n_payload]
 *   full, skip                    payload empty
 *   diagonal, multi_diagonal      half_width (tokens on each side)
 *   vertical_stripe               key blocks, sorted, unique, may be none
 *   periodic_tiles                form, then windows of three: width, offset, period (0 = none)
 *                                 form 0: time, space; form 1: time, rows, columns (boxes)
 *   union                         its parts, one after another, each in this wire format
 * Adding a pattern: this header, an emitter of its own, tests/kit/masks.py, pattern.py, tests, candidates. */
#ifndef SV_PATTERN_PATTERN_H
#define SV_PATTERN_PATTERN_H

#include <stdint.h>

#include "pattern/order.h"

SV_EXTERN_C_BEGIN

typedef enum sv_pattern_kind {
  SV_PATTERN_FULL = 0,
  SV_PATTERN_SKIP = 1,
  SV_PATTERN_DIAGONAL = 2,
  SV_PATTERN_MULTI_DIAGONAL = 3,
  SV_PATTERN_VERTICAL_STRIPE = 4,
  SV_PATTERN_PERIODIC_TILES = 5,
  SV_PATTERN_UNION = 6,
  SV_N_PATTERNS = 7
} sv_pattern_kind;

#define SV_PATTERN_HEADER_INTS 7 /* kind, order[4], sink_frames, n_payload */
#define SV_UNION_MAX_PARTS 64

/* sv_pattern — a parsed view of a wire array, which it borrows. */
typedef struct sv_pattern {
  int64_t kind; /* sv_pattern_kind */
  sv_order order;
  int64_t sink_frames;
  int64_t n_payload;
  const int64_t *payload;
} sv_pattern;

/* sv_pattern_parse — checks a whole wire array of n ints against the geometry and the rules of the
 * pattern; SV_ERR_ARG with a sentence that opens with `who`. Never reads past n. */
sv_status sv_pattern_parse(const char *who, const sv_geometry *g, const int64_t *ints, int64_t n,
                           sv_pattern *out);
const char *sv_pattern_name(int64_t kind);

SV_EXTERN_C_END
#endif
