/* SPDX-License-Identifier: Apache-2.0
 *
 * The driver of newton.h as one kernel.  A *gang* of blocks solves one sample after another: all of it propagates,
 * each block its own segments, whose parameters stay in shared memory where they fit; its first block does the
 * rest of a sweep, residuals to judgement, and finishes sequentially what did not converge.  So nothing is
 * decided by the host, and a sweep costs two barriers of the gang.
 *
 * The linear system  d_{k+1} = P_k d_k + r_k  of dense P is solved
 *
 *   w <= 4     by parallel cyclic reduction (pcr/cuda/narrow.cuh), a thread a run of segments
 *   wider      in groups of about sqrt(S) segments: every group from 0, the groups one after the other by their
 *              products (kept while P is), every group again from its start; 3 sqrt(S) products with a vector deep,
 *              where cyclic reduction would multiply matrices
 *
 * and that of diagonal P, or P = I, by a thread a row: S multiply-adds deep.  A scalar P is I or 0 for all steps that
 * there are.
 *
 * What is decided is ops/cpu/newton.inl's, function by function; the numbers are newton.h's.
 */
#ifndef DEEPPCR_OPS_CUDA_NEWTON_H
#define DEEPPCR_OPS_CUDA_NEWTON_H

#include "ops/cuda/segment.cuh"
#include "pcr/cuda/narrow.cuh"

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

/* ---- 0. the start ------------------------------------------------------------------------------- */

template <bool BACKWARD, class TEAM> __device__ void begin(const newton_view<TEAM> &v) {
    typedef typename TEAM::T T;
    const newton_pass &p = *v.p;
    const int w = (int)p.chain.w;
    for (int64_t k = v.k0 + v.rank; k < v.k1; k += v.teams) {
        const int64_t before = dpcr_edge(k, p.chain.L, p.S) - 1;
        const T *from = p.start ? state_row<T>(p.chain, p.start, 0, v.s) : NULL;
        if (BACKWARD && k > 0) from = NULL;
        if (!BACKWARD && k > 0 && p.guess) from = state_row<T>(p.chain, p.guess, before, v.s);
        T x[TEAM::ROWS], zero[TEAM::ROWS] = {};
        load_rows(v.at, w, from, x);
        store_rows(v.at, w, x, start_at(v, k));
        store_rows(v.at, w, zero, row_at(v, v.a.d, k));
        if (v.at.lane != 0) continue;
        v.a.size[k] = v.a.ratio[k] = v.a.P_norm[k] = 0;
        v.a.moved[k] = 0;
        v.a.unequal[k] = v.a.stale[k] = 1;
        v.a.guarded[k] = 0;
    }
    if (v.k0 > 0 || threadIdx.x > 0) return;
    newton_sample sample = {};
    sample.phase = NEWTON_SWEEPING;
    sample.refresh =
        dpcr_P_columns(p.options.structure, p.chain.w) > 0 && (BACKWARD || p.options.refresh == DPCR_ALWAYS);
    sample.before = INFINITY;
    sample.verdict = p.options.finish || p.options.max_sweeps == 0 ? DPCR_SEQUENTIAL : DPCR_UNCONVERGED;
    *v.a.sample = sample;
}

/* ---- 1. propagate, 2. r = e - s ------------------------------------------------------------------ */

/* own: x through segment k, and what it leaves on its way */
template <bool BACKWARD, class TEAM>
__device__ void through(const newton_view<TEAM> &v, int64_t k, bool own, typename TEAM::T (&x)[TEAM::ROWS]) {
    const newton_pass &p = *v.p;
    const way on = way_through<TEAM>(p.chain, p.S, BACKWARD ? p.S - 1 - k : k, v.s, own);
    if (BACKWARD)
        walk_back(v.at, p.chain, v.near, p.back, on, x);
    else
        walk(v.at, p.chain, v.near, on, p.states, 0, x);
}

/* The same, with P_k where it is due. */
template <bool BACKWARD, class TEAM>
__device__ void through_with_P(const newton_view<TEAM> &v, int64_t k, bool own, bool due,
                               typename TEAM::T (&x)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const newton_pass &p = *v.p;
    const int64_t w = p.chain.w;
    const way on = way_through<TEAM>(p.chain, p.S, BACKWARD ? p.S - 1 - k : k, v.s, own);
    const tangent_place<T> P = {due ? map_of(v, v.a.maps, k) : NULL, BACKWARD ? 1 : w, BACKWARD ? w : 1};
    T norm;
    if (BACKWARD) {
        T z[TEAM::ROWS];
        load_rows(v.at, (int)w, state_before<T>(p.chain, p.back, on.first, v.s), z);
        norm = walk_tangents(v.at, p.chain, v.near, on, (void *)NULL, 0, P, z);
        walk_back(v.at, p.chain, v.near, p.back, on, x);
    } else {
        norm = walk_tangents(v.at, p.chain, v.near, on, p.states, 0, P, x);
    }
    if (due && v.at.lane == 0) v.a.P_norm[k] = (double)norm, v.a.moved[k] = 0;
}

