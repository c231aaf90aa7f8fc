/* SPDX-License-Identifier: Apache-2.0
 *
 * The second half of a sweep (update.h) on a CUDA device.
 *
 *   walk      elementwise A: a warp has a tile of 128 elements of a sample, whose d it keeps in registers from step to
 *             step; dense A: a block has a sample, a warp a row, and d goes through device memory
 *   whole     the sizes of a step, from those of its tiles
 *   judge     a block has a sample: the guard, the errors, the leading steps that are right
 *   restore   e where the guard acted
 *
 * Elementwise 4 numbers moved an element and step, as many as there are.  Depth L, or L / S where d is solved for
 * beforehand.
 */
#ifndef DEEPPCR_OPS_CUDA_UPDATE_H
#define DEEPPCR_OPS_CUDA_UPDATE_H

#include "ops/cuda/team.cuh"
#include "ops/update_kernels.h"

enum { UPDATE_ROWS = 4, UPDATE_TILE = TEAM_WARP * UPDATE_ROWS, RESTORE_TILE = 1024 };

/* In the scratch */
template <class T> struct update_memory {
    T *whole; /* (SIZES,L,B): the pass's sizes where there is one tile */
    T *d;     /* (2,B,w): d_l and d_{l-1} of dense A, by turns */
};

/* base NULL: nothing but the bytes */
template <class T>
static inline __host__ __device__ size_t carve_update(const update_pass &pass, void *base,
                                                      update_memory<T> *memory) {
    const dpcr_update &u = pass.update;
    struct arena arena = {(char *)base, 0};
    memory->whole =
        pass.tiles == 1 ? (T *)pass.sizes : (T *)dpcr_take(&arena, (size_t)(SIZES * u.L * u.B) * sizeof(T));
    memory->d =
        u.structure == DPCR_P_DENSE ? (T *)dpcr_take(&arena, (size_t)(2 * u.B * u.w) * sizeof(T)) : NULL;
    return arena.used;
}

/* Row l of an array (-,B,w) */
template <class T>
__device__ T *update_row(const update_pass &pass, const void *array, int64_t l, int64_t s) {
    return (T *)array + (l * pass.update.B + s) * pass.update.w;
}

template <class T> __device__ const T *jacobian_at(const update_pass &pass, int64_t l, int64_t s) {
    return (const T *)pass.update.jacobian + dpcr_jacobian_index(&pass.update, l, s);
}

template <class T> __device__ T finite_or_inf(double size) {
    return size < INFINITY ? (T)size : (T)INFINITY;
}

/* A tile of a sample, and a piece of its steps, of a task. */
struct update_piece {
    int64_t s, tile, k, first, last;
};

static __device__ inline update_piece piece_of(const update_pass &pass, int64_t task) {
    update_piece at = {};
    at.k = task % pass.pieces;
    at.tile = task / pass.pieces % pass.tiles;
    at.s = task / pass.pieces / pass.tiles;
    at.first = dpcr_edge(at.k, pass.update.L, pass.pieces);
    at.last = dpcr_edge(at.k + 1, pass.update.L, pass.pieces);
    return at;
}

/* elements: L x B x w */
template <class T>
__global__ void THREADS(ELEMENT_THREADS) residual_kernel(int64_t elements, update_pass pass) {
    const T *e = (const T *)pass.update.ends,
            *x = (const T *)pass.update.states + pass.update.B * pass.update.w;
    FOR_ELEMENTS(i, elements)((T *)pass.residuals)[i] = e[i] - x[i];
}

/* ---- A that acts on every element alone ---------------------------------------------------------- */

template <class T> using update_team = team<T, TEAM_WARP, UPDATE_ROWS>;

template <class T>
__device__ void store_size(const update_pass &pass, const update_piece &at, int lane, int which, int64_t l,
                           double size) {
    if (lane == 0)
        ((T *)pass.sizes)[dpcr_size_index(&pass, which, l, at.s, at.tile)] = finite_or_inf<T>(size);
}

