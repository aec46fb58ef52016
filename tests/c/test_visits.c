/* test_visits.c — visit lists alone: known lists word by word, a naive cover, hostile integers, damaged lists,
 * items, and every allocation failing once. */
#include "pattern/visits.h"

#include <stdbool.h>
#include <stdlib.h>

#include "base/scratch.h"
#include "check.h"

#define LENGTH(array) ((int64_t)(sizeof(array) / sizeof *(array)))

/* wire — a wire array on the heap with nothing behind it, so that ASan sees a read past its end. */
static int64_t *wire(const int64_t *ints, int64_t n) {
  int64_t *copy = malloc((size_t)n * sizeof *copy);
  if (copy) memcpy(copy, ints, (size_t)n * sizeof *copy);
  return copy;
}

typedef struct list {
  sv_row *rows;
  sv_codes codes;
  sv_status status;
} list;

static list emit(const sv_geometry *g, const int64_t *ints, int64_t n, int with_remainder) {
  list made = {.rows = malloc((size_t)sv_geometry_query_blocks(g) * sizeof(sv_row))};
  int64_t *exact = wire(ints, n);
  sv_pattern pattern;
  made.status = sv_pattern_parse("test", g, exact, n, &pattern);
  if (made.status == SV_OK)
    made.status = sv_visits_emit(g, &pattern, with_remainder, made.rows, &made.codes, NULL);
  free(exact);
  return made;
}

static void drop(list *made) {
  free(made->rows);
  sv_codes_free(&made->codes);
}

static uint8_t *mask_of(const sv_geometry *g, const list *made) {
  uint8_t *mask = malloc((size_t)(sv_geometry_query_blocks(g) * sv_geometry_key_blocks(g)));
  CHECK_OK(sv_visits_mask(g, made->rows, made->codes.words, made->codes.n, NULL, mask));
  return mask;
}

/* ---- known lists ---- */

static const sv_geometry ten = {1, 1, 150, 0, 0, 16, 16}; /* 10 blocks, the last one of 6 tokens */

static void check_words(const list *made, int64_t row, const uint32_t *words, int64_t n, int64_t n_visits) {
  const sv_row *r = &made->rows[row];
  CHECK(r->n_words == n_visits && r->n_pooled_words == n - n_visits, "row %d: %u + %u words", (int)row,
        r->n_words, r->n_pooled_words);
  for (int64_t i = 0; i < n && r->n_words == n_visits; i++)
    CHECK(made->codes.words[r->first + i] == words[i], "word %d is 0x%08x", (int)i,
          made->codes.words[r->first + i]);
}

static void check_known_lists(void) {
  static const int64_t stripes[] = {4, 0, 0, 0, 0, 0, 4, 2, 3, 8, 9};
  list made = emit(&ten, stripes, LENGTH(stripes), 0);
  CHECK(made.status == SV_OK, "%s", sv_last_error());
  const uint32_t row0[] = {0x00000000u, 0x10000002u, 2, 0x00000008u, 0x80000009u};
  const uint32_t row4[] = {0x10000002u, 3, 0x00000008u, 0x80000009u};
  check_words(&made, 0, row0, LENGTH(row0), LENGTH(row0));
  check_words(&made, 4, row4, LENGTH(row4), LENGTH(row4));
  CHECK(made.rows[2].first == made.rows[3].first, "equal rows share their codes");
  CHECK(made.rows[9].n_blocks == 4 && made.rows[0].n_blocks == 5, "blocks");
  drop(&made);
  static const int64_t itself[] = {2, 0, 0, 0, 0, 0, 1, 0};
  made = emit(&ten, itself, LENGTH(itself), 1);
  const uint32_t pooled0[] = {0x00000000u, 0x83000000u, 0x3feu},
                 pooled9[] = {0x80000009u, 0x83000000u, 0x1ffu};
  check_words(&made, 0, pooled0, 3, 1);
  check_words(&made, 9, pooled9, 3, 1);
  drop(&made);
  made = emit(&ten, itself, LENGTH(itself), 0);
  CHECK(made.codes.n == 0 && made.rows[7].first == 7 && made.rows[7].n_blocks == 1, "one run needs no codes");
  drop(&made);
}