/* The same with a diagonal P_k = v . (P v). */
template <bool BACKWARD, class TEAM>
__device__ void through_with_diagonal(const newton_view<TEAM> &v, int64_t sweep, int64_t k, bool own,
                                      bool due, typename TEAM::T (&x)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const newton_pass &p = *v.p;
    const int w = (int)p.chain.w;
    const way on = way_through<TEAM>(p.chain, p.S, BACKWARD ? p.S - 1 - k : k, v.s, own);
    T probe[TEAM::ROWS], P[TEAM::ROWS];
    UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) P[q] = probe[q] =
        dpcr_probe_is_negative(sweep, k, row_of(v.at, q)) ? -1 : 1;
    if (BACKWARD) {
        T z[TEAM::ROWS];
        load_rows(v.at, w, state_before<T>(p.chain, p.back, on.first, v.s), z);
        walk_tangent(v.at, p.chain, v.near, on, (void *)NULL, 0, z, P);
        walk_back(v.at, p.chain, v.near, p.back, on, x);
    } else {
        walk_tangent(v.at, p.chain, v.near, on, p.states, 0, x, P);
    }
    UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) P[q] *= probe[q];
    const double norm = norm_rows(v.at, w, P);
    if (due) store_rows(v.at, w, P, row_at(v, v.a.maps, k));
    if (due && v.at.lane == 0) v.a.P_norm[k] = norm, v.a.moved[k] = 0;
}

/* r_k = 0 */
NEWTON_VIEW void settle_boundary(const newton_view<TEAM> &v, int64_t k) {
    const typename TEAM::T zero[TEAM::ROWS] = {};
    if (k == v.p->S - 1) return;
    store_rows(v.at, (int)v.p->chain.w, zero, row_at(v, v.a.d, k + 1));
    if (v.at.lane == 0) v.a.ratio[k] = 0, v.a.unequal[k] = 0;
}

template <bool BACKWARD, class TEAM>
__device__ void propagate(const newton_view<TEAM> &v, const newton_sample &now) {
    typedef typename TEAM::T T;
    const newton_pass &p = *v.p;
    const int w = (int)p.chain.w;
    const bool has_P = now.has_P || now.refresh;
    for (int64_t base = v.k0; base < v.k1; base += v.teams) {
        const turn at = turn_at(v, base, v.k1);
        const int64_t k = at.k;
        /* before `exact` ends are exact, and so are the next starts */
        if (at.own && k < now.exact) settle_boundary(v, k);
        const bool walks = at.own && k >= now.exact;
        if (!any_team<TEAM>(walks)) continue;
        const bool due = walks && now.refresh && v.a.stale[k] && k > now.exact && k < p.S - 1;
        T x[TEAM::ROWS], next[TEAM::ROWS], r[TEAM::ROWS];
        load_rows(v.at, w, start_at(v, k), x);
        const double from = norm_rows(v.at, w, x);
        if (!any_team<TEAM>(due))
            through<BACKWARD>(v, k, walks, x);
        else if (p.options.structure == DPCR_P_DENSE)
            through_with_P<BACKWARD>(v, k, walks, due, x);
        else
            through_with_diagonal<BACKWARD>(v, now.sweeps + 1, k, walks, due, x);
        if (walks) store_rows(v.at, w, x, row_at(v, v.a.ends, k));
        const double size = norm_rows(v.at, w, x);
        load_rows(v.at, w, k < p.S - 1 ? start_at(v, k + 1) : NULL, next);
        const bool equal = residual_of(v, x, next, r), inside = walks && k < p.S - 1;
        if (inside) store_rows(v.at, w, r, row_at(v, v.a.d, k + 1));
        const double distance = norm_rows(v.at, w, r);
        if (walks && v.at.lane == 0) v.a.size[k] = size;
        if (!inside || v.at.lane != 0) continue;
        const double P = has_P ? v.a.P_norm[k] : fabs((double)free_P(v, k));
        const double relative = distance / fmax(size + P * from, smallest_of(v));
        v.a.ratio[k] = equal ? 0 : relative >= 0 ? relative : INFINITY; /* NaN */
        v.a.unequal[k] = !equal;
    }
}

