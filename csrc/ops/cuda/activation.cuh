/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations and their exact derivatives in one thread: the formulas and conventions at the kinks are those of
 * ops/cpu/activation.inl, the functions those of CUDA's mathematical library (each within 2 ulp).
 */
#ifndef DEEPPCR_OPS_CUDA_ACTIVATION_H
#define DEEPPCR_OPS_CUDA_ACTIVATION_H

#include "ops/chain.h"
#include "pcr/cuda/run.cuh"

template <class T> struct act_parameters {
    T p, q;
};

template <class T> __device__ T sigmoid(T u) {
    const T e = exp(u < 0 ? u : -u); /* at most 1 */
    return (u < 0 ? e : 1) / (1 + e);
}

/* kind is a constant at every call: what is not asked for is never computed. */
template <int KIND, class T> __device__ void act_value(act_parameters<T> act, T u, T *y, T *d) {
    *y = u, *d = 1;
    if constexpr (KIND == DPCR_RELU) {
        *y = u <= 0 ? T(0) : u;
        *d = u <= 0 ? T(0) : T(1);
    } else if constexpr (KIND == DPCR_LEAKY_RELU) {
        *y = u > 0 ? u : act.p * u;
        *d = u > 0 ? T(1) : act.p;
    } else if constexpr (KIND == DPCR_ELU) {
        const T negative = u > 0 ? T(0) : u;
        *y = u > 0 ? u : act.p * expm1(negative);
        *d = u > 0 ? T(1) : act.p * exp(negative);
    } else if constexpr (KIND == DPCR_TANH) {
        *y = tanh(u);
        *d = 1 - *y * *y;
    } else if constexpr (KIND == DPCR_SIGMOID) {
        *y = sigmoid(u);
        *d = *y * (1 - *y);
    } else if constexpr (KIND == DPCR_SILU) {
        const T s = sigmoid(u);
        *y = u * s;
        *d = s * (1 + u * (1 - s));
    } else if constexpr (KIND == DPCR_GELU) {
        const T cdf = T(0.5) * (1 + erf(u * T(0.70710678118654752440)));
        *y = u * cdf;
        *d = cdf + u * (exp(T(-0.5) * u * u) * T(0.39894228040143267794));
    } else if constexpr (KIND == DPCR_GELU_TANH) {
        const T k = T(0.79788456080286535588), c = T(0.044715);
        const T t = tanh(k * (u + c * u * u * u)), slope = 1 - t * t;
        const T inner = T(0.5) * u * slope * k * (1 + 3 * c * u * u);
        *y = T(0.5) * u * (1 + t);
        *d = T(0.5) * (1 + t) + (slope == 0 ? T(0) : inner); /* slope 0 times inf from u^2 */
    } else if constexpr (KIND == DPCR_SOFTPLUS) {
        const T v = act.p * u;
        *y = v > act.q ? u : (v > 0 ? v + log1p(exp(-v)) : log1p(exp(v))) / act.p;
        *d = v > act.q ? T(1) : sigmoid(v);
    }
}

template <class T> struct act_result {
    T y, d;
};

template <int KIND, class T> __device__ act_result<T> act_of(act_parameters<T> act, T u) {
    act_result<T> of;
    act_value<KIND, T>(act, u, &of.y, &of.d);
    return of;
}

/* Any kind; called, not copied into every place where a step has an activation. */
template <class T>
__device__ NOT_INLINED act_result<T> act_any(dpcr_activation kind, act_parameters<T> act, T u) {
    switch (kind) {
    case DPCR_RELU: return act_of<DPCR_RELU, T>(act, u);
    case DPCR_LEAKY_RELU: return act_of<DPCR_LEAKY_RELU, T>(act, u);
    case DPCR_ELU: return act_of<DPCR_ELU, T>(act, u);
    case DPCR_TANH: return act_of<DPCR_TANH, T>(act, u);
    case DPCR_SIGMOID: return act_of<DPCR_SIGMOID, T>(act, u);
    case DPCR_SILU: return act_of<DPCR_SILU, T>(act, u);
    case DPCR_GELU: return act_of<DPCR_GELU, T>(act, u);
    case DPCR_GELU_TANH: return act_of<DPCR_GELU_TANH, T>(act, u);
    case DPCR_SOFTPLUS: return act_of<DPCR_SOFTPLUS, T>(act, u);
    default: return act_of<DPCR_LINEAR, T>(act, u);
    }
}

/* u -> y = act(u), d = act'(u); either may be u itself.  In single precision the kinds that most chains have are
 * where they are needed, unless it is for many rows. */
template <class T, int ROWS>
__device__ void activation(const dpcr_chain &chain, const T (&u)[ROWS], T (&y)[ROWS], T (&d)[ROWS]) {
    const act_parameters<T> act = {(T)chain.activation_parameter[0], (T)chain.activation_parameter[1]};
    const bool here = sizeof(T) == sizeof(float) && ROWS <= 4;
    UNROLL_BY(ROWS > 4 ? 1 : ROWS) for (int r = 0; r < ROWS; r++) {
        act_result<T> of;
        if (here && chain.activation == DPCR_TANH)
            of = act_of<DPCR_TANH, T>(act, u[r]);
        else if (here && chain.activation == DPCR_RELU)
            of = act_of<DPCR_RELU, T>(act, u[r]);
        else if (here && chain.activation == DPCR_SILU)
            of = act_of<DPCR_SILU, T>(act, u[r]);
        else
            of = act_any<T>(chain.activation, act, u[r]);
        y[r] = of.y;
        d[r] = of.d;
    }
}

/* Kinds whose derivative follows from y as exactly as from u: backward then needs no pre-activation. */
static inline DPCR_EVERYWHERE bool slope_follows(dpcr_activation kind) {
    return kind == DPCR_LINEAR || kind == DPCR_RELU || kind == DPCR_TANH || kind == DPCR_SIGMOID;
}

/* y = act(u) -> act'(u), for those kinds */
template <class T> __device__ T slope_of_value(dpcr_activation kind, T y) {
    return kind == DPCR_TANH      ? 1 - y * y
           : kind == DPCR_SIGMOID ? y * (1 - y)
           : kind == DPCR_RELU    ? (y <= 0 ? T(0) : T(1))
                                  : T(1);
}

#endif
