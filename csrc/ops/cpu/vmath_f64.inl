/* SPDX-License-Identifier: Apache-2.0
 *
 * Elementary functions on vectors of double: the C library's, lane by lane.  Double is for checking
 * and for ill-conditioned chains; its speed is that of libm.
 */

INLINE REAL FN(root)(REAL x) {
    return sqrt(x);
}

INLINE VEC FN(select)(FN(mask) where, VEC a, VEC b) {
    return (VEC)((where & (FN(mask))a) | (~where & (FN(mask))b));
}

INLINE VEC FN(lanewise)(double (*f)(double), VEC x) {
    VEC y;
    for (int i = 0; i < LANES; i++) y[i] = f(x[i]);
    return y;
}

INLINE VEC FN(vexp)(VEC x) {
    return FN(lanewise)(exp, x);
}

INLINE VEC FN(vexpm1)(VEC x) {
    return FN(lanewise)(expm1, x);
}

INLINE VEC FN(vtanh)(VEC x) {
    return FN(lanewise)(tanh, x);
}

INLINE VEC FN(verf)(VEC x) {
    return FN(lanewise)(erf, x);
}

/* Both branches keep their relative accuracy where e^-|x| is small. */
INLINE VEC FN(vsigmoid)(VEC x) {
    const VEC e = FN(vexp)(FN(select)(x >= 0, -x, x)), s = 1 / (1 + e);
    return FN(select)(x >= 0, s, e * s);
}

/* log(1 + e^x) = max(x, 0) + log(1 + e^-|x|) */
INLINE VEC FN(vsoftplus)(VEC x) {
    const VEC t = FN(vexp)(FN(select)(x >= 0, -x, x));
    return FN(select)(x > 0, x, (VEC){0}) + FN(lanewise)(log1p, t);
}
