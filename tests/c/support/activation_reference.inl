/* SPDX-License-Identifier: Apache-2.0
 *
 * Definitions of the activations for one precision: REAL, FN(name) and MATH(libm function) are set by
 * the file that includes this.
 */

static REAL FN(sigmoid)(REAL u) {
    return 1 / (1 + MATH(exp)(-u));
}

/* tanh's argument in gelu_tanh and its derivative */
static REAL FN(inner)(REAL u) {
    const REAL c = MATH(sqrt)(2 / MATH(acos)(-1));
    return c * (u + (REAL)0.044715L * u * u * u);
}

static REAL FN(inner_slope)(REAL u) {
    const REAL c = MATH(sqrt)(2 / MATH(acos)(-1));
    return c * (1 + 3 * (REAL)0.044715L * u * u);
}

REAL FN(reference_activation)(dpcr_activation kind, const double p[2], REAL u) {
    switch (kind) {
    case DPCR_LINEAR: return u;
    case DPCR_RELU: return u <= 0 ? 0 : u;
    case DPCR_LEAKY_RELU: return u > 0 ? u : (REAL)p[0] * u;
    case DPCR_ELU: return u > 0 ? u : (REAL)p[0] * MATH(expm1)(u);
    case DPCR_TANH: return MATH(tanh)(u);
    case DPCR_SIGMOID: return FN(sigmoid)(u);
    case DPCR_SILU: return u * FN(sigmoid)(u);
    case DPCR_GELU: return u * MATH(erfc)(-u / MATH(sqrt)(2)) / 2;
    case DPCR_GELU_TANH: return u * FN(sigmoid)(2 * FN(inner)(u)); /* (1 + tanh v) / 2 */
    case DPCR_SOFTPLUS: return p[0] * u > p[1] ? u : MATH(log1p)(MATH(exp)((REAL)p[0] * u)) / (REAL)p[0];
    case DPCR_ACTIVATIONS: break;
    }
    return MATH(nan)("");
}

REAL FN(reference_slope)(dpcr_activation kind, const double p[2], REAL u) {
    const REAL s = FN(sigmoid)(u), rest = FN(sigmoid)(-u), pi = MATH(acos)(-1);
    switch (kind) {
    case DPCR_LINEAR: return 1;
    case DPCR_RELU: return u <= 0 ? 0 : 1;
    case DPCR_LEAKY_RELU: return u > 0 ? 1 : (REAL)p[0];
    case DPCR_ELU: return u > 0 ? 1 : (REAL)p[0] * MATH(exp)(u);
    case DPCR_TANH: return 4 * FN(sigmoid)(2 * u) * FN(sigmoid)(-2 * u);
    case DPCR_SIGMOID: return s * rest;
    case DPCR_SILU: return s + u * s * rest;
    case DPCR_GELU:
        return MATH(erfc)(-u / MATH(sqrt)(2)) / 2 + u * MATH(exp)(-u * u / 2) / MATH(sqrt)(2 * pi);
    case DPCR_GELU_TANH: {
        const REAL v = 2 * FN(inner)(u), upper = FN(sigmoid)(v), lower = FN(sigmoid)(-v);
        return upper + (upper * lower == 0 ? 0 : 2 * u * upper * lower * FN(inner_slope)(u));
    }
    case DPCR_SOFTPLUS: return (REAL)p[0] * u > (REAL)p[1] ? 1 : FN(sigmoid)((REAL)p[0] * u);
    case DPCR_ACTIVATIONS: break;
    }
    return MATH(nan)("");
}
