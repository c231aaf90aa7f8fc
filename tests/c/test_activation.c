/* SPDX-License-Identifier: Apache-2.0
 *
 * Errors of every activation and derivative, f32 against double and f64 against long double, over all
 * exponents of both signs and densely around 0 and wherever a kernel or a definition changes branch.
 * Prints what it measures; the bounds asserted are those that the head of csrc/ops/cpu/activation.inl
 * states.
 *
 * An error is counted in units in the last place of the exact result.  Where a result is a small
 * difference of large terms (the tails of the derivatives and of the gelus) that unit says little, and
 * the error is counted in roundings of 1 (of u, where that is larger and multiplies the difference).
 * A result is right if either count is within its bound.
 */
#include "ops/chain.h"
#include "support/activation_reference.h"
#include "support/backend.h"
#include "support/check.h"
#include "support/numbers.h"
#include "support/reduced.h"
#include "support/rng.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { CHUNK = 1 << 14, STRIDE = REDUCED ? 997 * 64 : 997, DENSE = REDUCED ? 100 : 4000 };

/* Units in the last place; roundings of max(1, |u|), eps each. */
typedef struct bound {
    double ulp, rounding;
} bound;

/* For kinds that lose no digit but where an intermediate result is denormal. */
#define DENORMALS_F32 1e-30
#define DENORMALS_F64 1e-290

static const struct {
    bound value[2], slope[2]; /* by dtype */
} limits[DPCR_ACTIVATIONS] = {
    [DPCR_LINEAR] = {{{0, 0}, {0, 0}}, {{0, 0}, {0, 0}}},
    [DPCR_RELU] = {{{0, 0}, {0, 0}}, {{0, 0}, {0, 0}}},
    [DPCR_LEAKY_RELU] = {{{0.6, 0}, {0.6, 0}}, {{0, 0}, {0, 0}}},
    [DPCR_ELU] = {{{2, 0}, {1.5, 0}}, {{1.5, 0}, {1.5, 0}}},
    [DPCR_TANH] = {{{1.5, 0}, {2.5, 0}}, {{0, 1.5}, {0, 1.5}}},
    [DPCR_SIGMOID] = {{{3, 0}, {3, 0}}, {{0, 0.5}, {0, 0.5}}},
    [DPCR_SILU] = {{{4, DENORMALS_F32}, {4, DENORMALS_F64}}, {{0, 1.5}, {0, 1.5}}},
    [DPCR_GELU] = {{{0, 1.5}, {0, 1.5}}, {{0, 1.5}, {0, 1.5}}},
    [DPCR_GELU_TANH] = {{{0, 1.5}, {0, 1.5}}, {{0, 1.5}, {0, 2}}},
    [DPCR_SOFTPLUS] = {{{3, 0}, {2, 0}}, {{3, 0}, {3, 0}}},
};

/* ---- arguments ------------------------------------------------------------------------------ */

/* A growing list of finite arguments, as doubles that the dtype holds. */
typedef struct arguments {
    dpcr_dtype dtype;
    double *u;
    int64_t count, room;
} arguments;

static void push(arguments *a, double u) {
    if (!isfinite(number_round(a->dtype, u))) return;
    if (a->count == a->room) {
        a->room = 2 * a->room + 1024;
        a->u = realloc(a->u, (size_t)a->room * sizeof(double));
        if (!a->u) exit(2);
    }
    a->u[a->count++] = number_round(a->dtype, u);
}

/* Every STRIDE-th float, or as many doubles of random exponent and mantissa. */
static void push_patterns(arguments *a) {
    rng random = {3};
    const uint64_t stride = (uint64_t)STRIDE * (a->dtype == DPCR_F32 ? 1 : 16);
    for (uint64_t bits = 0; bits <= UINT32_MAX; bits += stride) {
        const uint32_t narrow = (uint32_t)bits;
        float u;
        memcpy(&u, &narrow, sizeof u);
        const double sign = rng_below(&random, 2) ? -1 : 1;
        const double wide = sign * ldexp(rng_uniform(&random, 1, 2), (int)rng_below(&random, 2098) - 1074);
        push(a, a->dtype == DPCR_F32 ? (double)u : wide);
    }
}

