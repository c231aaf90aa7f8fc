/* SPDX-License-Identifier: Apache-2.0
 *
 * The driver of newton.h as one kernel.  A *gang* of blocks solves one sample after another: all of it propagates,
 * each block its own segments, whose parameters stay in shared memory where they fit; its first block does the
 * rest of a sweep, residuals to judgement, and finishes sequentially what did not converge.  So nothing is
 * decided by the host, and a sweep costs two barriers of the gang.
 *
 * What is decided is ops/cpu/newton.inl's, function by function; the numbers are newton.h's.
 */
#ifndef DEEPPCR_OPS_CUDA_NEWTON_H
#define DEEPPCR_OPS_CUDA_NEWTON_H

#include "ops/cuda/newton_solve.cuh"
#include "ops/cuda/newton_verdict.cuh"

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
