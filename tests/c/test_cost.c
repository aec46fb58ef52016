/* test_cost.c — prices against a count over block masks and a schedule by plain search; refusals; bad weather. */
#define _GNU_SOURCE
#include <math.h>
#include <stdlib.h>

#include "base/scratch.h"
#include "check.h"
#include "guard.h"
#include "search/cost.h"

#define PATTERNS 6
#define HEADS 5
#define MAX_ROWS 32
#define MAX_BLOCKS 64

static uint64_t state = 1;
static uint32_t draw(void) {
  state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
  return (uint32_t)(state >> 33);
}
static double uniform(void) { return (double)draw() / 2147483648.0; }

static sv_geometry geometry = {2, 9, 11, 3, 5, 32, 16};
static uint8_t masks[PATTERNS][MAX_ROWS * MAX_BLOCKS];
static sv_row rows[PATTERNS * MAX_ROWS];
static sv_codes codes;
static guarded code_room;
static int32_t orders[PATTERNS];
static sv_hardware machine;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

static void make_machine(double workers) {
  machine = (sv_hardware){.workers = workers,
                          .tall_rows = 6,
                          .low_rows = 4,
                          .chunk_keys = 64,
                          .cache_tokens = 500,
                          .launch_us = 11,
                          .head_us = 3,
                          .pack_us = 0.7,
                          .far_us = 0.9,
                          .reorder_us = 0.5,
                          .mean_us = 0.3,
                          .item_us = 2,
                          .chunk_us = 0.4,
                          .run_us = 0.13,
                          .full_us = 1.7,
                          .partial_us = 0.23,
                          .pooled_us = 0.61,
                          .tile_us = 0.19,
                          .zero_us = 0.05};
}

/* Pattern 0 is empty, 1 full, the others random; the codes end at a guard page. */
static sv_cost_pool make_pool(int64_t n_samples) {
  int64_t nq = sv_geometry_query_blocks(&geometry), nk = sv_geometry_key_blocks(&geometry);
  sv_codes_free(&codes);
  for (int p = 0; p < PATTERNS; p++) {
    for (int64_t i = 0; i < nq * nk; i++) masks[p][i] = p == 1 || (p > 1 && (int)(draw() % 100) < 15 * p);
    orders[p] = p % 3 - 1;
    CHECK_OK(sv_visits_emit_mask(&geometry, masks[p], p > 1, rows + p * nq, &codes, NULL));
  }
  if (code_room.data) guard_free(&code_room);
  code_room = guard_alloc((size_t)codes.n * 4);
  memcpy(code_room.data, codes.words, (size_t)codes.n * 4);
  return (sv_cost_pool){geometry, rows, PATTERNS, code_room.data, codes.n, orders, n_samples, HEADS};
}

static double expected_rows(int64_t n) {
  int64_t best = 1 << 20;
  for (int64_t tall = 0; tall <= n; tall++)
    for (int64_t low = 0; low <= n; low++)
      if (tall * 6 + low * 4 >= n) best = least(best, tall * 6 + low * 4);
  return (double)best;
}

static double expected_item(int p, int64_t qb, bool pooled) {
  int64_t n = sv_geometry_tokens(&geometry), nk = sv_geometry_key_blocks(&geometry), keys = 0, runs = 0;
  int64_t shorts = 0, means = 0, tiles = 0;
  const uint8_t *mask = masks[p] + qb * nk;
  for (int64_t kb = 0; kb < nk; kb++) {
    int64_t size = least(n - kb * 16, 16);
    keys += mask[kb] ? size : 0;
    runs += mask[kb] && (kb == 0 || !mask[kb - 1]);
    shorts += mask[kb] && size < 16;
    means += pooled && !mask[kb];
  }
  for (int64_t tile = 0; tile * 16 < nk; tile++) {
    bool any = false;
    for (int64_t kb = tile * 16; kb < least(nk, tile * 16 + 16); kb++) any = any || !mask[kb];
    tiles += pooled && any;
  }
  if (keys == 0 && means == 0) return 0.0;
  double panels = ceil((double)means / 16.0), chunks = ceil(((double)keys + 16.0 * panels) / 64.0);
  double us = 2 + 0.4 * chunks + 0.13 * (double)runs + 1.7 * (double)keys / 16.0 + 0.23 * (double)shorts +
              0.61 * panels + 0.19 * (double)tiles;
  return us * expected_rows(least(n - qb * 32, 32)) / expected_rows(32);
}