static void check_full_and_skip(void) {
  static const int64_t full[] = {0, 0, 0, 0, 0, 0, 0}, skip[] = {1, 0, 0, 0, 0, 0, 0};
  list made = emit(&ten, full, 7, 1);
  double pairs = 0;
  CHECK(made.status == SV_OK && made.codes.n == 0 && made.rows[3].n_blocks == 10, "full is a range");
  CHECK_OK(sv_visits_pairs(&ten, made.rows, made.codes.words, made.codes.n, NULL, &pairs));
  CHECK(pairs == 150.0 * 150.0, "%f pairs", pairs);
  drop(&made);
  made = emit(&ten, skip, 7, 1);
  CHECK(made.status == SV_OK && made.codes.n == 0 && made.rows[3].n_blocks == 0, "skip is nothing");
  drop(&made);
}

/* A pooled tile with all its bits: 16 unvisited blocks in a row. */
static void check_whole_tile(void) {
  const sv_geometry g = {1, 1, 48 * 16, 0, 0, 16, 16};
  static const int64_t itself[] = {2, 0, 0, 0, 0, 0, 1, 0};
  list made = emit(&g, itself, 8, 1);
  const uint32_t row0[] = {0, 0x83000000u, 0xfffeu, 0x03000001u, 0xffffu, 0x03000002u, 0xffffu};
  check_words(&made, 0, row0, LENGTH(row0), 1);
  drop(&made);
}

/* ---- a naive cover of bands, token by token ---- */

static void check_band(const sv_geometry *g, int64_t kind, int64_t half_width) {
  const int64_t ints[] = {kind, kind == SV_PATTERN_DIAGONAL ? 0 : 1, 0, 0, 0, 0, 1, half_width};
  list made = emit(g, ints, 8, 1);
  uint8_t *mask = mask_of(g, &made);
  int64_t n = sv_geometry_tokens(g), n_blocks = sv_geometry_key_blocks(g),
          end = g->prefix + sv_geometry_video_tokens(g);
  uint8_t *naive = calloc((size_t)(sv_geometry_query_blocks(g) * n_blocks), 1);
  for (int64_t i = 0; i < n; i++)
    for (int64_t j = 0; j < n; j++) {
      bool video = i >= g->prefix && i < end && j >= g->prefix && j < end;
      if (!video || (i > j ? i - j : j - i) <= half_width)
        naive[i / g->block_q * n_blocks + j / g->block_k] = 1;
    }
  CHECK(memcmp(mask, naive, (size_t)(sv_geometry_query_blocks(g) * n_blocks)) == 0, "half_width %d",
        (int)half_width);
  free(naive);
  free(mask);
  drop(&made);
}

static void check_bands(void) {
  static const int64_t widths[] = {0, 1, 15, 16, 17, 40, SV_MAX_TOKENS};
  for (int64_t others = 0; others < 4; others++)
    for (int64_t i = 0; i < LENGTH(widths); i++) {
      const sv_geometry g = {3, 4, 13, others & 1 ? 21 : 0, others & 2 ? 5 : 0, 32, 16};
      check_band(&g, SV_PATTERN_DIAGONAL, widths[i]);
      check_band(&g, SV_PATTERN_MULTI_DIAGONAL, widths[i]);
    }
}

/* ---- hostile integers ---- */

static uint64_t random_state = 88172645463325252u;

static int64_t next_random(int64_t n) {
  random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
  return (int64_t)(random_state % (uint64_t)n);
}

static int64_t hostile_int(void) {
  static const int64_t ints[] = {
      INT64_MIN, INT64_MAX,        INT64_MAX - 1,    INT64_MIN + 1,    -1, 0, 1, 2, 5,
      16,        INT64_C(1) << 31, INT64_C(1) << 40, INT64_C(1) << 62, 7,  3};
  return ints[next_random(LENGTH(ints))];
}

/* Legal tile patterns and unions with some integers replaced: a list or a sentence, and no overflow. */
static void check_hostile_patterns(void) {
  static const int64_t tiles[] = {5, 2, 2, 1, 3, 1, 10, 1, 1, 0, 0, 1, 1, 3, 2, 0, 5};
  static const int64_t both[] = {6, 0, 0, 0, 0, 1, 17, 2, 0, 0, 0, 0, 0, 1, 4, 4, 0, 0, 0, 0, 0, 2, 1, 3};
  const sv_geometry g = {5, 6, 7, 3, 18, 16, 32};
  int n_legal = 0;
  for (int trial = 0; trial < 20000; trial++) {
    int64_t ints[24], n = trial % 2 ? LENGTH(both) : LENGTH(tiles);
    memcpy(ints, trial % 2 ? both : tiles, (size_t)n * sizeof *ints);
    for (int64_t k = next_random(4); k >= 0; k--) ints[next_random(n)] = hostile_int();
    if (next_random(8) == 0) n -= next_random(n);
    list made = emit(&g, ints, n, 1);
    if (made.status == SV_OK)
      free(mask_of(&g, &made)), n_legal++;
    else
      CHECK(made.status == SV_ERR_ARG && strstr(sv_last_error(), "test: ") == sv_last_error(), "%s",
            sv_last_error());
    drop(&made);
  }
  CHECK(n_legal > 500, "%d of the patterns were legal", n_legal);
}

