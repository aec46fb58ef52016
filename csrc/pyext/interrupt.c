/* interrupt.c — from a signal to an exception, also where C++ stands between the call and Python. */
#define _GNU_SOURCE
#include "pyext/ndarray.h" /* Python.h before any header of the system */

#include "pyext/interrupt.h"

#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "pyext/module.h"

#define POLL_NS INT64_C(20000000)

/* The exception of an interrupted torch operator, until Python takes it; guarded by the GIL. */
static PyObject *waiting[3];

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
}

static bool run_signal_handlers(void *ctx) {
  svpy_poll *poll = ctx;
  if (now_ns() < poll->next_ns) return false;
  PyGILState_STATE gil = PyGILState_Ensure();
  bool is_raised = PyErr_CheckSignals() != 0;
  if (is_raised) PyErr_Fetch(&poll->kept[0], &poll->kept[1], &poll->kept[2]);
  PyGILState_Release(gil);
  poll->next_ns = is_raised ? INT64_MAX : now_ns() + POLL_NS;
  return is_raised;
}

void svpy_poll_open(svpy_poll *poll) {
  bool is_main = syscall(SYS_gettid) == getpid();
  *poll =
      (svpy_poll){.poll = {run_signal_handlers, poll}, .next_ns = is_main ? now_ns() + POLL_NS : INT64_MAX};
}

bool svpy_poll_restore(svpy_poll *poll) {
  if (!poll->kept[0]) return false;
  PyErr_Restore(poll->kept[0], poll->kept[1], poll->kept[2]);
  poll->kept[0] = poll->kept[1] = poll->kept[2] = NULL;
  return true;
}

static int raise_waiting(void *unused) {
  (void)unused;
  if (!waiting[0]) return 0;
  PyErr_Restore(waiting[0], waiting[1], waiting[2]);
  waiting[0] = waiting[1] = waiting[2] = NULL;
  return -1;
}

void svpy_poll_hand_over(svpy_poll *poll) {
  PyGILState_STATE gil = PyGILState_Ensure();
  for (int i = 0; i < 3; i++) {
    Py_XDECREF(waiting[i]);
    waiting[i] = poll->kept[i];
    poll->kept[i] = NULL;
  }
  /* A full queue of pending calls only means that nobody but raise_interrupt will raise it. */
  (void)Py_AddPendingCall(raise_waiting, NULL);
  PyGILState_Release(gil);
}

SVPY_FUNCTION(svpy_raise_interrupt) {
  (void)module;
  if (!PyArg_ParseTuple(args, ":raise_interrupt")) return NULL;
  (void)keywords;
  if (raise_waiting(NULL) != 0) return NULL;
  Py_RETURN_NONE;
}
