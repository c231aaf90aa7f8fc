/* SPDX-License-Identifier: Apache-2.0
 *
 * Activations and their exact derivatives, elementwise, with PyTorch's formulas and conventions at the
 * kinks (relu'(0) = 0, leaky_relu'(0) = p, elu'(0) = p).  NaN in, NaN out; a derivative at NaN is not
 * 0, so that a NaN gradient is not lost.
 *
 * Error bounds against exact arithmetic, float / double where they differ; tests/c/test_activation.c
 * measures and asserts them.  In units in the last place of the result; "r": in roundings eps max(1, |u|),
 * where the result is a small difference of large terms, in PyTorch too.
 *
 *              value      derivative                   value     derivative
 *   identity   0          0              sigmoid       3         0.5 r
 *   relu       0          0              silu          4         1.5 r
 *   leaky_relu 0.6        0.6            gelu          1.5 r     1.5 r
 *   elu        2 / 1.5    1.5            gelu_tanh     1.5 r     1.5 r / 2 r
 *   tanh       1.5 / 2.5  1.5 r          softplus      3 / 2     3      (p u is rounded first: |p u| more,
 *                                                                         unless p is a power of two)
 */

struct FN(act) {
    REAL p, q;
};

INLINE struct FN(act) FN(act_of)(const double parameter[2]) {
    return (struct FN(act)){(REAL)parameter[0], (REAL)parameter[1]};
}

/* kind is a constant at every call: one branch survives, and what is not asked for is never computed. */
INLINE void FN(act_value)(const dpcr_activation kind, struct FN(act) act, VEC u, VEC *y, VEC *d) {
    const VEC zero = {0}, one = FN(splat)(1);
    switch (kind) {
    case DPCR_LINEAR: *y = u, *d = one; break;
    case DPCR_RELU:
        *y = (VEC)FN(POSITIVE)(u);
        *d = FN(select)(u <= 0, zero, one);
        break;
    case DPCR_LEAKY_RELU:
        *y = FN(select)(u > 0, u, act.p * u);
        *d = FN(select)(u > 0, one, FN(splat)(act.p));
        break;
    case DPCR_ELU: {
        const VEC negative = FN(select)(u > 0, zero, u);
        *y = FN(select)(u > 0, u, act.p * FN(vexpm1)(negative));
        *d = FN(select)(u > 0, one, act.p * FN(vexp)(negative));
        break;
    }
    case DPCR_TANH: *y = FN(vtanh)(u), *d = 1 - *y * *y; break;
    case DPCR_SIGMOID: *y = FN(vsigmoid)(u), *d = *y * (1 - *y); break;
    case DPCR_SILU: {
        const VEC s = FN(vsigmoid)(u);
        *y = u * s, *d = s * (1 + u * (1 - s));
        break;
    }
    case DPCR_GELU: {
        const VEC cdf = (REAL)0.5 * (1 + FN(verf)(u * (REAL)0.70710678118654752440));
        *y = u * cdf, *d = cdf + u * (FN(vexp)((REAL)-0.5 * u * u) * (REAL)0.39894228040143267794);
        break;
    }
    case DPCR_GELU_TANH: {
        const REAL k = (REAL)0.79788456080286535588, c = (REAL)0.044715;
        const VEC t = FN(vtanh)(k * (u + c * u * u * u)), slope = 1 - t * t;
        const VEC inner = (REAL)0.5 * u * slope * k * (1 + 3 * c * u * u);
        *y = (REAL)0.5 * u * (1 + t);
        *d = (REAL)0.5 * (1 + t) + FN(select)(slope == 0, zero, inner); /* slope 0 times inf from u^2 */
        break;
    }
    case DPCR_SOFTPLUS: {
        const VEC v = act.p * u;
        *y = FN(select)(v > act.q, u, FN(vsoftplus)(v) / act.p);
        *d = FN(select)(v > act.q, one, FN(vsigmoid)(v));
        break;
    }
    case DPCR_ACTIVATIONS: break;
    }
}