template <class T> __device__ bool is_finite_tile(const update_pass &pass, const update_piece &at, int lane) {
    bool failed = false;
    for (int64_t l = lane; l < pass.update.L; l += TEAM_WARP) {
        const T size = ((const T *)pass.sizes)[dpcr_size_index(&pass, SIZE_ERROR, l, at.s, at.tile)];
        failed = failed || !(size < T(INFINITY));
    }
    return __any_sync(kAllLanes, failed) == 0;
}

/* A_l d -> moved; 0 where d is */
template <class T>
__device__ void move_elements(const update_pass &pass, const update_piece &at, int64_t l, int n,
                              const update_team<T> &team, const T (&d)[UPDATE_ROWS],
                              T (&moved)[UPDATE_ROWS]) {
    const dpcr_structure structure = pass.update.structure;
    T A[UPDATE_ROWS];
    const bool none = structure == DPCR_P_ZERO;
    UNROLL for (int r = 0; r < UPDATE_ROWS; r++) A[r] = 1;
    if (l > 0 && structure == DPCR_P_DIAGONAL)
        load_rows(team, n, jacobian_at<T>(pass, l, at.s) + at.tile * pass.tile, A);
    if (l > 0 && structure == DPCR_P_SCALAR)
        UNROLL for (int r = 0; r < UPDATE_ROWS; r++) A[r] = *jacobian_at<T>(pass, l, at.s);
    UNROLL for (int r = 0; r < UPDATE_ROWS; r++) moved[r] = none || d[r] == 0 ? T(0) : A[r] * d[r];
}

template <class T>
__device__ void walk_elements(const update_pass &pass, const update_piece &at, const update_team<T> &team) {
    const dpcr_update &u = pass.update;
    const int64_t offset = at.tile * pass.tile;
    const int n = (int)dpcr_min(pass.tile, u.w - offset);
    T d[UPDATE_ROWS] = {};
    if (pass.solved && at.first > 0)
        load_rows(team, n, update_row<T>(pass, pass.solved, at.first - 1, at.s) + offset, d);
    for (int64_t l = at.first; l < at.last; l++) {
        T e[UPDATE_ROWS], r[UPDATE_ROWS], moved[UPDATE_ROWS], next[UPDATE_ROWS];
        load_rows(team, n, update_row<T>(pass, u.ends, l, at.s) + offset, e);
        load_rows(team, n, update_row<T>(pass, u.states, l + 1, at.s) + offset, r);
        move_elements(pass, at, l, n, team, d, moved);
        UNROLL for (int i = 0; i < UPDATE_ROWS; i++) {
            r[i] = e[i] - r[i];
            next[i] = moved[i] == 0 ? e[i] : e[i] + moved[i];
            d[i] = moved[i] + r[i];
        }
        if (pass.solved) load_rows(team, n, update_row<T>(pass, pass.solved, l, at.s) + offset, d);
        store_rows(team, n, next, update_row<T>(pass, u.updated, l + 1, at.s) + offset);
        store_size<T>(pass, at, team.lane, SIZE_END, l, norm_rows(team, n, e));
        store_size<T>(pass, at, team.lane, SIZE_START, l, norm_rows(team, n, next));
        store_size<T>(pass, at, team.lane, SIZE_ERROR, l, norm_rows(team, n, d));
        store_size<T>(pass, at, team.lane, SIZE_MOVED, l, norm_rows(team, n, moved));
        store_size<T>(pass, at, team.lane, SIZE_RESIDUAL, l, norm_rows(team, n, r));
    }
}

/* lanes: those of a warp for every task */
template <class T>
__global__ void THREADS(ELEMENT_THREADS) walk_elements_kernel(int64_t lanes, update_pass pass) {
    const update_team<T> team = this_team<update_team<T>>(NULL);
    FOR_ELEMENTS(i, lanes) {
        const update_piece at = piece_of(pass, i / TEAM_WARP);
        if (pass.again && is_finite_tile<T>(pass, at, team.lane)) continue;
        __syncwarp(); /* everybody has read the sizes that are written anew */
        walk_elements<T>(pass, at, team);
    }
}

