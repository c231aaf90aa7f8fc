/* SPDX-License-Identifier: Apache-2.0
 *
 * The step of denoising by a team: forward, Jacobian times vector, and vector times Jacobian; the formulas are in
 * ops/cpu/denoise.inl.  Its teams are types of their own (TEAM::DENOISES), so that the kernels of other kinds are
 * compiled without it: a warp or a block, because a network that is worth it is wide.
 *
 * All steps read the same matrices, where they are: after the first step in the second-level cache.  The noise has a
 * row a sample, so a step is told which one it takes.
 */
#ifndef DEEPPCR_OPS_CUDA_DENOISE_H
#define DEEPPCR_OPS_CUDA_DENOISE_H

#include "ops/cuda/step.cuh"

/* W1, or WH_m for m = 1..M */
template <class TEAM> __device__ weights<typename TEAM::T> denoise_matrix(const dpcr_chain &chain, int m) {
    typedef typename TEAM::T T;
    const T *const *p = (const T *const *)chain.parameter;
    const int columns = (int)(m == 0 ? chain.w : chain.h);
    const T *data = m == 0 ? p[DPCR_W1] : p[DPCR_WH] + (m - 1) * chain.h * chain.h;
    return {data, columns, is_packed<TEAM>(data, columns)};
}

template <class TEAM> __device__ weights<typename TEAM::T> denoise_last(const dpcr_chain &chain) {
    const typename TEAM::T *data = (const typename TEAM::T *)chain.parameter[DPCR_W2];
    return {data, (int)chain.h, is_packed<TEAM>(data, (int)chain.h)};
}

/* a_l and c_l */
template <class T> struct denoise_factors {
    T a, c;
};

template <class T> __device__ denoise_factors<T> denoise_factors_of(const dpcr_chain &chain, int64_t l) {
    const T *p = (const T *)chain.parameter[DPCR_COEFFICIENTS] + 2 * l;
    return {p[0], p[1]};
}

/* x -> x_m: act(u_0) for m = 0, where x is z, else x + act(u_m); slope: act'(u_m) */
template <class TEAM>
__device__ void denoise_layer(const TEAM &at, const dpcr_chain &chain, int64_t l, int m,
                              typename TEAM::T (&x)[TEAM::ROWS], typename TEAM::T (&slope)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const int h = (int)chain.h, columns = (int)(m == 0 ? chain.w : chain.h);
    const T *biases = (const T *)chain.parameter[DPCR_B1];
    T bias[TEAM::ROWS], u[TEAM::ROWS];
    load_rows(at, h, biases ? biases + (l * (chain.layers + 1) + m) * h : NULL, bias);
    times(at, denoise_matrix<TEAM>(chain, m), h, columns, x, bias, u);
    activation(chain, u, u, slope);
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) x[r] = m == 0 ? u[r] : x[r] + u[r];
}

/* live: z <- a z + c (W2 x + b2) + n, x = x_M */
template <class TEAM>
__device__ void denoise_outer(const TEAM &at, const dpcr_chain &chain, int64_t l, int64_t s, bool live,
                              const typename TEAM::T (&x)[TEAM::ROWS], typename TEAM::T (&z)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const int w = (int)chain.w;
    const denoise_factors<T> by = denoise_factors_of<T>(chain, l);
    const T *noises = (const T *)chain.parameter[DPCR_NOISE];
    T v[TEAM::ROWS], extra[TEAM::ROWS];
    load_rows(at, w, (const T *)chain.parameter[DPCR_B2], extra);
    times(at, denoise_last<TEAM>(chain), w, (int)chain.h, x, extra, v);
    load_rows(at, w, noises ? noises + (l * chain.B + s) * w : NULL, extra);
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
        const T next = fused(by.a, z[r], by.c * v[r]) + extra[r];
        z[r] = live ? next : z[r];
    }
}

/* ---- forward ----------------------------------------------------------------------------------- */