static double expected_head(int p, bool with_remainder, const sv_cost_pool *pool) {
  int64_t nq = sv_geometry_query_blocks(&geometry), nk = sv_geometry_key_blocks(&geometry);
  double n = (double)sv_geometry_tokens(&geometry), us;
  double far = fmax(0.0, 1.0 - 500.0 / (n * HEADS * (double)pool->n_samples));
  bool pooled = with_remainder && p > 1;
  us = 3 + n / 16 * (0.7 + 0.9 * far) + (orders[p] >= 0 ? 0.5 * n / 32 : 0.0) +
       (pooled ? 0.3 * (double)nk : 0);
  for (int64_t qb = 0; qb < nq; qb++) {
    double item = expected_item(p, qb, pooled);
    us += item > 0 ? item : 0.05 * (double)least((int64_t)n - qb * 32, 32) / 32;
  }
  return us * (double)pool->n_samples / machine.workers / 1000;
}

static bool near(double a, double b) { return fabs(a - b) <= 1e-12 * fabs(b); }

static void test_heads(void) {
  for (int64_t n_samples = 1; n_samples <= 3; n_samples++) {
    sv_cost_pool pool = make_pool(n_samples);
    double found[PATTERNS][2];
    CHECK_OK(sv_cost_heads(&machine, &pool, NULL, &found[0][0]));
    for (int p = 0; p < PATTERNS; p++)
      for (int r = 0; r < 2; r++) {
        double expected = expected_head(p, r == 1, &pool);
        CHECK(near(found[p][r], expected), "pattern %d, %d: %.17g, expected %.17g", p, r, found[p][r],
              expected);
      }
  }
}

/* Items of all heads by falling length, ties by head and query block; each to the first worker of least load. */
static double expected_makespan(const int32_t *choice, const uint8_t *remainder, int64_t n_samples) {
  int64_t nq = sv_geometry_query_blocks(&geometry), nk = sv_geometry_key_blocks(&geometry);
  int64_t workers = (int64_t)machine.workers;
  double *loads = calloc((size_t)workers, sizeof *loads), longest = 0;
  for (int64_t length = 2 * nk; length > 0; length--)
    for (int h = 0; h < HEADS; h++)
      for (int64_t qb = 0; qb < nq; qb++) {
        const uint8_t *mask = masks[choice[h]] + qb * nk;
        int64_t n = 0;
        bool pooled = remainder[h] && choice[h] > 1;
        for (int64_t kb = 0; kb < nk; kb++) n += mask[kb];
        for (int64_t tile = 0; pooled && tile * 16 < nk; tile++) {
          bool any = false;
          for (int64_t kb = tile * 16; kb < least(nk, tile * 16 + 16); kb++) any = any || !mask[kb];
          n += any;
        }
        for (int64_t b = 0; n == length && b < n_samples; b++) {
          int64_t free_one = 0;
          for (int64_t w = 1; w < workers; w++)
            if (loads[w] < loads[free_one]) free_one = w;
          loads[free_one] += expected_item(choice[h], qb, pooled);
          longest = fmax(longest, loads[free_one]);
        }
      }
  free(loads);
  return longest / 1000;
}