/* What the propagation was, and how far it has got. */
template <bool BACKWARD, class TEAM> __device__ void count(const newton_view<TEAM> &v, newton_sample *mine) {
    const newton_pass &p = *v.p;
    enum { LARGEST, ROUNDING, EQUAL, TANGENTS, ALL, TALLIES }; /* EQUAL: minus the first k that is not */
    double tally[TALLIES] = {0, 0, -(double)(p.S - 1), 0, 0};
    for (int64_t k = threadIdx.x; k < p.S; k += blockDim.x) {
        if (v.a.size[k] < INFINITY) tally[LARGEST] = fmax(tally[LARGEST], v.a.size[k]);
        if (k == p.S - 1) break;
        tally[ROUNDING] = fmax(tally[ROUNDING], v.a.ratio[k]);
        if (v.a.unequal[k]) tally[EQUAL] = fmax(tally[EQUAL], -(double)k);
        if (!mine->refresh || k <= mine->exact) continue;
        const double own = (double)(steps_from<BACKWARD>(p, k) - steps_from<BACKWARD>(p, k + 1));
        tally[ALL] += own;
        if (v.a.stale[k]) tally[TANGENTS] += own;
    }
    block_reduce(tally, [](int n, double a, double b) { return n >= TANGENTS ? a + b : a > b ? a : b; });
    __syncthreads(); /* all have read mine */
    if (threadIdx.x == 0) {
        mine->sweeps++;
        mine->flops += (double)steps_from<BACKWARD>(p, mine->exact) * p.step_flops;
        if (mine->refresh && tally[ALL] > 0) mine->tangent_sweeps += tally[TANGENTS] / tally[ALL];
        if (mine->refresh)
            mine->flops +=
                tally[TANGENTS] * (double)dpcr_P_columns(p.options.structure, p.chain.w) * p.step_flops;
        mine->has_P = mine->has_P || mine->refresh;
        mine->largest = tally[LARGEST];
        mine->rounding = tally[ROUNDING];
        mine->exact = dpcr_min((int64_t)-tally[EQUAL] + 1, p.S - 1);
    }
    __syncthreads();
}

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

/* ---- 4. the verdict -------------------------------------------------------------------------------- */

/* r_k as it was before d took its place */
NEWTON_VIEW void residual_at(const newton_view<TEAM> &v, int64_t k, typename TEAM::T (&r)[TEAM::ROWS]) {
    typename TEAM::T e[TEAM::ROWS], next[TEAM::ROWS];
    load_rows(v.at, (int)v.p->chain.w, row_at(v, v.a.ends, k), e);
    load_rows(v.at, (int)v.p->chain.w, start_at(v, k + 1), next);
    residual_of(v, e, next, r);
}

NEWTON_VIEW double relative_error(const newton_view<TEAM> &v) {
    typedef typename TEAM::T T;
    const int w = (int)v.p->chain.w;
    const dpcr_structure structure = v.p->options.structure;
    /* then the running sum of r counts, too: all teams have all of it */
    const bool add = structure != DPCR_P_DENSE && structure != DPCR_P_IDENTITY;
    const int64_t count = v.p->S - 1, stride = add ? 1 : v.teams;
    double q = 0;
    T sum[TEAM::ROWS] = {}, d[TEAM::ROWS], r[TEAM::ROWS];
    __syncthreads(); /* d is there */
    for (int64_t base = 0; base < count; base += stride) {
        const int64_t k = add ? base : turn_at(v, base, count).k;
        load_rows(v.at, w, row_at(v, v.a.d, k + 1), d);
        double size = norm_rows(v.at, w, d);
        if (add) {
            residual_at(v, k, r);
            UNROLL_ROWS for (int i = 0; i < TEAM::ROWS; i++) sum[i] += r[i];
            const double drift = norm_rows(v.at, w, sum);
            size = !(size < INFINITY) ? INFINITY : drift <= size ? size : drift; /* NaN, too */
        }
        const double ratio = size / fmax(v.a.size[k], smallest_of(v));
        q = !(ratio < INFINITY) ? INFINITY : ratio > q ? ratio : q;
    }
    return block_max(q);
}

