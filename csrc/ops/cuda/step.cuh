/* SPDX-License-Identifier: Apache-2.0
 *
 * The steps of chain.h by a team: forward, Jacobian times vectors, and vector times Jacobian.
 *
 * Two families serve all kinds but one: residual blocks, and steps of M layers, of which an MLP layer and an Euler step
 * are the case M = 1 without a norm (canonical() turns a chain into one of the two).  The formulas are in
 * ops/cpu/layers.inl and ops/cpu/residual.inl.  Steps of denoising are in denoise.cuh.
 */
#ifndef DEEPPCR_OPS_CUDA_STEP_H
#define DEEPPCR_OPS_CUDA_STEP_H

#include "ops/cuda/activation.cuh"
#include "ops/cuda/team.cuh"
#include "ops/kernels.h"

/* The parameters of one step, wherever they lie.  Vectors that are absent are NULL. */
template <class T> struct step_parameters {
    weights<T> W1, W2; /* of layers: W1 holds M matrices, one below the other */
    const T *b1, *b2, *gamma, *beta;
};

static inline dpcr_chain canonical(const dpcr_chain *chain) {
    dpcr_chain c = *chain;
    if (c.step == DPCR_RESIDUAL || c.step == DPCR_LAYERS) return c;
    c.norm = DPCR_NO_NORM;
    if (c.step == DPCR_DENOISE) return c;
    c.skip = c.step == DPCR_EULER;
    c.scale = c.skip ? c.scale : 1;
    c.step = DPCR_LAYERS;
    c.layers = 1;
    return c;
}

/* Whether all rows of a matrix can be read 16 bytes at a time. */
template <class TEAM> __device__ bool is_packed(const void *data, int columns) {
    return columns == TEAM::N && (uintptr_t)data % 16 == 0;
}

template <class TEAM>
__device__ step_parameters<typename TEAM::T> parameters_of(const dpcr_chain &chain, int64_t l) {
    typedef typename TEAM::T T;
    const bool residual = chain.step == DPCR_RESIDUAL;
    const int w = (int)chain.w, h = (int)chain.h, M = residual ? 1 : (int)chain.layers;
    const T *const *p = (const T *const *)chain.parameter;
    step_parameters<T> at;
    at.W1 = {p[DPCR_W1] + l * M * h * w, w, is_packed<TEAM>(p[DPCR_W1], w)};
    at.W2 = {residual ? p[DPCR_W2] + l * w * h : NULL, h, residual && is_packed<TEAM>(p[DPCR_W2], h)};
    at.b1 = p[DPCR_B1] ? p[DPCR_B1] + l * M * h : NULL;
    at.b2 = p[DPCR_B2] ? p[DPCR_B2] + l * w : NULL;
    at.gamma = p[DPCR_GAMMA] ? p[DPCR_GAMMA] + l * M * w : NULL;
    at.beta = p[DPCR_BETA] ? p[DPCR_BETA] + l * M * w : NULL;
    return at;
}

template <class T> __device__ weights<T> matrix_of(const weights<T> &W, int m, int rows) {
    return {W.data + (int64_t)m * rows * W.stride, W.stride, W.packed};
}

template <class T> __device__ const T *part_of(const T *vector, int m, int w) {
    return vector ? vector + (int64_t)m * w : NULL;
}

/* ---- norms ------------------------------------------------------------------------------------- */

/* u -> xhat, rstd; xhat may be u */
template <class TEAM>
__device__ typename TEAM::T standardise(const TEAM &at, const dpcr_chain &chain,
                                        const typename TEAM::T (&u)[TEAM::ROWS],
                                        typename TEAM::T (&xhat)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const int w = (int)chain.w;
    const T share = 1 / (T)w;
    T one[TEAM::ROWS];
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) one[r] = 1;
    const T mean = chain.norm == DPCR_LAYER_NORM ? sum_rows(at, w, u, one) * share : T(0);
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) xhat[r] = u[r] - mean;
    const T rstd = 1 / sqrt(sum_rows(at, w, xhat, xhat) * share + (T)chain.norm_eps);
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) xhat[r] *= rstd;
    return rstd;
}

/* y = gamma . xhat + beta */
template <class TEAM>
__device__ void affine_rows(const TEAM &at, int w, const typename TEAM::T *gamma,
                            const typename TEAM::T *beta, const typename TEAM::T (&xhat)[TEAM::ROWS],
                            typename TEAM::T (&y)[TEAM::ROWS]) {
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
        const int row = row_of(at, r);
        y[r] = row < w ? fused(gamma ? gamma[row] : 1, xhat[r], beta ? beta[row] : 0) : 0;
    }
}

