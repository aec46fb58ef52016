/* select_paper.c — equations 2 and 3 of Sparse-vDiT, decision by decision; the contract is in select.h. */
#include <math.h>

#include "search/select.h"

static sv_status check_rule(int64_t n_decisions, int64_t n_modes, const double *sparsity, double lambda,
                            double epsilon, int64_t full) {
  if (n_decisions < 1)
    return sv_fail(SV_ERR_ARG, "select_paper: there are %lld decisions, expected at least one",
                   (long long)n_decisions);
  if (n_modes < 1 || n_modes > SV_SELECT_MAX_OPTIONS)
    return sv_fail(SV_ERR_ARG, "select_paper: there are %lld modes, expected 1..%d", (long long)n_modes,
                   SV_SELECT_MAX_OPTIONS);
  if (full < 0 || full >= n_modes)
    return sv_fail(SV_ERR_ARG, "select_paper: full is %lld, expected 0..%lld", (long long)full,
                   (long long)(n_modes - 1));
  if (!isfinite(lambda) || lambda < 0)
    return sv_fail(SV_ERR_ARG, "select_paper: lambda is %g, expected a finite number from 0 on", lambda);
  if (isnan(epsilon)) return sv_fail(SV_ERR_ARG, "select_paper: epsilon is not a number, expected one");
  for (int64_t m = 0; m < n_modes; m++)
    if (!(sparsity[m] >= 0 && sparsity[m] <= 1))
      return sv_fail(SV_ERR_ARG, "select_paper: sparsity[%lld] is %g, expected 0..1", (long long)m,
                     sparsity[m]);
  return SV_OK;
}

static sv_status check_errors(const double *mse, int64_t n_decisions, int64_t n_modes) {
  for (int64_t at = 0; at < n_decisions * n_modes; at++)
    if (mse[at] < 0)
      return sv_fail(SV_ERR_ARG, "select_paper: mse[%lld, %lld] is %g, expected numbers from 0 on or NaN",
                     (long long)(at / n_modes), (long long)(at % n_modes), mse[at]);
  return SV_OK;
}

sv_status sv_select_paper(const double *mse, int64_t n_decisions, int64_t n_modes, const double *sparsity,
                          double lambda, double epsilon, int64_t full, int32_t *out_choice) {
  SV_TRY(check_rule(n_decisions, n_modes, sparsity, lambda, epsilon, full));
  SV_TRY(check_errors(mse, n_decisions, n_modes));
  for (int64_t i = 0; i < n_decisions; i++) {
    int64_t best = full;
    double least = INFINITY;
    for (int64_t m = 0; m < n_modes; m++) {
      double loss = mse[i * n_modes + m] + lambda * (1 - sparsity[m]); /* Eq. 2 */
      if (m != full && loss <= epsilon && loss < least) {              /* Eq. 3 */
        least = loss;
        best = m;
      }
    }
    out_choice[i] = (int32_t)best;
  }
  return SV_OK;
}
