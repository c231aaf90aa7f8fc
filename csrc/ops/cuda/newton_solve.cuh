/* SPDX-License-Identifier: Apache-2.0
 *
 * The linear system  d_{k+1} = P_k d_k + r_k  of dense P is solved
 *
 *   w <= 4     by parallel cyclic reduction (pcr/cuda/narrow.cuh), a thread a run of segments
 *   wider      in groups of about sqrt(S) segments: every group from 0, the groups one after the other by their
 *              products (kept while P is), every group again from its start; 3 sqrt(S) products with a vector deep,
 *              where cyclic reduction would multiply matrices
 *
 * and that of diagonal P, or P = I, by a thread a row: S multiply-adds deep.  A scalar P is I or 0, but for steps of
 * denoising, whose factors are multiplied where they are needed.
 */
#ifndef DEEPPCR_OPS_CUDA_NEWTON_SOLVE_H
#define DEEPPCR_OPS_CUDA_NEWTON_SOLVE_H

#include "ops/cuda/newton_state.cuh"
#include "pcr/cuda/narrow.cuh"

/* ---- 3. d = P d + r ------------------------------------------------------------------------------- */

/* own: elements first..last-1 of d, from the one before (NULL: 0), in `longest` turns. */
NEWTON_VIEW void walk_d(const newton_view<TEAM> &v, int64_t first, int64_t last, int64_t longest, bool own,
                        const typename TEAM::T *before, bool write, typename TEAM::T (&d)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const int w = (int)v.p->chain.w;
    load_rows(v.at, w, own ? before : NULL, d);
    for (int64_t j = first; j < first + longest; j++) {
        const bool live = own && j < last;
        const T *P = map_of(v, v.a.maps, dpcr_max(dpcr_min(j, last - 1) - 1, 0));
        T r[TEAM::ROWS], next[TEAM::ROWS];
        load_rows(v.at, w, live ? row_at(v, v.a.d, j) : NULL, r);
        map_times(v, P, d, r, next);
        UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) d[q] = live ? next[q] : d[q];
        if (live && write) store_rows(v.at, w, d, row_at(v, v.a.d, j));
    }
}

/* The product of a group's P; those that meet zeros count as 0. */
NEWTON_VIEW void multiply_group(const newton_view<TEAM> &v, int64_t first, int64_t last, int64_t exact,
                                typename TEAM::T *product) {
    typedef typename TEAM::T T;
    if constexpr (TEAM::STAGES) {
        const int w = (int)v.p->chain.w;
        columns<TEAM> V;
        UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) UNROLL for (int i = 0; i < TEAM::N; i++) V.v[q][i] =
            first > exact && i == v.at.lane * TEAM::ROWS + q ? 1 : 0;
        for (int64_t j = first; j < last && first > exact; j++) {
            const T *P = map_of(v, v.a.maps, j - 1);
            columns_times<TEAM>(weights<T>{P, w, is_packed<TEAM>(P, w)}, w, w, V);
        }
        UNROLL for (int i = 0; i < TEAM::N; i++) UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) {
            const int c = v.at.lane * TEAM::ROWS + q;
            if (i < w && c < w) product[i * w + c] = V.v[q][i];
        }
    }
}

NEWTON_VIEW void solve_in_groups(const newton_view<TEAM> &v, newton_sample *mine, bool changed) {
    typedef typename TEAM::T T;
    const int w = (int)v.p->chain.w;
    const int64_t count = v.p->S - 1;
    int groups = 1;
    while (TEAM::STAGES && count > UNGROUPED && groups < v.teams && groups < MOST_GROUPS
           && (int64_t)groups * groups < count)
        groups++;
    /* whole warps take part, whose other teams keep nothing */
    const bool first_warp = TEAM::BLOCK || threadIdx.x < TEAM_WARP, leads = v.rank == 0;
    T d[TEAM::ROWS];
    if (groups == 1) {
        if (first_warp) walk_d(v, 1, count + 1, count, leads, (const T *)NULL, true, d);
        return;
    }
    const bool own = v.rank < groups;
    const int64_t g = dpcr_min(v.rank, groups - 1), longest = dpcr_ceil_div(count, groups);
    const int64_t first = 1 + dpcr_edge(g, count, groups), last = 1 + dpcr_edge(g + 1, count, groups);
    if (own && changed) multiply_group(v, first, last, mine->exact, map_of(v, v.a.group_maps, g));
    __syncwarp();
    if (any_team<TEAM>(own)) {
        walk_d(v, first, last, longest, own, (const T *)NULL, false, d);
        if (own) store_rows(v.at, w, d, row_at(v, v.a.group_d, g));
    }
    __syncthreads(); /* every group's product and offset are there */
    if (first_warp) {
        T before[TEAM::ROWS], offset[TEAM::ROWS];
        load_rows(v.at, w, leads ? row_at(v, v.a.group_d, 0) : NULL, before);
        for (int i = 1; i < groups; i++) {
            load_rows(v.at, w, leads ? row_at(v, v.a.group_d, i) : NULL, offset);
            map_times(v, map_of(v, v.a.group_maps, i), before, offset, before);
            if (leads) store_rows(v.at, w, before, row_at(v, v.a.group_d, i));
        }
    }
    __syncthreads(); /* so is d at every group's end */
    if (any_team<TEAM>(own))
        walk_d(v, first, last, longest, own, g == 0 ? NULL : row_at(v, v.a.group_d, g - 1), true, d);
}