/* v <- rstd (v - mean(v) - xhat mean(xhat v)): the norm's Jacobian without gamma, which is symmetric */
template <class TEAM>
__device__ void project(const TEAM &at, const dpcr_chain &chain, const typename TEAM::T (&xhat)[TEAM::ROWS],
                        typename TEAM::T rstd, typename TEAM::T (&v)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const int w = (int)chain.w;
    const T share = 1 / (T)w;
    T one[TEAM::ROWS];
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) one[r] = 1;
    const T mean = chain.norm == DPCR_LAYER_NORM ? sum_rows(at, w, v, one) * share : T(0);
    const T along = sum_rows(at, w, xhat, v) * share;
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) v[r] = rstd * (v[r] - mean - xhat[r] * along);
}

template <class TEAM>
__device__ void scale_rows(const TEAM &at, int w, const typename TEAM::T *gamma,
                           typename TEAM::T (&v)[TEAM::ROWS]) {
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) if (gamma && row_of(at, r) < w) v[r] *=
        gamma[row_of(at, r)];
}

/* ---- one layer, one branch: what forward, tangents and backward have in common ------------------ */

template <class T, int ROWS> struct layer_values {
    T xhat[ROWS], rstd, slope[ROWS], a[ROWS];
};

/* a_m = act(norm(W_m x + b_m)) */
template <class TEAM>
__device__ void
layer_forward(const TEAM &at, const dpcr_chain &chain, const step_parameters<typename TEAM::T> &p, int m,
              const typename TEAM::T (&x)[TEAM::ROWS], layer_values<typename TEAM::T, TEAM::ROWS> *v) {
    typedef typename TEAM::T T;
    const int w = (int)chain.w;
    T bias[TEAM::ROWS], u[TEAM::ROWS];
    load_rows(at, w, part_of(p.b1, m, w), bias);
    times(at, matrix_of(p.W1, m, w), w, w, x, bias, u);
    if (chain.norm != DPCR_NO_NORM) {
        v->rstd = standardise(at, chain, u, v->xhat);
        affine_rows(at, w, part_of(p.gamma, m, w), part_of(p.beta, m, w), v->xhat, u);
    }
    activation(chain, u, v->a, v->slope);
}

template <class T, int ROWS> struct branch_values {
    T xhat[ROWS], rstd, y[ROWS], slope[ROWS], a[ROWS];
};

/* y = norm(z), a = act(W1 y + b1) */
template <class TEAM>
__device__ void
branch_forward(const TEAM &at, const dpcr_chain &chain, const step_parameters<typename TEAM::T> &p,
               const typename TEAM::T (&z)[TEAM::ROWS], branch_values<typename TEAM::T, TEAM::ROWS> *v) {
    typedef typename TEAM::T T;
    const int w = (int)chain.w, h = (int)chain.h;
    T bias[TEAM::ROWS], u[TEAM::ROWS];
    copy_rows(z, v->y);
    if (chain.norm != DPCR_NO_NORM) {
        v->rstd = standardise(at, chain, z, v->xhat);
        affine_rows(at, w, p.gamma, p.beta, v->xhat, v->y);
    }
    load_rows(at, h, p.b1, bias);
    times(at, p.W1, h, w, v->y, bias, u);
    activation(chain, u, v->a, v->slope);
}

/* ---- forward ----------------------------------------------------------------------------------- */

/* live: z -> f(z) */
template <class TEAM>
__device__ void step_forward(const TEAM &at, const dpcr_chain &chain,
                             const step_parameters<typename TEAM::T> &p, bool live,
                             typename TEAM::T (&z)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const T scale = (T)chain.scale;
    T out[TEAM::ROWS];
    if (chain.step == DPCR_RESIDUAL) {
        branch_values<T, TEAM::ROWS> v;
        T bias[TEAM::ROWS];
        branch_forward(at, chain, p, z, &v);
        load_rows(at, (int)chain.w, p.b2, bias);
        times(at, p.W2, (int)chain.w, (int)chain.h, v.a, bias, out);
    } else {
        layer_values<T, TEAM::ROWS> v;
        layer_forward(at, chain, p, 0, z, &v);
        for (int m = 1; m < (int)chain.layers; m++) {
            copy_rows(v.a, out);
            layer_forward(at, chain, p, m, out, &v);
        }
        copy_rows(v.a, out);
    }
    const bool skip = chain.step == DPCR_RESIDUAL || chain.skip;
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
        const T next = skip ? fused(scale, out[r], z[r]) : scale * out[r];
        z[r] = live ? next : z[r];
    }
}