/* ---- dense A ------------------------------------------------------------------------------------- */

template <class T> using update_block = team<T, BLOCK_LANES, BLOCK_ROWS>;

/* A_l d of a row, in all lanes of a warp */
template <class T> __device__ T row_product(const T *A, const T *d, int64_t w, int lane) {
    T sum = 0;
    for (int64_t c = lane; c < w; c += TEAM_WARP) sum = fused(A[c], d[c], sum);
    UNROLL for (int i = TEAM_WARP / 2; i > 0; i /= 2) sum += __shfl_xor_sync(kAllLanes, sum, i);
    return sum;
}

template <class T> __device__ T join_sizes(T a, T b) {
    return b > a ? b : a;
}

template <class T> __device__ T size_with(T most, T x) {
    const T size = finite_or_inf<T>((double)(x < 0 ? -x : x));
    return join_sizes(most, size);
}

template <class T> struct dense_sizes {
    T of[SIZES];
};

/* Step l by a block, from d_{l-1} in before (NULL: 0) to d_l in after, where it is already if solved. */
template <class T>
__device__ void walk_dense_step(const update_pass &pass, const update_piece &at, int64_t l, const T *before,
                                T *after, const update_block<T> &team) {
    const dpcr_update &u = pass.update;
    const int lane = team.lane % TEAM_WARP;
    const T *e = update_row<T>(pass, u.ends, l, at.s), *x = update_row<T>(pass, u.states, l + 1, at.s);
    T *next = update_row<T>(pass, u.updated, l + 1, at.s);
    bool zero = true;
    for (int64_t i = team.lane; before && i < u.w; i += BLOCK_LANES) zero = zero && before[i] == 0;
    const bool still = __syncthreads_and(zero) != 0;
    dense_sizes<T> most = {};
    for (int64_t i = team.lane / TEAM_WARP; i < u.w; i += BLOCK_WARPS) {
        const T moved =
            still ? T(0) : row_product<T>(jacobian_at<T>(pass, l, at.s) + i * u.w, before, u.w, lane);
        const T r = e[i] - x[i], start = moved == 0 ? e[i] : e[i] + moved;
        const T d = pass.solved ? after[i] : moved + r;
        most.of[SIZE_END] = size_with(most.of[SIZE_END], e[i]);
        most.of[SIZE_START] = size_with(most.of[SIZE_START], start);
        most.of[SIZE_ERROR] = size_with(most.of[SIZE_ERROR], d);
        most.of[SIZE_MOVED] = size_with(most.of[SIZE_MOVED], moved);
        most.of[SIZE_RESIDUAL] = size_with(most.of[SIZE_RESIDUAL], r);
        if (lane == 0) next[i] = start;
        if (lane == 0 && !pass.solved) after[i] = d;
    }
    for (int which = 0; which < SIZES; which++) /* and after is complete: barriers */
        store_size<T>(pass, at, team.lane, which, l,
                      (double)reduce_lanes(team, most.of[which], join_sizes<T>));
}

template <class T>
__device__ void walk_dense(const update_pass &pass, const update_piece &at, T *memory,
                           const update_block<T> &team) {
    const dpcr_update &u = pass.update;
    T *rows[2] = {memory + at.s * u.w, memory + (u.B + at.s) * u.w};
    for (int64_t l = at.first; l < at.last; l++) {
        const T *before = l == 0        ? NULL
                          : pass.solved ? update_row<T>(pass, pass.solved, l - 1, at.s)
                                        : rows[(l - 1) % 2];
        T *after = pass.solved ? update_row<T>(pass, pass.solved, l, at.s) : rows[l % 2];
        walk_dense_step<T>(pass, at, l, before, after, team);
    }
}

template <class T>
__global__ void THREADS(BLOCK_LANES) walk_dense_kernel(int64_t tasks, update_pass pass, T *memory) {
    const update_block<T> team = this_team<update_block<T>>(NULL);
    FOR_TASKS(task, tasks) {
        const update_piece at = piece_of(pass, task);
        if (pass.again && is_finite_tile<T>(pass, at, team.lane % TEAM_WARP)) continue;
        __syncthreads(); /* everybody has read the sizes that are written anew */
        walk_dense<T>(pass, at, memory, team);
    }
}