static void test_layer(void) {
  const double workers[] = {1, 2, 3, 7, 132, 1000};
  for (size_t w = 0; w < sizeof workers / sizeof *workers; w++)
    for (int64_t n_samples = 1; n_samples <= 2; n_samples++) {
      int32_t choice[HEADS];
      uint8_t remainder[HEADS];
      double ms, heads[HEADS], rest = machine.launch_us / 1000, items = 0;
      make_machine(workers[w]);
      sv_cost_pool pool = make_pool(n_samples);
      for (int h = 0; h < HEADS; h++)
        choice[h] = (int32_t)(draw() % PATTERNS), remainder[h] = draw() % 2 == 0;
      CHECK_OK(sv_cost_layers(&machine, &pool, 1, choice, remainder, NULL, &ms, heads));
      for (int h = 0; h < HEADS; h++) {
        double expected = expected_head(choice[h], remainder[h], &pool);
        CHECK(near(heads[h], expected), "head %d: %.17g, expected %.17g", h, heads[h], expected);
        rest += heads[h];
        for (int64_t qb = 0; qb < sv_geometry_query_blocks(&geometry); qb++)
          items += expected_item(choice[h], qb, remainder[h] && choice[h] > 1);
      }
      rest -= items * (double)n_samples / workers[w] / 1000;
      double expected = rest + expected_makespan(choice, remainder, n_samples);
      CHECK(fabs(ms - expected) < 1e-9 * expected, "%g workers: %.17g, expected %.17g", workers[w], ms,
            expected);
    }
}

static void test_makespan(void) {
  double times[200], room[300];
  for (int round = 0; round < 200; round++) {
    int64_t n = (int64_t)(draw() % 200), workers = 1 + (int64_t)(draw() % (round < 100 ? 8 : 300));
    double loads[300] = {0}, longest = 0;
    for (int64_t i = 0; i < n; i++) times[i] = draw() % 4 ? uniform() : 1.0;
    for (int64_t i = 0; i < n; i++) {
      int64_t first = 0;
      for (int64_t w = 1; w < workers; w++)
        if (loads[w] < loads[first]) first = w;
      loads[first] += times[i];
      longest = fmax(longest, loads[first]);
    }
    double found = sv_cost_makespan(times, n, workers, room);
    CHECK(found == longest, "%.17g, expected %.17g", found, longest);
  }
}

/* Layers together cost, to the bit, what each costs alone: a pattern's price does not know who has it. */
static void test_layers_together(void) {
  enum { LAYERS = 7 };
  int32_t choice[LAYERS * HEADS];
  uint8_t remainder[LAYERS * HEADS];
  double ms[LAYERS], heads[LAYERS * HEADS];
  make_machine(3);
  sv_cost_pool pool = make_pool(2);
  for (int i = 0; i < LAYERS * HEADS; i++)
    choice[i] = (int32_t)(draw() % PATTERNS), remainder[i] = draw() % 2 == 0;
  CHECK_OK(sv_cost_layers(&machine, &pool, LAYERS, choice, remainder, NULL, ms, heads));
  for (int l = 0; l < LAYERS; l++) {
    double alone, alone_heads[HEADS];
    CHECK_OK(sv_cost_layers(&machine, &pool, 1, choice + l * HEADS, remainder + l * HEADS, NULL, &alone,
                            alone_heads));
    CHECK(alone == ms[l], "layer %d: %.17g, alone %.17g", l, ms[l], alone);
    CHECK(memcmp(alone_heads, heads + l * HEADS, sizeof alone_heads) == 0, "layer %d: heads differ", l);
  }
  CHECK_OK(sv_cost_layers(&machine, &pool, 0, choice, remainder, NULL, ms, heads));
}

