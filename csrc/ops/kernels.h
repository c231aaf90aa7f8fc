/* SPDX-License-Identifier: Apache-2.0
 *
 * Kernels of the chains, as a device offers them to chain.c, solve.c and backward.c.
 *
 * The unit of work is a *tile*: a fixed number of samples that stay together through all steps.
 */
#ifndef DEEPPCR_OPS_KERNELS_H
#define DEEPPCR_OPS_KERNELS_H

#include "ops/newton.h"

/* Segments k0..k1-1 of S, each from its own start, for the samples first..first+samples-1 of the batch. */
struct propagate_pass {
    dpcr_exec exec;
    const dpcr_chain *chain;
    int64_t S, k0, k1, first, samples;
    struct segment_rows starts,
        ends; /* starts.data NULL: the states of `trajectory`; ends.data NULL: not kept */
    struct trajectory {
        const void *z0;     /* (B,w) */
        const void *states; /* (L,B,w) */
    } trajectory;
    void *states; /* (-,B,w): those of step l as row l - states_first; NULL: not kept */
    int64_t states_first;
    struct
        tangent_maps { /* P_k (samples,w,w) or (samples,w) at data + first + k * step; NULL: not computed */
        void *data;
        int64_t first, step;
        bool transposed;
        bool diagonal; /* v . (P_k v), v that of `sweep` */
        int64_t sweep;
    } tangents;
    const struct newton_sample *control; /* (samples) what each of them needs; NULL: all of it */
    const unsigned char *stale;          /* (S,samples) with control: whose P_k is to be computed */
    bool keep_all;                       /* states of all samples, not of candidates alone */
    char *scratch;
    size_t scratch_bytes;
};

/* Steps first..last-1 of a chain backwards, in those of its segments k0..k1-1 of S; segments are counted
 * from the last (as newton.h has them). */
struct pullback_pass {
    dpcr_exec exec;
    const dpcr_chain *chain;
    const dpcr_pullback *arrays;
    int64_t first, last;
    int64_t S, k0, k1, sample, samples;
    struct segment_rows starts, ends; /* gradients of the states after a segment in, of those before it out */
    const void *before;               /* (B,w) z before step `first` */
    const void *states;               /* (-,B,w): that after step l as row l - states_first */
    int64_t states_first;
    const struct newton_sample *control;
    void *saved;           /* (last-first,B,saved) what the parameter gradients need, or NULL: none wanted */
    int64_t saved_size;    /* elements of it per step and sample */
    bool parameters_alone; /* nobody reads the ends: the walk of a segment stops at its first unfrozen step */
    char *scratch;
    size_t scratch_bytes;
};

struct chain_kernels {
    int64_t (*tile)(const dpcr_chain *chain);
    size_t (*propagate_scratch)(const dpcr_chain *chain, int64_t columns); /* of tangents */
    void (*propagate)(const struct propagate_pass *pass);
    /* The samples that are not settled, one segment after the other; their starts become exact. */
    void (*finish)(const struct propagate_pass *pass);
    size_t (*pullback_scratch)(const dpcr_chain *chain);
    int64_t (*saved_size)(const dpcr_chain *chain);
    void (*pullback)(const struct pullback_pass *pass);
    void (*finish_pullback)(const struct pullback_pass *pass);
    /* Parameter gradients of the pass's steps, each the sum over all samples in their order; to those of shared
     * parameters its steps are added, from the last. */
    void (*gradient)(const struct pullback_pass *pass);
    void (*activate)(dpcr_activation activation, const double parameter[2], int64_t count, const void *u,
                     void *y, void *d);
};

#ifdef __cplusplus
extern "C" {
#endif
/* Elements of each parameter that a step sees; 0: the step kind has no such parameter.  Exported as dpcr_fail is. */
DPCR_API int64_t dpcr_parameter_size(const dpcr_chain *chain, dpcr_parameter parameter);
/* Elements from one step's to the next step's: 0 where all steps share them. */
DPCR_API int64_t dpcr_parameter_stride(const dpcr_chain *chain, dpcr_parameter parameter);
/* Elements of all steps together. */
DPCR_API int64_t dpcr_parameter_total(const dpcr_chain *chain, dpcr_parameter parameter);
#ifdef __cplusplus
}
#endif

