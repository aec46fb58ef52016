/* interrupt.h — Ctrl-C in a long call. The core asks a poll between items; every 20 ms the poll takes the
 * GIL and lets Python run its signal handlers. What a handler raised is kept until the call has ended. */
#ifndef SV_PYEXT_INTERRUPT_H
#define SV_PYEXT_INTERRUPT_H

#include "base/parallel.h"
#include "pyext/ndarray.h"

typedef struct svpy_poll {
  sv_poll poll;
  int64_t next_ns;   /* INT64_MAX: not the main thread, where Python runs no handlers */
  PyObject *kept[3]; /* type, value, traceback of what a handler raised, or NULL */
} svpy_poll;

/* svpy_poll_open — usable without the GIL. `poll` must not move while it is open. */
void svpy_poll_open(svpy_poll *poll);
/* svpy_poll_restore — sets the kept exception; false if there is none. Needs the GIL. */
bool svpy_poll_restore(svpy_poll *poll);
/* svpy_poll_hand_over — for a caller that cannot raise it (the torch operator): the exception waits for
 * svpy_raise_interrupt, at the latest for the next bytecode of the main thread. Without the GIL. */
void svpy_poll_hand_over(svpy_poll *poll);

#endif