/* ---- tangents: a thread holds whole columns of a product of Jacobians ---------------------------- */

/* Columns lane ROWS + q, all N rows of each. */
template <class TEAM> struct columns {
    typename TEAM::T v[TEAM::ROWS][TEAM::N];
};

template <class TEAM>
__device__ void columns_times(const weights<typename TEAM::T> &W, int n_out, int n_in, columns<TEAM> &V) {
    typedef typename TEAM::T T;
    columns<TEAM> out;
    UNROLL for (int i = 0; i < TEAM::N; i++) {
        T row[TEAM::N];
        UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) out.v[q][i] = 0;
        if (i >= n_out) continue;
        load_matrix_row<TEAM>(W, i, n_in, row);
        UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) out.v[q][i] = dot<T, TEAM::N>(row, V.v[q], 0);
    }
    V = out;
}

/* V <- diag(d) V */
template <class TEAM>
__device__ void columns_scale(int n, const typename TEAM::T (&d)[TEAM::ROWS], columns<TEAM> &V) {
    typename TEAM::T all[TEAM::N];
    gather<TEAM>(n, d, all);
    UNROLL for (int i = 0; i < TEAM::N; i++) UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) V.v[q][i] *=
        all[i];
}

/* project() and gamma; gamma first: of the input's norm it comes after */
template <class TEAM>
__device__ void columns_project(const dpcr_chain &chain, const typename TEAM::T (&xhat)[TEAM::ROWS],
                                typename TEAM::T rstd, columns<TEAM> &V) {
    typedef typename TEAM::T T;
    const int w = (int)chain.w;
    const T share = 1 / (T)w;
    T all[TEAM::N];
    gather<TEAM>(w, xhat, all);
    UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) {
        T mean = 0, along = 0;
        UNROLL for (int i = 0; i < TEAM::N; i++) {
            mean += chain.norm == DPCR_LAYER_NORM && i < w ? V.v[q][i] : T(0);
            along = i < w ? fused(all[i], V.v[q][i], along) : along;
        }
        mean *= share, along *= share;
        UNROLL for (int i = 0; i < TEAM::N; i++) V.v[q][i] = rstd * (V.v[q][i] - mean - all[i] * along);
    }
}

/* live: z -> f(z), V -> f'(z) V */
template <class TEAM>
__device__ void step_columns(const TEAM &at, const dpcr_chain &chain,
                             const step_parameters<typename TEAM::T> &p, bool live,
                             typename TEAM::T (&z)[TEAM::ROWS], columns<TEAM> &Q) {
    typedef typename TEAM::T T;
    const T scale = (T)chain.scale;
    const int w = (int)chain.w, h = (int)chain.h;
    T out[TEAM::ROWS], gamma[TEAM::ROWS];
    columns<TEAM> V = Q;
    if (chain.step == DPCR_RESIDUAL) {
        branch_values<T, TEAM::ROWS> v;
        T bias[TEAM::ROWS];
        branch_forward(at, chain, p, z, &v);
        load_rows(at, w, p.b2, bias);
        times(at, p.W2, w, h, v.a, bias, out);
        if (chain.norm != DPCR_NO_NORM) {
            columns_project<TEAM>(chain, v.xhat, v.rstd, V);
            load_rows(at, w, p.gamma, gamma);
            if (p.gamma) columns_scale<TEAM>(w, gamma, V);
        }
        columns_times<TEAM>(p.W1, h, w, V);
        columns_scale<TEAM>(h, v.slope, V);
        columns_times<TEAM>(p.W2, w, h, V);
    } else {
        layer_values<T, TEAM::ROWS> v;
        T x[TEAM::ROWS];
        copy_rows(z, x);
        for (int m = 0; m < (int)chain.layers; m++) {
            layer_forward(at, chain, p, m, x, &v);
            columns_times<TEAM>(matrix_of(p.W1, m, w), w, w, V);
            if (chain.norm != DPCR_NO_NORM) {
                columns_project<TEAM>(chain, v.xhat, v.rstd, V);
                load_rows(at, w, part_of(p.gamma, m, w), gamma);
                if (p.gamma) columns_scale<TEAM>(w, gamma, V);
            }
            columns_scale<TEAM>(w, v.slope, V);
            copy_rows(v.a, x);
        }
        copy_rows(x, out);
    }
    const bool skip = chain.step == DPCR_RESIDUAL || chain.skip;
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
        const T next = skip ? fused(scale, out[r], z[r]) : scale * out[r];
        z[r] = live ? next : z[r];
    }
    UNROLL_ROWS for (int q = 0; q < TEAM::ROWS; q++) UNROLL for (int i = 0; i < TEAM::N; i++) {
        const T next = skip ? fused(scale, V.v[q][i], Q.v[q][i]) : scale * V.v[q][i];
        Q.v[q][i] = live ? next : Q.v[q][i];
    }
}

