/* SPDX-License-Identifier: Apache-2.0
 *
 * Checks that a call refused its arguments: the status, and a detail of this very call that begins
 * with the name of the argument at fault.
 *
 *     refusal_expected("plan.segments");
 *     refusal_check(dpcr_recurrence_solve(...), DPCR_BAD_ARGUMENT, "dpcr_recurrence_solve");
 */
#ifndef DEEPPCR_TEST_REFUSAL_H
#define DEEPPCR_TEST_REFUSAL_H

#include "check.h"
#include "pcr/pcr.h"

#include <string.h>

static const char *refusal_word;

/* Leaves a detail behind that names something else, so that an old one is not taken for a new one. */
static inline void refusal_expected(const char *word) {
    const dpcr_recurrence none = {.L = 0};
    const dpcr_plan plan = {.segments = 1};
    size_t bytes;
    refusal_word = word;
    dpcr_recurrence_workspace((dpcr_exec){.threads = 1}, strcmp(word, "exec.device") == 0 ? NULL : &none,
                              &plan, &bytes);
    if (strcmp(word, "exec.device") == 0) {
        const dpcr_exec exec = dpcr_serial();
        dpcr_recurrence_workspace(exec, NULL, &plan, &bytes);
    }
}

static inline void refusal_check(dpcr_status status, dpcr_status expected, const char *call) {
    CHECK(status == expected, "%s: status %d, detail: %s", call, (int)status, dpcr_detail());
    CHECK(strncmp(dpcr_detail(), refusal_word, strlen(refusal_word)) == 0,
          "%s: \"%s\" does not begin with %s", call, dpcr_detail(), refusal_word);
}

#endif
