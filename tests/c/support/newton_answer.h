/* SPDX-License-Identifier: Apache-2.0
 *
 * How far off a solve over segments may be, for every step of every sample: what rounding does to the
 * sequential pass (noisy runs, as in chain_reference.h), and what errors of rtol in the start states of
 * the segments, each relative to its own state, do inside them.
 */
#ifndef DEEPPCR_TEST_NEWTON_ANSWER_H
#define DEEPPCR_TEST_NEWTON_ANSWER_H

#include "chain_run.h"

typedef struct newton_answer {
    double *states; /* (L,B,w) */
    double *bound;  /* (L,B) for every element; inf where the chain leaves the range of the dtype */
} newton_answer;

newton_answer newton_answer_create(const chain_case *c, int64_t S, double rtol);
void newton_answer_destroy(newton_answer *a);

/* States (L,B,w) of a run: those of the sample are within their bounds. */
void check_sample(const chain_case *c, const newton_answer *a, const output *states, int64_t sample);

/* Runs with WANT_STATES and WANT_REPORT: a verdict that may be, and that is true: a converged sample is
 * right, a finished one has the bits of the sequential pass. */
void check_verdict(const chain_case *c, const newton_answer *a, const dpcr_newton *newton,
                   const solve_run *run, const solve_run *sequential, int64_t sample);

/* Pieces (B,size) of two results: do they agree in the bits of the sample? */
bool sample_equal(const chain_case *c, const output *a, const output *b, int64_t sample, int64_t size);

#endif