/* live: z -> f(z), q -> f'(z) q: one tangent, in the rows of the team */
template <class TEAM>
__device__ void step_tangent(const TEAM &at, const dpcr_chain &chain,
                             const step_parameters<typename TEAM::T> &p, bool live,
                             typename TEAM::T (&z)[TEAM::ROWS], typename TEAM::T (&q)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const T scale = (T)chain.scale;
    const int w = (int)chain.w, h = (int)chain.h;
    T out[TEAM::ROWS], zero[TEAM::ROWS] = {}, v[TEAM::ROWS];
    copy_rows(q, v);
    if (chain.step == DPCR_RESIDUAL) {
        branch_values<T, TEAM::ROWS> at_z;
        T bias[TEAM::ROWS], inner[TEAM::ROWS];
        branch_forward(at, chain, p, z, &at_z);
        load_rows(at, w, p.b2, bias);
        times(at, p.W2, w, h, at_z.a, bias, out);
        if (chain.norm != DPCR_NO_NORM) {
            project(at, chain, at_z.xhat, at_z.rstd, v);
            scale_rows(at, w, p.gamma, v);
        }
        times(at, p.W1, h, w, v, zero, inner);
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) inner[r] *= at_z.slope[r];
        times(at, p.W2, w, h, inner, zero, v);
    } else {
        layer_values<T, TEAM::ROWS> at_x;
        copy_rows(z, out);
        for (int m = 0; m < (int)chain.layers; m++) {
            layer_forward(at, chain, p, m, out, &at_x);
            times(at, matrix_of(p.W1, m, w), w, w, v, zero, v);
            if (chain.norm != DPCR_NO_NORM) {
                project(at, chain, at_x.xhat, at_x.rstd, v);
                scale_rows(at, w, part_of(p.gamma, m, w), v);
            }
            UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) v[r] *= at_x.slope[r];
            copy_rows(at_x.a, out);
        }
    }
    const bool skip = chain.step == DPCR_RESIDUAL || chain.skip;
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
        const T next = skip ? fused(scale, out[r], z[r]) : scale * out[r];
        const T moved = skip ? fused(scale, v[r], q[r]) : scale * v[r];
        z[r] = live ? next : z[r];
        q[r] = live ? moved : q[r];
    }
}

/* ---- backward ---------------------------------------------------------------------------------- */

/* One sample's row of what a step keeps for the parameter gradients, in pieces of w (h for gu and a of a block):
 *
 *   residual   gv, gu, a;  with a norm also gy, xhat, y
 *   layers     of each of the M: gu, a, slope;  with a norm also gy, xhat, rstd (w times)
 *   denoising  g, <g, z>, <g, v>;  in pieces of h: gu_0..gu_M, x_0..x_{M-1}, c x_M
 *
 * A step of several layers needs its row for itself, too: threads read back what they have put there. */
static inline DPCR_EVERYWHERE int64_t saved_pieces(const dpcr_chain &chain) {
    return chain.norm == DPCR_NO_NORM ? 3 : 6;
}

static inline DPCR_EVERYWHERE int64_t saved_size(const dpcr_chain &chain) {
    if (chain.step == DPCR_DENOISE) return chain.w + 2 + 2 * (chain.layers + 1) * chain.h;
    if (chain.step != DPCR_RESIDUAL) return chain.layers * saved_pieces(chain) * chain.w;
    return (chain.norm == DPCR_NO_NORM ? 1 : 4) * chain.w + 2 * chain.h;
}

