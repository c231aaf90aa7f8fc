/* SPDX-License-Identifier: Apache-2.0
 *
 * What one thread does: the affine maps x' = M x + b of a *channel*, in registers.  A channel is what does
 * not mix with others: a whole sample of w <= 4 numbers where blocks are dense (W = w), one number of a sample
 * where they are diagonal, scalar or the identity (W = 1).
 *
 * Work: 2 W^2 a step of a walk, 2 W^3 more a step of a map.
 */
#ifndef DEEPPCR_PCR_CUDA_AFFINE_H
#define DEEPPCR_PCR_CUDA_AFFINE_H

#include "pcr/cuda/run.cuh"

/* The views of a walk, from one channel. */
template <class T> struct channel {
    const T *M, *b, *x0; /* x0 NULL: zero */
    T *x;
    int64_t M_step, b_step, x_step, row, column;
};

template <class T> __device__ T *vector_at(const struct vector_view &view, int64_t j, int64_t s) {
    return (T *)view.data + view.first + j * view.step + s * view.sample;
}

template <class T> __device__ const T *block_at(const struct block_view &view, int64_t j, int64_t s) {
    return (const T *)view.data + view.first + j * view.step + s * view.sample;
}

template <int BLOCK, class T> __device__ channel<T> channel_of(const struct walk &walk, int64_t n) {
    const int64_t s = BLOCK == DPCR_DENSE ? n : n / walk.w, i = BLOCK == DPCR_DENSE ? 0 : n % walk.w;
    channel<T> of = {};
    if (BLOCK != DPCR_IDENTITY) of.M = block_at<T>(walk.M, 0, s) + (BLOCK == DPCR_DIAGONAL ? i : 0);
    of.b = vector_at<T>(walk.b, 0, s) + i;
    of.x = vector_at<T>(walk.x, 0, s) + i;
    of.x0 = walk.x0.data ? vector_at<T>(walk.x0, 0, s) + i : NULL;
    of.M_step = walk.M.step;
    of.b_step = walk.b.step;
    of.x_step = walk.x.step;
    of.row = walk.M.row;
    of.column = walk.M.column;
    return of;
}

template <class T, int W> struct affine {
    T map[W * W], offset[W];
};

template <class T, int W> __device__ void load(const T *from, T (&to)[W]) {
    UNROLL for (int i = 0; i < W; i++) to[i] = from[i];
}

template <class T, int W> __device__ void store(const T (&from)[W], T *to) {
    UNROLL for (int i = 0; i < W; i++) to[i] = from[i];
}

template <int BLOCK, class T, int W>
__device__ void load_block(const channel<T> &of, int64_t j, T (&M)[W * W]) {
    if (BLOCK == DPCR_IDENTITY) M[0] = 1;
    if (BLOCK == DPCR_DIAGONAL || BLOCK == DPCR_SCALAR) M[0] = of.M[j * of.M_step];
    UNROLL for (int k = 0; k < W * W && BLOCK == DPCR_DENSE; k++) M[k] =
        of.M[j * of.M_step + k / W * of.row + k % W * of.column];
}

/* y = M x + b */
template <class T, int W>
__device__ void apply(const T (&M)[W * W], const T (&x)[W], const T (&b)[W], T (&y)[W]) {
    T sum[W];
    UNROLL for (int i = 0; i < W; i++) {
        sum[i] = b[i];
        UNROLL for (int c = 0; c < W; c++) sum[i] = fused(M[i * W + c], x[c], sum[i]);
    }
    store<T, W>(sum, y);
}

/* C = A B */
template <class T, int W> __device__ void multiply(const T (&A)[W * W], const T (&B)[W * W], T (&C)[W * W]) {
    T product[W * W];
    UNROLL for (int k = 0; k < W * W; k++) {
        product[k] = A[k / W * W] * B[k % W];
        UNROLL for (int c = 1; c < W; c++) product[k] = fused(A[k / W * W + c], B[c * W + k % W], product[k]);
    }
    store<T, W * W>(product, C);
}

/* after becomes: first `before`, then what it was. */
template <class T, int W> __device__ void combine(affine<T, W> &after, const affine<T, W> &before) {
    apply<T, W>(after.map, before.offset, after.offset, after.offset);
    multiply<T, W>(after.map, before.map, after.map);
}

/* The loop over steps first..last-1 from x; not started: from zero, whose block is not read. */
template <int BLOCK, class T, int W>
__device__ void walk_steps(const channel<T> &of, int64_t first, int64_t last, bool started, T (&x)[W],
                           bool write) {
    for (int64_t j = first; j < last; j++) {
        T M[W * W], b[W];
        load<T, W>(of.b + j * of.b_step, b);
        if (started) {
            load_block<BLOCK, T, W>(of, j, M);
            apply<T, W>(M, x, b, x);
        } else {
            store<T, W>(b, x);
        }
        started = true;
        if (write) store<T, W>(x, of.x + j * of.x_step);
    }
}

/* The loop from the problem's own start. */
template <int BLOCK, class T, int W>
__device__ void walk_from_start(const channel<T> &of, int64_t last, T (&x)[W], bool write) {
    if (of.x0) load<T, W>(of.x0, x);
    walk_steps<BLOCK, T, W>(of, 0, last, of.x0 != NULL, x, write);
}

/* The map of segment k.  Segment 0 starts from x0 itself: its offset is the state, its map is never used. */
template <int BLOCK, class T, int W>
__device__ affine<T, W> segment_map(const struct walk &walk, const channel<T> &of, int64_t k) {
    const int64_t first = dpcr_edge(k, walk.L, walk.S), last = dpcr_edge(k + 1, walk.L, walk.S);
    affine<T, W> a = {};
    if (k == 0) {
        walk_from_start<BLOCK, T, W>(of, last, a.offset, false);
        return a;
    }
    load_block<BLOCK, T, W>(of, first, a.map);
    load<T, W>(of.b + first * of.b_step, a.offset);
    for (int64_t j = first + 1; j < last; j++) {
        T M[W * W], b[W];
        load_block<BLOCK, T, W>(of, j, M);
        load<T, W>(of.b + j * of.b_step, b);
        apply<T, W>(M, a.offset, b, a.offset);
        multiply<T, W>(M, a.map, a.map);
    }
    return a;
}

/* How much of an error before the map survives it: the largest row sum of |map|, at most 1. */
template <class T, int W> __device__ T damping_of(const T (&map)[W * W]) {
    T most = 0;
    UNROLL for (int i = 0; i < W; i++) {
        T sum = 0;
        UNROLL for (int c = 0; c < W; c++) sum += map[i * W + c] < 0 ? -map[i * W + c] : map[i * W + c];
        most = sum > most ? sum : most;
    }
    return most < 1 ? most : 1;
}

#endif