NEWTON_VIEW bool is_right(const newton_view<TEAM> &v, const newton_sample &mine) {
    const double rtol = v.p->options.rtol, slack = kNewtonSlack * rtol, q = mine.error, r = mine.rounding;
    if (v.p->options.structure != DPCR_P_DENSE)
        return r <= rtol / 2 && q <= slack * fmax(1.0, sqrt((double)v.p->S) / 8);
    const bool stuck =
        q >= kNewtonStuck * mine.before || r <= 2 * newton_constants<typename TEAM::T>::epsilon;
    return q <= slack || (stuck && r <= slack && q < INFINITY);
}

/* out = P_k d_k + r_k, of a sample that has P; d: d_k */
NEWTON_VIEW void equation(const newton_view<TEAM> &v, int64_t k, const typename TEAM::T (&d)[TEAM::ROWS],
                          typename TEAM::T (&r)[TEAM::ROWS], typename TEAM::T (&out)[TEAM::ROWS]) {
    residual_at(v, k, r);
    times_P(v, true, k, d, r, out);
}

/* Does d solve the equations?  Products of the P_k may have over- or underflowed. */
NEWTON_VIEW bool is_solution(const newton_view<TEAM> &v, int64_t exact) {
    typedef typename TEAM::T T;
    typedef newton_constants<T> C;
    const int w = (int)v.p->chain.w;
    const double tolerance = C::epsilon * (64 + 16 * sqrt((double)v.p->S));
    double wrong = 0;
    for (int64_t base = exact; base < v.p->S - 1; base += v.teams) {
        const int64_t k = turn_at(v, base, v.p->S - 1).k;
        T before[TEAM::ROWS], d[TEAM::ROWS], r[TEAM::ROWS], out[TEAM::ROWS];
        load_rows(v.at, w, row_at(v, v.a.d, k), before);
        load_rows(v.at, w, row_at(v, v.a.d, k + 1), d);
        equation(v, k, before, r, out);
        UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) out[q] -= d[q];
        const double gap = norm_rows(v.at, w, out), size = norm_rows(v.at, w, d) + norm_rows(v.at, w, r);
        if (!(gap <= tolerance * size) && !(gap <= C::tiny * C::epsilon)) wrong = 1;
    }
    return block_max(wrong) == 0;
}

/* d once more, by the loop. */
NEWTON_VIEW void solve_again(const newton_view<TEAM> &v) {
    typename TEAM::T d[TEAM::ROWS] = {}, r[TEAM::ROWS], out[TEAM::ROWS];
    const bool first_warp = TEAM::BLOCK || threadIdx.x < TEAM_WARP, leads = v.rank == 0;
    for (int64_t k = 0; k < v.p->S - 1 && first_warp; k++) {
        equation(v, k, d, r, out);
        copy_rows(out, d);
        if (leads) store_rows(v.at, (int)v.p->chain.w, d, row_at(v, v.a.d, k + 1));
    }
}

template <bool BACKWARD, class TEAM>
__device__ void confirm(const newton_view<TEAM> &v, newton_sample *mine) {
    double error = relative_error(v);
    /* a linear problem takes d for its error itself, others sweep on */
    const bool solved = !mine->has_P || (BACKWARD ? is_solution(v, mine->exact) : error < INFINITY);
    if (!solved) {
        solve_again(v);
        error = relative_error(v);
    }
    __syncthreads(); /* all have read mine */
    if (threadIdx.x == 0) {
        mine->error = error;
        if (mine->phase == NEWTON_CANDIDATE) {
            const bool right = is_right(v, *mine);
            mine->phase = right ? NEWTON_SETTLED : NEWTON_SWEEPING;
            if (right) mine->verdict = DPCR_CONVERGED;
        }
    }
    __syncthreads();
}

/* ---- 5. the update --------------------------------------------------------------------------------- */

