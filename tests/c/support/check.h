/* SPDX-License-Identifier: Apache-2.0
 *
 * Counted checks.  A program makes checks and ends with `return check_finish();`, which prints
 * "N passed, M failed" and is non-zero where a check failed or none was made.
 *
 *     check_context("dense L=%d S=%d", L, S);        the row that the next checks belong to
 *     CHECK(bytes <= cap, "%zu > %zu", bytes, cap);  a condition and the values to show if it fails
 *     CHECK_WITHIN(error, bound, "step %d", l);      error <= bound; a NaN on either side fails
 *     check_skip("x86_64_v4", "why");                what was not run, and why
 *
 * CHECK_WITHIN also keeps the largest error / bound, which check_finish prints: a bound that is far
 * from every error it has seen checks nothing.  Not for use from several threads at once.
 */
#ifndef DEEPPCR_TEST_CHECK_H
#define DEEPPCR_TEST_CHECK_H

#include <stdbool.h>

#define CHECK(condition, ...) check_that((condition), __FILE__, __LINE__, #condition, __VA_ARGS__)
#define CHECK_WITHIN(error, bound, ...) \
    check_within((error), (bound), __FILE__, __LINE__, #error " <= " #bound, __VA_ARGS__)

__attribute__((format(printf, 5, 6))) bool check_that(bool passed, const char *file, int line,
                                                      const char *text, const char *format, ...);
__attribute__((format(printf, 6, 7))) bool check_within(double error, double bound, const char *file,
                                                        int line, const char *text, const char *format, ...);
__attribute__((format(printf, 1, 2))) void check_context(const char *format, ...);
void check_skip(const char *what, const char *reason);
int check_finish(void);

#endif