/* The derivative at z of an MLP layer follows from f(z): no product is needed for it. */
static inline DPCR_EVERYWHERE bool is_plain(const dpcr_chain &chain) {
    return chain.step == DPCR_LAYERS && chain.layers == 1 && chain.norm == DPCR_NO_NORM && !chain.skip
           && chain.scale == 1 && slope_follows(chain.activation);
}

/* live: g -> f'(z)^T g, and saved (NULL: nothing is; a live step of several layers needs it)
 * after: f(z), read if is_plain alone */
template <class TEAM>
__device__ void step_back(const TEAM &at, const dpcr_chain &chain, const step_parameters<typename TEAM::T> &p,
                          bool live, const typename TEAM::T (&z)[TEAM::ROWS],
                          const typename TEAM::T (&after)[TEAM::ROWS], typename TEAM::T *saved,
                          typename TEAM::T (&g)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const T scale = (T)chain.scale;
    const int w = (int)chain.w, h = (int)chain.h;
    const bool norm = chain.norm != DPCR_NO_NORM;
    T gy[TEAM::ROWS];
    if (chain.step == DPCR_RESIDUAL) {
        branch_values<T, TEAM::ROWS> v;
        T gu[TEAM::ROWS], gv[TEAM::ROWS];
        branch_forward(at, chain, p, z, &v);
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) gv[r] = scale * g[r];
        times_transposed(at, p.W2, w, h, gv, gu);
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) gu[r] *= v.slope[r];
        times_transposed(at, p.W1, h, w, gu, gy);
        if (saved) {
            store_rows(at, w, gv, saved);
            store_rows(at, h, gu, saved + w);
            store_rows(at, h, v.a, saved + w + h);
        }
        if (saved && norm) {
            store_rows(at, w, gy, saved + w + 2 * h);
            store_rows(at, w, v.xhat, saved + 2 * w + 2 * h);
            store_rows(at, w, v.y, saved + 3 * w + 2 * h);
        }
        if (norm) {
            scale_rows(at, w, p.gamma, gy);
            project(at, chain, v.xhat, v.rstd, gy);
        }
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) g[r] = live ? g[r] + gy[r] : g[r];
        return;
    }
    if (is_plain(chain)) {
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) gy[r] =
            g[r] * slope_of_value(chain.activation, after[r]);
        if (saved) store_rows(at, w, gy, saved);
        times_transposed(at, p.W1, w, w, gy, gy);
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) g[r] = live ? gy[r] : g[r];
        return;
    }
    const int M = (int)chain.layers, piece = (int)saved_pieces(chain) * w;
    layer_values<T, TEAM::ROWS> v;
    T ga[TEAM::ROWS];
    copy_rows(z, ga);
    for (int m = 0; m < M; m++) {
        layer_forward(at, chain, p, m, ga, &v);
        copy_rows(v.a, ga);
        if (!saved) continue;
        T *row = saved + m * piece;
        store_rows(at, w, v.a, row + w);
        store_rows(at, w, v.slope, row + 2 * w);
        T rstd[TEAM::ROWS];
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) rstd[r] = v.rstd;
        if (norm) store_rows(at, w, v.xhat, row + 4 * w);
        if (norm) store_rows(at, w, rstd, row + 5 * w);
    }
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) ga[r] = scale * g[r];
    for (int m = M - 1; m >= 0; m--) {
        T *row = saved + m * piece, rstd[TEAM::ROWS];
        if (m < M - 1) {
            load_rows(at, w, saved ? row + 2 * w : NULL, v.slope);
            if (norm) load_rows(at, w, saved ? row + 4 * w : NULL, v.xhat);
            if (norm) load_rows(at, w, saved ? row + 5 * w : NULL, rstd);
            v.rstd = norm ? rstd[0] : T(0);
        }
        UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) gy[r] = ga[r] * v.slope[r];
        if (saved && norm) store_rows(at, w, gy, row + 3 * w);
        if (norm) {
            scale_rows(at, w, part_of(p.gamma, m, w), gy);
            project(at, chain, v.xhat, v.rstd, gy);
        }
        if (saved) store_rows(at, w, gy, row);
        times_transposed(at, matrix_of(p.W1, m, w), w, w, gy, ga);
    }
    UNROLL_ROWS for (int r = 0; r < TEAM::ROWS; r++) {
        const T next = chain.skip ? g[r] + ga[r] : ga[r];
        g[r] = live ? next : g[r];
    }
}

#endif