static void push_dense(arguments *a) {
    /* the kernels' own branches (expm1, tanh, erf), the ends of exp's range, the softplus thresholds */
    static const double corners[] = {0,          0.5,    0.625, 1,    1.41421356, 2,     3,     3.919, 4,
                                     5.65685425, 6,      8,     9,    10,         12.5,  16,    17.3,  20,
                                     34.7,       36.74,  37.5,  40,   44.5,       87.3,  88.73, 89,    103.97,
                                     105,        150,    174,   354,  709.78,     745.2, 1e3,   1e4,   1e-3,
                                     0.125,      0.3125, 1.2,   8.66, 26.5,       0.01,  0.25};
    rng random = {4};
    const double step = 2 * unit_roundoff(a->dtype);
    for (size_t k = 0; k < sizeof corners / sizeof corners[0]; k++)
        for (int i = -DENSE / 20; i <= DENSE / 20; i++) {
            const double u = corners[k] == 0 ? i * step : corners[k] * (1 + i * step);
            push(a, u);
            push(a, -u);
        }
    static const double ranges[] = {1e-6, 1e-3, 0.1, 1, 4, 10, 40, 120, 800};
    for (size_t k = 0; k < sizeof ranges / sizeof ranges[0]; k++)
        for (int i = 0; i < 20 * DENSE; i++) push(a, rng_uniform(&random, -ranges[k], ranges[k]));
}

/* ---- errors --------------------------------------------------------------------------------- */

static double ulp(dpcr_dtype dtype, double exact) {
    const int digits = dtype == DPCR_F32 ? 24 : 53, least = dtype == DPCR_F32 ? -149 : -1074;
    int exponent;
    frexp(exact, &exponent);
    return ldexp(1, exponent - digits > least ? exponent - digits : least);
}

/* The worst seen, in either unit; over: the larger of the two where the bound allows either. */
typedef struct errors {
    double ulp, rounding, over;
} errors;

static double larger(double a, double b) {
    return b <= a ? a : b; /* NaN, once there, or coming, stays */
}

/* gap relative to its bound, 0 / 0 being right */
static double relative(double gap, double limit) {
    return gap == 0 ? 0 : gap / limit;
}

static void record(errors *e, dpcr_dtype dtype, double u, long double exact, double got, bound limit) {
    if (isinf((double)exact) && got == (double)exact) return;
    const double gap = (double)fabsl((long double)got - exact);
    const double ulps = gap / ulp(dtype, (double)exact),
                 roundings = gap / (2 * unit_roundoff(dtype) * fmax(1, fabs(u)));
    const double by_ulp = relative(ulps, limit.ulp), by_rounding = relative(roundings, limit.rounding);
    e->ulp = larger(e->ulp, ulps);
    e->rounding = larger(e->rounding, roundings);
    e->over = larger(e->over, by_ulp < by_rounding ? by_ulp : by_rounding);
}

/* ---- one kind, dtype and backend ------------------------------------------------------------ */

typedef struct subject {
    dpcr_activation kind;
    const double *p;
    dpcr_dtype dtype;
    const arguments *a;
    long double *value, *slope; /* exact */
} subject;

