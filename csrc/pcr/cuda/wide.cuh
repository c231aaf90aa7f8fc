/* SPDX-License-Identifier: Apache-2.0
 *
 * The recurrence of dense blocks whose maps do not fit a thread, of any width.
 *
 *   reduce           every segment's map, TILE columns of it a block: they do not mix
 *   eliminate        every second map, level by level, until at most GROUPS are left
 *   PCR              over those, all of them in every level
 *   back-substitute  the eliminated ones, by products with vectors
 *   substitute       every segment from its start
 *
 * so that a product of maps is made S times in all, but for the GROUPS log2(GROUPS) of the parallel cyclic
 * reduction, which has no way back; the levels add up to ceil(log2 S).
 *
 * A block of threads owns TILE columns of a product, or a whole vector.  Shared blocks have one set of maps.
 */
#ifndef DEEPPCR_PCR_CUDA_WIDE_H
#define DEEPPCR_PCR_CUDA_WIDE_H

#include "pcr/cuda/affine.cuh"

enum { GROUPS = 32, ROWS = 8 };

/* A level of the elimination. */
struct wide_level {
    int64_t count;
    void *maps;    /* (count,map_samples,w,w); that of element 0 is never used */
    void *offsets; /* (count,B,w) */
};

/* What all levels have in common; a task of any of them is a vector, or a slab of TILE columns of a map. */
struct wide_shape {
    int64_t w, B, map_samples, slabs;
};

template <class T> struct matrix {
    const T *data;
    int64_t row, column;
};

template <class T>
__device__ T *map_at(const wide_shape &shape, const wide_level &level, int64_t k, int64_t m) {
    return (T *)level.maps + (k * shape.map_samples + m) * shape.w * shape.w;
}

template <class T>
__device__ T *offset_at(const wide_shape &shape, const wide_level &level, int64_t k, int64_t s) {
    return (T *)level.offsets + (k * shape.B + s) * shape.w;
}

/* ---- by a block of threads ------------------------------------------------------------------ */

template <class T> __device__ void block_copy(int64_t w, const T *from, T *to) {
    for (int64_t i = threadIdx.x; i < w; i += blockDim.x) to[i] = from[i];
}

/* y = M x + b: a thread a row, x through shared memory.  y may be b.  x may have been written by the block, as
 * by this function; y has to be awaited by whoever reads rows of other threads. */
template <class T> __device__ void block_apply(int64_t w, const matrix<T> &M, const T *x, const T *b, T *y) {
    enum { COLUMNS = 128 };
    SHARED(T, part, COLUMNS);
    for (int64_t row0 = 0; row0 < w; row0 += blockDim.x) {
        const int64_t row = row0 + threadIdx.x;
        T sum = row < w ? b[row] : 0;
        for (int64_t c0 = 0; c0 < w; c0 += COLUMNS) {
            const int n = (int)dpcr_min(w - c0, COLUMNS);
            __syncthreads(); /* x is complete, and nobody still reads part */
            for (int c = (int)threadIdx.x; c < n; c += (int)blockDim.x) part[c] = x[c0 + c];
            __syncthreads(); /* part is complete */
            for (int c = 0; c < n && row < w; c++)
                sum = fused(M.data[row * M.row + (c0 + c) * M.column], part[c], sum);
        }
        if (row < w) y[row] = sum;
    }
}

/* C = A B for columns c0..c0+TILE-1, B and C (w,w).  B may have been written by the block; A is not. */
template <class T, int TILE>
__device__ void block_product(int64_t w, const matrix<T> &A, const T *B, T *C, int64_t c0) {
    SHARED(T, left, TILE * (TILE + 1));
    SHARED(T, right, TILE * TILE);
    const int x = (int)threadIdx.x % TILE, y = (int)threadIdx.x / TILE;
    const bool by_rows = A.column == 1; /* neighbours read neighbours */
    for (int64_t r0 = 0; r0 < w; r0 += TILE) {
        T sum[TILE / ROWS] = {};
        for (int64_t k0 = 0; k0 < w; k0 += TILE) {
            __syncthreads(); /* B is complete, and nobody still reads the tiles */
            for (int q = y; q < TILE; q += ROWS) {
                const int r = by_rows ? q : x, k = by_rows ? x : q;
                const bool inside = r0 + r < w && k0 + k < w;
                left[r * (TILE + 1) + k] = inside ? A.data[(r0 + r) * A.row + (k0 + k) * A.column] : T(0);
                right[q * TILE + x] = k0 + q < w && c0 + x < w ? B[(k0 + q) * w + c0 + x] : T(0);
            }
            __syncthreads(); /* the tiles are complete */
            for (int k = 0; k < TILE && k0 + k < w; k++)
                UNROLL for (int q = 0; q < TILE / ROWS; q++) sum[q] =
                    fused(left[(y + q * ROWS) * (TILE + 1) + k], right[k * TILE + x], sum[q]);
        }
        UNROLL for (int q = 0; q < TILE / ROWS; q++) if (r0 + y + q * ROWS < w && c0 + x < w)
            C[(r0 + y + q * ROWS) * w + c0 + x] = sum[q];
    }
}

