/* scratch.c — aligned memory, counted. Big blocks start on a huge page and ask for huge pages: packed keys
 * are read again and again, and 4 KiB pages cost translations. */
#define _GNU_SOURCE
#include "base/scratch.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

#define LINE_BYTES ((size_t)64)
#define HUGE_BYTES ((size_t)1 << 21)

static atomic_int_fast64_t n_live;
static atomic_int_fast64_t fail_in;

static int told_to_fail(void) {
  if (atomic_load_explicit(&fail_in, memory_order_relaxed) <= 0) return 0;
  return atomic_fetch_sub(&fail_in, 1) == 1;
}

static void *allocate(size_t bytes) {
  size_t align = bytes >= 2 * HUGE_BYTES ? HUGE_BYTES : LINE_BYTES;
  if (bytes > SIZE_MAX - align || told_to_fail()) return NULL;
  size_t rounded = (bytes + align - 1) / align * align;
  void *block = aligned_alloc(align, rounded ? rounded : align);
#ifdef MADV_HUGEPAGE
  if (block && align == HUGE_BYTES) (void)madvise(block, rounded, MADV_HUGEPAGE);
#endif
  return block;
}

sv_status sv_scratch_alloc(const char *who, size_t bytes, void **out) {
  *out = allocate(bytes);
  if (!*out) return sv_fail(SV_ERR_NOMEM, "%s: could not allocate %zu bytes of scratch", who, bytes);
  atomic_fetch_add(&n_live, 1);
  return SV_OK;
}

sv_status sv_scratch_grow(const char *who, void **block, size_t *capacity_bytes, size_t used_bytes,
                          size_t bytes) {
  if (*block && bytes <= *capacity_bytes) return SV_OK;
  size_t wanted = *capacity_bytes > SIZE_MAX / 2 ? bytes : 2 * *capacity_bytes;
  if (wanted < bytes) wanted = bytes;
  void *grown;
  SV_TRY(sv_scratch_alloc(who, wanted, &grown));
  if (*block && used_bytes) memcpy(grown, *block, used_bytes);
  sv_scratch_free(*block);
  *block = grown;
  *capacity_bytes = wanted;
  return SV_OK;
}

void sv_scratch_free(void *block) {
  if (!block) return;
  free(block);
  atomic_fetch_sub(&n_live, 1);
}

int64_t sv_scratch_live(void) { return (int64_t)atomic_load(&n_live); }

void sv_scratch_fail_at(int64_t n) { atomic_store(&fail_in, n > 0 ? n : 0); }
