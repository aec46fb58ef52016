/* windows.c — a window moved along a whole range of boxes is the window stretched by that range, so the
 * answer for a query block needs no loop over its boxes. Numbers are cut to FAR before they are added. */
#include "pattern/windows.h"

#define FAR (INT64_C(1) << 40) /* no two boxes are 2^31 apart, so what is cut here cannot be told apart */

typedef struct axis {
  int64_t n, first, last; /* boxes of the axis; the range of the query */
  int64_t gap;
  sv_runs *out;
} axis;

/* add_between — boxes within width - 1 of the range moved by first_centre .. last_centre, all between them
 * included. The centres are small multiples of FAR at most. */
static sv_status add_between(const axis *a, int64_t first_centre, int64_t last_centre, int64_t width) {
  int64_t first = a->first + first_centre - width + 1, last = a->last + last_centre + width - 1;
  if (first < 0) first = 0;
  if (last > a->n - 1) last = a->n - 1;
  return first > last ? SV_OK : sv_runs_add(a->out, first, last, a->gap);
}

/* add_at — one window without period at +offset and -offset; width and offset as large as they like.
 * A window that is cut keeps its near edge: offset - width is what decides. */
static sv_status add_at(const axis *a, int64_t offset, int64_t width) {
  int64_t near_edge = offset - width; /* no overflow: both are >= 0 */
  if (near_edge >= FAR) return SV_OK;
  if (offset > FAR || width > FAR) {
    if (near_edge < -FAR) near_edge = -FAR;
    offset = near_edge + 2 * FAR, width = 2 * FAR; /* same near edge, still beyond every box */
  }
  SV_TRY(add_between(a, -offset, -offset, width));
  return add_between(a, offset, offset, width);
}

/* add_periodic — centres `centre` + k * period for every k that reaches the axis. width <= period / 2.
 * Where the gaps between two of them may be joined there is one run and no loop. */
static sv_status add_periodic(const axis *a, int64_t centre, int64_t width, int64_t period) {
  int64_t lowest = 1 - width - a->last, highest = a->n - 2 - a->first + width; /* others do not reach it */
  int64_t first = centre - (centre - lowest) / period * period;
  if (highest < first) return SV_OK;
  int64_t last = first + (highest - first) / period * period;
  if (period - (2 * width - 1 + a->last - a->first) <= a->gap) return add_between(a, first, last, width);
  for (int64_t c = first; c <= last; c += period) SV_TRY(add_between(a, c, c, width));
  return SV_OK;
}

/* add_every — a window with a period, in steps of the period or, where that is FAR, as two single ones. */
static sv_status add_every(const axis *a, int64_t offset, int64_t width, int64_t period) {
  if (period >= FAR) {
    SV_TRY(add_at(a, period - offset, width));
    return add_at(a, offset, width);
  }
  SV_TRY(add_periodic(a, offset, width, period));
  return offset == 0 ? SV_OK : add_periodic(a, period - offset, width, period);
}

sv_status sv_window_emit(const sv_window *w, int64_t n, int64_t first, int64_t last, int64_t gap,
                         sv_runs *out, sv_runs *spare) {
  axis a = {.n = n, .first = first, .last = last, .gap = gap, .out = out};
  out->n = 0;
  if (w->period == 0) {
    SV_TRY(add_at(&a, w->offset, w->width));
  } else if (w->width > w->period / 2 || last - first >= w->period - 1) {
    SV_TRY(sv_runs_add(out, 0, n - 1, 0)); /* every box is near */
  } else {
    SV_TRY(add_every(&a, w->offset % w->period, w->width, w->period));
  }
  return sv_runs_normalise(out, spare);
}
