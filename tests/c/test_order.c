/* test_order.c — geometry limits and order maps: there and back, edges, hostile integers. */
#include "pattern/order.h"

#include <stdlib.h>

#include "check.h"

#define HUGE_INT INT64_MAX

static const sv_geometry plain = {3, 4, 5, 7, 9, 16, 32};

static sv_geometry with_field(int field, int64_t value) {
  int64_t f[SV_GEOMETRY_INTS] = {3, 4, 5, 7, 9, 16, 32};
  f[field] = value;
  return (sv_geometry){f[0], f[1], f[2], f[3], f[4], f[5], f[6]};
}

static void check_geometry_refusals(void) {
  static const char *const names[] = {"frames", "height", "width", "prefix", "suffix", "block_q", "block_k"};
  static const int64_t hostile[] = {INT64_MIN,       -1, HUGE_INT, HUGE_INT / 2, INT64_C(1) << 32,
                                    INT64_C(1) << 31};
  for (int field = 0; field < SV_GEOMETRY_INTS; field++)
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
      sv_geometry g = with_field(field, hostile[i]);
      CHECK_FAILS(sv_geometry_check(&g), SV_ERR_ARG, names[field]);
    }
  sv_geometry g = {SV_MAX_TOKENS, SV_MAX_TOKENS, SV_MAX_TOKENS, SV_MAX_TOKENS, SV_MAX_TOKENS, 16, 16};
  CHECK_FAILS(sv_geometry_check(&g), SV_ERR_ARG, "tokens are too many");
  g = (sv_geometry){1, 1, 1, SV_MAX_TOKENS, SV_MAX_TOKENS, 16, 16};
  CHECK_FAILS(sv_geometry_check(&g), SV_ERR_ARG, "tokens are too many");
  g = (sv_geometry){1 << 15, 1 << 13, 1, 1, 0, 16, 16};
  CHECK_FAILS(sv_geometry_check(&g), SV_ERR_ARG, "expected at most 16777216 key blocks");
  g = (sv_geometry){1 << 15, 1 << 13, 1, 0, 0, 16, 16};
  CHECK_OK(sv_geometry_check(&g));
  g = (sv_geometry){1, SV_MAX_TOKENS, 1, 0, 0, 1024, 128};
  CHECK_OK(sv_geometry_check(&g));
}

static void check_order_refusals(void) {
  sv_order order = {.kind = 3};
  CHECK_FAILS(sv_order_check(&order), SV_ERR_ARG, "order: order kind is 3");
  order = (sv_order){.kind = INT64_MIN};
  CHECK_FAILS(sv_order_check(&order), SV_ERR_ARG, "expected 0 (frame_major)");
  order = (sv_order){.kind = SV_ORDER_TILES, .tile = {1, 0, 1}};
  CHECK_FAILS(sv_order_check(&order), SV_ERR_ARG, "tile[1] is 0");
  order = (sv_order){.kind = SV_ORDER_TOKEN_MAJOR, .tile = {0, 0, 2}};
  CHECK_FAILS(sv_order_check(&order), SV_ERR_ARG, "tile[2] is 2 without order tiles");
}

static bool at_once(void *ctx) {
  (void)ctx;
  return true;
}

static void check_interruption(void) {
  const sv_geometry g = {64, 64, 32, 0, 5, 16, 16};
  const sv_order orders[] = {{.kind = SV_ORDER_FRAME_MAJOR},
                             {.kind = SV_ORDER_TOKEN_MAJOR},
                             {.kind = SV_ORDER_TILES, .tile = {4, 4, 4}}};
  const sv_poll poll = {.interrupted = at_once};
  int32_t *places = malloc((size_t)sv_geometry_tokens(&g) * sizeof *places);
  for (int i = 0; i < 3; i++)
    CHECK_FAILS(sv_order_places(&g, &orders[i], &poll, places, NULL), SV_ERR_INTERRUPTED, "order");
  free(places);
}

/* check_maps — places and tokens are inverse, and agree with the closed forms. */
static void check_maps(const sv_geometry *g, const sv_order *order) {
  int64_t n = sv_geometry_tokens(g), n_video = sv_geometry_video_tokens(g);
  int32_t *places = malloc((size_t)n * sizeof *places), *tokens = malloc((size_t)n * sizeof *tokens);
  CHECK_OK(sv_order_places(g, order, NULL, places, NULL));
  CHECK_OK(sv_order_places(g, order, NULL, NULL, tokens));
  for (int64_t i = 0; i < n; i++) CHECK(tokens[places[i]] == i, "token %d", (int)i);
  for (int64_t i = 0; i < g->prefix; i++) CHECK(places[i] == i, "prefix %d", (int)i);
  for (int64_t i = g->prefix + n_video; i < n; i++) CHECK(places[i] == i, "suffix %d", (int)i);
  for (int64_t v = 0; v < n_video; v++) {
    int64_t x = sv_order_position(g, order, v);
    CHECK(g->prefix + x == places[g->prefix + v], "position of %d", (int)v);
    CHECK(sv_order_video_index(g, order, x) == v, "video index at %d", (int)x);
  }
  free(places);
  free(tokens);
}

static void check_all_maps(void) {
  static const int64_t sides[] = {1, 2, 3, 4, HUGE_INT};
  static const sv_order others[] = {{.kind = SV_ORDER_FRAME_MAJOR}, {.kind = SV_ORDER_TOKEN_MAJOR}};
  const sv_geometry shapes[] = {
      plain, {1, 1, 1, 0, 0, 16, 16}, {7, 1, 3, 0, 2, 16, 16}, {2, 5, 1, 1, 0, 16, 16}};
  for (int s = 0; s < 4; s++) {
    for (int i = 0; i < 2; i++) check_maps(&shapes[s], &others[i]);
    for (int i = 0; i < 125; i++) {
      sv_order order = {.kind = SV_ORDER_TILES, .tile = {sides[i / 25], sides[i / 5 % 5], sides[i % 5]}};
      CHECK_OK(sv_order_check(&order));
      check_maps(&shapes[s], &order);
    }
  }
}

/* The closed forms at 2^31 - 1 tokens, where maps would not fit a test. */
static void check_far_positions(void) {
  const sv_geometry g = {SV_MAX_TOKENS, 1, 1, 0, 0, 128, 128},
                    wide = {1, 2, SV_MAX_TOKENS / 2, 0, 0, 128, 128};
  const sv_order tiles = {.kind = SV_ORDER_TILES, .tile = {1000, 3, HUGE_INT}},
                 token = {.kind = SV_ORDER_TOKEN_MAJOR};
  int64_t last = SV_MAX_TOKENS - 1;
  CHECK(sv_order_position(&g, &tiles, last) == last, "the last token of a line stays");
  CHECK(sv_order_video_index(&g, &token, last) == last,
        "one place in the picture: token_major is frame_major");
  for (int64_t v = last - 1; v > last - 1000; v--)
    CHECK(sv_order_video_index(&wide, &tiles, sv_order_position(&wide, &tiles, v)) == v, "v = %lld",
          (long long)v);
}

int main(void) {
  check_geometry_refusals();
  check_order_refusals();
  check_interruption();
  check_all_maps();
  check_far_positions();
  return check_result();
}
