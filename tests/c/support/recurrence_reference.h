/* SPDX-License-Identifier: Apache-2.0
 *
 * The recurrence by its definition, in double, one element at a time, reading the strides of the
 * problem itself.  Problems hold host pointers; results are contiguous: x (L,B,w), A (L,B|1,w,w),
 * (L,B|1,w) or (L,B|1,1), x0 (B,w).
 */
#ifndef DEEPPCR_TEST_RECURRENCE_REFERENCE_H
#define DEEPPCR_TEST_RECURRENCE_REFERENCE_H

#include "pcr/pcr.h"

/* x of the problem, forward or transposed. */
void reference_recurrence(const dpcr_recurrence *p, double *x);

/* Gradients of a forward problem with solution x, for the incoming gradient c (strided); y (L,B,w)
 * is that of b; A and x0 may be NULL.  summed: A (L,1,..) is the sum over the samples. */
typedef struct reference_gradients {
    double *y, *A, *x0;
    bool summed;
} reference_gradients;

void reference_recurrence_gradients(const dpcr_recurrence *p, const double *x, const dpcr_vectors *c,
                                    reference_gradients g);

/* size (L,B): |x_l|_2 if nothing cancelled, s_l = norm s_{l-1} + |b_l|_2 in the direction of the
 * problem, where norm bounds every |A_l|_2.  What any order of operations computes is off by no more
 * than a few roundings of it: error_bound. */
void reference_recurrence_size(const dpcr_recurrence *p, double norm, double *size);
double recurrence_error_bound(const dpcr_recurrence *p, double size);

/* Element i of vector (l, s); entry (i, j) of block (l, s) whatever its kind. */
double reference_vector(dpcr_dtype dtype, const dpcr_vectors *v, int64_t l, int64_t s, int64_t i);
double reference_block(const dpcr_recurrence *p, int64_t l, int64_t s, int64_t i, int64_t j);

#endif
