/* SPDX-License-Identifier: Apache-2.0
 *
 * What newton.cuh decides of a sample after a solve, and the update: ops/cpu/newton.inl's rules, function by function,
 * with newton.h's numbers.
 */
#ifndef DEEPPCR_OPS_CUDA_NEWTON_VERDICT_H
#define DEEPPCR_OPS_CUDA_NEWTON_VERDICT_H

#include "ops/cuda/newton_state.cuh"

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

#endif