NEWTON_VIEW void update(const newton_view<TEAM> &v, const newton_sample &mine) {
    typedef typename TEAM::T T;
    const int w = (int)v.p->chain.w;
    for (int64_t base = 0; base < v.p->S - 1; base += v.teams) {
        const turn at = turn_at(v, base, v.p->S - 1);
        const int64_t k = at.k;
        T e[TEAM::ROWS], d[TEAM::ROWS], next[TEAM::ROWS], step[TEAM::ROWS];
        load_rows(v.at, w, row_at(v, v.a.ends, k), e);
        load_rows(v.at, w, row_at(v, v.a.d, k), d);
        const bool moves = !is_zero(v, d) && k >= mine.exact;
        times_P(v, mine.has_P, k, d, e, next);
        const double reach = norm_rows(v.at, w, next);
        const bool passed = !moves || reach <= kNewtonGuard * mine.largest;
        UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) next[q] = moves && passed ? next[q] : e[q];
        load_rows(v.at, w, at.own ? start_at(v, k + 1) : NULL, step);
        UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) step[q] = next[q] - step[q];
        const double moved = norm_rows(v.at, w, step) / fmax(norm_rows(v.at, w, next), smallest_of(v));
        if (at.own) store_rows(v.at, w, next, start_at(v, k + 1));
        if (!at.own || v.at.lane != 0) continue;
        v.a.guarded[k + 1] = !passed;
        v.a.moved[k + 1] += (float)fmin(moved, 1e30);
    }
}

/* ---- 6. what comes next ------------------------------------------------------------------------------ */

template <bool BACKWARD, class TEAM>
__device__ void judge(const newton_view<TEAM> &v, newton_sample *mine, int64_t sweep) {
    const newton_pass &p = *v.p;
    const bool dense = p.options.structure == DPCR_P_DENSE,
               computes = dpcr_P_columns(p.options.structure, p.chain.w) > 0;
    enum { GUARDED, MOST };
    double seen[2] = {0, 0}, due = 0;
    __syncthreads(); /* moved and guarded are there */
    for (int64_t k = threadIdx.x; k < p.S; k += blockDim.x) {
        if (v.a.guarded[k]) seen[GUARDED] = 1;
        if (k > mine->exact && k < p.S - 1) seen[MOST] = fmax(seen[MOST], (double)v.a.moved[k]);
    }
    block_reduce(seen, [](int, double a, double b) { return a > b ? a : b; });
    const double most = seen[MOST];
    const double q = mine->error, gain = q / mine->before;
    const double rho = fmin(gain > kNewtonFastest ? gain : kNewtonFastest, kNewtonSlowest);
    const bool predicted = dense ? sweep > 2 && (q * rho / (1 - rho) <= p.options.rtol || is_right(v, *mine))
                                 : is_right(v, *mine);
    const bool solved = BACKWARD && dense && q < INFINITY; /* of a linear problem by its own P */
    const bool exact = mine->exact == p.S - 1;             /* all starts are, now */
    const bool floor = dense && mine->rounding <= 2 * newton_constants<typename TEAM::T>::epsilon;
    const bool candidate = floor || exact || (seen[GUARDED] == 0 && (predicted || solved));
    const bool all = !mine->has_P || p.options.refresh == DPCR_ALWAYS;
    const bool poor =
        !(gain <= kNewtonSlow) && !(q <= kNewtonSmall * newton_constants<typename TEAM::T>::epsilon);
    const bool wanted = computes && !candidate && !BACKWARD && (all || poor);
    const float far = kNewtonFar * (most < 1 ? (float)most : 1);
    for (int64_t k = threadIdx.x; computes && k < p.S - 1; k += blockDim.x) {
        const bool inexact = k > mine->exact;
        v.a.stale[k] = wanted && (all || (inexact && v.a.moved[k] > far));
        if (inexact && v.a.stale[k]) due = 1;
    }
    due = block_max(due);
    __syncthreads(); /* all have read mine */
    if (threadIdx.x == 0) {
        if (candidate) mine->phase = NEWTON_CANDIDATE;
        mine->refresh = due > 0;
        mine->before = q;
    }
    __syncthreads();
}

/* ---- the rest of a sweep, by the gang's first block --------------------------------------------------- */

template <bool BACKWARD, class TEAM>
__device__ void conclude(const newton_view<TEAM> &v, newton_sample *mine, int64_t sweep) {
    if (threadIdx.x == 0) *mine = *v.a.sample;
    __syncthreads();
    const bool changed = mine->refresh;
    count<BACKWARD>(v, mine);
    solve(v, mine, changed);
    confirm<BACKWARD>(v, mine);
    if (sweep < v.p->options.max_sweeps && mine->phase != NEWTON_SETTLED) {
        update(v, *mine);
        judge<BACKWARD>(v, mine, sweep);
    }
    if (threadIdx.x == 0) *v.a.sample = *mine;
}

