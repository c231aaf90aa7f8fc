/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels of the chains, as a device offers them to chain.c.
 *
 * The unit of work is a *tile*: a fixed number of samples that stay together through all steps.
 */
#ifndef DEEPPCR_OPS_KERNELS_H
#define DEEPPCR_OPS_KERNELS_H

#include "chain.h"
#include "pcr/internal.h"

/* All segments of a chain, each from its own start. */
struct propagate_pass {
    dpcr_exec exec;
    const dpcr_chain *chain;
    dpcr_propagation arrays;
    int64_t S;
    char *scratch;
    size_t scratch_bytes;
};

/* Steps first..last-1 of a chain, backwards. */
struct pullback_pass {
    dpcr_exec exec;
    const dpcr_chain *chain;
    const dpcr_pullback *arrays;
    int64_t first, last;
    void *adjoint;      /* (B,w) gradient of z_last in, of z_first out */
    void *saved;        /* (last-first,B,saved) what the parameter gradients need, or NULL: none wanted */
    int64_t saved_size; /* elements of it per step and sample */
    char *scratch;
    size_t scratch_bytes;
};

struct chain_kernels {
    int64_t (*tile)(const dpcr_chain *chain);
    size_t (*propagate_scratch)(const dpcr_chain *chain, bool tangents);
    void (*propagate)(const struct propagate_pass *pass);
    size_t (*pullback_scratch)(const dpcr_chain *chain);
    int64_t (*saved_size)(const dpcr_chain *chain);
    void (*pullback)(const struct pullback_pass *pass);
    /* Parameter gradients of the pass's steps, each the sum over all samples in their order. */
    void (*gradient)(const struct pullback_pass *pass);
    void (*activate)(dpcr_activation activation, const double parameter[2], int64_t count, const void *u,
                     void *y, void *d);
};

/* Elements per step of each parameter; 0: the step kind has no such parameter. */
int64_t dpcr_parameter_size(const dpcr_chain *chain, dpcr_parameter parameter);

/* [DPCR_F32], [DPCR_F64] of each level */
extern const struct chain_kernels dpcr_chain_generic[2], dpcr_chain_v3[2], dpcr_chain_v4[2];

const struct chain_kernels *dpcr_chain_kernels(const dpcr_device *device, dpcr_dtype dtype);

#endif
