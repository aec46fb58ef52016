/* test_select.c — both rules against loops over everything: the paper's two equations written out, and the budget rule
 * against all choices of small instances. Inputs end at a guard page; failing allocations leave outputs untouched. */
#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>

#include "base/parallel.h"
#include "base/scratch.h"
#include "check.h"
#include "guard.h"
#include "search/select.h"

#define N 5
#define P 5
#define LAYERS 2
#define ALL 3125 /* P ^ N */
#define CASES 60

static uint64_t state = 7;
static double uniform(void) { /* splitmix64, 0..1 */
  uint64_t z = (state += UINT64_C(0x9e3779b97f4a7c15));
  z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
  z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
  return (double)((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

/* ---- a small instance ---- */

static struct {
  guarded errors, times, groups, weights, repeats, layers, caps;
  sv_budget_args args;
} it;

static void make_instance(bool with_caps) {
  it.errors = guard_alloc(N * P * sizeof(float));
  it.times = guard_alloc(2 * P * sizeof(double));
  it.groups = guard_alloc(N * sizeof(int32_t));
  it.weights = guard_alloc(N * sizeof(double));
  it.repeats = guard_alloc(N * sizeof(double));
  it.layers = guard_alloc(N * sizeof(int32_t));
  it.caps = guard_alloc(LAYERS * sizeof(double));
  for (int i = 0; i < N * P; i++) ((float *)it.errors.data)[i] = uniform() < 0.15 ? NAN : (float)uniform();
  for (int i = 0; i < N; i++) ((float *)it.errors.data)[i * P + P - 1] = 0.01f; /* one is always allowed */
  for (int i = 0; i < 2 * P; i++) ((double *)it.times.data)[i] = 1 + floor(8 * uniform()); /* with ties */
  for (int i = 0; i < N; i++) {
    ((int32_t *)it.groups.data)[i] = i == 0 || uniform() < 0.5;
    ((double *)it.weights.data)[i] = uniform() < 0.1 ? 0 : 2 * uniform();
    ((double *)it.repeats.data)[i] = 1 + floor(3 * uniform());
    ((int32_t *)it.layers.data)[i] = i % LAYERS;
  }
  for (int l = 0; l < LAYERS; l++) ((double *)it.caps.data)[l] = l ? INFINITY : 0.2 + 2 * uniform();
  it.args = (sv_budget_args){.n_decisions = N,
                             .n_options = P,
                             .n_groups = 2,
                             .n_layers = LAYERS,
                             .errors = it.errors.data,
                             .times_ms = it.times.data,
                             .groups = it.groups.data,
                             .weights = it.weights.data,
                             .repeats = it.repeats.data,
                             .layers = it.layers.data,
                             .layer_caps = with_caps ? it.caps.data : NULL};
}

static void free_instance(void) {
  guarded *all[] = {&it.errors, &it.times, &it.groups, &it.weights, &it.repeats, &it.layers, &it.caps};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) guard_free(all[i]);
}

typedef struct sums {
  double error, time_ms, layer_error[LAYERS];
  bool allowed;
} sums;

static sums add_up(const int32_t *choice) {
  sums s = {.allowed = true};
  for (int i = 0; i < N; i++) {
    double e = (double)it.args.errors[i * P + choice[i]], r = it.args.repeats[i];
    if (isnan(e)) s.allowed = false;
    s.error += r * it.args.weights[i] * e;
    s.layer_error[it.args.layers[i]] += r * it.args.weights[i] * e;
    s.time_ms += r * it.args.times_ms[it.args.groups[i] * P + choice[i]];
  }
  for (int l = 0; it.args.layer_caps && l < LAYERS; l++)
    if (s.layer_error[l] > it.args.layer_caps[l] * (1 + 1e-9)) s.allowed = false;
  return s;
}

static void unpack(int number, int32_t *choice) {
  for (int i = 0; i < N; i++, number /= P) choice[i] = number % P;
}

/* The best of all choices within the budget; INFINITY if there is none. */
static double search_all(double budget, int32_t objective) {
  double best = INFINITY;
  for (int number = 0; number < ALL; number++) {
    int32_t choice[N];
    unpack(number, choice);
    sums s = add_up(choice);
    bool is_time = objective == SV_LEAST_TIME;
    if (s.allowed && (is_time ? s.error : s.time_ms) <= budget * (1 + 1e-9))
      best = fmin(best, is_time ? s.time_ms : s.error);
  }
  return best;
}

/* What each decision chooses by itself at a price: minimum of w e + price t, the least time among equals. */
static void choose_at_price(double price, int32_t *choice) {
  for (int i = 0; i < N; i++) {
    double least = INFINITY;
    choice[i] = -1;
    for (int32_t p = 0; p < P; p++) {
      double t = it.args.times_ms[it.args.groups[i] * P + p];
      double value = it.args.weights[i] * (double)it.args.errors[i * P + p] + price * t;
      if (value < least) {
        least = value;
        choice[i] = p;
      }
    }
  }
}

/* ---- the budget rule ---- */

static void check_result_of(double budget, int32_t objective, const char *what) {
  int32_t choice[N] = {0};
  sv_budget_result found;
  it.args.budget = budget;
  it.args.objective = objective;
  sv_status status = sv_select_budget(&it.args, choice, &found);
  double best = search_all(budget, objective);
  if (status != SV_OK) { /* with caps the greedy may miss what only a lucky mix meets */
    CHECK(it.args.layer_caps || !isfinite(best), "%s: refused %g, %s", what, budget, sv_last_error());
    CHECK(strstr(sv_last_error(), "reachable"), "%s: said %s", what, sv_last_error());
    return;
  }
  sums s = add_up(choice);
  bool is_time = objective == SV_LEAST_TIME;
  double value = is_time ? found.time_ms : found.error;
  CHECK(s.allowed, "%s: a choice is not allowed", what);
  CHECK(fabs(s.error - found.error) < 1e-12 && fabs(s.time_ms - found.time_ms) < 1e-9, "%s: sums", what);
  CHECK((is_time ? s.error : s.time_ms) <= budget * (1 + 1e-9), "%s: over the budget", what);
  CHECK(found.bound <= best + 1e-9 && best <= value + 1e-9, "%s: bound %g, best %g, found %g", what,
        found.bound, best, value);
}

static void test_against_all(bool with_caps) {
  for (int n = 0; n < CASES; n++) {
    make_instance(with_caps);
    for (int b = 0; b < 6; b++) {
      check_result_of(5 + 70 * uniform(), SV_LEAST_ERROR, with_caps ? "caps, time" : "time");
      check_result_of(5 * uniform() * uniform(), SV_LEAST_TIME, with_caps ? "caps, error" : "error");
    }
    free_instance();
  }
}

/* A budget that a price uses up: nothing at all is better, so the rule must be exact. */
static void test_exact_at_prices(void) {
  for (int n = 0; n < CASES; n++) {
    make_instance(false);
    int32_t wanted[N], choice[N];
    sv_budget_result found;
    choose_at_price(0.6 * uniform() * uniform(), wanted);
    sums s = add_up(wanted);
    it.args.objective = SV_LEAST_ERROR;
    it.args.budget = s.time_ms;
    CHECK_OK(sv_select_budget(&it.args, choice, &found));
    CHECK(fabs(found.error - s.error) < 1e-12, "time: error %g, expected %g", found.error, s.error);
    it.args.objective = SV_LEAST_TIME;
    it.args.budget = s.error;
    CHECK_OK(sv_select_budget(&it.args, choice, &found));
    CHECK(found.time_ms <= s.time_ms * (1 + 1e-12), "error: time %g, expected %g", found.time_ms, s.time_ms);
    free_instance();
  }
}

static void test_larger_budgets_are_never_worse(void) {
  for (int n = 0; n < CASES / 4; n++) {
    make_instance(n % 2 == 1);
    for (int32_t objective = SV_LEAST_ERROR; objective <= SV_LEAST_TIME; objective++) {
      double last = INFINITY;
      for (int b = 1; b <= 200; b++) {
        int32_t choice[N];
        sv_budget_result found;
        it.args.objective = objective;
        it.args.budget = (objective == SV_LEAST_TIME ? 0.04 : 0.5) * b;
        if (sv_select_budget(&it.args, choice, &found) != SV_OK) {
          CHECK(isinf(last), "budget %g is refused, a smaller one was not", it.args.budget);
          continue;
        }
        double value = objective == SV_LEAST_TIME ? found.time_ms : found.error;
        CHECK(value <= last + 1e-12, "budget %g: %g after %g", it.args.budget, value, last);
        last = value;
      }
    }
    free_instance();
  }
}

/* ---- many decisions: threads, memory ---- */

#define MANY 3000

static sv_status call_many(const sv_poll *poll, int32_t *out, sv_budget_result *found) {
  static float errors[MANY * P];
  static double ones[MANY], caps[4] = {INFINITY, 120, 150, INFINITY};
  static const double times[P] = {5, 1, 4, 2, 3};
  static int32_t groups[MANY], layers[MANY];
  state = 99;
  for (int i = 0; i < MANY; i++) {
    ones[i] = 1;
    layers[i] = i % 4;
    for (int p = 0; p < P; p++) errors[i * P + p] = (float)(uniform() / times[p]);
  }
  sv_budget_args args = {MANY, P,    1,      4,    errors,         times,      groups,
                         ones, ones, layers, caps, SV_LEAST_ERROR, MANY * 2.5, poll};
  return sv_select_budget(&args, out, found);
}

static void test_threads_do_not_matter(void) {
  static int32_t choice[MANY], other[MANY];
  sv_budget_result found, again;
  sv_parallel_set_threads(1);
  CHECK_OK(call_many(NULL, choice, &found));
  sv_parallel_set_threads(3);
  CHECK_OK(call_many(NULL, other, &again));
  sv_parallel_set_threads(0);
  CHECK(memcmp(choice, other, sizeof choice) == 0 && memcmp(&found, &again, sizeof found) == 0, "differ");
}

static void test_failing_allocations(void) {
  static int32_t choice[MANY];
  sv_budget_result found;
  int64_t live = sv_scratch_live();
  int n = 0;
  for (sv_status status = SV_ERR_NOMEM; status != SV_OK && n < 1000;) {
    memset(choice, 0x5a, sizeof choice);
    sv_scratch_fail_at(++n);
    status = call_many(NULL, choice, &found);
    sv_scratch_fail_at(0);
    CHECK(sv_scratch_live() == live, "allocation %d: %lld blocks leak", n,
          (long long)(sv_scratch_live() - live));
    if (status == SV_OK) break;
    CHECK(status == SV_ERR_NOMEM && strstr(sv_last_error(), "select_budget: could not allocate"), "said %s",
          sv_last_error());
    CHECK(choice[0] == 0x5a5a5a5a && choice[MANY - 1] == 0x5a5a5a5a, "allocation %d: outputs are touched", n);
  }
  CHECK(n > 10 && n < 1000, "%d allocations", n);
}

static bool say_stop(void *ctx) {
  (void)ctx;
  return true;
}

static void test_interruption(void) {
  static int32_t choice[MANY];
  sv_budget_result found;
  const sv_poll stop = {say_stop, NULL};
  CHECK_FAILS(call_many(&stop, choice, &found), SV_ERR_INTERRUPTED, "interrupted");
}

static void test_refusals(void) {
  int32_t choice[N];
  sv_budget_result found;
  make_instance(true);
  it.args.budget = 30;
#define REFUSES(field, value, words)                                                                         \
  do {                                                                                                       \
    sv_budget_args kept = it.args;                                                                           \
    it.args.field = (value);                                                                                 \
    CHECK_FAILS(sv_select_budget(&it.args, choice, &found), SV_ERR_ARG, words);                              \
    it.args = kept;                                                                                          \
  } while (0)
  REFUSES(n_decisions, 0, "there are 0 decisions, expected 1..");
  REFUSES(n_options, 0, "there are 0 options, expected 1..");
  REFUSES(n_groups, 0, "there are 0 rows of times");
  REFUSES(n_groups, 1, "is 1, expected 0..0");
  REFUSES(n_layers, 1, "is 1, expected 0..0");
  REFUSES(budget, (double)NAN, "the budget is not a number");
  REFUSES(budget, 1.0, "the time budget is 1 ms, expected at least");
  REFUSES(layers, NULL, "expected the layer of each decision");
  ((double *)it.caps.data)[0] = 1e-6;
  CHECK_FAILS(sv_select_budget(&it.args, choice, &found), SV_ERR_ARG,
              "layer_caps[0] is 1e-06, expected at least");
  for (int p = 0; p < P; p++) ((float *)it.errors.data)[2 * P + p] = NAN;
  CHECK_FAILS(sv_select_budget(&it.args, choice, &found), SV_ERR_ARG, "decision 2 has no allowed option");
  ((float *)it.errors.data)[2 * P + 1] = -1.0f;
  CHECK_FAILS(sv_select_budget(&it.args, choice, &found), SV_ERR_ARG, "errors[2, 1] is -1, expected");
  ((double *)it.times.data)[P - 1] = INFINITY;
  CHECK_FAILS(sv_select_budget(&it.args, choice, &found), SV_ERR_ARG, "times[4] is inf, expected a finite");
  free_instance();
}

/* ---- the paper's rule ---- */

static void test_paper(void) {
  const double sparsity[] = {0.0, 1.0, 0.8, 0.5};
  for (int n = 0; n < 2000; n++) {
    double mse[4], lambda = uniform(), epsilon = 0.2 + uniform();
    int32_t choice;
    for (int m = 0; m < 4; m++) mse[m] = uniform() < 0.1 ? NAN : 1.5 * uniform();
    CHECK_OK(sv_select_paper(mse, 1, 4, sparsity, lambda, epsilon, 0, &choice));
    bool all_exceed = true;
    for (int m = 1; m < 4; m++) {
      double loss = mse[m] + lambda * (1 - sparsity[m]);
      if (!isnan(loss) && loss <= epsilon) all_exceed = false;
      if (choice != 0) CHECK(isnan(loss) || loss >= mse[choice] + lambda * (1 - sparsity[choice]), "argmin");
    }
    CHECK((choice == 0) == all_exceed, "full is %d, expected %d", choice == 0, all_exceed);
  }
}

static void test_paper_refusals(void) {
  double mse[] = {0, 0.5}, sparsity[] = {0, 0.7};
  int32_t choice;
  CHECK_OK(sv_select_paper(mse, 1, 2, sparsity, 0.5, 0.5 + 0.5 * (1 - 0.7), 0, &choice));
  CHECK(choice == 1, "a loss of epsilon does not exceed it");
  CHECK_FAILS(sv_select_paper(mse, 0, 2, sparsity, 0.5, 1, 0, &choice), SV_ERR_ARG, "0 decisions");
  CHECK_FAILS(sv_select_paper(mse, 1, 0, sparsity, 0.5, 1, 0, &choice), SV_ERR_ARG, "0 modes");
  CHECK_FAILS(sv_select_paper(mse, 1, 2, sparsity, 0.5, 1, 2, &choice), SV_ERR_ARG,
              "full is 2, expected 0..1");
  CHECK_FAILS(sv_select_paper(mse, 1, 2, sparsity, -1, 1, 0, &choice), SV_ERR_ARG, "lambda is -1");
  CHECK_FAILS(sv_select_paper(mse, 1, 2, sparsity, 0.5, NAN, 0, &choice), SV_ERR_ARG, "epsilon");
  sparsity[1] = 1.5;
  CHECK_FAILS(sv_select_paper(mse, 1, 2, sparsity, 0.5, 1, 0, &choice), SV_ERR_ARG, "sparsity[1] is 1.5");
  sparsity[1] = 0.7;
  mse[1] = -0.5;
  CHECK_FAILS(sv_select_paper(mse, 1, 2, sparsity, 0.5, 1, 0, &choice), SV_ERR_ARG, "mse[0, 1] is -0.5");
}

int main(void) {
  test_against_all(false);
  test_against_all(true);
  test_exact_at_prices();
  test_larger_budgets_are_never_worse();
  test_threads_do_not_matter();
  test_failing_allocations();
  test_interruption();
  test_refusals();
  test_paper();
  test_paper_refusals();
  return check_result();
}
