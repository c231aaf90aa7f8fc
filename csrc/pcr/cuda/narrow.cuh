/* SPDX-License-Identifier: Apache-2.0
 *
 * The recurrence where a thread holds a whole segment map (affine.cuh): one thread a segment and channel.
 *
 *   prefix      registers: the segment's map, step by step; shuffles: parallel cyclic reduction over the (at
 *               most 32) segments of a warp; shared memory: the same over the warps of the block; what the
 *               block's segments amount to goes to the next level, where this repeats with maps for steps
 *   carry       level by level back: segments of later blocks from the state at the end of the block before
 *   substitute  every segment from its start
 *
 * Parallel cyclic reduction: in the level of distance d, element k takes in element k - d, and so covers twice
 * as many; ceil(log2) levels within a warp, among warps and among blocks add up to ceil(log2 S).  A lane without
 * a segment hands its numbers to later ones only, which have none either: nothing is padded.
 *
 * Depth L / S + log2 S; work of S > 1 relative to the loop: W for the maps, 1 for the second walk, and
 * log2(32) 2 W^3 a segment.
 */
#ifndef DEEPPCR_PCR_CUDA_NARROW_H
#define DEEPPCR_PCR_CUDA_NARROW_H

#include "pcr/cuda/affine.cuh"

enum { NARROW_THREADS = 256, WARP = 32, NARROW_WARPS = NARROW_THREADS / WARP };

/* A level: what its elements are and where its blocks' totals go. */
struct narrow_level {
    int64_t count, channels; /* elements of a channel */
    int64_t tiles;           /* blocks of a channel: 1 where count <= NARROW_THREADS */
    int lanes;               /* of a channel in a warp: a power of two, 32 where count > 16 */
    int threads;             /* of a block */
    void *maps;              /* (count,channels,W,W), or NULL in level 0: needed if tiles > 1 */
    void *offsets;           /* (count,channels,W); in the end x at the end of every element */
};

/* ---- parallel cyclic reduction -------------------------------------------------------------- */

template <class T, int W> __device__ affine<T, W> shuffle_up(const affine<T, W> &a, int distance, int lanes) {
    affine<T, W> other;
    UNROLL for (int k = 0; k < W * W; k++) other.map[k] =
        __shfl_up_sync(0xffffffffu, a.map[k], (unsigned)distance, lanes);
    UNROLL for (int i = 0; i < W; i++) other.offset[i] =
        __shfl_up_sync(0xffffffffu, a.offset[i], (unsigned)distance, lanes);
    return other;
}

/* Of the first `count` of `lanes` neighbours; all lanes of the warp call it. */
template <class T, int W> __device__ void warp_prefix(affine<T, W> &a, int lane, int count, int lanes) {
    for (int d = 1; d < count; d *= 2) {
        const affine<T, W> other = shuffle_up<T, W>(a, d, lanes);
        if (lane >= d) combine<T, W>(a, other);
    }
}

/* Every warp takes in those before it. */
template <class T, int W> __device__ void block_prefix(affine<T, W> &a) {
    typedef affine<T, W> map;
    SHARED(map, ends, NARROW_WARPS);
    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, warps = (int)blockDim.x / WARP;
    if (lane == WARP - 1) ends[warp] = a;
    __syncthreads(); /* the first warp reads every end */
    if (warp == 0) {
        affine<T, W> end = {};
        if (lane < warps) end = ends[lane];
        warp_prefix<T, W>(end, lane, warps, WARP);
        if (lane < warps) ends[lane] = end;
    }
    __syncthreads(); /* the others read what it made of them */
    if (warp > 0) combine<T, W>(a, ends[warp - 1]);
    __syncthreads(); /* before the next task writes its ends */
}

/* ---- kernels -------------------------------------------------------------------------------- */

/* A task is a tile of one channel, or all elements of several channels.
 * STEPS: level 0, whose elements are the segments; else maps and offsets are there, from the level below. */
