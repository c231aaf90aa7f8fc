/* SPDX-License-Identifier: Apache-2.0
 *
 * The definitions, once per precision by inclusion.
 */
#include "activation_reference.h"

#include <math.h>

#define REAL double
#define FN(name) name
#define MATH(name) name
#include "activation_reference.inl"
#undef REAL
#undef FN
#undef MATH

#define REAL long double
#define FN(name) name##_long
#define MATH(name) name##l
#include "activation_reference.inl"

const char *activation_name(dpcr_activation kind) {
    static const char *const names[DPCR_ACTIVATIONS] = {
        "linear", "relu", "leaky_relu", "elu", "tanh", "sigmoid", "silu", "gelu", "gelu_tanh", "softplus"};
    return names[kind];
}

const double *activation_default(dpcr_activation kind) {
    static const double values[DPCR_ACTIVATIONS][2] = {
        [DPCR_LEAKY_RELU] = {0.01, 0}, [DPCR_ELU] = {1, 0}, [DPCR_SOFTPLUS] = {1, 20}};
    return values[kind];
}

const double *activation_other(dpcr_activation kind) {
    static const double values[DPCR_ACTIVATIONS][2] = {
        [DPCR_LEAKY_RELU] = {-0.25, 0}, [DPCR_ELU] = {0.75, 0}, [DPCR_SOFTPLUS] = {2.5, 3}};
    return values[kind];
}

bool activation_bends(dpcr_activation kind, const double p[2]) {
    return kind == DPCR_RELU || kind == DPCR_LEAKY_RELU || (kind == DPCR_ELU && p[0] != 1)
           || activation_jumps(kind, p);
}

/* Softplus steps up by log(1 + e^-q) / p at its threshold; below one rounding of f32 for the default 20. */
bool activation_jumps(dpcr_activation kind, const double p[2]) {
    return kind == DPCR_SOFTPLUS && p[1] < 20;
}

int reference_branch(dpcr_activation kind, const double p[2], double u) {
    if (kind == DPCR_SOFTPLUS) return p[0] * u > p[1];
    return (kind == DPCR_RELU || kind == DPCR_LEAKY_RELU || kind == DPCR_ELU) && u > 0;
}
