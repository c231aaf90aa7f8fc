/* SPDX-License-Identifier: Apache-2.0
 *
 * Between samples in rows, as callers store them, and samples in lanes, as panels hold them: a blocked
 * transposition.  Whole LANES x LANES blocks go through registers (LANES log2 LANES shuffles instead of
 * LANES^2 loads and stores), the edges element by element.
 */

/* [a b] -> a0 b0 a1 b1 ... of their first or second halves */
INLINE VEC FN(interleave)(const int second, VEC a, VEC b) {
    FN(mask) order;
    for (INT i = 0; i < LANES; i++)
        order[i] = (i % 2 ? (INT)LANES : 0) + i / 2 + (second ? (INT)LANES / 2 : 0);
    return FN(shuffle)(a, b, order);
}

/* to[j * to_stride + i] = from[i * from_stride + j], i, j < LANES: interleaving rows i and i + LANES/2 log2 LANES times */
INLINE void FN(transpose_block)(const REAL *from, int64_t from_stride, REAL *to, int64_t to_stride) {
    VEC row[LANES], mixed[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) row[i] = FN(load)(from + i * from_stride);
#pragma GCC unroll 4
    for (int64_t round = 1; round < LANES; round *= 2) {
#pragma GCC unroll 8
        for (int64_t i = 0; i < LANES / 2; i++) {
            mixed[2 * i] = FN(interleave)(0, row[i], row[i + LANES / 2]);
            mixed[2 * i + 1] = FN(interleave)(1, row[i], row[i + LANES / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++) row[i] = mixed[i];
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) FN(store)(to + i * to_stride, row[i]);
}

/* from (m,n) rows of from_stride -> to (n,m) rows of to_stride */
static void FN(transpose)(int64_t m, int64_t n, const REAL *from, int64_t from_stride, REAL *to,
                          int64_t to_stride) {
    const int64_t mv = m / LANES * LANES, nv = n / LANES * LANES;
    for (int64_t i = 0; i < mv; i += LANES)
        for (int64_t j = 0; j < nv; j += LANES)
            FN(transpose_block)(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = i < mv ? nv : 0; j < n; j++) to[j * to_stride + i] = from[i * from_stride + j];
}

/* rows (count,w) with stride -> panel (w,ld), lanes count..ld-1 zero */
MAYBE_UNUSED static void FN(load_panel)(int64_t w, int64_t count, const REAL *rows, int64_t stride,
                                        REAL *panel, int64_t ld) {
    FN(transpose)(count, w, rows, stride, panel, ld);
    for (int64_t i = 0; count < ld && i < w; i++)
        memset(panel + i * ld + count, 0, (size_t)(ld - count) * sizeof(REAL));
}

/* the first count lanes of panel (w,ld) -> rows (count,w) with stride */
MAYBE_UNUSED static void FN(store_panel)(int64_t w, int64_t count, const REAL *panel, int64_t ld, REAL *rows,
                                         int64_t stride) {
    FN(transpose)(w, count, panel, ld, rows, stride);
}
