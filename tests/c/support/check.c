/* SPDX-License-Identifier: Apache-2.0
 *
 * Counters and messages behind check.h.
 */
#include "check.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>

enum { SHOWN = 40, CONTEXT = 400 }; /* failures printed in full, characters of a context */

static long passed_count, failed_count, skipped_count;
static double worst_ratio = -1;
static char context[CONTEXT], worst_context[CONTEXT];

static void show(const char *file, int line, const char *text, const char *format, va_list values) {
    if (failed_count > SHOWN) {
        return;
    }
    printf("%s:%d: failed: %s\n    in: %s\n    values: ", file, line, text, context);
    vprintf(format, values);
    putchar('\n');
    if (failed_count == SHOWN) {
        puts("further failures are counted, not shown");
    }
}

static bool count(bool passed, const char *file, int line, const char *text, const char *format,
                  va_list values) {
    if (passed) {
        passed_count++;
    } else {
        failed_count++;
        show(file, line, text, format, values);
    }
    return passed;
}

bool check_that(bool passed, const char *file, int line, const char *text, const char *format, ...) {
    va_list values;
    va_start(values, format);
    count(passed, file, line, text, format, values);
    va_end(values);
    return passed;
}

/* Formats only what fails: there are millions of these. */
bool check_within(double error, double bound, const char *file, int line, const char *text,
                  const char *format, ...) {
    const double ratio = bound > 0 ? error / bound : 0;
    if (error <= bound) { /* false where either is NaN */
        if (ratio > worst_ratio) {
            worst_ratio = ratio;
            snprintf(worst_context, sizeof worst_context, "%s", context);
        }
        passed_count++;
        return true;
    }
    char detail[CONTEXT];
    va_list values;
    va_start(values, format);
    vsnprintf(detail, sizeof detail, format, values);
    va_end(values);
    return check_that(false, file, line, text, "%.6g > %.6g: %s", error, bound, detail);
}

void check_context(const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(context, sizeof context, format, values);
    va_end(values);
}

void check_skip(const char *what, const char *reason) {
    skipped_count++;
    printf("skipped: %s: %s\n", what, reason);
}

int check_finish(void) {
    if (worst_ratio >= 0) {
        printf("largest error: %.3f of its bound, in: %s\n", worst_ratio, worst_context);
    }
    if (skipped_count > 0) {
        printf("%ld skipped\n", skipped_count);
    }
    printf("%ld passed, %ld failed\n", passed_count, failed_count);
    return failed_count > 0 || passed_count == 0;
}