static void evaluate(const subject *s, const backend *at, int64_t first, int64_t count, double *y,
                     double *d) {
    const size_t bytes = (size_t)count * number_size(s->dtype);
    unsigned char *image = allocate(bytes);
    for (int64_t i = 0; i < count; i++) number_set(s->dtype, image, i, s->a->u[first + i]);
    buffer u = buffer_create(at, image, bytes, 0),
           value = buffer_create(at, NULL, bytes, number_size(s->dtype)),
           slope = buffer_create(at, NULL, bytes, 0);
    const dpcr_status status = dpcr_activate(backend_exec(at, MODE_ALONE), s->dtype, s->kind, s->p, count,
                                             buffer_data(&u), buffer_data(&value), buffer_data(&slope));
    CHECK(status == DPCR_OK, "%s", dpcr_detail());
    CHECK(buffer_read(&u, NULL) && buffer_read(&value, image), "a guard was written");
    for (int64_t i = 0; i < count; i++) y[i] = number_get(s->dtype, image, i);
    CHECK(buffer_read(&slope, image), "a guard was written");
    for (int64_t i = 0; i < count; i++) d[i] = number_get(s->dtype, image, i);
    buffer_destroy(&u);
    buffer_destroy(&value);
    buffer_destroy(&slope);
    free(image);
}

/* The product p u is rounded before softplus sees it: an exp of it moves by |p u| roundings. */
static bound limit_at(const subject *s, bound limit, double u) {
    int exponent;
    const bool exact = s->kind != DPCR_SOFTPLUS || frexp(s->p[0], &exponent) == 0.5;
    limit.ulp += exact ? 0 : 2 + fabs(s->p[0] * u);
    return limit;
}

/* Where rounding decides on which side of softplus's threshold u is, either branch is right. */
static bool undecided(const subject *s, double u) {
    return s->kind == DPCR_SOFTPLUS
           && fabs(s->p[0] * u - s->p[1]) <= 4 * unit_roundoff(s->dtype) * fabs(s->p[1]);
}

static void measure(const subject *s, const backend *at) {
    const bound value = limits[s->kind].value[s->dtype], slope = limits[s->kind].slope[s->dtype];
    static double y[CHUNK], d[CHUNK];
    errors ey = {0}, ed = {0};
    for (int64_t first = 0; first < s->a->count; first += CHUNK - 3) { /* not a multiple of any vector */
        const int64_t left = s->a->count - first, count = left < CHUNK - 3 ? left : CHUNK - 3;
        evaluate(s, at, first, count, y, d);
        for (int64_t i = 0; i < count; i++) {
            const double u = s->a->u[first + i];
            if (undecided(s, u)) continue;
            record(&ey, s->dtype, u, s->value[first + i], y[i], limit_at(s, value, u));
            record(&ed, s->dtype, u, s->slope[first + i], d[i], limit_at(s, slope, u));
        }
    }
    printf("%-10s %s (%5g,%3g) %-13s  value %9.3g ulp %6.3g eps   slope %9.3g ulp %6.3g eps\n",
           activation_name(s->kind), number_name(s->dtype), s->p[0], s->p[1], at->name, ey.ulp, ey.rounding,
           ed.ulp, ed.rounding);
    check_context("%s(%g,%g), %s, %s", activation_name(s->kind), s->p[0], s->p[1], number_name(s->dtype),
                  at->name);
    /* CUDA's own functions, and the host's in their place, promise 2 ulp where the CPU kernels keep 1.2 to 1.5 */
    const double most = strncmp(at->name, "cuda", 4) == 0 ? 2 : 1;
    CHECK_WITHIN(ey.over, most, "value: %g ulp, %g roundings of max(1, |u|)", ey.ulp, ey.rounding);
    CHECK_WITHIN(ed.over, most, "slope: %g ulp, %g roundings of max(1, |u|)", ed.ulp, ed.rounding);
}

/* Exact results, for the parameters as the kernels have them: rounded to the dtype. */
static void exact_results(subject *s, const double *p) {
    const double rounded[] = {number_round(s->dtype, p[0]), number_round(s->dtype, p[1])};
    for (int64_t i = 0; i < s->a->count; i++) {
        const double u = s->a->u[i];
        const bool wide = s->dtype == DPCR_F64;
        s->value[i] =
            wide ? reference_activation_long(s->kind, rounded, u) : reference_activation(s->kind, rounded, u);
        s->slope[i] = wide ? reference_slope_long(s->kind, rounded, u) : reference_slope(s->kind, rounded, u);
    }
}

