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

/* WANT_USED: the workspace is full of numbers that somebody left there, not of NaN. */
enum { WANT_STATES = 1, WANT_TANGENTS = 2, WANT_CHECKPOINTS = 4, WANT_REPORT = 8, WANT_USED = 16 };

/* starts (S,B,w) in the dtype */
forward_run forward_run_create(const chain_case *c, const void *starts, int want, const backend *at, mode m,
                               dpcr_plan plan);
void forward_run_destroy(forward_run *run);

/* dpcr_chain_solve from the case's own z0 */
typedef struct solve_run {
    dpcr_status status, short_status;
    size_t bytes;
    output z, states, checkpoints;
    output report; /* of doubles, whatever the dtype */
    bool intact;
} solve_run;

/* guess (L,B,w) in the dtype or NULL */
typedef struct solve_input {
    const void *guess;
    const dpcr_newton *newton;
} solve_input;

/* want: WANT_STATES, WANT_CHECKPOINTS, WANT_REPORT, WANT_USED */
solve_run solve_run_create(const chain_case *c, solve_input in, int want, const backend *at, mode m,
                           dpcr_plan plan);
void solve_run_destroy(solve_run *run);
/* A row of a report; NaN where there is none. */
double report_get(const output *report, int row, int64_t sample, int64_t B);

typedef struct pullback_run {
    dpcr_status status, short_status;
    size_t bytes;
    output z0, parameter[DPCR_PARAMETERS], report;
    bool intact;
} pullback_run;

/* Other bits: those of the parameters. */
enum {
    WANT_Z0 = 1 << DPCR_PARAMETERS,
    WANT_PULLBACK_REPORT = 2 << DPCR_PARAMETERS,
    WANT_PULLBACK_USED = 4 << DPCR_PARAMETERS
};

/* states (L,B,w) or checkpoints (C,B,w), gz (B,w), gstates (L,B,w); the gradients may be NULL */
typedef struct pullback_input {
    const void *states, *checkpoints, *gz, *gstates;
    const dpcr_newton *newton;
    const unsigned char *frozen; /* (L) or NULL */
} pullback_input;

pullback_run pullback_run_create(const chain_case *c, pullback_input in, int want, const backend *at, mode m,
                                 dpcr_plan plan);
void pullback_run_destroy(pullback_run *run);

#endif
