/* windows.h — which boxes along one axis lie near a range of boxes: near(y) = min(dist(y - offset),
 * dist(y + offset)) < width, dist(y) = |y|, or with a period the distance to its nearest multiple. */
#ifndef SV_PATTERN_WINDOWS_H
#define SV_PATTERN_WINDOWS_H

#include "pattern/runs.h"

typedef struct sv_window {
  int64_t width, offset, period; /* >= 1, >= 0, >= 0 (0 = none) */
} sv_window;

#define SV_WINDOW_INTS 3

/* sv_window_emit — all i in 0..n-1 with near(i - j) for at least one j in first..last, as ascending runs;
 * runs with at most `gap` boxes between them may come joined. n < 2^31; any legal window, however large. */
sv_status sv_window_emit(const sv_window *window, int64_t n, int64_t first, int64_t last, int64_t gap,
                         sv_runs *out, sv_runs *spare);

#endif