template <class T> __device__ matrix<T> matrix_at(const struct block_view &view, int64_t j, int64_t s) {
    return {block_at<T>(view, j, s), view.row, view.column};
}

/* The loop over steps first..last-1 of sample s from x (NULL: zero, whose block is not read) */
template <class T>
__device__ void block_walk(const struct walk &walk, int64_t s, int64_t first, int64_t last, const T *x) {
    for (int64_t j = first; j < last; j++) {
        T *next = vector_at<T>(walk.x, j, s);
        const T *b = vector_at<T>(walk.b, j, s);
        if (x)
            block_apply<T>(walk.w, matrix_at<T>(walk.M, j, s), x, b, next);
        else if (b != next)
            block_copy<T>(walk.w, b, next);
        x = next;
    }
}

template <class T> __device__ const T *start_of(const struct walk &walk, int64_t s) {
    return walk.x0.data ? vector_at<T>(walk.x0, 0, s) : NULL;
}

/* ---- kernels -------------------------------------------------------------------------------- */

/* task -> element, and in it the sample of a vector, or (beyond the vectors) map sample and slab */
struct wide_task {
    int64_t element, sample, map_sample, column;
    bool vector;
};

static inline int64_t wide_tasks(const wide_shape &shape, int64_t elements) {
    return elements * (shape.B + shape.map_samples * shape.slabs);
}

template <int TILE> __device__ wide_task task_of(const wide_shape &shape, int64_t task) {
    const int64_t pieces = shape.B + shape.map_samples * shape.slabs, piece = task % pieces,
                  slab = piece - shape.B;
    wide_task of = {task / pieces, piece, 0, 0, piece < shape.B};
    if (!of.vector) of.map_sample = slab / shape.slabs;
    if (!of.vector) of.column = slab % shape.slabs * TILE;
    return of;
}

/* Columns of the map of steps first..last-1; every product goes to the other of map and spare, the last to map. */
template <class T, int TILE>
__device__ void reduce_map(const struct walk &walk, int64_t s, int64_t first, int64_t last, T *map, T *spare,
                           int64_t c0) {
    const int64_t w = walk.w;
    const matrix<T> A = matrix_at<T>(walk.M, first, s);
    T *to = (last - first) % 2 ? map : spare, *other = (last - first) % 2 ? spare : map;
    for (int64_t e = threadIdx.x; e < w * TILE; e += blockDim.x) {
        const int64_t row = e / TILE, column = c0 + e % TILE;
        if (column < w) to[row * w + column] = A.data[row * A.row + column * A.column];
    }
    for (int64_t j = first + 1; j < last; j++) {
        block_product<T, TILE>(w, matrix_at<T>(walk.M, j, s), to, other, c0);
        T *swap = to;
        to = other;
        other = swap;
    }
}

template <class T, int TILE>
__global__ void THREADS(TILE *ROWS)
    wide_reduce_kernel(int64_t tasks, struct walk walk, wide_shape shape, wide_level at, T *spare) {
    FOR_TASKS(task, tasks) {
        const wide_task of = task_of<TILE>(shape, task);
        const int64_t k = of.element, s = of.sample;
        const int64_t first = dpcr_edge(k, walk.L, walk.S), last = dpcr_edge(k + 1, walk.L, walk.S);
        if (of.vector) { /* the walk writes into x, which is free until substitute; its end is the offset */
            block_walk<T>(walk, s, first, last, k == 0 ? start_of<T>(walk, s) : NULL);
            block_copy<T>(walk.w, vector_at<T>(walk.x, last - 1, s), offset_at<T>(shape, at, k, s));
        } else if (k
                   > 0) { /* segment 0 starts from x0 itself: its map is never used, and M_0 may not exist */
            const int64_t beside = (k * shape.map_samples + of.map_sample) * walk.w * walk.w;
            reduce_map<T, TILE>(walk, of.map_sample, first, last, (T *)at.maps + beside, spare + beside,
                                of.column);
        }
    }
}

