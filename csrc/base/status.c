/* status.c — the last sentence of each thread. */
#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>

#define SENTENCE_BYTES 512

static _Thread_local char sentence[SENTENCE_BYTES];

sv_status sv_fail(sv_status status, const char *format, ...) {
  va_list args;
  va_start(args, format);
  (void)vsnprintf(sentence, sizeof sentence, format, args);
  va_end(args);
  return status;
}

const char *sv_last_error(void) { return sentence; }
