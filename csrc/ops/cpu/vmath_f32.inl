/* SPDX-License-Identifier: Apache-2.0
 *
 * Elementary functions on vectors of float: own polynomials (weighted minimax fits on the intervals
 * named), a few ulp each, branch-free by selection.  NaN stays NaN.
 */

/* Unsigned: they may overflow. */
typedef uint32_t FN(bits) __attribute__((vector_size(VECTOR_BYTES)));

INLINE VEC FN(select)(FN(mask) where, VEC a, VEC b) {
    return (VEC)((where & (FN(mask))a) | (~where & (FN(mask))b));
}

INLINE REAL FN(root)(REAL x) {
    return sqrtf(x);
}

INLINE VEC FN(vabs)(VEC x) {
    return (VEC)((FN(mask))x & 0x7fffffff);
}

INLINE VEC FN(copysign)(VEC magnitude, VEC sign) {
    return (VEC)((FN(mask))magnitude | ((FN(mask))sign & (INT)0x80000000));
}

INLINE VEC FN(polynomial)(const int degree, const REAL *c, VEC x) {
    VEC p = FN(splat)(c[degree]);
#pragma GCC unroll 8
    for (int i = degree - 1; i >= 0; i--) p = p * x + c[i];
    return p;
}

/* The same of degree 4 in shorter chains of operations; q = x^2 */
INLINE VEC FN(quartic)(const REAL *c, VEC x, VEC q) {
    return (c[0] + x * c[1]) + q * ((c[2] + x * c[3]) + q * c[4]);
}

/* 2^n for integral n in [-126, 127] */
INLINE VEC FN(power_of_two)(FN(mask) n) {
    return (VEC)((n + 127) << 23);
}

/* e^x = 2^n e^r, |r| <= ln(2)/2, e^r = 1 + r + r^2 P(r).  Two factors of 2^n reach denormals and inf.  NaN passes
 * both bounds, and what 2^n then is does not matter. */
INLINE VEC FN(vexp)(VEC x) {
    static const REAL P[] = {5.000000095e-01f, 1.666651884e-01f, 4.166620583e-02f, 8.368889558e-03f,
                             1.395048916e-03f};
    const REAL magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    VEC s = FN(select)(x > 89.0f, FN(splat)(89.0f), x);
    s = FN(select)(s < -105.0f, FN(splat)(-105.0f), s);
    const VEC n = (s * 1.44269504f + magic) - magic;
    const VEC r = (s - n * 0.693359375f) - n * -2.12194440e-4f, q = r * r;
    const VEC e = 1 + (r + q * FN(quartic)(P, r, q));
    const FN(mask) i = __builtin_convertvector(n, FN(mask)), half = i >> 1;
    return e * FN(power_of_two)(half) * FN(power_of_two)(i - half);
}

/* e^x - 1 for x <= 0: 1 cancels near 0 */
INLINE VEC FN(vexpm1)(VEC x) {
    static const REAL P[] = {5.000000417e-01f, 1.666666801e-01f, 4.166531547e-02f,
                             8.333073010e-03f, 1.399745681e-03f, 1.999289483e-04f};
    return FN(select)(x > -0.5f, x + x * x * FN(polynomial)(5, P, x), FN(vexp)(x) - 1);
}

/* x + x^3 P(x^2) below 0.625, else 1 - 2 / (E + 1) with E = e^2x = 2^n e^r as in vexp, and 1 from 10 on: so no scale
 * 2^n leaves the range.  An error of E is divided by 3 at least.  NaN takes the first branch. */
INLINE VEC FN(vtanh)(VEC x) {
    static const REAL P[] = {-3.333328392e-01f, 1.333149125e-01f, -5.374349526e-02f, 2.065057899e-02f,
                             -5.717036547e-03f};
    static const REAL R[] = {5.000000095e-01f, 1.666651884e-01f, 4.166620583e-02f, 8.368889558e-03f,
                             1.395048916e-03f};
    const REAL magic = 12582912.0f;
    const VEC a = FN(vabs)(x), q = a * a, small = a + a * q * FN(quartic)(P, q, q * q);
    const VEC shifted = a * 2.88539008f + magic, n = shifted - magic;
    const VEC r = 2 * a - n * 0.693147181f, square = r * r;
    const VEC e = (1 + r) + square * FN(quartic)(R, r, square);
    const VEC E = (VEC)((FN(bits))e + ((FN(bits))shifted << 23));
    const VEC y = FN(select)(a >= 0.625f, 1 - 2 / (E + 1), small);
    return FN(copysign)(FN(select)(a > 10.0f, FN(splat)(1), y), x);
}

/* Both branches keep their relative accuracy where e^-|x| is small. */
INLINE VEC FN(vsigmoid)(VEC x) {
    const VEC e = FN(vexp)(-FN(vabs)(x)), s = 1 / (1 + e);
    return FN(select)(x >= 0, s, e * s);
}

/* x P(x^2) below 1, else 1 - exp(Q(x)) with Q = log erfc; 1 from 4 on */
INLINE VEC FN(verf)(VEC x) {
    static const REAL P[] = {1.128379166e+00f, -3.761262714e-01f, 1.128360018e-01f, -2.685444459e-02f,
                             5.189535339e-03f, -8.020841275e-04f, 7.889119513e-05f};
    static const REAL Q[] = {1.880359223e-04f, -1.129578406e+00f, -6.332199247e-01f, -1.084185470e-01f,
                             2.520823964e-02f, -4.204556192e-03f, 4.413353486e-04f,  -2.168677171e-05f};
    VEC a = FN(vabs)(x);
    a = FN(select)(a > 4.0f, FN(splat)(4.0f), a);
    const VEC large = 1 - FN(vexp)(FN(polynomial)(7, Q, a));
    return FN(copysign)(FN(select)(a < 1.0f, a * FN(polynomial)(6, P, a * a), large), x);
}

/* log(1 + e^x) = max(x, 0) + log(1 + t), t = e^-|x|; log(1 + t) = 2 artanh(s), s = t / (2 + t) <= 1/3 */
INLINE VEC FN(vsoftplus)(VEC x) {
    static const REAL P[] = {3.333333781e-01f, 1.999943887e-01f, 1.430844245e-01f, 1.071382844e-01f,
                             1.215046905e-01f};
    const VEC t = FN(vexp)(-FN(vabs)(x)), s = t / (2 + t), q = s * s;
    const VEC log1p = 2 * (s + s * q * FN(polynomial)(4, P, q));
    return FN(select)(x > 0, x, (VEC){0}) + FN(select)(x == x, log1p, x);
}
