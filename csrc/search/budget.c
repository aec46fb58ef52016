/* budget.c — the exact price by bisection over the bits of a double, then single steps from a heap. The bits of
 * positive doubles are ordered like the numbers, so 63 halvings end at the one slope that breaks the budget; chains
 * whose bracket has closed leave the loop, so that most halvings look at few. */
#include "search/budget.h"

#include <math.h>
#include <string.h>

#include "base/scratch.h"

double sv_walk_time(const sv_walk *w, int64_t i, int32_t position) {
  const sv_budget_args *args = w->args;
  int32_t option = sv_hulls_chain(&w->hulls, i)[position].option;
  return args->repeats[i] * args->times_ms[args->groups[i] * args->n_options + option];
}

double sv_walk_error(const sv_walk *w, int64_t i, int32_t position) {
  return w->args->repeats[i] * w->args->weights[i] * (double)sv_hulls_chain(&w->hulls, i)[position].error;
}

double sv_walk_sum_time(const sv_walk *w, int64_t begin, int64_t end, const int32_t *at) {
  double sum = 0;
  for (int64_t m = begin; m < end; m++) {
    int32_t i = w->members[m];
    sum += sv_walk_time(w, i, at ? at[i] : w->hulls.count[i] - 1);
  }
  return sum;
}

double sv_walk_sum_error(const sv_walk *w, int64_t begin, int64_t end, const int32_t *at) {
  double sum = 0;
  for (int64_t m = begin; m < end; m++) {
    int32_t i = w->members[m];
    sum += sv_walk_error(w, i, at ? at[i] : w->hulls.count[i] - 1);
  }
  return sum;
}

