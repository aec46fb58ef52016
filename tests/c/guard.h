/* guard.h — buffers whose last byte lies before a page that must not be touched, so that reading or writing one
 * element too far ends the program at once (sanitizers do not see every vector access). */
#ifndef SV_TESTS_GUARD_H
#define SV_TESTS_GUARD_H

#define GUARD_PAGE ((size_t)4096)

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

typedef struct guarded {
  void *data;
  void *pages;
  size_t mapped;
} guarded;

static inline guarded guard_alloc(size_t bytes) {
  size_t inner = (bytes + GUARD_PAGE - 1) / GUARD_PAGE * GUARD_PAGE;
  guarded g = {.mapped = inner + 2 * GUARD_PAGE};
  g.pages = mmap(NULL, g.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char *start = (char *)g.pages + GUARD_PAGE;
  if (g.pages == MAP_FAILED || (inner && mprotect(start, inner, PROT_READ | PROT_WRITE) != 0)) {
    fprintf(stderr, "guard_alloc: could not map %zu bytes\n", bytes);
    exit(2);
  }
  g.data = start + inner - bytes;
  return g;
}

static inline void guard_read_only(const guarded *g) {
  (void)mprotect((char *)g->pages + GUARD_PAGE, g->mapped - 2 * GUARD_PAGE, PROT_READ);
}

static inline void guard_free(guarded *g) { (void)munmap(g->pages, g->mapped); }

#endif