static void check_kind(dpcr_activation kind, const double *p, const arguments *a) {
    int devices;
    const backend *list = backends(&devices);
    const size_t bytes = (size_t)a->count * sizeof(long double);
    subject s = {kind, p, a->dtype, a, allocate(bytes), allocate(bytes)};
    exact_results(&s, p);
    for (int k = 0; k < devices; k++)
        if (list[k].device) measure(&s, &list[k]);
    free(s.value);
    free(s.slope);
}

/* ---- special arguments ---------------------------------------------------------------------- */

/* Results at +inf and -inf: what the formulas give in floating point, which is what PyTorch evaluates.
 * The derivative of gelu_tanh is an exception: PyTorch's is NaN (inf times 0) from |u| = 1e13 on in
 * f32 already; ours is its limit. */
typedef struct infinities {
    double value[2], slope[2];
} infinities;

static infinities at_infinity(dpcr_activation kind, const double *p) {
    const infinities table[DPCR_ACTIVATIONS] = {
        [DPCR_LINEAR] = {{INFINITY, -INFINITY}, {1, 1}},
        [DPCR_RELU] = {{INFINITY, 0}, {1, 0}},
        [DPCR_LEAKY_RELU] = {{INFINITY, p[0] * -INFINITY}, {1, p[0]}},
        [DPCR_ELU] = {{INFINITY, -p[0]}, {1, 0}},
        [DPCR_TANH] = {{1, -1}, {0, 0}},
        [DPCR_SIGMOID] = {{1, 0}, {0, 0}},
        [DPCR_SILU] = {{INFINITY, NAN}, {NAN, NAN}},
        [DPCR_GELU] = {{INFINITY, NAN}, {NAN, NAN}},
        [DPCR_GELU_TANH] = {{INFINITY, NAN}, {1, 0}},
        [DPCR_SOFTPLUS] = {{INFINITY, 0}, {1, 0}},
    };
    return table[kind];
}

static bool alike(double a, double b, double tolerance) {
    return (isnan(a) && isnan(b)) || a == b || fabs(a - b) <= tolerance;
}

/* Every special argument in every lane of a vector, healthy ones in the others. */
static void check_special(dpcr_activation kind, const double *p, dpcr_dtype dtype, const backend *at) {
    const infinities limit = at_infinity(kind, p);
    const double special[] = {INFINITY, -INFINITY, NAN}, eps = 4 * unit_roundoff(dtype);
    check_context("%s(%g,%g) of special arguments, %s, %s", activation_name(kind), p[0], p[1],
                  number_name(dtype), at->name);
    for (int k = 0; k < 3 * 19; k++) {
        double u[19], y[19], d[19];
        for (int i = 0; i < 19; i++) u[i] = i == k / 3 ? special[k % 3] : 0.25 * i - 2;
        const arguments a = {dtype, u, 19, 19};
        const subject s = {kind, p, dtype, &a, NULL, NULL};
        evaluate(&s, at, 0, 19, y, d);
        const double value = k % 3 == 2 ? NAN : limit.value[k % 3],
                     slope = k % 3 == 2 ? NAN : limit.slope[k % 3];
        CHECK(alike(y[k / 3], value, eps), "act(%g) = %g, not %g", u[k / 3], y[k / 3], value);
        CHECK(k % 3 == 2 || alike(d[k / 3], slope, eps), "act'(%g) = %g, not %g", u[k / 3], d[k / 3], slope);
        CHECK(k % 3 < 2 || d[k / 3] != 0, "act'(NaN) = 0 would lose a NaN gradient");
        for (int i = 0; i < 19; i++)
            CHECK(i == k / 3 || (isfinite(y[i]) && isfinite(d[i])), "act(%g) = %g next to %g", u[i], y[i],
                  u[k / 3]);
    }
}

