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

/* The columns beyond the matrices, once for all steps that a slot will hold; other elements are overwritten. */
template <class T> __device__ void stage_zeros(T *slots, int elements, int t, int count) {
    for (int e = t; e < elements; e += count) slots[e] = 0;
}

/* One matrix (rows,columns) a step, or a vector of one row: a thread has its places in it, UNIT elements each, and
 * goes through the steps with each; what is over of the threads takes every second step, and so on. */
template <int UNIT, class T>
__device__ void stage_array(const T *from, int steps, int rows, int columns, T *to, int row_stride, int slot,
                            int t, int count) {
    const int in_row = columns / UNIT, units = rows * in_row;
    if (units == 0) return; /* a block of hidden width 0 */
    const int groups = units < count ? count / units : 1, group = units < count ? t / units : 0;
    if (group >= groups) return;
    for (int u = units < count ? t % units : t; u < units; u += count) {
        const T *source = from + u * UNIT + (int64_t)group * rows * columns;
        T *target = to + u / in_row * row_stride + u % in_row * UNIT + group * slot;
        for (int step = group; step < steps; step += groups) {
            copy_async<UNIT * sizeof(T)>(target, source);
            source += (int64_t)groups * rows * columns;
            target += groups * slot;
        }
    }
}

template <class TEAM>
__device__ void stage_matrix(const typename TEAM::T *from, int steps, int rows, int columns,
                             typename TEAM::T *to, int slot, int t, int count) {
    if (is_packed<TEAM>(from, columns))
        stage_array<TEAM::PACK>(from, steps, rows, columns, to, TEAM::STRIDE, slot, t, count);
    else
        stage_array<1>(from, steps, rows, columns, to, TEAM::STRIDE, slot, t, count);
}

/* Steps first..first+steps-1 into as many slots. */
template <class TEAM>
__device__ void stage_steps(const dpcr_chain &chain, const slot_shape &shape, int64_t first, int steps,
                            typename TEAM::T *slots, int t, int count) {
    const int w = (int)chain.w, h = (int)chain.h, size = shape.size;
    const int M = chain.step == DPCR_RESIDUAL ? 1 : (int)chain.layers;
    const step_parameters<typename TEAM::T> p = parameters_of<TEAM>(chain, first);
    stage_matrix<TEAM>(p.W1.data, steps, M * h, w, slots + shape.W1, size, t, count);
    if (p.b1) stage_array<1>(p.b1, steps, 1, M * h, slots + shape.b1, 0, size, t, count);
    if (shape.W2 >= 0) stage_matrix<TEAM>(p.W2.data, steps, w, h, slots + shape.W2, size, t, count);
    if (p.b2) stage_array<1>(p.b2, steps, 1, w, slots + shape.b2, 0, size, t, count);
    if (p.gamma) stage_array<1>(p.gamma, steps, 1, M * w, slots + shape.gamma, 0, size, t, count);
    if (p.beta) stage_array<1>(p.beta, steps, 1, M * w, slots + shape.beta, 0, size, t, count);
}

#endif