/* Level `next` from level `at`: its element m is element 2 m with element 2 m - 1 eliminated. */
template <class T, int TILE>
__global__ void THREADS(TILE *ROWS)
    wide_eliminate_kernel(int64_t tasks, wide_shape shape, wide_level at, wide_level next) {
    FOR_TASKS(task, tasks) {
        const wide_task of = task_of<TILE>(shape, task);
        const int64_t m = of.element, w = shape.w, s = of.sample;
        if (of.vector && m == 0)
            block_copy<T>(w, offset_at<T>(shape, at, 0, s), offset_at<T>(shape, next, 0, s));
        else if (of.vector)
            block_apply<T>(w, {map_at<T>(shape, at, 2 * m, shape.map_samples > 1 ? s : 0), w, 1},
                           offset_at<T>(shape, at, 2 * m - 1, s), offset_at<T>(shape, at, 2 * m, s),
                           offset_at<T>(shape, next, m, s));
        else if (m > 0)
            block_product<T, TILE>(w, {map_at<T>(shape, at, 2 * m, of.map_sample), w, 1},
                                   map_at<T>(shape, at, 2 * m - 1, of.map_sample),
                                   map_at<T>(shape, next, m, of.map_sample), of.column);
    }
}

/* Parallel cyclic reduction: element k takes in element k - d.  Those before d are complete, those before 2 d
 * become so and need their maps no more. */
template <class T, int TILE>
__global__ void THREADS(TILE *ROWS)
    wide_pcr_kernel(int64_t tasks, wide_shape shape, wide_level at, wide_level to, int64_t d) {
    FOR_TASKS(task, tasks) {
        const wide_task of = task_of<TILE>(shape, task);
        const int64_t k = of.element, w = shape.w, s = of.sample;
        if (of.vector && k < d)
            block_copy<T>(w, offset_at<T>(shape, at, k, s), offset_at<T>(shape, to, k, s));
        else if (of.vector)
            block_apply<T>(w, {map_at<T>(shape, at, k, shape.map_samples > 1 ? s : 0), w, 1},
                           offset_at<T>(shape, at, k - d, s), offset_at<T>(shape, at, k, s),
                           offset_at<T>(shape, to, k, s));
        else if (k >= 2 * d)
            block_product<T, TILE>(w, {map_at<T>(shape, at, k, of.map_sample), w, 1},
                                   map_at<T>(shape, at, k - d, of.map_sample),
                                   map_at<T>(shape, to, k, of.map_sample), of.column);
    }
}

/* The offsets of `at` become x, those of `next` being x already.  tasks: elements of `at` x samples */
template <class T, int TILE>
__global__ void THREADS(TILE *ROWS)
    wide_back_kernel(int64_t tasks, wide_shape shape, wide_level at, wide_level next) {
    FOR_TASKS(task, tasks) {
        const int64_t k = task / shape.B, s = task % shape.B, w = shape.w;
        const T *x = offset_at<T>(shape, next, k / 2, s);
        T *offset = offset_at<T>(shape, at, k, s);
        if (k % 2 == 0)
            block_copy<T>(w, x, offset);
        else
            block_apply<T>(w, {map_at<T>(shape, at, k, shape.map_samples > 1 ? s : 0), w, 1}, x, offset,
                           offset);
    }
}

/* tasks: segments x samples */
template <class T, int TILE>
__global__ void THREADS(TILE *ROWS)
    wide_substitute_kernel(int64_t tasks, struct walk walk, wide_shape shape, wide_level at) {
    FOR_TASKS(task, tasks) {
        const int64_t k = task / walk.B, s = task % walk.B;
        block_walk<T>(walk, s, dpcr_edge(k, walk.L, walk.S), dpcr_edge(k + 1, walk.L, walk.S),
                      k == 0 ? start_of<T>(walk, s) : offset_at<T>(shape, at, k - 1, s));
    }
}

/* The loop: a block a sample */
template <class T, int TILE>
__global__ void THREADS(TILE *ROWS) wide_sequential_kernel(int64_t samples, struct walk walk) {
    FOR_TASKS(s, samples) block_walk<T>(walk, s, 0, walk.L, start_of<T>(walk, s));
}

/* How much of an error before a segment survives it: the largest row sum of |map|, at most 1.
 * tasks: segments x map samples */
template <class T, int TILE>
__global__ void THREADS(TILE *ROWS)
    wide_damping_kernel(int64_t tasks, wide_shape shape, wide_level at, T *damping) {
    SHARED(T, largest, TILE * ROWS);
    FOR_TASKS(task, tasks) {
        if (task < shape.map_samples) continue; /* segment 0 has no map */
        const T *map = (const T *)at.maps + task * shape.w * shape.w;
        T most = 0;
        for (int64_t row = threadIdx.x; row < shape.w; row += blockDim.x) {
            T sum = 0;
            for (int64_t c = 0; c < shape.w; c++)
                sum += map[row * shape.w + c] < 0 ? -map[row * shape.w + c] : map[row * shape.w + c];
            most = sum > most ? sum : most;
        }
        largest[threadIdx.x] = most;
        __syncthreads(); /* the first thread reads all of them */
        if (threadIdx.x == 0) {
            for (int i = 1; i < (int)blockDim.x; i++) most = largest[i] > most ? largest[i] : most;
            damping[task] = most < 1 ? most : 1;
        }
        __syncthreads(); /* before the next task writes */
    }
}

#endif
