/* SPDX-License-Identifier: Apache-2.0
 *
 * Chains of one layer a step, without a norm, as most are.  Their walk has a loop of its own: what a step needs has
 * been loaded during the one before, and nothing is decided in it.  Its bits are those of step_forward() and
 * step_back().
 */
#ifndef DEEPPCR_OPS_CUDA_SIMPLE_H
#define DEEPPCR_OPS_CUDA_SIMPLE_H

#include "ops/cuda/step.cuh"

static inline DPCR_EVERYWHERE bool is_simple(const dpcr_chain &chain) {
    return chain.step == DPCR_LAYERS && chain.layers == 1 && chain.norm == DPCR_NO_NORM;
}

/* Where the parameters of consecutive steps lie, and how far from one another. */
template <class T> struct simple_steps {
    weights<T> W;
    const T *b; /* or NULL */
    int64_t W_step, b_step;
};

/* Steps of the walk: first those of `count` that this team lives through, of `longest`; a state after each at
 * `states`, if not NULL. */
template <class T> struct simple_walk {
    int64_t count, longest;
    T *states;
    int64_t state_step;
};

template <int KIND, class TEAM>
__device__ void walk_simple_as(const TEAM &at, const dpcr_chain &chain,
                               const simple_steps<typename TEAM::T> &steps,
                               const simple_walk<typename TEAM::T> &on, typename TEAM::T (&z)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const act_parameters<T> act = {(T)chain.activation_parameter[0], (T)chain.activation_parameter[1]};
    const T scale = (T)chain.scale;
    const bool skip = chain.skip;
    const int w = (int)chain.w;
    const dpcr_activation kind = chain.activation;
    T row[TEAM::ROWS][TEAM::N], b[TEAM::ROWS], all[TEAM::N];
    weights<T> W = steps.W;
    const T *bias = steps.b;
    T *states = on.states;
    load_rows(at, w, bias, b);
    UNROLL for (int r = 0; r < TEAM::ROWS; r++) if (row_of(at, r) < w)
        load_matrix_row<TEAM>(W, row_of(at, r), w, row[r]);
    for (int64_t i = 0; i < on.longest; i++) {
        const bool live = i < on.count, more = i + 1 < on.count;
        T out[TEAM::ROWS];
        gather<TEAM>(w, z, all);
        UNROLL for (int r = 0; r < TEAM::ROWS; r++) out[r] = dot<T, TEAM::N>(row[r], all, b[r]);
        if (more) { /* on its way while the activation is computed */
            W.data += steps.W_step;
            bias += bias ? steps.b_step : 0;
            load_rows(at, w, bias, b);
            UNROLL for (int r = 0; r < TEAM::ROWS; r++) if (row_of(at, r) < w)
                load_matrix_row<TEAM>(W, row_of(at, r), w, row[r]);
        }
        UNROLL for (int r = 0; r < TEAM::ROWS; r++) {
            const T a =
                KIND < DPCR_ACTIVATIONS ? act_of<KIND, T>(act, out[r]).y : act_any<T>(kind, act, out[r]).y;
            const T next = skip ? fused(scale, a, z[r]) : scale * a;
            z[r] = live ? next : z[r];
        }
        if (live && states) store_rows(at, w, z, states);
        states += states ? on.state_step : 0;
    }
}

template <class TEAM>
__device__ void walk_simple(const TEAM &at, const dpcr_chain &chain,
                            const simple_steps<typename TEAM::T> &steps,
                            const simple_walk<typename TEAM::T> &on, typename TEAM::T (&z)[TEAM::ROWS]) {
    const bool often = sizeof(typename TEAM::T) == sizeof(float);
    if (on.longest == 0) return; /* an empty chain has no parameters */
    if (often && chain.activation == DPCR_TANH)
        walk_simple_as<DPCR_TANH>(at, chain, steps, on, z);
    else if (often && chain.activation == DPCR_RELU)
        walk_simple_as<DPCR_RELU>(at, chain, steps, on, z);
    else
        walk_simple_as<DPCR_ACTIVATIONS>(at, chain, steps, on, z);
}

/* The walk back through plain steps (is_plain), the last one first. */
template <class T> struct simple_back {
    int64_t count, longest;
    const T *after;   /* the state after the last step; earlier ones after_step before it */
    const T *gstates; /* as after, or NULL */
    T *saved;         /* the last step's row, or NULL */
    int64_t after_step, gstates_step, saved_step;
};

/* steps: of the last one */
template <class TEAM>
__device__ void walk_back_simple(const TEAM &at, const dpcr_chain &chain,
                                 const simple_steps<typename TEAM::T> &steps,
                                 const simple_back<typename TEAM::T> &on, typename TEAM::T (&g)[TEAM::ROWS]) {
    typedef typename TEAM::T T;
    const int w = (int)chain.w;
    const dpcr_activation kind = chain.activation;
    T column[TEAM::ROWS][TEAM::N], all[TEAM::N], after[TEAM::ROWS];
    if (on.longest == 0) return;
    const T *W = steps.W.data, *z = on.after, *extra = on.gstates;
    T *saved = on.saved;
    const auto load = [&]() {
        load_rows(at, w, on.count > 0 ? z : NULL, after);
        UNROLL for (int r = 0; r < TEAM::ROWS; r++) UNROLL for (int i = 0; i < TEAM::N; i++) column[r][i] =
            i < w && row_of(at, r) < w ? W[(int64_t)i * steps.W.stride + row_of(at, r)] : T(0);
    };
    load();
    for (int64_t i = 0; i < on.longest; i++) {
        const bool live = i < on.count, more = i + 1 < on.count;
        T gy[TEAM::ROWS], now[TEAM::ROWS];
        if (live && extra) {
            load_rows(at, w, extra, now);
            UNROLL for (int r = 0; r < TEAM::ROWS; r++) g[r] += now[r];
        }
        UNROLL for (int r = 0; r < TEAM::ROWS; r++) gy[r] = g[r] * slope_of_value(kind, after[r]);
        if (live && saved) store_rows(at, w, gy, saved);
        gather<TEAM>(w, gy, all);
        UNROLL for (int r = 0; r < TEAM::ROWS; r++) {
            const T next = row_of(at, r) < w ? dot<T, TEAM::N>(column[r], all, 0) : T(0);
            g[r] = live ? next : g[r];
        }
        if (!more) continue;
        W -= steps.W_step;
        z -= on.after_step;
        extra -= extra ? on.gstates_step : 0;
        saved -= saved ? on.saved_step : 0;
        load();
    }
}

#endif
