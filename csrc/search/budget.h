/* budget.h — positions on the hulls and how they are moved under a budget (private to select_budget.c).
 *
 *   raise: from the fast end of the chains, the budget is time, steepest step first
 *   drop:  from the slow end, the budget is error, flattest step first
 * In both, sv_walk_settle jumps to the price at which the budget breaks, and sv_walk_fill goes on step by step with
 * what is left. A step that does not fit closes its chain. */
#ifndef SV_SEARCH_BUDGET_H
#define SV_SEARCH_BUDGET_H

#include "search/hulls.h"

SV_EXTERN_C_BEGIN

#define SV_BUDGET_SLACK 1e-12 /* of a budget: rounding of sums */

typedef enum sv_walk_direction { SV_WALK_RAISE = 0, SV_WALK_DROP = 1 } sv_walk_direction;

typedef struct sv_walk {
  const sv_budget_args *args;
  sv_hulls hulls;
  int32_t *members;          /* [n] decisions, by layer */
  int64_t *layer_first;      /* [n_layers + 1] in members */
  int32_t *floor, *position; /* [n] lowest position allowed, and the one held now, on the chain */
  int32_t *low, *high;       /* [n] brackets while settling */
  int32_t *active;           /* [n] members not settled yet */
  double *layer_price;       /* [n_layers] slope at which a layer's cap breaks, +inf = does not */
  double *layer_left;        /* [n_layers] of the cap */
} sv_walk;

double sv_walk_time(const sv_walk *w, int64_t i, int32_t position);
double sv_walk_error(const sv_walk *w, int64_t i, int32_t position);
/* sv_walk_sum — time or error of members [begin, end), at the positions of `at`, or (NULL) the top of each chain. */
double sv_walk_sum_time(const sv_walk *w, int64_t begin, int64_t end, const int32_t *at);
double sv_walk_sum_error(const sv_walk *w, int64_t begin, int64_t end, const int32_t *at);
/* sv_walk_at_price — the last position whose step is steeper than `slope`. */
int32_t sv_walk_at_price(const sv_walk *w, int64_t i, double slope);

/* sv_walk_settle — positions of members [begin, end) at the price where `limit` breaks: raise as far, or drop as far, as
 * all steps beyond one slope fit. The starting end is known to fit. out_slope: that of the steps that break;
 * 0 (raise) or +inf (drop) if all fit. Never below `floor`. */
sv_status sv_walk_settle(sv_walk *w, sv_walk_direction direction, int64_t begin, int64_t end, double limit,
                         double *out_slope);
/* sv_walk_fill — single steps, best ratio first, while they fit into `left`, and a dropping step into its layer's
 * cap. */
sv_status sv_walk_fill(sv_walk *w, sv_walk_direction direction, int64_t begin, int64_t end, double left);

SV_EXTERN_C_END
#endif