/* [DPCR_F32], [DPCR_F64] of each level */
extern const struct chain_kernels dpcr_chain_generic[2], dpcr_chain_v3[2], dpcr_chain_v4[2];

const struct chain_kernels *dpcr_chain_kernels(const dpcr_device *device, dpcr_dtype dtype);

/* ---- what solve.c and backward.c share (chain.c) -------------------------------------------- */

bool dpcr_has_parameter(const dpcr_chain *chain, int parameter);
dpcr_status dpcr_check_chain(dpcr_exec exec, const dpcr_chain *chain, const dpcr_plan *plan);
dpcr_status dpcr_check_parameters(const dpcr_chain *chain);
extern const char *const dpcr_parameter_names[DPCR_PARAMETERS];
/* S of the plan, 1 for an empty chain; its arrays have sizes that can be counted. */
dpcr_status dpcr_check_segments(const dpcr_chain *chain, const dpcr_plan *plan, int64_t *S);
/* DPCR_BAD_ARGUMENT where bytes is more than the plan's cap. */
dpcr_status dpcr_fit_cap(const dpcr_plan *plan, size_t bytes);
/* As many of `slots` pieces of scratch as the cap leaves room for, at least one. */
int64_t dpcr_slots_within(const dpcr_plan *plan, int64_t slots, size_t each, size_t others);

/* Tasks of a pass over that many segments and samples. */
static inline int64_t dpcr_tile_count(const dpcr_chain *chain, int64_t tile, int64_t S, int64_t samples) {
    return chain->w == 0 ? 0 : S * dpcr_ceil_div(samples, tile);
}

static inline bool dpcr_no_states(const dpcr_chain *chain) {
    return chain->B == 0 || chain->w == 0;
}

/* Layers that follow each other in a step, each with an activation. */
static inline int64_t dpcr_step_layers(const dpcr_chain *chain) {
    return chain->step == DPCR_LAYERS ? chain->layers : chain->step == DPCR_DENOISE ? chain->layers + 1 : 1;
}

/* The first of the steps first..last-1 that is not frozen, or last. */
static inline int64_t dpcr_first_unfrozen(const dpcr_pullback *arrays, int64_t first, int64_t last) {
    while (arrays->frozen && first < last && arrays->frozen[first]) first++;
    return first;
}

/* Flops of the matrix products of a step, for one vector. */
static inline double dpcr_step_flops(const dpcr_chain *chain) {
    const double w = (double)chain->w, h = (double)chain->h;
    if (chain->step == DPCR_DENOISE) return 4 * w * h + 2 * (double)chain->layers * h * h;
    return (chain->step == DPCR_RESIDUAL ? 4 : 2) * (double)dpcr_step_layers(chain) * w * h;
}

/* Whether z is a term of f(z). */
static inline bool dpcr_has_skip(const dpcr_chain *chain) {
    return chain->step == DPCR_LAYERS ? chain->skip : chain->step != DPCR_MLP;
}

/* What z is multiplied by in that term of f_l(z), l = 0..L-1. */
static inline double dpcr_skip_factor(const dpcr_chain *chain, int64_t l) {
    const void *coefficients = chain->parameter[DPCR_COEFFICIENTS];
    if (chain->step != DPCR_DENOISE) return dpcr_has_skip(chain) ? 1 : 0;
    return chain->dtype == DPCR_F32 ? (double)((const float *)coefficients)[2 * l]
                                    : ((const double *)coefficients)[2 * l];
}

/* The scalar P of segment k of S. */
static inline double dpcr_segment_factor(const dpcr_chain *chain, int64_t S, int64_t k) {
    double product = 1;
    for (int64_t l = dpcr_edge(k, chain->L, S); l < dpcr_edge(k + 1, chain->L, S); l++)
        product *= dpcr_skip_factor(chain, l);
    return product;
}

#endif
