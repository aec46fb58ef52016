/* probe_classes.c — refines one class of all blocks by one candidate after the other. Classes are numbered by their first
 * blocks. */
#include "search/probe_classes.h"

#include <string.h>

static size_t up(int64_t n_words) { return ((size_t)n_words * sizeof(int32_t) + 63) / 64 * 64; }

size_t sv_probe_classes_bytes(int64_t n_blocks, int64_t n_candidates) {
  return up(n_blocks + 1) + up(n_blocks) + up(n_candidates * n_blocks) + up(n_candidates);
}

static int32_t *cut(char **room, int64_t n_words) {
  int32_t *piece = (int32_t *)(void *)*room;
  *room += up(n_words);
  return piece;
}

void sv_probe_classes_place(int64_t n_blocks, int64_t n_candidates, void *room, sv_probe_classes *out) {
  char *at = room;
  *out = (sv_probe_classes){.n_blocks = n_blocks, .n_candidates = n_candidates};
  out->first = cut(&at, n_blocks + 1);
  out->blocks = cut(&at, n_blocks);
  out->n_visited = cut(&at, n_candidates);
  out->lists = cut(&at, n_candidates * n_blocks);
}

/* Splits the n classes of class_of [nk] by a mask; split [2 n] is working memory. Returns their new number. */
static int32_t refine(const uint8_t *mask, int64_t n_blocks, int32_t n, int32_t *class_of, int32_t *split) {
  int32_t n_new = 0;
  memset(split, 0xff, (size_t)n * 2 * sizeof *split); /* -1 */
  for (int64_t b = 0; b < n_blocks; b++) {
    int32_t *number = &split[2 * class_of[b] + mask[b]];
    if (*number < 0) *number = n_new++;
    class_of[b] = *number;
  }
  return n_new;
}

static void sort_blocks(const int32_t *class_of, sv_probe_classes *out) {
  memset(out->first, 0, ((size_t)out->n + 1) * sizeof(int32_t));
  for (int64_t b = 0; b < out->n_blocks; b++) out->first[class_of[b] + 1]++;
  for (int32_t i = 0; i < out->n; i++) out->first[i + 1] += out->first[i];
  for (int64_t b = 0; b < out->n_blocks; b++) out->blocks[out->first[class_of[b]]++] = (int32_t)b;
  for (int32_t i = out->n; i > 0; i--) out->first[i] = out->first[i - 1];
  out->first[0] = 0;
}

static int32_t list_classes(const uint8_t *mask, const sv_probe_classes *classes, int32_t *list) {
  int32_t n_visited = 0, n_others = 0;
  for (int32_t i = 0; i < classes->n; i++) n_visited += mask[classes->blocks[classes->first[i]]];
  for (int32_t i = 0, v = 0; i < classes->n; i++) {
    if (mask[classes->blocks[classes->first[i]]])
      list[v++] = i;
    else
      list[n_visited + n_others++] = i;
  }
  return n_visited;
}

void sv_probe_classes_make(const uint8_t *masks, int32_t *work, sv_probe_classes *out) {
  const int64_t nk = out->n_blocks;
  int32_t *class_of = work, *split = work + nk, n = 1;
  memset(class_of, 0, (size_t)nk * sizeof *class_of);
  for (int64_t c = 0; c < out->n_candidates; c++) n = refine(masks + c * nk, nk, n, class_of, split);
  out->n = n;
  sort_blocks(class_of, out);
  for (int64_t c = 0; c < out->n_candidates; c++)
    out->n_visited[c] = list_classes(masks + c * nk, out, out->lists + c * n);
}
