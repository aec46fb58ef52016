/* select.h — which option each decision takes; a decision is one (step bin, layer, head), an option one candidate
 * with or without its remainder. Two objectives: the paper's rule, and a budget for all decisions at once.
 *
 * The budget, in our letters: option p of decision i costs r_i t_ip milliseconds and an error of r_i w_i e_ip
 * (r repeats, w weight, e measured error, t the price of its group). Least sum of errors with sum of times <= budget,
 * or the other way round, is a knapsack with multiple choice. With one price lambda (error per ms) for all, each
 * decision alone minimises w e + lambda t, and the answers are the points of its lower convex hull of (t, e): only
 * those are chosen. The price is found exactly, then what is left of the budget is spent on the next points of the
 * hulls, best ratio first, as long as they fit. So
 *   - where the budget is used up exactly at a price, the choice is optimal among all options;
 *   - elsewhere it is worse than the optimum by less than one step on one hull, and `bound` says by how much at most;
 *   - a larger budget never gives a worse result.
 * Memory is read once: hulls in one pass over each decision's errors, in an order of times sorted once per group.
 * What it does not do: times of a mix beyond their sum (cost.h). Next: select_paper.c, hulls.h, select_budget.c. */
#ifndef SV_SEARCH_SELECT_H
#define SV_SEARCH_SELECT_H

#include <stdint.h>

#include "base/parallel.h"

SV_EXTERN_C_BEGIN

#define SV_SELECT_MAX_OPTIONS 65536
#define SV_SELECT_MAX_DECISIONS ((int64_t)1 << 26)

/* sv_select_paper — arXiv 2506.03065, equations 2 and 3, for each decision by itself.
 *   mse         [n, M] mean squared error of each mode, >= 0; NaN = not measured, never chosen    read
 *   sparsity    [M] S = share of token pairs left out, 0..1                                       read
 *   full        number of the full mode: never scored, only the way out
 *   out_choice  [n]                                                                               written
 *   equation    L_m = mse_m + lambda (1 - S_m), m != full;  choice = full if all L_m > epsilon, else argmin L_m
 *               (ties: the lowest number)
 *   Algorithm 1 of the paper prints + lambda S, which would favour dense modes; equation 2 and figure 5 have
 *   lambda (1 - S), used here. lambda = 0.5 and epsilon = 1 are the paper's; its scale of the error is not told, so
 *   epsilon has to be calibrated for the errors at hand.
 *   contract    [alloc none | errors ARG | any thread | no GIL] */
sv_status sv_select_paper(const double *mse, int64_t n_decisions, int64_t n_modes, const double *sparsity,
                          double lambda, double epsilon, int64_t full, int32_t *out_choice);

typedef enum sv_objective { SV_LEAST_ERROR = 0, SV_LEAST_TIME = 1 } sv_objective;

typedef struct sv_budget_args {
  int64_t n_decisions, n_options, n_groups, n_layers;
  const float *errors;      /* [n, P], >= 0; NaN or +inf = not allowed; at least one allowed per decision */
  const double *times_ms;   /* [G, P], finite, >= 0 */
  const int32_t *groups;    /* [n], row of times_ms */
  const double *weights;    /* [n], finite, >= 0 */
  const double *repeats;    /* [n], finite, >= 0; with 0 a decision follows the price and costs nothing */
  const int32_t *layers;    /* [n], or NULL without caps */
  const double *layer_caps; /* [n_layers] most error of a layer's decisions together, +inf = none; or NULL */
  int32_t objective;        /* sv_objective */
  double budget;            /* ms for SV_LEAST_ERROR, error for SV_LEAST_TIME */
  const sv_poll *poll;      /* or NULL */
} sv_budget_args;

typedef struct sv_budget_result {
  double error, time_ms; /* sums of the choice */
  double multiplier; /* what one more unit of budget is worth: error per ms, or ms per error; 0: nothing */
  double bound;      /* no choice at all within budget and caps has a smaller error (or time) than this */
} sv_budget_result;

/* sv_select_budget — least error in a time, or least time at an error, over all decisions.
 *   out_choice  [n] option of each decision                                                       written
 *   With caps, a layer whose error would exceed its cap gets a price of its own, lower than the common one.
 *   Ties: faster option, lower number; steps of equal ratio: lower decision. Budget and caps are kept up to the
 *   rounding of sums, 1e-12 relative. A budget that no choice meets is refused with the reachable range.
 *   contract    [alloc scratch O(n + hull points) | errors ARG NOMEM INTERRUPTED | any thread | no GIL |
 *               bitwise repeatable, whatever the number of threads] */
sv_status sv_select_budget(const sv_budget_args *args, int32_t *out_choice, sv_budget_result *out_result);

SV_EXTERN_C_END
#endif