/* count < LANES elements; 4 and 8, the narrow states, in one move each */
INLINE void FN(move_part)(int64_t count, const REAL *from, REAL *to) {
    if (count == 4 && LANES > 4)
        memcpy(to, from, 4 * sizeof(REAL));
    else if (count == 8 && LANES > 8)
        memcpy(to, from, 8 * sizeof(REAL));
    else
        memcpy(to, from, (size_t)count * sizeof(REAL));
}

/* Whole vectors, then the rest through a padded one: an element's bits do not depend on its place. */
INLINE void FN(map)(const dpcr_activation kind, struct FN(act) act, int64_t count, const REAL *u, REAL *y,
                    REAL *d) {
    VEC value = {0}, slope = {0};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        FN(act_value)(kind, act, FN(load)(u + i), &value, &slope);
        if (y) FN(store)(y + i, value);
        if (d) FN(store)(d + i, slope);
    }
    if (i == count) return;
    VEC rest = {0};
    FN(move_part)(count - i, u + i, (REAL *)&rest);
    FN(act_value)(kind, act, rest, &value, &slope);
    if (y) FN(move_part)(count - i, (const REAL *)&value, y + i);
    if (d) FN(move_part)(count - i, (const REAL *)&slope, d + i);
}

INLINE void FN(map_wanted)(const dpcr_activation kind, struct FN(act) act, int64_t count, const REAL *u,
                           REAL *y, REAL *d) {
    if (y && d)
        FN(map)(kind, act, count, u, y, d);
    else if (y)
        FN(map)(kind, act, count, u, y, NULL);
    else
        FN(map)(kind, act, count, u, NULL, d);
}

/* u (count) -> y = act(u), d = act'(u); one of them may be NULL, either may be u itself */
static void FN(activation)(dpcr_activation kind, const double parameter[2], int64_t count, const REAL *u,
                           REAL *y, REAL *d) {
    const struct FN(act) act = FN(act_of)(parameter);
    switch (kind) {
    case DPCR_LINEAR: FN(map_wanted)(DPCR_LINEAR, act, count, u, y, d); break;
    case DPCR_RELU: FN(map_wanted)(DPCR_RELU, act, count, u, y, d); break;
    case DPCR_LEAKY_RELU: FN(map_wanted)(DPCR_LEAKY_RELU, act, count, u, y, d); break;
    case DPCR_ELU: FN(map_wanted)(DPCR_ELU, act, count, u, y, d); break;
    case DPCR_TANH: FN(map_wanted)(DPCR_TANH, act, count, u, y, d); break;
    case DPCR_SIGMOID: FN(map_wanted)(DPCR_SIGMOID, act, count, u, y, d); break;
    case DPCR_SILU: FN(map_wanted)(DPCR_SILU, act, count, u, y, d); break;
    case DPCR_GELU: FN(map_wanted)(DPCR_GELU, act, count, u, y, d); break;
    case DPCR_GELU_TANH: FN(map_wanted)(DPCR_GELU_TANH, act, count, u, y, d); break;
    case DPCR_SOFTPLUS: FN(map_wanted)(DPCR_SOFTPLUS, act, count, u, y, d); break;
    case DPCR_ACTIVATIONS: break;
    }
}

static void FN(activate)(dpcr_activation kind, const double parameter[2], int64_t count, const void *u,
                         void *y, void *d) {
    FN(activation)(kind, parameter, count, u, y, d);
}

/* Kinds whose derivative follows from y as exactly as from u: backward then needs no pre-activation. */
static bool FN(slope_from_value)(dpcr_activation kind) {
    return kind == DPCR_LINEAR || kind == DPCR_RELU || kind == DPCR_TANH || kind == DPCR_SIGMOID;
}

/* y = act(u) (count) -> d = act'(u), for those kinds; d may be y */
static void FN(slope_of_value)(dpcr_activation kind, int64_t count, const REAL *y, REAL *d) {
    for (int64_t i = 0; i < count; i++)
        d[i] = kind == DPCR_TANH      ? 1 - y[i] * y[i]
               : kind == DPCR_SIGMOID ? y[i] * (1 - y[i])
               : kind == DPCR_RELU    ? (y[i] <= 0 ? (REAL)0 : (REAL)1)
                                      : (REAL)1;
}
