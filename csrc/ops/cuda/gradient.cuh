/* SPDX-License-Identifier: Apache-2.0
 *
 * Parameter gradients from what step_back() has saved: a thread an element, which adds up the samples in their
 * order, or, of what all steps share, the samples of all steps from the last.  gradient.cu says which are matrix
 * products instead.
 */
#ifndef DEEPPCR_OPS_CUDA_GRADIENT_H
#define DEEPPCR_OPS_CUDA_GRADIENT_H

#include "ops/cuda/segment.cuh"

/* One parameter: element (l, m, i, c) is the sum over s of x_i y_c, x_i y_i or x_i, in layer m of step l; or (l, s, i)
 * is x_i itself.  Element (i, c) of what all steps share is the sum over l and s of x_i y_c, or of c_l x_i. */
enum gradient_kind {
    GRADIENT_OUTER,
    GRADIENT_PRODUCT,
    GRADIENT_SUM,
    GRADIENT_ITSELF,
    GRADIENT_SHARED,
    GRADIENT_SHARED_SCALED
};

struct gradient_job {
    void *gradient; /* (-,layers,rows,columns) from step `first` of the pass on; NULL: not wanted */
    gradient_kind kind;
    int64_t rows, columns;
    int64_t x, y; /* where x and y begin in a saved row, in layer 0; y of a layer may lie in the last one's */
    bool from_state;   /* y of layer 0 is the state before the step */
    int64_t block = 0; /* shared: rows that have their y together; those of the next block lie behind it */
};

static inline DPCR_EVERYWHERE bool is_shared(const gradient_job &job) {
    return job.kind == GRADIENT_SHARED || job.kind == GRADIENT_SHARED_SCALED;
}

struct gradient_pass {
    dpcr_chain chain;
    back_arrays arrays;
    int64_t first, last;               /* steps */
    int64_t layers, piece;             /* piece: of a layer in a saved row */
    int64_t elements[DPCR_PARAMETERS]; /* of each job */
    gradient_job job[DPCR_PARAMETERS];
};

/* The steps are added from the last, as ops/cpu has it: chunks come in this order, so that they change no bit. */
template <class T>
__device__ void shared_element(const gradient_pass &pass, const gradient_job &job, int64_t e) {
    const dpcr_chain &chain = pass.chain;
    const bool scaled = job.kind == GRADIENT_SHARED_SCALED;
    const int64_t i = e / job.columns, c = e % job.columns, width = saved_size(chain);
    const int64_t y_width = scaled ? 0 : job.from_state ? chain.w : width;
    T sum = ((T *)job.gradient)[e];
    for (int64_t l = pass.last - 1; l >= pass.first; l--) {
        const T *saved = (const T *)pass.arrays.saved + (l - pass.arrays.first) * chain.B * width;
        const T *x = saved + job.x + i, *y = saved + job.y + i / job.block * job.columns + c;
        if (job.from_state) y = state_before<T>(chain, pass.arrays, l, 0) + c;
        if (scaled) y = (const T *)chain.parameter[DPCR_COEFFICIENTS] + 2 * l + 1;
        UNROLL_BY(8)
        for (int64_t s = chain.B - 1; s >= 0; s--) sum = fused(x[s * width], y[s * y_width], sum);
    }
    ((T *)job.gradient)[e] = sum;
}

template <class T>
__device__ void gradient_element(const gradient_pass &pass, const gradient_job &job, int64_t e) {
    const dpcr_chain &chain = pass.chain;
    const int64_t matrix = job.rows * job.columns, step = pass.layers * matrix;
    const int64_t l = pass.first + e / step, m = e % step / matrix, i = e % matrix / job.columns;
    const int64_t c = job.kind == GRADIENT_OUTER ? e % job.columns : i, width = saved_size(chain);
    const T *saved = (const T *)pass.arrays.saved + (l - pass.arrays.first) * chain.B * width;
    const T *x = saved + m * pass.piece + job.x + i, *y = saved + m * pass.piece + job.y + c;
    const bool state = job.from_state && m == 0;
    const int64_t y_width = state ? chain.w : width;
    if (state) y = state_before<T>(chain, pass.arrays, l, 0) + c;
    T sum = 0;
    if (job.kind == GRADIENT_ITSELF) { /* rows: those of all samples */
        ((T *)job.gradient)[e] = saved[i / chain.w * width + job.x + i % chain.w];
        return;
    }
    for (int64_t s = 0; s < chain.B; s++)
        sum = job.kind == GRADIENT_SUM ? sum + x[s * width] : fused(x[s * width], y[s * y_width], sum);
    ((T *)job.gradient)[e] = sum;
}

template <class T>
__global__ void THREADS(ELEMENT_THREADS)
    gradient_kernel(int64_t elements, const __grid_constant__ gradient_pass pass) {
    FOR_ELEMENTS(e, elements) {
        int64_t inside = e;
        int j = 0;
        while (inside >= pass.elements[j]) inside -= pass.elements[j++];
        if (is_shared(pass.job[j]))
            shared_element<T>(pass, pass.job[j], inside);
        else
            gradient_element<T>(pass, pass.job[j], inside);
    }
}

template <class T>
__global__ void THREADS(ELEMENT_THREADS)
    activate_kernel(int64_t elements, dpcr_chain chain, const T *u, T *y, T *d) {
    FOR_ELEMENTS(e, elements) {
        T in[1] = {u[e]}, value[1], slope[1];
        activation(chain, in, value, slope);
        y[e] = value[0];
        if (d) d[e] = slope[0];
    }
}

/* The report of a pass that has no sweeps. */
template <class T>
__global__ void THREADS(ELEMENT_THREADS) report_kernel(int64_t samples, T *report, T flops) {
    FOR_ELEMENTS(s, samples) {
        const T column[DPCR_REPORT] = {1, 0, DPCR_CONVERGED, 0, 0, flops};
        for (int i = 0; i < DPCR_REPORT; i++) report[i * samples + s] = column[i];
    }
}

#endif
