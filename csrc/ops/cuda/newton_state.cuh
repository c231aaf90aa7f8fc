/* SPDX-License-Identifier: Apache-2.0
 *
 * What newton.cuh works on: the pass as the host describes it, a gang's workspace, a thread's view of its sample; rows,
 * maps and sums that all of its phases read.
 */
#ifndef DEEPPCR_OPS_CUDA_NEWTON_STATE_H
#define DEEPPCR_OPS_CUDA_NEWTON_STATE_H

#include "ops/cuda/segment.cuh"

enum { NEWTON_THREADS = 256, MOST_GROUPS = 32, UNGROUPED = 48 };

/* One gang's workspace.  Element k + 1 of d is r_k, then d_{k+1}. */
struct newton_arrays {
    void *starts, *ends, *d; /* (S,w) */
    void *maps;              /* (S,w,w) dense, (S,w) diagonal */
    void *group_maps,
        *group_d; /* (MOST_GROUPS,w,w), (MOST_GROUPS,w): dense only, and not of teams of a block */
    double *size, *ratio, *P_norm;  /* (S) of e_k; of r_k, relative; of P_k */
    float *moved;                   /* (S) */
    int *unequal, *stale, *guarded; /* (S) */
    struct newton_sample *sample;
};

struct newton_pass {
    dpcr_chain chain;
    slot_shape slot;
    int64_t S, gangs, resident_steps; /* resident_steps: slots in shared memory; 0: none */
    int gang;                         /* blocks */
    dpcr_newton options;              /* max_sweeps as it is meant */
    dpcr_structure free;              /* scalar: of steps of denoising, whose factors are not all 1 */
    bool adjoint;                     /* backward: segments are counted from the last */
    double step_flops;
    unsigned *arrived; /* (gangs), zero: of their barriers; not read where a gang is one block */
    char *workspace;
    size_t bytes;      /* of a gang's */
    const void *start; /* (B,w) s_0: z0, or gz (NULL: zero) */
    const void *guess; /* (L,B,w) or NULL; forward only, as the next two */
    void *states;      /* (L,B,w) or NULL */
    void *checkpoints; /* (S,B,w) or NULL: then they are the starts */
    void *end;         /* (B,w) or NULL: z, or gz0 */
    double *report;    /* (DPCR_REPORT,B) or NULL */
    back_arrays back;  /* backward only */
};

static inline DPCR_EVERYWHERE size_t carve_newton(const newton_pass &p, char *base, newton_arrays *a) {
    const size_t element = dpcr_size_of(p.chain.dtype), S = (size_t)p.S, w = (size_t)p.chain.w;
    const bool dense = p.options.structure == DPCR_P_DENSE;
    const bool groups = dense && widest_of(p.chain) <= TEAM_WARP;
    struct arena arena = {base, 0};
    a->starts = dpcr_take(&arena, S * w * element);
    a->ends = dpcr_take(&arena, S * w * element);
    a->d = dpcr_take(&arena, S * w * element);
    a->maps = dpcr_take(&arena, S * (size_t)dpcr_P_size(p.options.structure, p.chain.w) * element);
    a->group_maps = groups ? dpcr_take(&arena, MOST_GROUPS * w * w * element) : NULL;
    a->group_d = groups ? dpcr_take(&arena, MOST_GROUPS * w * element) : NULL;
    a->size = (double *)dpcr_take(&arena, S * sizeof(double));
    a->ratio = (double *)dpcr_take(&arena, S * sizeof(double));
    a->P_norm = (double *)dpcr_take(&arena, S * sizeof(double));
    a->moved = (float *)dpcr_take(&arena, S * sizeof(float));
    a->unequal = (int *)dpcr_take(&arena, S * sizeof(int));
    a->stale = (int *)dpcr_take(&arena, S * sizeof(int));
    a->guarded = (int *)dpcr_take(&arena, S * sizeof(int));
    a->sample = (struct newton_sample *)dpcr_take(&arena, sizeof *a->sample);
    return arena.used;
}

/* A thread's view of the sample that its gang is at. */
template <class TEAM> struct newton_view {
    const newton_pass *p;
    newton_arrays a;
    TEAM at;
    resident<typename TEAM::T> near;
    int64_t s, k0, k1; /* k0..k1-1: segments of this block */
    int rank, teams;   /* of the team, among those of this block */
    unsigned *arrived;
};

#define NEWTON_VIEW template <class TEAM> __device__
typedef struct newton_sample newton_sample;

/* ---- numbers of a dtype ------------------------------------------------------------------------- */

template <class T> struct newton_constants;
template <> struct newton_constants<float> {
    static constexpr double epsilon = 1.1920928955078125e-7, tiny = 1e-37;
};
template <> struct newton_constants<double> {
    static constexpr double epsilon = 2.220446049250313e-16, tiny = 1e-307;
};
/* ---- rows --------------------------------------------------------------------------------------- */

NEWTON_VIEW typename TEAM::T *row_at(const newton_view<TEAM> &v, void *rows, int64_t k) {
    return (typename TEAM::T *)rows + k * v.p->chain.w;
}

NEWTON_VIEW typename TEAM::T *start_at(const newton_view<TEAM> &v, int64_t k) {
    if (v.p->checkpoints) return state_row<typename TEAM::T>(v.p->chain, v.p->checkpoints, k, v.s);
    return row_at(v, v.a.starts, k);
}

NEWTON_VIEW typename TEAM::T *map_of(const newton_view<TEAM> &v, void *maps, int64_t k) {
    return (typename TEAM::T *)maps + k * v.p->chain.w * v.p->chain.w;
}

__device__ inline bool same_bits(float a, float b) {
    return bits_of_number(a) == bits_of_number(b);
}

