/* SPDX-License-Identifier: Apache-2.0
 *
 * The chain, one step after another: a block walks a tile of samples through all of it, a team a sample.  Its first
 * warps compute; the others bring the parameters of the next `chunk` steps into shared memory meanwhile, so that
 * no step waits for device memory.
 */
#ifndef DEEPPCR_OPS_CUDA_SEQUENTIAL_H
#define DEEPPCR_OPS_CUDA_SEQUENTIAL_H

#include "ops/cuda/segment.cuh"

enum { SEQUENTIAL_THREADS = 256 };

struct sequential_pass {
    dpcr_chain chain;
    slot_shape slot;
    int chunk;         /* steps of a buffer */
    int compute;       /* threads that do */
    int64_t tile;      /* samples of a block; a team whose sample does not exist waits */
    const void *z0;    /* (B,w) */
    void *z, *states;  /* (B,w); (L,B,w) or NULL */
    void *checkpoints; /* (C,B,w) or NULL */
    int64_t checkpoint_count;
    double *report; /* (DPCR_REPORT,B) or NULL */
    double flops;   /* of a sample */

    /* backward alone: steps first..last-1 */
    int64_t first, last;
    back_arrays arrays;
    int beside;     /* elements of a step's states in a buffer, tile w rounded up to 16 bytes */
    const void *gz; /* (B,w) after step last - 1, or NULL: zero */
    void *g;        /* (B,w) before step `first`, or NULL; may be gz */
};

template <class TEAM>
__device__ void report_sequential(const TEAM &at, const sequential_pass &pass, int64_t s) {
    if (!pass.report || at.lane != 0) return;
    const double column[DPCR_REPORT] = {1, 0, DPCR_CONVERGED, 0, 0, pass.flops};
    for (int i = 0; i < DPCR_REPORT; i++) pass.report[i * pass.chain.B + s] = column[i];
}

/* ---- forward ----------------------------------------------------------------------------------- */

/* Next checkpoint of a walk: number c lies before step `step`. */
struct checkpoint {
    int64_t c, step;
};

/* Steps first..last-1 by the slots; a simple chain in runs that end where a checkpoint is due. */
template <class TEAM>
__device__ void walk_chunk(const TEAM &at, const sequential_pass &pass, int64_t s, int64_t first,
                           int64_t last, bool walks, const typename TEAM::T *slots, checkpoint *mark,
                           typename TEAM::T (&z)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const dpcr_chain &chain = pass.chain;
    const bool simple = is_simple(chain);
    for (int64_t l = first, end; l < last; l = end) {
        end = simple ? last : l + 1;
        if (pass.checkpoints && l == mark->step) {
            if (walks) store_rows(at, (int)chain.w, z, state_row<T>(chain, pass.checkpoints, mark->c, s));
            mark->step = dpcr_edge(++mark->c, chain.L, pass.checkpoint_count);
        }
        if (pass.checkpoints) end = dpcr_min(end, dpcr_max(mark->step, l + 1));
        const step_parameters<T> p = parameters_in<TEAM>(pass.slot, slots + (l - first) * pass.slot.size);
        T *states = walks && pass.states ? state_row<T>(chain, pass.states, l, s) : NULL;
        if (simple) {
            walk_simple(at, chain, {p.W1, p.b1, pass.slot.size, pass.slot.size},
                        {walks ? end - l : 0, end - l, states, chain.B * chain.w}, z);
        } else {
            step_forward(at, chain, p, walks, z);
            if (states) store_rows(at, (int)chain.w, z, states);
        }
    }
}

template <class TEAM>
__global__ void THREADS(SEQUENTIAL_THREADS)
    sequential_kernel(int64_t tiles, const __grid_constant__ sequential_pass pass) {
    typedef typename TEAM::T T;
    DYNAMIC_SHARED(T, slots);
    const dpcr_chain &chain = pass.chain;
    const int t = (int)threadIdx.x - pass.compute, loaders = (int)blockDim.x - pass.compute;
    const int buffer = pass.chunk * pass.slot.size;
    const int64_t chunks = dpcr_ceil_div(chain.L, pass.chunk);
    const TEAM at = this_team<TEAM>(NULL);
    stage_zeros(slots, 2 * buffer, (int)threadIdx.x, (int)blockDim.x);
    __syncthreads(); /* before copies land */
    FOR_TASKS(tile, tiles) {
        const int64_t s = tile * pass.tile + threadIdx.x / TEAM::LANES;
        const bool walks = t < 0 && s < chain.B;
        T z[TEAM::ROWS] = {};
        checkpoint mark = {0, 0};
        if (walks) load_rows(at, (int)chain.w, state_row<T>(chain, pass.z0, 0, s), z);
        for (int64_t c = -1; c < chunks; c++) {
            const int64_t first = c * pass.chunk, next = first + pass.chunk;
            if (t >= 0 && c + 1 < chunks) {
                const int steps = (int)dpcr_min(pass.chunk, chain.L - next);
                stage_steps<TEAM>(chain, pass.slot, next, steps, slots + (c + 1) % 2 * buffer, t, loaders);
                await_copies();
            }
            if (t < 0 && c >= 0)
                walk_chunk(at, pass, s, first, dpcr_min(next, chain.L), walks, slots + c % 2 * buffer, &mark,
                           z);
            __syncthreads(); /* the next chunk is there, and this one's buffer free */
        }
        if (walks) {
            store_rows(at, (int)chain.w, z, state_row<T>(chain, pass.z, 0, s));
            report_sequential(at, pass, s);
        }
    }
}

