/* SPDX-License-Identifier: Apache-2.0
 *
 * Chains by their definition, in double, one sample at a time.  Chains given here have dtype DPCR_F64
 * and parameters in host memory; layouts are those of chain.h.
 *
 * With a noise, every intermediate result is moved at random by about what rounding in a lower
 * precision would have moved it.  How far the end of such a run is from the exact one says how large
 * an error is natural for this chain: a bound for the errors of kernels that knows about growth,
 * cancellation and chaos.
 */
#ifndef DEEPPCR_TEST_CHAIN_REFERENCE_H
#define DEEPPCR_TEST_CHAIN_REFERENCE_H

#include "ops/chain.h"
#include "rng.h"

typedef struct noise {
    rng random;
    double roundoff;   /* 0: exact */
    uint64_t branches; /* hash of the branches that the activations took */
} noise;

/* Steps first..last-1 of sample by sample: starts (B,w) -> ends (B,w), states (last-first,B,w) or NULL */
void reference_propagate(const dpcr_chain *chain, int64_t first, int64_t last, const double *starts,
                         double *ends, double *states, noise *n);

/* tangents (B,w,w): the products of the step Jacobians along states (last-first,B,w) from starts */
void reference_tangents(const dpcr_chain *chain, int64_t first, int64_t last, const double *starts,
                        const double *states, double *tangents, noise *n);

/* A whole pullback, host pointers to double everywhere; what is NULL is not given or not wanted. */
void reference_backward(const dpcr_chain *chain, const dpcr_pullback *pass, noise *n);

#endif
