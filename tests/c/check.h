/* check.h — assertions of the C tests: a failure prints file:line and the sentence of the core, and the program
 * goes on, so that one run shows all; main returns check_result(). */
#ifndef SV_TESTS_CHECK_H
#define SV_TESTS_CHECK_H

#include <stdio.h>
#include <string.h>

#include "base/status.h"

static int check_failures;

#define CHECK(condition, ...)                                                                                \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      check_failures++;                                                                                      \
      fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                                        \
      fprintf(stderr, __VA_ARGS__);                                                                          \
      fputc('\n', stderr);                                                                                   \
    }                                                                                                        \
  } while (0)

#define CHECK_OK(call)                                                                                       \
  do {                                                                                                       \
    sv_status check_status_ = (call);                                                                        \
    CHECK(check_status_ == SV_OK, "status %d: %s", (int)check_status_, sv_last_error());                     \
  } while (0)

/* CHECK_FAILS — the promised status, and a sentence that holds the promised words. */
#define CHECK_FAILS(call, expected, words)                                                                   \
  do {                                                                                                       \
    sv_status check_status_ = (call);                                                                        \
    CHECK(check_status_ == (expected), "status %d, expected %d", (int)check_status_, (int)(expected));       \
    CHECK(strstr(sv_last_error(), words) != NULL, "said \"%s\", expected \"%s\"", sv_last_error(), words);   \
  } while (0)

static inline int check_result(void) {
  if (check_failures) fprintf(stderr, "%d checks failed\n", check_failures);
  return check_failures ? 1 : 0;
}

#endif