template <int BLOCK, class T, int W, bool STEPS>
__global__ void THREADS(NARROW_THREADS)
    prefix_kernel(int64_t tasks, struct walk walk, narrow_level at, narrow_level next, T *damping) {
    FOR_TASKS(task, tasks) {
        const int lane = (int)threadIdx.x % at.lanes;
        const bool packed = at.count <= WARP; /* several channels in a block */
        const int64_t k = packed ? lane : task % at.tiles * at.threads + threadIdx.x;
        const int64_t n = packed ? task * (at.threads / at.lanes) + threadIdx.x / at.lanes : task / at.tiles;
        const int64_t element = k * at.channels + n;
        const bool valid = k < at.count && n < at.channels;
        T *maps = (T *)at.maps, *offsets = (T *)at.offsets;
        affine<T, W> a = {};
        if (valid && STEPS) {
            a = segment_map<BLOCK, T, W>(walk, channel_of<BLOCK, T>(walk, n), k);
            if (damping) damping[element] = damping_of<T, W>(a.map);
        }
        if (valid && !STEPS) {
            load<T, W * W>(maps + element * W * W, a.map);
            load<T, W>(offsets + element * W, a.offset);
        }
        warp_prefix<T, W>(a, lane, (int)(at.count < at.lanes ? at.count : at.lanes), at.lanes);
        if (!packed) block_prefix<T, W>(a);
        if (valid) store<T, W>(a.offset, offsets + element * W);
        if (valid && at.tiles > 1) store<T, W * W>(a.map, maps + element * W * W);
        if (at.tiles > 1 && (int)threadIdx.x == at.threads - 1 && valid) {
            const int64_t total = k / at.threads * at.channels + n;
            store<T, W>(a.offset, (T *)next.offsets + total * W);
            store<T, W * W>(a.map, (T *)next.maps + total * W * W);
        }
    }
}

/* elements: those beyond the first tile, which starts from x0 */
template <class T, int W>
__global__ void THREADS(ELEMENT_THREADS) carry_kernel(int64_t elements, narrow_level at, narrow_level next) {
    FOR_ELEMENTS(e, elements) {
        const int64_t element = e + at.threads * at.channels, k = element / at.channels,
                      n = element % at.channels;
        T map[W * W], before[W], offset[W];
        load<T, W>((const T *)next.offsets + ((k / at.threads - 1) * at.channels + n) * W, before);
        load<T, W * W>((const T *)at.maps + element * W * W, map);
        load<T, W>((const T *)at.offsets + element * W, offset);
        apply<T, W>(map, before, offset, offset);
        store<T, W>(offset, (T *)at.offsets + element * W);
    }
}

/* elements: segments x channels, channels inside, so that neighbours read neighbours */
template <int BLOCK, class T, int W>
__global__ void THREADS(ELEMENT_THREADS)
    substitute_kernel(int64_t elements, struct walk walk, narrow_level at) {
    FOR_ELEMENTS(e, elements) {
        const int64_t k = e / at.channels, n = e % at.channels;
        const channel<T> of = channel_of<BLOCK, T>(walk, n);
        T x[W];
        if (k == 0) {
            walk_from_start<BLOCK, T, W>(of, dpcr_edge(1, walk.L, walk.S), x, true);
        } else {
            load<T, W>((const T *)at.offsets + (e - at.channels) * W, x);
            walk_steps<BLOCK, T, W>(of, dpcr_edge(k, walk.L, walk.S), dpcr_edge(k + 1, walk.L, walk.S), true,
                                    x, true);
        }
    }
}

/* The loop: one thread a channel */
template <int BLOCK, class T, int W>
__global__ void THREADS(ELEMENT_THREADS) sequential_kernel(int64_t channels, struct walk walk) {
    FOR_ELEMENTS(n, channels) {
        T x[W];
        walk_from_start<BLOCK, T, W>(channel_of<BLOCK, T>(walk, n), walk.L, x, true);
    }
}

#endif
