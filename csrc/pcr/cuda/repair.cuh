/* SPDX-License-Identifier: Apache-2.0
 *
 * Is the reduction right?  Products of maps can overflow, or underflow, where the loop does not.  The walk
 * of substitute started every segment from the state found and ended somewhere; where that is not the state
 * found there, but for rounding, the sample is recomputed by the loop.
 *
 * The loop's own error at the end of a segment is relative to the state there (and to b, where M x and b
 * cancel), or to an earlier state as far as the maps have not damped it since.  Never to the largest state of the
 * chain: one that shrinks, then grows again would hide garbage behind it.
 *
 * A block a sample; in nearly all of them every segment agrees with its own state alone.
 */
#ifndef DEEPPCR_PCR_CUDA_REPAIR_H
#define DEEPPCR_PCR_CUDA_REPAIR_H

#include "pcr/cuda/wide.cuh"

/* ends (S,B,w): x at the end of every segment, as the reduction found it */
struct repair_args {
    const void *ends;
    const void *damping;              /* (S,channels) of segments 1..S-1; NULL: 1 */
    int64_t channels, own, of_sample; /* a sample has `own` of them from sample * of_sample on */
    int32_t *recomputed;
};

template <class T> struct segment_end {
    T gap, size; /* |x - end|, NaN where not finite; |x| + |b| */
};

template <class T> __device__ T magnitude(T x) {
    return x < 0 ? -x : x;
}

template <class T>
__device__ segment_end<T> segment_end_of(const struct walk &walk, const repair_args &args, int64_t k,
                                         int64_t s) {
    const int64_t last = dpcr_edge(k + 1, walk.L, walk.S) - 1;
    const T *x = vector_at<T>(walk.x, last, s), *b = vector_at<T>(walk.b, last, s),
            *end = (const T *)args.ends + (k * walk.B + s) * walk.w;
    T gap = 0, poison = 0, state = 0, input = 0;
    for (int64_t i = 0; i < walk.w; i++) {
        const T difference = x[i] - end[i];
        gap = magnitude(difference) > gap ? magnitude(difference) : gap;
        state = magnitude(x[i]) > state ? magnitude(x[i]) : state;
        input = magnitude(b[i]) > input ? magnitude(b[i]) : input;
        poison += difference - difference;
    }
    return {gap + poison, state + input};
}

template <class T> __device__ double damping_at(const repair_args &args, int64_t k, int64_t s) {
    if (!args.damping) return 1;
    T most = 0;
    for (int64_t i = 0; i < args.own; i++) {
        const T one = ((const T *)args.damping)[k * args.channels + s * args.of_sample + i];
        most = one > most ? one : most;
    }
    return (double)most;
}

/* By one thread: segment by segment, with the scale that earlier ones leave. */
template <class T> __device__ bool agrees(const struct walk &walk, const repair_args &args, int64_t s) {
    double scale = 0;
    for (int64_t k = 0; k < walk.S; k++) {
        const segment_end<T> end = segment_end_of<T>(walk, args, k, s);
        const double damped = k > 0 ? scale * damping_at<T>(args, k, s) : 0;
        scale = (double)end.size > damped ? (double)end.size : damped;
        if (!((double)end.gap <= walk.tolerance * scale)) return false;
    }
    return true;
}

/* The loop over one sample by a block, with the arithmetic of the sequential kernels; W 0: wide */
template <int BLOCK, class T, int W> __device__ void recompute(const struct walk &walk, int64_t s) {
    if constexpr (W == 0) {
        block_walk<T>(walk, s, 0, walk.L, start_of<T>(walk, s));
    } else {
        const int64_t own = BLOCK == DPCR_DENSE ? 1 : walk.w;
        for (int64_t i = threadIdx.x; i < own; i += blockDim.x) {
            T x[W];
            walk_from_start<BLOCK, T, W>(channel_of<BLOCK, T>(walk, s * own + i), walk.L, x, true);
        }
    }
}

template <int BLOCK, class T, int W>
__global__ void THREADS(256) repair_kernel(int64_t samples, struct walk walk, repair_args args) {
    SHARED(int, failed, 1);
    FOR_TASKS(s, samples) {
        bool close = true;
        for (int64_t k = threadIdx.x; k < walk.S; k += blockDim.x) {
            const segment_end<T> end = segment_end_of<T>(walk, args, k, s);
            close = close && (double)end.gap <= walk.tolerance * (double)end.size;
        }
        const bool all_close = __syncthreads_and(close); /* and nobody still reads the last verdict */
        if (threadIdx.x == 0) failed[0] = !all_close && !agrees<T>(walk, args, s);
        __syncthreads(); /* everybody reads the verdict, and x is not read any more */
        if (failed[0]) recompute<BLOCK, T, W>(walk, s);
        if (threadIdx.x == 0 && args.recomputed) args.recomputed[s] = failed[0];
    }
}

#endif
