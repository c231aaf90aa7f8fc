/* SPDX-License-Identifier: Apache-2.0
 *
 * A row of the chains' table made into numbers, twice: as the dtype has them, for the kernels, and the
 * same values in double, for the reference; and the reference's answers with the errors to allow.
 */
#ifndef DEEPPCR_TEST_CHAIN_CASE_H
#define DEEPPCR_TEST_CHAIN_CASE_H

#include "chain_reference.h"
#include "chain_rows.h"

/* Numbers in both forms: data (in dtype) and value, equal. */
typedef struct numbers {
    dpcr_dtype dtype;
    int64_t count;
    void *data;
    double *value;
} numbers;

/* count numbers of standard deviation `spread` around `mean` */
numbers numbers_random(dpcr_dtype dtype, int64_t count, double mean, double spread, rng *random);
/* Those of `value`, rounded to the dtype. */
numbers numbers_rounded(dpcr_dtype dtype, int64_t count, const double *value);
void numbers_set(numbers *a, int64_t index, double value);
void numbers_destroy(numbers *a);

typedef struct chain_case {
    chain_row row;
    dpcr_dtype dtype;
    numbers parameter[DPCR_PARAMETERS]; /* count 0 where absent */
    numbers z0;                         /* (B,w) */
    dpcr_chain chain;                   /* of the data, dtype `dtype` */
    dpcr_chain exact;                   /* of the values, dtype f64 */
} chain_case;

chain_case chain_case_create(const chain_row *row, dpcr_dtype dtype);
void chain_case_destroy(chain_case *c);

/* First step (from 0) of segment k = 0..S. */
int64_t segment_edge(int64_t k, int64_t L, int64_t S);

/* ---- what is right, and how far off it may be ------------------------------------------------ */

typedef struct chain_answer {
    double *states, *ends, *tangents;  /* (L,B,w), (S,B,w), (S,B,w,w) or NULL */
    double *state_bound;               /* (L) largest error of an element of z_l */
    double *end_bound, *tangent_bound; /* (S) */
    bool steady;                       /* no rounding sends a pre-activation over a kink or step */
} chain_answer;

/* S segments from starts (S,B,w) */
chain_answer chain_answer_create(const chain_case *c, const double *starts, int64_t S, bool tangents);
void chain_answer_destroy(chain_answer *a);

typedef struct gradient_answer {
    double *z0, *parameter[DPCR_PARAMETERS];
    double z0_bound, *parameter_bound[DPCR_PARAMETERS]; /* one bound; one for a piece */
    bool steady;
} gradient_answer;

/* From states of the row's own chain (in double); gz, gstates may be NULL. */
gradient_answer gradient_answer_create(const chain_case *c, const double *states, const double *gz,
                                       const double *gstates);
void gradient_answer_destroy(gradient_answer *a);

#endif