/* live: z -> f(z), step l of sample s */
template <class TEAM>
__device__ void denoise_forward(const TEAM &at, const dpcr_chain &chain, int64_t l, int64_t s, bool live,
                                typename TEAM::T (&z)[TEAM::ROWS]) {
    typename TEAM::T x[TEAM::ROWS], slope[TEAM::ROWS];
    copy_rows(z, x);
    for (int m = 0; m <= (int)chain.layers; m++) denoise_layer(at, chain, l, m, x, slope);
    denoise_outer(at, chain, l, s, live, x, z);
}

/* ---- one tangent ------------------------------------------------------------------------------- */

/* z -> f(z), q -> f'(z) q */
template <class TEAM>
__device__ void denoise_tangent(const TEAM &at, const dpcr_chain &chain, int64_t l, int64_t s, bool live,
                                typename TEAM::T (&z)[TEAM::ROWS], typename TEAM::T (&q)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const denoise_factors<T> by = denoise_factors_of<T>(chain, l);
    const int w = (int)chain.w, h = (int)chain.h;
    T x[TEAM::ROWS], slope[TEAM::ROWS], v[TEAM::ROWS], u[TEAM::ROWS], zero[TEAM::ROWS] = {};
    copy_rows(z, x);
    copy_rows(q, v);
    for (int m = 0; m <= (int)chain.layers; m++) {
        denoise_layer(at, chain, l, m, x, slope);
        times(at, denoise_matrix<TEAM>(chain, m), h, m == 0 ? w : h, v, zero, u);
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) v[r] =
            m == 0 ? slope[r] * u[r] : v[r] + slope[r] * u[r];
    }
    times(at, denoise_last<TEAM>(chain), w, h, v, zero, u);
    denoise_outer(at, chain, l, s, live, x, z);
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
        const T next = fused(by.a, q[r], by.c * u[r]);
        q[r] = live ? next : q[r];
    }
}

/* ---- backward ---------------------------------------------------------------------------------- */

/* live: g -> f'(z)^T g, and saved (step.cuh says what; NULL: nothing is, a live step with M > 0 needs it) */
template <class TEAM>
__device__ void denoise_back(const TEAM &at, const dpcr_chain &chain, int64_t l, bool live,
                             const typename TEAM::T (&z)[TEAM::ROWS], typename TEAM::T *saved,
                             typename TEAM::T (&g)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const denoise_factors<T> by = denoise_factors_of<T>(chain, l);
    const int w = (int)chain.w, h = (int)chain.h, M = (int)chain.layers;
    T *gu = saved + w + 2, *xs = gu + (M + 1) * h; /* the rows of gu hold act'(u) first */
    T x[TEAM::ROWS], slope[TEAM::ROWS], gx[TEAM::ROWS], v[TEAM::ROWS];
    copy_rows(z, x);
    for (int m = 0; m <= M; m++) {
        denoise_layer(at, chain, l, m, x, slope);
        if (saved && m < M) store_rows(at, h, slope, gu + m * h);
        if (saved && m < M) store_rows(at, h, x, xs + m * h);
    }
    times_transposed(at, denoise_last<TEAM>(chain), w, h, g, gx);
    if (any_team<TEAM>(saved != NULL)) {
        load_rows(at, w, (const T *)chain.parameter[DPCR_B2], v);
        const T along_z = sum_rows(at, w, g, z), along_v = sum_rows(at, h, gx, x) + sum_rows(at, w, g, v);
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) x[r] *= by.c;
        if (saved) store_rows(at, w, g, saved);
        if (saved) store_rows(at, h, x, xs + M * h);
        if (saved && at.lane == 0) saved[w] = along_z, saved[w + 1] = along_v;
    }
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) gx[r] *= by.c;
    for (int m = M; m >= 0; m--) {
        if (m < M) load_rows(at, h, saved ? gu + m * h : NULL, slope);
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) slope[r] *= gx[r];
        if (saved) store_rows(at, h, slope, gu + m * h);
        times_transposed(at, denoise_matrix<TEAM>(chain, m), h, m == 0 ? w : h, slope, v);
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) gx[r] += m == 0 ? T(0) : v[r];
    }
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
        const T next = fused(by.a, g[r], v[r]);
        g[r] = live ? next : g[r];
    }
}

#endif