/* At and around 0: values and slopes as PyTorch defines them. */
static void check_zero(dpcr_activation kind, const double *p, dpcr_dtype dtype, const backend *at) {
    const double tiny = dtype == DPCR_F32 ? 0x1p-149 : 0x1p-1074;
    double u[] = {0.0, -0.0, tiny, -tiny}, y[4], d[4];
    const arguments a = {dtype, u, 4, 4};
    const subject s = {kind, p, dtype, &a, NULL, NULL};
    const double slopes[DPCR_ACTIVATIONS] = {1, 0, p[0], p[0], 1, 0.25, 0.5, 0.5, 0.5, 0.5};
    const bool through = kind != DPCR_SIGMOID && kind != DPCR_SOFTPLUS;
    check_context("%s(%g,%g) around 0, %s, %s", activation_name(kind), p[0], p[1], number_name(dtype),
                  at->name);
    evaluate(&s, at, 0, 4, y, d);
    for (int i = 0; i < 4; i++) {
        const double expected = reference_activation(kind, p, u[i]);
        CHECK(alike(y[i], expected, through ? tiny : 4 * unit_roundoff(dtype)), "act(%g) = %g", u[i], y[i]);
    }
    CHECK(alike(d[0], slopes[kind], 4 * unit_roundoff(dtype)), "act'(0) = %g, not %g", d[0], slopes[kind]);
    CHECK(d[0] == d[1], "act'(-0) = %g, act'(0) = %g", d[1], d[0]);
}

/* Huge finite arguments give no NaN: what overflows is inf or its limit. */
static void check_huge(dpcr_activation kind, const double *p, dpcr_dtype dtype, const backend *at) {
    const double most = dtype == DPCR_F32 ? 3e38 : 1e308, smaller[] = {1, 1e-3, 1e-19, 1e-25};
    check_context("%s(%g,%g) of huge arguments, %s, %s", activation_name(kind), p[0], p[1],
                  number_name(dtype), at->name);
    for (int k = 0; k < 8; k++) {
        double u[1] = {(k % 2 ? -1 : 1) * most * smaller[k / 2]}, y[1], d[1];
        const arguments a = {dtype, u, 1, 1};
        const subject s = {kind, p, dtype, &a, NULL, NULL};
        evaluate(&s, at, 0, 1, y, d);
        const double exact = reference_activation(kind, p, u[0]);
        CHECK(!isnan(y[0]) && !isnan(d[0]), "act(%g) = %g, act' = %g", u[0], y[0], d[0]);
        CHECK(isinf(exact) || alike(y[0], number_round(dtype, exact), 4 * unit_roundoff(dtype) * fabs(u[0])),
              "act(%g) = %g, not %g", u[0], y[0], exact);
    }
}

static void check_corners(dpcr_activation kind, const double *p, dpcr_dtype dtype) {
    int devices;
    const backend *list = backends(&devices);
    for (int k = 0; k < devices; k++) {
        if (!list[k].device) continue;
        check_special(kind, p, dtype, &list[k]);
        check_zero(kind, p, dtype, &list[k]);
        check_huge(kind, p, dtype, &list[k]);
    }
}

/* Parameters make a difference: otherwise only the first of the two sets is run. */
static bool parametric(dpcr_activation kind) {
    return kind == DPCR_LEAKY_RELU || kind == DPCR_ELU || kind == DPCR_SOFTPLUS;
}

int main(void) {
    for (int dtype = DPCR_F32; dtype <= DPCR_F64; dtype++) {
        arguments a = {.dtype = (dpcr_dtype)dtype};
        push_patterns(&a);
        push_dense(&a);
        for (int k = 0; k < 2 * DPCR_ACTIVATIONS; k++) {
            const dpcr_activation kind = (dpcr_activation)(k / 2);
            if (k % 2 && !parametric(kind)) continue;
            const double *p = k % 2 ? activation_other(kind) : activation_default(kind);
            check_kind(kind, p, &a);
            check_corners(kind, p, (dpcr_dtype)dtype);
        }
        free(a.u);
    }
    return check_finish();
}
