/* SPDX-License-Identifier: Apache-2.0
 *
 * The parameters of a step in shared memory: a *slot*, in which matrices have rows of TEAM::STRIDE elements, the
 * columns beyond the matrix 0, so that they are read 16 bytes at a time without bank conflicts.
 */
#ifndef DEEPPCR_OPS_CUDA_STAGE_H
#define DEEPPCR_OPS_CUDA_STAGE_H

#include "ops/cuda/step.cuh"

/* Where the parts of a slot begin, in elements; negative: absent. */
struct slot_shape {
    int W1, b1, W2, b2, gamma, beta, size;
};

template <class TEAM> static inline slot_shape slot_of(const dpcr_chain &chain) {
    const int w = (int)chain.w, h = (int)chain.h, pack = TEAM::PACK, stride = TEAM::STRIDE;
    const int M = chain.step == DPCR_RESIDUAL ? 1 : (int)chain.layers;
    const int sizes[DPCR_PARAMETERS] = {M * h * stride, M * h, w * stride, w, M * w, M * w};
    int starts[DPCR_PARAMETERS], used = 0;
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        starts[i] = chain.parameter[i] ? used : -1;
        if (chain.parameter[i]) used += (sizes[i] + pack - 1) / pack * pack;
    }
    return {starts[DPCR_W1],
            starts[DPCR_B1],
            starts[DPCR_W2],
            starts[DPCR_B2],
            starts[DPCR_GAMMA],
            starts[DPCR_BETA],
            used};
}

template <class TEAM>
__device__ step_parameters<typename TEAM::T> parameters_in(const slot_shape &shape,
                                                           const typename TEAM::T *slot) {
    return {{slot + shape.W1, TEAM::STRIDE, true},       {slot + shape.W2, TEAM::STRIDE, true},
            shape.b1 < 0 ? NULL : slot + shape.b1,       shape.b2 < 0 ? NULL : slot + shape.b2,
            shape.gamma < 0 ? NULL : slot + shape.gamma, shape.beta < 0 ? NULL : slot + shape.beta};
}

/* Everything below: by `count` threads, this one being number t; await_copies() and a barrier end it. */

template <class T> __device__ void stage_vector(const T *from, int n, T *to, int t, int count) {
    for (int e = t; e < n; e += count) copy_async<sizeof(T)>(to + e, from + e);
}

template <class TEAM>
__device__ void stage_matrix(const typename TEAM::T *from, int rows, int columns, typename TEAM::T *to, int t,
                             int count) {
    enum { PACKS = TEAM::N / TEAM::PACK };
    if (is_packed<TEAM>(from, columns)) {
        for (int e = t; e < rows * PACKS; e += count)
            copy_async<16>(to + e / PACKS * TEAM::STRIDE + e % PACKS * TEAM::PACK, from + e * TEAM::PACK);
        return;
    }
    for (int e = t; e < rows * columns; e += count)
        copy_async<sizeof(typename TEAM::T)>(to + e / columns * TEAM::STRIDE + e % columns, from + e);
}

/* The columns beyond the matrices, once for all steps that a slot will hold; other elements are overwritten. */
template <class T> __device__ void stage_zeros(T *slots, int elements, int t, int count) {
    for (int e = t; e < elements; e += count) slots[e] = 0;
}

template <class TEAM>
__device__ void stage_step(const dpcr_chain &chain, const slot_shape &shape, int64_t l,
                           typename TEAM::T *slot, int t, int count) {
    const int w = (int)chain.w, h = (int)chain.h;
    const int M = chain.step == DPCR_RESIDUAL ? 1 : (int)chain.layers;
    const step_parameters<typename TEAM::T> p = parameters_of<TEAM>(chain, l);
    stage_matrix<TEAM>(p.W1.data, M * h, w, slot + shape.W1, t, count);
    if (p.b1) stage_vector(p.b1, M * h, slot + shape.b1, t, count);
    if (shape.W2 >= 0) stage_matrix<TEAM>(p.W2.data, w, h, slot + shape.W2, t, count);
    if (p.b2) stage_vector(p.b2, w, slot + shape.b2, t, count);
    if (p.gamma) stage_vector(p.gamma, M * w, slot + shape.gamma, t, count);
    if (p.beta) stage_vector(p.beta, M * w, slot + shape.beta, t, count);
}

#endif
