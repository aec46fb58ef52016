/* select_budget.c — the door of the budget rule: checks, hulls, caps of layers, the common price, result and bound.
 * The search for a price and single steps are in budget.c. */
#include <math.h>
#include <string.h>

#include "base/scratch.h"
#include "search/budget.h"

/* ---- checks ---- */

static sv_status check_counts(const sv_budget_args *args) {
  if (args->n_decisions < 1 || args->n_decisions > SV_SELECT_MAX_DECISIONS)
    return sv_fail(SV_ERR_ARG, "select_budget: there are %lld decisions, expected 1..%lld",
                   (long long)args->n_decisions, (long long)SV_SELECT_MAX_DECISIONS);
  if (args->n_options < 1 || args->n_options > SV_SELECT_MAX_OPTIONS)
    return sv_fail(SV_ERR_ARG, "select_budget: there are %lld options, expected 1..%d",
                   (long long)args->n_options, SV_SELECT_MAX_OPTIONS);
  if (args->n_groups < 1)
    return sv_fail(SV_ERR_ARG, "select_budget: there are %lld rows of times, expected at least one",
                   (long long)args->n_groups);
  if (args->objective != SV_LEAST_ERROR && args->objective != SV_LEAST_TIME)
    return sv_fail(SV_ERR_ARG, "select_budget: the objective is %d, expected 0 (time) or 1 (error)",
                   args->objective);
  if (isnan(args->budget))
    return sv_fail(SV_ERR_ARG, "select_budget: the budget is not a number, expected one");
  if (args->layer_caps && (!args->layers || args->n_layers < 1))
    return sv_fail(SV_ERR_ARG,
                   "select_budget: there are layer_caps, expected the layer of each decision too");
  return SV_OK;
}

static sv_status check_numbers(const char *name, const double *numbers, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (!(numbers[i] >= 0 && isfinite(numbers[i])))
      return sv_fail(SV_ERR_ARG, "select_budget: %s[%lld] is %g, expected a finite number from 0 on", name,
                     (long long)i, numbers[i]);
  return SV_OK;
}

static sv_status check_indices(const char *name, const int32_t *indices, int64_t n, int64_t limit) {
  for (int64_t i = 0; i < n; i++)
    if (indices[i] < 0 || indices[i] >= limit)
      return sv_fail(SV_ERR_ARG, "select_budget: %s[%lld] is %d, expected 0..%lld", name, (long long)i,
                     indices[i], (long long)(limit - 1));
  return SV_OK;
}

static sv_status check_args(const sv_budget_args *args) {
  SV_TRY(check_counts(args));
  SV_TRY(check_numbers("times", args->times_ms, args->n_groups * args->n_options));
  SV_TRY(check_numbers("weights", args->weights, args->n_decisions));
  SV_TRY(check_numbers("repeats", args->repeats, args->n_decisions));
  SV_TRY(check_indices("time_group", args->groups, args->n_decisions, args->n_groups));
  if (args->layers) SV_TRY(check_indices("layer", args->layers, args->n_decisions, args->n_layers));
  for (int64_t l = 0; args->layer_caps && l < args->n_layers; l++)
    if (!(args->layer_caps[l] >= 0))
      return sv_fail(SV_ERR_ARG, "select_budget: layer_caps[%lld] is %g, expected a number from 0 on",
                     (long long)l, args->layer_caps[l]);
  return SV_OK;
}

/* ---- memory ---- */

static bool has_caps(const sv_walk *w) { return w->args->layer_caps != NULL; }
static int64_t count_layers(const sv_walk *w) { return has_caps(w) ? w->args->n_layers : 1; }

/* One block: doubles and 64-bit numbers first, then the 32-bit ones. */
static sv_status alloc_walk(const sv_budget_args *args, sv_walk *w) {
  *w = (sv_walk){.args = args};
  size_t n = (size_t)args->n_decisions, n_layers = (size_t)count_layers(w);
  void *block;
  SV_TRY(sv_scratch_alloc("select_budget", (3 * n_layers + 1) * sizeof(int64_t) + 6 * n * sizeof(int32_t),
                          &block));
  w->layer_first = block;
  w->layer_price = (double *)(w->layer_first + n_layers + 1);
  double *left = w->layer_price + n_layers;
  w->layer_left = has_caps(w) ? left : NULL;
  w->members = (int32_t *)(left + n_layers);
  w->floor = w->members + n;
  w->position = w->floor + n;
  w->low = w->position + n;
  w->high = w->low + n;
  w->active = w->high + n;
  memset(w->floor, 0, n * sizeof *w->floor);
  return SV_OK;
}