/* ---- the verdict --------------------------------------------------------------------------------- */

/* tasks: SIZES x L x B */
template <class T>
__global__ void THREADS(BLOCK_LANES) whole_kernel(int64_t tasks, update_pass pass, T *whole) {
    const update_block<T> team = this_team<update_block<T>>(NULL);
    FOR_TASKS(task, tasks) {
        T most = 0;
        for (int64_t tile = team.lane; tile < pass.tiles; tile += BLOCK_LANES)
            most = join_sizes(most, ((const T *)pass.sizes)[task * pass.tiles + tile]);
        most = reduce_lanes(team, most, join_sizes<T>);
        if (team.lane == 0) whole[task] = most;
    }
}

template <class T> struct step_sizes {
    const T *whole; /* (SIZES,L,B) */
    int64_t steps, B, s;
    __device__ double at(int which, int64_t l) const {
        return (double)whole[which * steps + l * B + s];
    }
};

/* Whether step l is right; its error, and whether the guard acts. */
template <class T>
__device__ bool judge_step(const update_pass &pass, const step_sizes<T> &sizes, int64_t l, double largest) {
    const dpcr_update &u = pass.update;
    const double end = sizes.at(SIZE_END, l);
    const bool guarded = !(sizes.at(SIZE_START, l) <= kNewtonGuard * largest);
    double error = sizes.at(SIZE_ERROR, l);
    if (guarded) error = join_sizes(error, join_sizes(sizes.at(SIZE_MOVED, l), sizes.at(SIZE_RESIDUAL, l)));
    ((T *)u.error)[l * u.B + sizes.s] = (T)error;
    pass.guarded[l * u.B + sizes.s] = guarded;
    return error < INFINITY && error <= u.tolerance[l] + u.rtol * end;
}

/* tasks: B */
template <class T>
__global__ void THREADS(BLOCK_LANES) judge_kernel(int64_t tasks, update_pass pass, const T *whole) {
    const dpcr_update &u = pass.update;
    const update_block<T> team = this_team<update_block<T>>(NULL);
    FOR_TASKS(s, tasks) {
        const step_sizes<T> sizes = {whole, u.L * u.B, u.B, s};
        double largest = 0;
        for (int64_t l = team.lane; l < u.L; l += BLOCK_LANES)
            if (sizes.at(SIZE_END, l) < INFINITY) largest = join_sizes(largest, sizes.at(SIZE_END, l));
        largest = reduce_lanes(team, largest, join_sizes<double>);
        int64_t converged = u.L;
        for (int64_t l = team.lane; l < u.L; l += BLOCK_LANES)
            if (!judge_step<T>(pass, sizes, l, largest)) converged = dpcr_min(converged, l);
        converged = reduce_lanes(team, converged, [](int64_t a, int64_t b) { return a < b ? a : b; });
        const bool finite = u.L == 0 || sizes.at(SIZE_END, 0) < INFINITY;
        if (team.lane == 0) u.converged[s] = finite ? converged : 1;
    }
}

/* tasks: L x B x pieces of RESTORE_TILE elements */
template <class T>
__global__ void THREADS(BLOCK_LANES) restore_kernel(int64_t tasks, update_pass pass, int64_t pieces) {
    const dpcr_update &u = pass.update;
    FOR_TASKS(task, tasks) {
        const int64_t row = task / pieces, first = task % pieces * RESTORE_TILE,
                      last = dpcr_min(first + RESTORE_TILE, u.w);
        if (!pass.guarded[row]) continue;
        const T *e = (const T *)u.ends + row * u.w;
        T *next = (T *)u.updated + (u.B + row) * u.w;
        for (int64_t i = first + threadIdx.x; i < last; i += blockDim.x) next[i] = e[i];
    }
}

#endif
