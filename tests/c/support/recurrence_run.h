/* SPDX-License-Identifier: Apache-2.0
 *
 * Runs a case on a backend: arrays go there between guards, the workspace is exactly as large as its
 * query says and full of NaN, and what comes back is checked for bytes that nobody may have written.
 */
#ifndef DEEPPCR_TEST_RECURRENCE_RUN_H
#define DEEPPCR_TEST_RECURRENCE_RUN_H

#include "recurrence_case.h"

typedef struct recurrence_run {
    dpcr_status status;       /* of the query or, if that succeeds, of the solve */
    dpcr_status short_status; /* of a solve with one byte of workspace less, where there is any */
    int64_t levels;
    size_t bytes; /* of workspace */
    image x;      /* in the layout of the case */
    int32_t *recomputed;
    bool intact; /* guards, gaps and inputs are as they were */
} recurrence_run;

recurrence_run recurrence_run_create(const recurrence_case *c, const backend *at, mode m, dpcr_plan plan);
void recurrence_run_destroy(recurrence_run *run);

/* The gradients of a forward case for the incoming gradient in c's own layout of b. */
typedef struct gradient_run {
    dpcr_status status;
    image b, A, x0; /* in the layouts of b, A and x0 */
    dpcr_vectors b_view, x0_view;
    dpcr_blocks A_view;
    size_t bytes; /* of workspace */
    bool intact;
} gradient_run;

enum { WANT_A = 1, WANT_X0 = 2 };

/* incoming: image in the layout of b; solved: image of x in the layout of x; want: which gradients
 * besides that of b. */
gradient_run gradient_run_create(const recurrence_case *c, const image *solved, const image *incoming,
                                 int want, const backend *at, mode m, dpcr_plan plan);
void gradient_run_destroy(gradient_run *run);

/* Bit for bit, gaps and all: for two runs of one case. */
bool images_equal(const image *a, const image *b);
/* All bytes 0xff. */
bool image_blank(const image *m);

#endif
