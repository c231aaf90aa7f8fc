/* SPDX-License-Identifier: Apache-2.0
 *
 * micro_rows (product.inl) for PART lanes, less than a vector.  Included once for each such number;
 * SIZED(name) makes their names.
 */

typedef REAL SIZED(lanes) __attribute__((vector_size(PART * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));

/* R rows of Y, a constant at every call */
INLINE void SIZED(part_micro)(const int R, const bool add, int64_t k, struct FN(matrix) W, struct FN(panel) X,
                              const REAL *bias, REAL *Y, int64_t ldy) {
    SIZED(lanes) acc[4];
    for (int r = 0; r < R; r++)
        acc[r] = add ? *(const SIZED(lanes) *)(Y + r * ldy)
                     : (SIZED(lanes))((bias ? bias[r] : 0) - (SIZED(lanes)){0});
    for (int64_t i = 0; i < k; i++) {
        const SIZED(lanes) x = *(const SIZED(lanes) *)(X.data + i * X.row);
#pragma GCC unroll 4
        for (int r = 0; r < R; r++) acc[r] += W.data[r * W.row + i * W.column] * x;
    }
    for (int r = 0; r < R; r++) *(SIZED(lanes) *)(Y + r * ldy) = acc[r];
}

static void SIZED(part)(const bool add, int64_t m, int64_t k, struct FN(matrix) W, struct FN(panel) X,
                        const REAL *bias, REAL *Y, int64_t ldy) {
    int64_t r = 0;
    for (; r + 4 <= m; r += 4)
        SIZED(part_micro)(4, add, k, FN(from_row)(W, r), X, bias ? bias + r : NULL, Y + r * ldy, ldy);
    for (; r < m; r++)
        SIZED(part_micro)(1, add, k, FN(from_row)(W, r), X, bias ? bias + r : NULL, Y + r * ldy, ldy);
}

#undef PART
#undef SIZED