/* A window as large as 64 bits allow keeps what its near edge says. */
static void check_far_windows(void) {
  const sv_geometry g = {1, 1, 320, 0, 0, 16, 16};
  const int64_t far = INT64_MAX;
  const int64_t cases[][4] = {{far, far, 0, 20},     {far, far - 2, 0, 20}, {1, far, 0, 1},
                              {far - 5, far, 0, 15}, {5, far - 3, far, 8},  {far, 0, far, 20},
                              {1, 0, far, 1},        {1, far, far, 1}};
  for (int64_t i = 0; i < LENGTH(cases); i++) {
    const int64_t ints[] = {5, 2, 1, 1, 16, 0, 7, 0, 1, 0, 0, cases[i][0], cases[i][1], cases[i][2]};
    list made = emit(&g, ints, LENGTH(ints), 0);
    CHECK(made.status == SV_OK, "%s", sv_last_error());
    uint8_t *mask = mask_of(&g, &made);
    int64_t n_first = 0;
    for (int64_t b = 0; b < 20; b++) n_first += mask[b];
    CHECK(n_first == cases[i][3], "case %d: row 0 visits %d blocks, expected %d", (int)i, (int)n_first,
          (int)cases[i][3]);
    free(mask);
    drop(&made);
  }
}

/* ---- long sequences: rows in the middle of 2^31 - 1 tokens ---- */

static void check_long_band(void) {
  const sv_geometry g = {1, 1, SV_MAX_TOKENS - 5, 5, 0, 1024, 1024};
  static const int64_t ints[] = {2, 0, 0, 0, 0, 0, 1, 5000};
  list made = emit(&g, ints, 8, 0);
  CHECK(made.status == SV_OK, "%s", sv_last_error());
  const sv_row *last = &made.rows[sv_geometry_query_blocks(&g) - 1];
  CHECK(last->n_blocks == 1 + 6 && last->n_words == 4, "%u blocks, %u words", last->n_blocks, last->n_words);
  const uint32_t *words = made.codes.words + last->first;
  CHECK(words[0] == 0 && SV_CODE_NUMBER(words[1]) == 2097146 && words[2] == 5 &&
            words[3] == (0x80000000u | 2097151),
        "%x %x %x %x", words[0], words[1], words[2], words[3]);
  drop(&made);
}

/* ---- reading damaged lists ---- */

static void check_refused_list(const sv_geometry *g, sv_row row, const uint32_t *words, int64_t n,
                               const char *says) {
  sv_row rows[1] = {row};
  uint32_t *exact = malloc((size_t)n * sizeof *exact + 1);
  uint8_t mask[10];
  double pairs;
  memcpy(exact, words, (size_t)n * sizeof *exact);
  CHECK_FAILS(sv_visits_mask(g, rows, exact, n, NULL, mask), SV_ERR_ARG, says);
  if (row.n_pooled_words == 0)
    CHECK_FAILS(sv_visits_pairs(g, rows, exact, n, NULL, &pairs), SV_ERR_ARG, says);
  free(exact);
}