__device__ inline bool same_bits(double a, double b) {
    return bits_of_number(a) == bits_of_number(b);
}

/* r = e - next, 0 where their bits are the same; returns whether they all are */
NEWTON_VIEW bool residual_of(const newton_view<TEAM> &v, const typename TEAM::T (&e)[TEAM::ROWS],
                             const typename TEAM::T (&next)[TEAM::ROWS], typename TEAM::T (&r)[TEAM::ROWS]) {
    bool equal = true;
    UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) {
        equal = equal && (row_of(v.at, q) >= (int)v.p->chain.w || same_bits(e[q], next[q]));
        r[q] = e[q] - next[q];
    }
    equal = all_lanes(v.at, equal);
    UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) r[q] = equal ? 0 : r[q];
    return equal;
}

NEWTON_VIEW bool is_zero(const newton_view<TEAM> &v, const typename TEAM::T (&x)[TEAM::ROWS]) {
    bool zero = true;
    UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) zero =
        zero && (row_of(v.at, q) >= (int)v.p->chain.w || x[q] == 0);
    return all_lanes(v.at, zero);
}

/* y = M x + b, b alone where x is 0: M might be inf */
NEWTON_VIEW void map_times(const newton_view<TEAM> &v, const typename TEAM::T *M,
                           const typename TEAM::T (&x)[TEAM::ROWS], const typename TEAM::T (&b)[TEAM::ROWS],
                           typename TEAM::T (&y)[TEAM::ROWS]) {
    const int w = (int)v.p->chain.w;
    const bool zero = is_zero(v, x);
    typename TEAM::T product[TEAM::ROWS];
    times(v.at, weights<typename TEAM::T>{M, w, is_packed<TEAM>(M, w)}, w, w, x, b, product);
    UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) y[q] = zero ? b[q] : product[q];
}

/* P_k of a sample that has none of its own: a number. */
NEWTON_VIEW typename TEAM::T free_P(const newton_view<TEAM> &v, int64_t k) {
    typedef typename TEAM::T T;
    const newton_pass &p = *v.p;
    T P = p.free == DPCR_P_ZERO ? 0 : 1;
    if constexpr (TEAM::DENOISES) {
        const int64_t own = p.adjoint ? p.S - 1 - k : k, last = dpcr_edge(own + 1, p.chain.L, p.S);
        for (int64_t l = dpcr_edge(own, p.chain.L, p.S); p.free == DPCR_P_SCALAR && l < last; l++)
            P *= denoise_factors_of<T>(p.chain, l).a;
    }
    return P;
}

/* out = P_k d + b; own: the sample's own P, else the free one */
NEWTON_VIEW void times_P(const newton_view<TEAM> &v, bool own, int64_t k,
                         const typename TEAM::T (&d)[TEAM::ROWS], const typename TEAM::T (&b)[TEAM::ROWS],
                         typename TEAM::T (&out)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    T P[TEAM::ROWS];
    if (own && v.p->options.structure == DPCR_P_DENSE) {
        map_times(v, map_of(v, v.a.maps, k), d, b, out);
        return;
    }
    const T factor = own ? T(0) : free_P(v, k);
    UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) P[q] = factor;
    if (own) load_rows(v.at, (int)v.p->chain.w, row_at(v, v.a.maps, k), P);
    UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) out[q] =
        P[q] == 0 || d[q] == 0 ? b[q] : fused(P[q], d[q], b[q]);
}

/* A team's turn in a loop over k0..k1-1 that all teams of a block go through together, each with every `teams`-th k;
 * one that has none left repeats the last, and keeps nothing of it. */
struct turn {
    int64_t k;
    bool own;
};

NEWTON_VIEW turn turn_at(const newton_view<TEAM> &v, int64_t base, int64_t k1) {
    return {dpcr_min(base + v.rank, k1 - 1), base + v.rank < k1};
}

NEWTON_VIEW double smallest_of(const newton_view<TEAM> &v) {
    return fmax(v.p->options.atol / v.p->options.rtol, newton_constants<typename TEAM::T>::tiny);
}

/* Steps of the segments k..S-1. */
template <bool BACKWARD> __device__ int64_t steps_from(const newton_pass &p, int64_t k) {
    return BACKWARD ? dpcr_edge(p.S - k, p.chain.L, p.S) : p.chain.L - dpcr_edge(k, p.chain.L, p.S);
}

/* ---- over a block ------------------------------------------------------------------------------- */

/* N numbers of every thread joined into N of the block: join(which, a, b). */
template <int N, class F> __device__ void block_reduce(double (&value)[N], F join) {
    enum { WARPS = NEWTON_THREADS / TEAM_WARP };
    SHARED(double, parts, N *WARPS);
    const int lane = (int)threadIdx.x % TEAM_WARP, warp = (int)threadIdx.x / TEAM_WARP;
    UNROLL for (int d = TEAM_WARP / 2; d > 0; d /= 2) UNROLL for (int n = 0; n < N; n++) value[n] =
        join(n, value[n], __shfl_xor_sync(kAllLanes, value[n], d));
    __syncthreads(); /* nobody still reads parts */
    if (lane == 0) UNROLL for (int n = 0; n < N; n++) parts[n * WARPS + warp] = value[n];
    __syncthreads(); /* parts are complete */
    UNROLL for (int n = 0; n < N; n++) {
        value[n] = parts[n * WARPS];
        for (int i = 1; i < (int)blockDim.x / TEAM_WARP; i++)
            value[n] = join(n, value[n], parts[n * WARPS + i]);
    }
}

__device__ inline double block_max(double value) {
    double one[1] = {value};
    block_reduce(one, [](int, double a, double b) { return a > b ? a : b; });
    return one[0];
}

#endif
