/* SPDX-License-Identifier: Apache-2.0
 *
 * Between samples in rows, as callers store them, and samples in lanes, as panels hold them: a blocked
 * transposition.  Whole LANES x LANES blocks go through registers (LANES log2 LANES shuffles instead of
 * LANES^2 loads and stores), the edges by 4 x 4, and what is left then element by element.
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

/* The same for i, j < 4 */
INLINE void FN(transpose_quad)(const REAL *from, int64_t from_stride, REAL *to, int64_t to_stride) {
    FN(quad) row[4], mixed[4];
    for (int i = 0; i < 4; i++) row[i] = *(const FN(quad) *)(from + i * from_stride);
    mixed[0] = QUAD(row[0], row[2], 0, 4, 1, 5), mixed[1] = QUAD(row[0], row[2], 2, 6, 3, 7);
    mixed[2] = QUAD(row[1], row[3], 0, 4, 1, 5), mixed[3] = QUAD(row[1], row[3], 2, 6, 3, 7);
    row[0] = QUAD(mixed[0], mixed[2], 0, 4, 1, 5), row[1] = QUAD(mixed[0], mixed[2], 2, 6, 3, 7);
    row[2] = QUAD(mixed[1], mixed[3], 0, 4, 1, 5), row[3] = QUAD(mixed[1], mixed[3], 2, 6, 3, 7);
    for (int i = 0; i < 4; i++) *(FN(quad) *)(to + i * to_stride) = row[i];
}

static void FN(transpose_edge)(int64_t m, int64_t n, const REAL *from, int64_t from_stride, REAL *to,
                               int64_t to_stride) {
    const int64_t m4 = m / 4 * 4, n4 = n / 4 * 4;
    for (int64_t i = 0; i < m4; i += 4)
        for (int64_t j = 0; j < n4; j += 4)
            FN(transpose_quad)(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = i < m4 ? n4 : 0; j < n; j++) to[j * to_stride + i] = from[i * from_stride + j];
}

/* from (m,n) rows of from_stride -> to (n,m) rows of to_stride */
static void FN(transpose)(int64_t m, int64_t n, const REAL *from, int64_t from_stride, REAL *to,
                          int64_t to_stride) {
    const int64_t mv = m / LANES * LANES, nv = n / LANES * LANES;
    for (int64_t i = 0; i < mv; i += LANES)
        for (int64_t j = 0; j < nv; j += LANES)
            FN(transpose_block)(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
    if (nv < n) FN(transpose_edge)(mv, n - nv, from + nv, from_stride, to + nv * to_stride, to_stride);
    if (mv < m) FN(transpose_edge)(m - mv, n, from + mv * from_stride, from_stride, to + mv, to_stride);
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