static void check_damaged_lists(void) {
  const sv_geometry g = {1, 1, 150, 0, 0, 1024, 16}; /* one row of 10 key blocks, the last one short */
  const struct {
    sv_row row;
    uint32_t words[4];
    int64_t n;
    const char *says;
  } cases[] = {
      {{0, 1, 0, 1}, {10}, 1, "ascending key blocks"},
      {{0, 1, 0, 1}, {0xffffff}, 1, "ascending key blocks"},
      {{0, 2, 0, 2}, {4, 4}, 2, "ascending key blocks"},
      {{0, 2, 0, 2}, {4, 3}, 2, "ascending key blocks"},
      {{0, 1, 0, 2}, {4}, 1, "n_blocks like its codes"},
      {{0, 2, 0, 1}, {4}, 1, "its codes inside the pool"},
      {{UINT32_MAX, UINT32_MAX, 0, 1}, {4}, 1, "its codes inside the pool"},
      {{0, 1, 0, 2}, {0x10000004}, 1, "a count behind it"},
      {{0, 2, 0, 1}, {0x10000004, 1}, 2, "a run of 2 or more"},
      {{0, 2, 0, 7}, {0x10000004, 7}, 2, "ascending key blocks"},
      {{0, 2, 0, 6}, {0x10000004, UINT32_MAX}, 2, "ascending key blocks"},
      {{0, 2, 0, 6}, {0x10000004, 6}, 2, "the short last block outside a run"},
      {{0, 1, 0, 1}, {9}, 1, "the partial flag"},
      {{0, 1, 0, 1}, {0x80000004}, 1, "the partial flag"},
      {{0, 1, 0, 1}, {0x01000004}, 1, "key blocks"},
      {{0, 1, 0, 1}, {0x03000000}, 1, "key blocks"},
      {{0, 1, 0, 1}, {0x20000004}, 1, "key blocks"},
      {{0, 0, 0, 11}, {0}, 0, "a range inside"},
      {{UINT32_MAX, 0, 0, UINT32_MAX}, {0}, 0, "a range inside"},
      {{0, 0, 2, 3}, {0, 0}, 2, "no pooled tiles behind a range"},
      {{0, 1, 2, 1}, {4, 0x83000000, 0x3ff}, 3, "the bits of the blocks"},
      {{0, 1, 2, 1}, {4, 0x83000000, 0x3ee}, 3, "the bits of the blocks"},
      {{0, 1, 2, 1}, {4, 0x83000000, 0x7ef}, 3, "the bits of the blocks"},
      {{0, 1, 2, 1}, {4, 0x03000000, 0x3ef}, 3, "the partial flag on tiles"},
      {{0, 1, 2, 1}, {4, 0x83000001, 0x3ef}, 3, "ascending pooled tiles"},
      {{0, 1, 1, 1}, {4, 0x83000000}, 2, "all its words"},
      {{0, 1, 2, 1}, {4, 0x80000000, 0x3ef}, 3, "a pooled tile"},
      {{0, 0, 0, 0}, {0}, 0, NULL},
  };
  for (int i = 0; cases[i].says; i++)
    check_refused_list(&g, cases[i].row, cases[i].words, cases[i].n, cases[i].says);
}

/* ---- items ---- */

static void check_items(void) {
  static const int64_t skip[] = {1, 0, 0, 0, 0, 0, 0}, band[] = {2, 0, 0, 0, 0, 0, 1, 20};
  enum { N = 10 };
  sv_row rows[2 * N];
  sv_codes codes = {0};
  sv_pattern pattern;
  CHECK_OK(sv_pattern_parse("test", &ten, skip, 7, &pattern));
  CHECK_OK(sv_visits_emit(&ten, &pattern, 1, rows, &codes, NULL));
  CHECK_OK(sv_pattern_parse("test", &ten, band, 8, &pattern));
  CHECK_OK(sv_visits_emit(&ten, &pattern, 1, rows + N, &codes, NULL));
  const int32_t choice[] = {1, 0, 1};
  const uint8_t remainder[] = {0, 1, 1};
  sv_item items[3 * N];
  int64_t n = 0;
  CHECK_OK(sv_visits_items(&ten, rows, 2, choice, remainder, 3, NULL, items, &n));
  CHECK(n == 2 * N, "%d items", (int)n);
  uint32_t length = UINT32_MAX;
  for (int64_t i = 0; i < n; i++) {
    const sv_row *row = &rows[N + items[i].query_block];
    uint32_t head = SV_ITEM_HEAD(items[i]), pooled = head == 2 ? row->n_pooled_words : 0;
    uint32_t now = row->n_blocks + pooled / 2;
    CHECK(now <= length, "item %d is longer than the one before", (int)i);
    CHECK(items[i].first == row->first && items[i].n == row->n_words + pooled, "codes of item %d", (int)i);
    length = now;
  }
  const int32_t bad[] = {2};
  CHECK_FAILS(sv_visits_items(&ten, rows, 2, bad, remainder, 1, NULL, items, &n), SV_ERR_ARG,
              "choice[0] is 2");
  rows[3].n_blocks = 11;
  CHECK_FAILS(sv_visits_items(&ten, rows, 2, choice, remainder, 3, NULL, items, &n), SV_ERR_ARG,
              "n_blocks of row 3 is 11");
  rows[3].n_blocks = 0, rows[3].n_pooled_words = UINT32_MAX;
  CHECK_FAILS(sv_visits_items(&ten, rows, 2, choice, remainder, 3, NULL, items, &n), SV_ERR_ARG,
              "n_pooled_words of row 3");
  sv_codes_free(&codes);
}

/* ---- interruption and failing memory ---- */

static bool after_a_few(void *ctx) { return --*(int *)ctx < 0; }