static void test_refusals(void) {
  sv_cost_pool pool = make_pool(1), bad = pool;
  int32_t choice[HEADS] = {0, 1, 2, 3, 4};
  uint8_t remainder[HEADS] = {0, 1, 0, 1, 1};
  double ms, heads[PATTERNS * 2], constants[sizeof machine / sizeof(double)];
  sv_hardware read;
  make_machine(2);
  choice[2] = PATTERNS;
  CHECK_FAILS(sv_cost_layers(&machine, &pool, 1, choice, remainder, NULL, &ms, heads), SV_ERR_ARG,
              "cost: choice[2] is 6, expected 0..5");
  choice[2] = 2;
  bad.n_samples = 0;
  CHECK_FAILS(sv_cost_heads(&machine, &bad, NULL, heads), SV_ERR_ARG, "cost: batch is 0, expected 1..65535");
  bad = pool;
  bad.n_heads = 0;
  CHECK_FAILS(sv_cost_heads(&machine, &bad, NULL, heads), SV_ERR_ARG, "cost: there are 0 heads");
  bad = pool;
  bad.n_codes -= 1;
  CHECK_FAILS(sv_cost_heads(&machine, &bad, NULL, heads), SV_ERR_ARG, "an item reads codes");
  memcpy(constants, &machine, sizeof machine);
  CHECK_OK(sv_hardware_read(constants, SV_HARDWARE_N, &read));
  CHECK(memcmp(&read, &machine, sizeof read) == 0, "constants changed on the way");
  CHECK_FAILS(sv_hardware_read(constants, SV_HARDWARE_N - 1, &read), SV_ERR_ARG,
              "hardware: there are 18 constants");
  constants[0] = 1.5;
  CHECK_FAILS(sv_hardware_read(constants, SV_HARDWARE_N, &read), SV_ERR_ARG,
              "hardware: workers is 1.5, expected a whole number in 1..65536");
  constants[0] = 1;
  for (int64_t i = 0; i < SV_HARDWARE_N; i++) {
    double kept = constants[i];
    for (int b = 0; b < 3; b++) {
      constants[i] = b == 0 ? (double)NAN : b == 1 ? (double)INFINITY : -1.0;
      CHECK_FAILS(sv_hardware_read(constants, SV_HARDWARE_N, &read), SV_ERR_ARG, sv_hardware_name(i));
    }
    constants[i] = kept;
  }
}

/* Codes from anywhere: a sentence or a price, never a read outside. */
static void test_hostile_codes(void) {
  sv_cost_pool pool = make_pool(1);
  double heads[PATTERNS * 2];
  int n_refused = 0;
  for (int round = 0; round < 300; round++) {
    uint32_t *words = code_room.data;
    int64_t at = (int64_t)(draw() % (uint32_t)pool.n_codes);
    uint32_t kept = words[at];
    words[at] = round % 2 ? draw() * 2 + draw() % 2 : kept ^ (1u << (draw() % 32));
    sv_status status = sv_cost_heads(&machine, &pool, NULL, heads);
    CHECK(status == SV_OK || status == SV_ERR_ARG, "status %d", (int)status);
    n_refused += status != SV_OK;
    words[at] = kept;
  }
  CHECK(n_refused > 100, "%d of 300 were refused", n_refused);
}

static void test_faults(void) {
  sv_cost_pool pool = make_pool(1);
  const int32_t choice[HEADS] = {0, 1, 2, 3, 4};
  const uint8_t remainder[HEADS] = {0, 1, 0, 1, 1};
  double ms = -1, heads[HEADS];
  int64_t live = sv_scratch_live();
  for (int n = 1; n <= 3; n++) {
    sv_scratch_fail_at(n);
    CHECK_FAILS(sv_cost_layers(&machine, &pool, 1, choice, remainder, NULL, &ms, heads), SV_ERR_NOMEM,
                "could not allocate");
    sv_scratch_fail_at(0);
    CHECK(sv_scratch_live() == live, "allocation %d leaks", n);
  }
  CHECK_OK(sv_cost_layers(&machine, &pool, 1, choice, remainder, NULL, &ms, heads));
}

static bool say_stop(void *ctx) {
  (void)ctx;
  return true;
}

static void test_interrupt(void) {
  sv_cost_pool pool = make_pool(1);
  const sv_poll poll = {say_stop, NULL};
  const int32_t choice[HEADS] = {0};
  const uint8_t remainder[HEADS] = {0};
  double ms, heads[PATTERNS * 2];
  CHECK_FAILS(sv_cost_heads(&machine, &pool, &poll, heads), SV_ERR_INTERRUPTED, "interrupted");
  CHECK_FAILS(sv_cost_layers(&machine, &pool, 1, choice, remainder, &poll, &ms, heads), SV_ERR_INTERRUPTED,
              "interrupted");
}

int main(void) {
  make_machine(3);
  test_heads();
  test_layer();
  test_layers_together();
  test_makespan();
  test_refusals();
  test_hostile_codes();
  test_faults();
  test_interrupt();
  sv_codes_free(&codes);
  guard_free(&code_room);
  return check_result();
}