/* ---- backward ---------------------------------------------------------------------------------- */

/* A buffer holds chunk slots, then the states (tile,w) of chunk steps: after a step where the chain is plain, else before it. */
template <class TEAM>
__device__ void stage_back(const sequential_pass &pass, int64_t first, int steps, int64_t s0,
                           typename TEAM::T *buffer, int t, int count) {
    typedef typename TEAM::T T;
    const dpcr_chain &chain = pass.chain;
    const int elements = (int)(dpcr_min(pass.tile, chain.B - s0) * chain.w);
    T *states = buffer + pass.chunk * pass.slot.size;
    stage_steps<TEAM>(chain, pass.slot, first, steps, buffer, t, count);
    for (int i = 0; i < steps; i++) {
        const int64_t l = first + i + is_plain(chain);
        const T *from = state_before<T>(chain, pass.arrays, l, s0);
        for (int e = t; e < elements; e += count)
            copy_async<sizeof(T)>(states + i * pass.beside + e, from + e);
    }
}

template <class TEAM>
__device__ void walk_chunk_back(const TEAM &at, const sequential_pass &pass, int64_t s, int64_t first,
                                int64_t last, bool walks, const typename TEAM::T *buffer,
                                typename TEAM::T (&g)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const dpcr_chain &chain = pass.chain;
    const int w = (int)chain.w;
    const T *states = buffer + pass.chunk * pass.slot.size + s % pass.tile * w;
    if (is_plain(chain)) {
        const int64_t l = last - 1, width = saved_size(chain);
        const step_parameters<T> p = parameters_in<TEAM>(pass.slot, buffer + (l - first) * pass.slot.size);
        T *saved = (T *)pass.arrays.saved + ((l - pass.arrays.first) * chain.B + s) * width;
        walk_back_simple(at, chain, {p.W1, p.b1, pass.slot.size, pass.slot.size},
                         {walks ? last - first : 0, last - first, states + (l - first) * pass.beside,
                          pass.arrays.gstates ? state_row<T>(chain, pass.arrays.gstates, l, s) : NULL,
                          pass.arrays.saved ? saved : NULL, pass.beside, chain.B * chain.w, chain.B * width},
                         g);
        return;
    }
    for (int64_t l = last - 1; l >= first; l--) {
        T z[TEAM::ROWS], extra[TEAM::ROWS], *saved = NULL;
        load_rows(at, w, walks ? states + (l - first) * pass.beside : NULL, z);
        if (pass.arrays.gstates) {
            load_rows(at, w, walks ? state_row<T>(chain, pass.arrays.gstates, l, s) : NULL, extra);
            UNROLL for (int r = 0; r < TEAM::ROWS; r++) g[r] += extra[r];
        }
        if (walks && pass.arrays.saved)
            saved = (T *)pass.arrays.saved + ((l - pass.arrays.first) * chain.B + s) * saved_size(chain);
        step_back(at, chain, parameters_in<TEAM>(pass.slot, buffer + (l - first) * pass.slot.size), walks, z,
                  z, saved, g);
    }
}

template <class TEAM>
__global__ void THREADS(SEQUENTIAL_THREADS)
    sequential_back_kernel(int64_t tiles, const __grid_constant__ sequential_pass pass) {
    typedef typename TEAM::T T;
    DYNAMIC_SHARED(T, slots);
    const dpcr_chain &chain = pass.chain;
    const int t = (int)threadIdx.x - pass.compute, loaders = (int)blockDim.x - pass.compute;
    const int64_t begin = pass.first, chunks = dpcr_ceil_div(pass.last - begin, pass.chunk);
    const int buffer = pass.chunk * (pass.slot.size + pass.beside);
    const TEAM at = this_team<TEAM>(NULL);
    stage_zeros(slots, 2 * buffer, (int)threadIdx.x, (int)blockDim.x);
    __syncthreads(); /* before copies land */
    FOR_TASKS(tile, tiles) {
        const int64_t s0 = tile * pass.tile, s = s0 + threadIdx.x / TEAM::LANES;
        const bool walks = t < 0 && s < chain.B;
        T g[TEAM::ROWS] = {};
        if (walks) load_rows(at, (int)chain.w, pass.gz ? state_row<T>(chain, pass.gz, 0, s) : NULL, g);
        for (int64_t c = -1; c < chunks; c++) { /* chunk c, from the last: steps low..high-1 */
            const int64_t high = pass.last - c * pass.chunk, low = dpcr_max(high - pass.chunk, begin);
            if (t >= 0 && c + 1 < chunks) {
                const int64_t next = dpcr_max(low - pass.chunk, begin), end = c < 0 ? pass.last : low;
                const int64_t start = c < 0 ? dpcr_max(end - pass.chunk, begin) : next;
                stage_back<TEAM>(pass, start, (int)(end - start), s0, slots + (c + 1) % 2 * buffer, t,
                                 loaders);
                await_copies();
            }
            if (t < 0 && c >= 0) walk_chunk_back(at, pass, s, low, high, walks, slots + c % 2 * buffer, g);
            __syncthreads(); /* the next chunk is there, and this one's buffer free */
        }
        if (walks) {
            if (pass.g) store_rows(at, (int)chain.w, g, state_row<T>(chain, pass.g, 0, s));
        }
    }
}

#endif
