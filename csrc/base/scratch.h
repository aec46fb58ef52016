/* scratch.h — one aligned block of memory per call, cut up by its owner. For tests the n-th
 * allocation of the process can be made to fail, so that every error path is walked. */
#ifndef SV_BASE_SCRATCH_H
#define SV_BASE_SCRATCH_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

SV_EXTERN_C_BEGIN

/* sv_scratch_alloc — `bytes` of memory aligned to 64 bytes; `who` opens the sentence of SV_ERR_NOMEM
 * ("attention: could not allocate 12582912 bytes of scratch"). bytes = 0 gives a valid pointer. */
sv_status sv_scratch_alloc(const char *who, size_t bytes, void **out);
/* sv_scratch_grow — like realloc to at least `bytes`, keeping the first `used` bytes. */
sv_status sv_scratch_grow(const char *who, void **block, size_t *capacity_bytes, size_t used_bytes,
                          size_t bytes);
void sv_scratch_free(void *block);
/* sv_scratch_live — allocations not yet freed in this process (for leak tests). */
int64_t sv_scratch_live(void);
/* sv_scratch_fail_at — the n-th allocation from now fails (1 = the next); 0 = never. */
void sv_scratch_fail_at(int64_t n);

SV_EXTERN_C_END
#endif