/* Decisions by layer, in order inside a layer (counting sort). */
static void group_members(sv_walk *w) {
  const int32_t *layers = has_caps(w) ? w->args->layers : NULL;
  int64_t n = w->args->n_decisions, n_layers = count_layers(w), *first = w->layer_first;
  memset(first, 0, (size_t)(n_layers + 1) * sizeof *first);
  for (int64_t i = 0; i < n; i++) first[layers ? layers[i] + 1 : 1]++;
  for (int64_t l = 0; l < n_layers; l++) first[l + 1] += first[l];
  for (int64_t i = 0; i < n; i++) w->members[first[layers ? layers[i] : 0]++] = (int32_t)i;
  for (int64_t l = n_layers; l > 0; l--) first[l] = first[l - 1];
  first[0] = 0;
}

/* ---- caps of layers ---- */

static double loosen(double budget) {
  return isinf(budget) ? budget : budget + fabs(budget) * SV_BUDGET_SLACK;
}

/* As fast as the cap lets the layer be: its price, and the floor below which its chains may not go. */
static sv_status cap_layer(sv_walk *w, int64_t layer) {
  int64_t begin = w->layer_first[layer], end = w->layer_first[layer + 1];
  double cap = w->args->layer_caps[layer], limit = loosen(cap);
  double least = sv_walk_sum_error(w, begin, end, NULL);
  if (least > limit)
    return sv_fail(SV_ERR_ARG,
                   "select_budget: layer_caps[%lld] is %g, expected at least %g; %g to %g are reachable",
                   (long long)layer, cap, least, least, sv_walk_sum_error(w, begin, end, w->floor));
  SV_TRY(sv_walk_settle(w, SV_WALK_DROP, begin, end, limit, &w->layer_price[layer]));
  w->layer_left[layer] = limit - sv_walk_sum_error(w, begin, end, w->position);
  if (isfinite(w->layer_price[layer])) SV_TRY(sv_walk_fill(w, SV_WALK_DROP, begin, end, INFINITY));
  for (int64_t m = begin; m < end; m++) w->floor[w->members[m]] = w->position[w->members[m]];
  return SV_OK;
}

static sv_status cap_layers(sv_walk *w) {
  for (int64_t l = 0; l < count_layers(w); l++) {
    w->layer_price[l] = INFINITY;
    if (has_caps(w)) SV_TRY(cap_layer(w, l));
  }
  return SV_OK;
}

/* Least time, below the common price: what a cap has left has grown for chains that the budget closed, so the caps
 * are asked step by step from here on, and the floors are lifted. */
static void reopen_layers(sv_walk *w) {
  for (int64_t l = 0; has_caps(w) && l < count_layers(w); l++) {
    double sum = sv_walk_sum_error(w, w->layer_first[l], w->layer_first[l + 1], w->position);
    w->layer_left[l] = loosen(w->args->layer_caps[l]) - sum;
  }
  memset(w->floor, 0, (size_t)w->args->n_decisions * sizeof *w->floor);
}

/* ---- the two objectives ---- */

static sv_status refuse_budget(const sv_walk *w, const char *what, const char *unit, double least,
                               double most) {
  return sv_fail(
      SV_ERR_ARG,
      "select_budget: the %s budget is %g%s, expected at least %.7g%s; %.7g to %.7g%s are reachable%s", what,
      w->args->budget, unit, least, unit, least, most, unit, has_caps(w) ? " within the caps" : "");
}

static sv_status find_least_error(sv_walk *w, double *out_price) {
  int64_t n = w->args->n_decisions;
  double limit = loosen(w->args->budget), least = sv_walk_sum_time(w, 0, n, w->floor);
  if (least > limit) return refuse_budget(w, "time", " ms", least, sv_walk_sum_time(w, 0, n, NULL));
  SV_TRY(sv_walk_settle(w, SV_WALK_RAISE, 0, n, limit, out_price));
  if (*out_price == 0) return SV_OK;
  return sv_walk_fill(w, SV_WALK_RAISE, 0, n, limit - sv_walk_sum_time(w, 0, n, w->position));
}