static const int64_t busy[] = {6, 2, 2, 2, 3, 1, 33, 5, 2, 2, 2, 3, 0, 10, 1, 1, 0,  3,  1,  1,
                               4, 1, 0, 2, 4, 2, 2,  2, 3, 0, 9, 1, 3, 5,  7, 9, 11, 13, 15, 17};

static void check_interruption(void) {
  const sv_geometry g = {6, 9, 11, 3, 5, 16, 16};
  int n_polls = 5;
  const sv_poll poll = {.interrupted = after_a_few, .ctx = &n_polls};
  sv_row rows[64];
  sv_codes codes = {0};
  sv_pattern pattern;
  CHECK_OK(sv_pattern_parse("test", &g, busy, LENGTH(busy), &pattern));
  CHECK_FAILS(sv_visits_emit(&g, &pattern, 1, rows, &codes, &poll), SV_ERR_INTERRUPTED,
              "visits: interrupted");
  CHECK(codes.n == 0, "the pool is as it was");
  sv_codes_free(&codes);
}

static bool at_once(void *ctx) {
  (void)ctx;
  return true;
}

static void check_interrupted_readers(void) {
  static const int64_t full[] = {0, 0, 0, 0, 0, 0, 0};
  sv_row rows[10];
  sv_codes codes = {0};
  sv_pattern pattern;
  CHECK_OK(sv_pattern_parse("test", &ten, full, 7, &pattern));
  CHECK_OK(sv_visits_emit(&ten, &pattern, 0, rows, &codes, NULL));
  const sv_poll poll = {.interrupted = at_once};
  uint8_t mask[100];
  double pairs;
  sv_item items[10];
  int64_t n;
  CHECK_FAILS(sv_visits_mask(&ten, rows, codes.words, codes.n, &poll, mask), SV_ERR_INTERRUPTED, "visits");
  CHECK_FAILS(sv_visits_pairs(&ten, rows, codes.words, codes.n, &poll, &pairs), SV_ERR_INTERRUPTED, "visits");
  CHECK_FAILS(sv_visits_items(&ten, rows, 1, (int32_t[]){0}, (uint8_t[]){0}, 1, &poll, items, &n),
              SV_ERR_INTERRUPTED, "items");
  sv_codes_free(&codes);
}

static void check_failing_allocations(void) {
  const sv_geometry g = {6, 9, 11, 3, 5, 16, 16};
  int64_t live = sv_scratch_live();
  sv_status status = SV_ERR_NOMEM;
  int n = 0;
  while (status == SV_ERR_NOMEM && n < 1000) {
    sv_scratch_fail_at(++n);
    list made = emit(&g, busy, LENGTH(busy), 1);
    sv_scratch_fail_at(0);
    status = made.status;
    if (status == SV_ERR_NOMEM)
      CHECK(strstr(sv_last_error(), "visits: could not allocate") != NULL, "%s", sv_last_error());
    drop(&made);
    CHECK(sv_scratch_live() == live, "allocation %d failing leaves %d blocks", n,
          (int)(sv_scratch_live() - live));
  }
  CHECK(status == SV_OK && n > 5, "status %d after %d allocations", (int)status, n);
  const uint8_t mask[100] = {1, 0, 1};
  for (n = 1, status = SV_ERR_NOMEM; status == SV_ERR_NOMEM && n < 100; n++) {
    sv_row rows[10];
    sv_codes codes = {0};
    sv_scratch_fail_at(n);
    status = sv_visits_emit_mask(&ten, mask, 1, rows, &codes, NULL);
    sv_scratch_fail_at(0);
    sv_codes_free(&codes);
    CHECK(sv_scratch_live() == live, "masks: allocation %d failing leaks", n);
  }
  sv_row row[10] = {{0}};
  sv_item items[10];
  int64_t n_items;
  sv_scratch_fail_at(1);
  CHECK_FAILS(sv_visits_items(&ten, row, 1, (int32_t[]){0}, (uint8_t[]){0}, 1, NULL, items, &n_items),
              SV_ERR_NOMEM, "items: ");
  sv_scratch_fail_at(0);
}

int main(void) {
  check_known_lists();
  check_full_and_skip();
  check_whole_tile();
  check_bands();
  check_hostile_patterns();
  check_far_windows();
  check_long_band();
  check_damaged_lists();
  check_items();
  check_interruption();
  check_interrupted_readers();
  check_failing_allocations();
  CHECK(sv_scratch_live() == 0, "%d blocks are still held", (int)sv_scratch_live());
  return check_result();
}
