/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs a chain case on a backend between guards, as recurrence_run.h does for the recurrence.  All
 * results are host copies in the dtype of the case.
 */
#ifndef DEEPPCR_TEST_CHAIN_RUN_H
#define DEEPPCR_TEST_CHAIN_RUN_H

#include "backend.h"
#include "chain_case.h"

typedef struct output { /* an array that a call may write; data NULL: not asked for */
    size_t bytes;
    void *data;
} output;

bool outputs_equal(const output *a, const output *b);

typedef struct forward_run {
    dpcr_status status, short_status; /* the latter with one byte of workspace less */
    size_t bytes;                     /* of workspace */
    output ends, states, tangents;
    bool intact; /* guards and inputs are as they were */
} forward_run;

enum { WANT_STATES = 1, WANT_TANGENTS = 2 };

/* starts (S,B,w) in the dtype */
forward_run forward_run_create(const chain_case *c, const void *starts, int want, const backend *at, mode m,
                               dpcr_plan plan);
void forward_run_destroy(forward_run *run);

typedef struct pullback_run {
    dpcr_status status, short_status;
    size_t bytes;
    output z0, parameter[DPCR_PARAMETERS];
    bool intact;
} pullback_run;

enum { WANT_Z0 = 1 << DPCR_PARAMETERS }; /* other bits: those of the parameters */

/* states (L,B,w), gz (B,w), gstates (L,B,w); the gradients may be NULL */
typedef struct pullback_input {
    const void *states, *gz, *gstates;
} pullback_input;

pullback_run pullback_run_create(const chain_case *c, pullback_input in, int want, const backend *at, mode m,
                                 dpcr_plan plan);
void pullback_run_destroy(pullback_run *run);

#endif