/* The sequential walk of what is not settled, by the first team (in the company of its warp). */
template <bool BACKWARD, class TEAM> __device__ void finish(const newton_view<TEAM> &v, int64_t exact) {
    typedef typename TEAM::T T;
    const int w = (int)v.p->chain.w;
    const bool leads = v.rank == 0;
    const T *start = exact > 0 ? row_at(v, v.a.ends, exact - 1) : start_at(v, 0);
    T x[TEAM::ROWS];
    load_rows(v.at, w, leads ? start : NULL, x);
    for (int64_t k = exact; k < v.p->S; k++) {
        if (leads) store_rows(v.at, w, x, start_at(v, k));
        through<BACKWARD>(v, k, leads, x);
        if (leads) store_rows(v.at, w, x, row_at(v, v.a.ends, k));
    }
}

NEWTON_VIEW void report(const newton_view<TEAM> &v, const newton_sample &mine) {
    const double column[DPCR_REPORT] = {(double)mine.sweeps, mine.tangent_sweeps, (double)mine.verdict,
                                        mine.error,          (double)mine.levels, mine.flops};
    for (int i = 0; i < DPCR_REPORT; i++) v.p->report[i * v.p->chain.B + v.s] = column[i];
}

template <bool BACKWARD, class TEAM>
__device__ void solve_sample(const newton_view<TEAM> &v, newton_sample *mine) {
    typedef typename TEAM::T T;
    const newton_pass &p = *v.p;
    const bool leads = v.k0 == 0;
    begin<BACKWARD>(v);
    gang_barrier(v.arrived, p.gang);
    newton_sample now = *v.a.sample;
    for (int64_t sweep = 1; sweep <= p.options.max_sweeps && now.phase != NEWTON_SETTLED; sweep++) {
        propagate<BACKWARD>(v, now);
        gang_barrier(v.arrived, p.gang); /* e, r and P are there */
        if (leads) conclude<BACKWARD>(v, mine, sweep);
        gang_barrier(v.arrived, p.gang); /* so are the next starts */
        now = *v.a.sample;
    }
    const bool walks = now.phase != NEWTON_SETTLED && (p.options.finish || p.options.max_sweeps == 0);
    if (leads && walks && (TEAM::BLOCK || threadIdx.x < TEAM_WARP)) {
        now.flops += (double)steps_from<BACKWARD>(p, now.exact) * p.step_flops;
        finish<BACKWARD>(v, now.exact);
    }
    if (leads && v.rank == 0) {
        T x[TEAM::ROWS];
        load_rows(v.at, (int)p.chain.w, row_at(v, v.a.ends, p.S - 1), x);
        if (p.end) store_rows(v.at, (int)p.chain.w, x, state_row<T>(p.chain, p.end, 0, v.s));
        if (p.report && v.at.lane == 0) report(v, now);
    }
    gang_barrier(v.arrived, p.gang); /* before the next sample begins */
}

template <class TEAM, bool BACKWARD>
__global__ void THREADS(NEWTON_THREADS) newton_kernel(const __grid_constant__ newton_pass p) {
    TEAM_HERE(TEAM, at, p.chain, slots);
    SHARED(newton_sample, mine, 1);
    newton_view<TEAM> v;
    const int member = (int)(blockIdx.x % (unsigned)p.gang);
    const int64_t gang = blockIdx.x / p.gang;
    v.p = &p;
    v.at = at;
    carve_newton(p, p.workspace + (size_t)gang * p.bytes, &v.a);
    v.arrived = p.arrived + gang;
    v.k0 = dpcr_edge(member, p.S, p.gang);
    v.k1 = dpcr_edge(member + 1, p.S, p.gang);
    v.rank = (int)threadIdx.x / TEAM::LANES;
    v.teams = (int)blockDim.x / TEAM::LANES;
    v.near = {slots, p.slot, 0, 0};
    const int64_t k0 = BACKWARD ? p.S - v.k1 : v.k0, k1 = BACKWARD ? p.S - v.k0 : v.k1;
    const int64_t first = dpcr_edge(k0, p.chain.L, p.S), last = dpcr_edge(k1, p.chain.L, p.S);
    if (TEAM::STAGES && last - first <= p.resident_steps) {
        const int t = (int)threadIdx.x, threads = (int)blockDim.x;
        stage_zeros(slots, (int)(last - first) * p.slot.size, t, threads);
        __syncthreads(); /* before copies land */
        stage_steps<TEAM>(p.chain, p.slot, first, (int)(last - first), slots, t, threads);
        await_copies();
        __syncthreads(); /* all of them have */
        v.near.first = first;
        v.near.last = last;
    }
    for (v.s = gang; v.s < p.chain.B; v.s += p.gangs) solve_sample<BACKWARD>(v, mine);
}

#endif
