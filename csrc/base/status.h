/* status.h — how a failure travels: a code as value, and one sentence "who: got, expected" in a
 * thread-local buffer. SV_TRY returns at once and serves while nothing is owned; an owner of memory
 * uses SV_GOTO and one label `done:`. Codes become exceptions in csrc/pyext/errors.c only. */
#ifndef SV_BASE_STATUS_H
#define SV_BASE_STATUS_H

#include "base/compiler.h"

SV_EXTERN_C_BEGIN

typedef enum sv_status {
  SV_OK = 0,
  SV_ERR_ARG,         /* ValueError */
  SV_ERR_TYPE,        /* TypeError */
  SV_ERR_NOMEM,       /* MemoryError */
  SV_ERR_UNSUPPORTED, /* UnsupportedError(NotImplementedError) */
  SV_ERR_CUDA,        /* CudaError(RuntimeError) */
  SV_ERR_INTERRUPTED, /* the signal's own exception, KeyboardInterrupt as a rule */
  SV_ERR_INTERNAL     /* SparseVDiTError: a bug of ours */
} sv_status;

/* sv_fail — writes the sentence (cut at 511 bytes) of this thread and returns `status`. */
sv_status sv_fail(sv_status status, const char *format, ...) SV_PRINTF(2, 3);

/* sv_last_error — the sentence of this thread's last sv_fail, "" if none; valid until the next one. */
const char *sv_last_error(void);

#define SV_TRY(call)                                                                                         \
  do {                                                                                                       \
    sv_status sv_try_status_ = (call);                                                                       \
    if (sv_try_status_ != SV_OK) return sv_try_status_;                                                      \
  } while (0)

#define SV_GOTO(status, call)                                                                                \
  do {                                                                                                       \
    (status) = (call);                                                                                       \
    if ((status) != SV_OK) goto done;                                                                        \
  } while (0)

SV_EXTERN_C_END
#endif