static sv_status find_least_time(sv_walk *w, double *out_price) {
  int64_t n = w->args->n_decisions;
  double limit = loosen(w->args->budget), least = sv_walk_sum_error(w, 0, n, NULL);
  if (least > limit) return refuse_budget(w, "error", "", least, sv_walk_sum_error(w, 0, n, w->floor));
  SV_TRY(sv_walk_settle(w, SV_WALK_DROP, 0, n, limit, out_price));
  reopen_layers(w);
  return sv_walk_fill(w, SV_WALK_DROP, 0, n, limit - sv_walk_sum_error(w, 0, n, w->position));
}

/* ---- result ---- */

/* Weak duality, in units of time: with nu = 1 / price and the same for each layer's own,
 *   least time >= sum_i min_p (t + nu_l e) - nu budget - sum_l (nu_l - nu) cap_l;  least error the same, times price. */
static double find_bound(const sv_walk *w, double price) {
  const sv_budget_args *args = w->args;
  bool is_time = args->objective == SV_LEAST_TIME;
  if (price == 0) return sv_walk_sum_error(w, 0, args->n_decisions, NULL); /* the time budget does not bind */
  double sum = 0;
  for (int64_t l = 0; l < count_layers(w); l++) {
    double own = fmin(price, w->layer_price[l]), factor = is_time ? 1 / own : price / own;
    for (int64_t m = w->layer_first[l]; m < w->layer_first[l + 1]; m++) {
      int32_t i = w->members[m], at = sv_walk_at_price(w, i, own);
      sum += (is_time ? 1 : price) * sv_walk_time(w, i, at);
      if (factor > 0) sum += factor * sv_walk_error(w, i, at);
    }
    double above = is_time ? 1 / own - 1 / price : price / own - 1;
    if (has_caps(w) && above > 0) sum -= above * args->layer_caps[l];
  }
  double multiplier = is_time ? 1 / price : price;
  return multiplier > 0 ? sum - multiplier * args->budget : sum;
}

static void write_result(const sv_walk *w, double price, int32_t *out_choice, sv_budget_result *out) {
  bool is_time = w->args->objective == SV_LEAST_TIME;
  *out = (sv_budget_result){.multiplier = is_time ? 1 / price : price};
  for (int64_t i = 0; i < w->args->n_decisions; i++) {
    out_choice[i] = sv_hulls_chain(&w->hulls, i)[w->position[i]].option;
    out->time_ms += sv_walk_time(w, i, w->position[i]);
    out->error += sv_walk_error(w, i, w->position[i]);
  }
  out->bound = fmin(fmax(find_bound(w, price), 0), is_time ? out->time_ms : out->error);
}

/* The indices are copied: another thread may change the caller's arrays while this one works. */
static sv_status copy_indices(const sv_budget_args *from, sv_budget_args *args, void **out_block) {
  size_t n = (size_t)from->n_decisions;
  *args = *from;
  SV_TRY(sv_scratch_alloc("select_budget", 2 * n * sizeof(int32_t), out_block));
  args->groups = memcpy(*out_block, from->groups, n * sizeof(int32_t));
  if (from->layers) args->layers = memcpy((int32_t *)*out_block + n, from->layers, n * sizeof(int32_t));
  return SV_OK;
}

sv_status sv_select_budget(const sv_budget_args *from, int32_t *out_choice, sv_budget_result *out_result) {
  sv_budget_args args;
  sv_walk w = {0};
  void *indices = NULL;
  double price;
  sv_status status;
  SV_TRY(check_counts(from));
  SV_GOTO(status, copy_indices(from, &args, &indices));
  SV_GOTO(status, check_args(&args));
  SV_GOTO(status, alloc_walk(&args, &w));
  group_members(&w);
  SV_GOTO(status, sv_hulls_make(&args, &w.hulls));
  SV_GOTO(status, cap_layers(&w));
  SV_GOTO(status,
          args.objective == SV_LEAST_TIME ? find_least_time(&w, &price) : find_least_error(&w, &price));
  write_result(&w, price, out_choice, out_result);
done:
  sv_hulls_free(&w.hulls);
  sv_scratch_free(w.layer_first);
  sv_scratch_free(indices);
  return status;
}