/* The last position in low..high whose step is steeper; that of `low` is known to be (or must not be undercut). */
static int32_t search_chain(const sv_hull_point *chain, int32_t low, int32_t high, double slope) {
  while (low < high) {
    int32_t middle = low + (high - low + 1) / 2;
    if (chain[middle].slope > slope)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

int32_t sv_walk_at_price(const sv_walk *w, int64_t i, double slope) {
  return search_chain(sv_hulls_chain(&w->hulls, i), 0, w->hulls.count[i] - 1, slope);
}

/* ---- the price ---- */

static uint64_t bits_of(double x) {
  uint64_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

static double from_bits(uint64_t bits) {
  double x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

static double amount(const sv_walk *w, sv_walk_direction direction, int32_t i, int32_t position) {
  return direction == SV_WALK_RAISE ? sv_walk_time(w, i, position) : sv_walk_error(w, i, position);
}

typedef struct bracket {
  uint64_t flat,
      steep; /* bits: at slopes above `flat` chains stand at their high ends, above `steep` at the low */
  int64_t n_active;
  double settled; /* amount of the chains that have left */
} bracket;

/* Closed chains leave the list of active ones, in order, so that sums do not depend on anything but the input. */
static void retire(sv_walk *w, sv_walk_direction direction, bracket *b) {
  int64_t kept = 0;
  for (int64_t m = 0; m < b->n_active; m++) {
    int32_t i = w->active[m];
    if (w->low[i] < w->high[i])
      w->active[kept++] = i;
    else
      b->settled += amount(w, direction, i, w->low[i]);
  }
  b->n_active = kept;
}

static void halve(sv_walk *w, sv_walk_direction direction, double limit, bracket *b) {
  uint64_t middle = b->flat + (b->steep - b->flat) / 2;
  double slope = from_bits(middle), sum = b->settled;
  for (int64_t m = 0; m < b->n_active; m++) {
    int32_t i = w->active[m];
    w->position[i] = search_chain(sv_hulls_chain(&w->hulls, i), w->low[i], w->high[i], slope);
    sum += amount(w, direction, i, w->position[i]);
  }
  bool fits = sum <= limit, is_low_end = fits == (direction == SV_WALK_RAISE);
  int32_t *end = is_low_end ? w->low : w->high;
  for (int64_t m = 0; m < b->n_active; m++) end[w->active[m]] = w->position[w->active[m]];
  *(is_low_end ? &b->steep : &b->flat) = middle;
  retire(w, direction, b);
}

static void open_brackets(sv_walk *w, int64_t begin, int64_t end) {
  for (int64_t m = begin; m < end; m++) {
    int32_t i = w->members[m];
    w->low[i] = w->floor[i];
    w->high[i] = w->hulls.count[i] - 1;
    w->active[m - begin] = i;
  }
}

static double sum_amount(const sv_walk *w, sv_walk_direction direction, int64_t begin, int64_t end,
                         const int32_t *at) {
  return direction == SV_WALK_RAISE ? sv_walk_sum_time(w, begin, end, at)
                                    : sv_walk_sum_error(w, begin, end, at);
}

sv_status sv_walk_settle(sv_walk *w, sv_walk_direction direction, int64_t begin, int64_t end, double limit,
                         double *out_slope) {
  bool raises = direction == SV_WALK_RAISE;
  open_brackets(w, begin, end);
  const int32_t *far_end = raises ? w->high : w->low, *near_end = raises ? w->low : w->high;
  bool all_fit = sum_amount(w, direction, begin, end, far_end) <= limit;
  bracket b = {.flat = 0, .steep = bits_of(INFINITY) - 1, .n_active = end - begin};
  if (!all_fit) retire(w, direction, &b);
  while (!all_fit && b.steep - b.flat > 1) {
    if (sv_poll_interrupted(w->args->poll)) return sv_fail(SV_ERR_INTERRUPTED, "select_budget: interrupted");
    halve(w, direction, limit, &b);
  }
  const int32_t *found = all_fit ? far_end : near_end;
  for (int64_t m = begin; m < end; m++) w->position[w->members[m]] = found[w->members[m]];
  *out_slope = !all_fit ? from_bits(b.steep) : raises ? 0 : INFINITY;
  return SV_OK;
}

/* ---- single steps ---- */

typedef struct step {
  double rank; /* larger first: the slope, negative when dropping */
  int32_t i;
} step;

typedef struct heap {
  step *steps;
  int64_t n;
} heap;

static bool comes_before(const step *a, const step *b) {
  return a->rank > b->rank || (a->rank == b->rank && a->i < b->i);
}

static void sift_down(heap *h, int64_t at) {
  step moved = h->steps[at];
  for (int64_t child = 2 * at + 1; child < h->n; child = 2 * at + 1) {
    if (child + 1 < h->n && comes_before(&h->steps[child + 1], &h->steps[child])) child++;
    if (!comes_before(&h->steps[child], &moved)) break;
    h->steps[at] = h->steps[child];
    at = child;
  }
  h->steps[at] = moved;
}

/* The next step of a chain, and whether it fits now: what is left only shrinks, so one that does not never will. */
static bool find_step(const sv_walk *w, sv_walk_direction direction, int32_t i, double left, step *out,
                      double *out_amount) {
  bool raises = direction == SV_WALK_RAISE;
  int32_t from = w->position[i], to = raises ? from + 1 : from - 1;
  if (w->args->repeats[i] == 0 || to < w->floor[i] || to >= w->hulls.count[i]) return false;
  const sv_hull_point *chain = sv_hulls_chain(&w->hulls, i);
  *out = (step){raises ? chain[to].slope : -chain[from].slope, i};
  *out_amount = amount(w, direction, i, to) - amount(w, direction, i, from);
  if (!raises && w->layer_left && *out_amount > w->layer_left[w->args->layers[i]]) return false;
  return *out_amount <= left;
}

static void take_steps(sv_walk *w, sv_walk_direction direction, heap *h, double left) {
  int32_t towards = direction == SV_WALK_RAISE ? 1 : -1;
  while (h->n > 0) {
    step next;
    double spent;
    int32_t i = h->steps[0].i;
    bool open = find_step(w, direction, i, left, &next, &spent);
    if (open) {
      w->position[i] += towards;
      left -= spent;
      if (towards < 0 && w->layer_left) w->layer_left[w->args->layers[i]] -= spent;
      open = find_step(w, direction, i, left, &next, &spent);
    }
    h->steps[0] = open ? next : h->steps[--h->n];
    if (h->n > 0) sift_down(h, 0);
  }
}

sv_status sv_walk_fill(sv_walk *w, sv_walk_direction direction, int64_t begin, int64_t end, double left) {
  void *block;
  SV_TRY(sv_scratch_alloc("select_budget", (size_t)(end - begin) * sizeof(step), &block));
  heap h = {block, 0};
  double spent;
  for (int64_t m = begin; m < end; m++)
    h.n += find_step(w, direction, w->members[m], left, &h.steps[h.n], &spent);
  for (int64_t at = h.n / 2; at-- > 0;) sift_down(&h, at);
  take_steps(w, direction, &h, left);
  sv_scratch_free(block);
  return SV_OK;
}