/* Parallel cyclic reduction over the threads, each of which has a run of elements. */
NEWTON_VIEW void solve_by_reduction(const newton_view<TEAM> &v, newton_sample *mine) {
    typedef typename TEAM::T T;
    enum { W = TEAM::N };
    SHARED(T, carry, NEWTON_THREADS * W);
    const int w = (int)v.p->chain.w, t = (int)threadIdx.x;
    const int64_t count = v.p->S - 1, run = dpcr_ceil_div(count, blockDim.x);
    const int64_t first = dpcr_min(1 + t * run, count + 1), last = dpcr_min(first + run, count + 1);
    affine<T, W> total = {}, next;
    for (int64_t j = first; j < last; j++) {
        const T *P = map_of(v, v.a.maps, j - 1), *r = row_at(v, v.a.d, j);
        const bool meets_zeros = j - 1 < mine->exact;
        UNROLL for (int i = 0; i < W; i++) {
            next.offset[i] = i < w ? r[i] : T(0);
            UNROLL for (int c = 0; c < W; c++) next.map[i * W + c] =
                i < w && c < w && !meets_zeros ? P[i * w + c] : T(0);
        }
        if (j > first) combine<T, W>(next, total);
        total = next;
    }
    warp_prefix<T, W>(total, t % WARP, WARP, WARP);
    if (blockDim.x > WARP) block_prefix<T, W>(total);
    store<T, W>(total.offset, carry + t * W);
    __syncthreads(); /* all carries are there */
    T d[TEAM::ROWS];
    walk_d(v, first, last, run, true, t == 0 ? NULL : carry + (t - 1) * W, true, d);
}

/* With P_k free, or diagonal: every row for itself. */
NEWTON_VIEW void solve_by_sums(const newton_view<TEAM> &v, bool own) {
    typedef typename TEAM::T T;
    const int w = (int)v.p->chain.w;
    for (int i = (int)threadIdx.x; i < w; i += (int)blockDim.x) {
        T sum = 0;
        for (int64_t j = 1; j < v.p->S; j++) {
            T *d = row_at(v, v.a.d, j) + i;
            const T P = own ? row_at(v, v.a.maps, j - 1)[i] : free_P(v, j - 1);
            sum = sum == 0 ? *d : fused(P, sum, *d); /* P might be inf */
            *d = sum;
        }
    }
}

NEWTON_VIEW void solve(const newton_view<TEAM> &v, newton_sample *mine, bool changed) {
    __syncthreads(); /* r is there */
    const bool dense = v.p->options.structure == DPCR_P_DENSE;
    if (mine->has_P && dense) {
        if constexpr (TEAM::LANES == 1)
            solve_by_reduction(v, mine);
        else
            solve_in_groups(v, mine, changed);
    } else if (mine->has_P || v.p->free != DPCR_P_ZERO) {
        solve_by_sums(v, mine->has_P);
    }
    __syncthreads();
    if (threadIdx.x > 0) return;
    const double size = (double)dpcr_P_size(v.p->options.structure, v.p->chain.w);
    if (mine->has_P) mine->flops += 4 * size * (double)(v.p->S - 1);
    if (mine->has_P && dense && TEAM::LANES == 1)
        while ((INT64_C(1) << mine->levels) < v.p->S) mine->levels++;
}

#endif
