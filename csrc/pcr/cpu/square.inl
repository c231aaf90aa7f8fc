/* SPDX-License-Identifier: Apache-2.0
 *
 * square_product and matvec for one width whose rows are one register or part of one: WIDTH elements of
 * REAL.  Included once for each such width; SIZED(name) makes their names.
 *
 * All rows of C stay in registers; a row of B is loaded once, the elements of A are broadcast from memory.
 */

typedef REAL SIZED(row) __attribute__((vector_size(WIDTH * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef INT SIZED(order) __attribute__((vector_size(WIDTH * sizeof(REAL))));

/* A, B, C (WIDTH,WIDTH): C = A B; row, column: strides of A */
INLINE void SIZED(rows_product)(const REAL *A, int64_t row, int64_t column, const REAL *B, REAL *C) {
    SIZED(row) sum[WIDTH];
#pragma GCC unroll 16
    for (int64_t r = 0; r < WIDTH; r++) sum[r] = (SIZED(row)){0};
#pragma GCC unroll 4
    for (int64_t i = 0; i < WIDTH; i++) {
        const SIZED(row) b = *(const SIZED(row) *)(B + i * WIDTH);
#pragma GCC unroll 16
        for (int64_t r = 0; r < WIDTH; r++) sum[r] += A[r * row + i * column] * b;
    }
#pragma GCC unroll 16
    for (int64_t r = 0; r < WIDTH; r++) *(SIZED(row) *)(C + r * WIDTH) = sum[r];
}

MAYBE_UNUSED static void SIZED(square)(const struct FN(matrix) * A, const REAL *B, REAL *C) {
    if (A->row == WIDTH && A->column == 1)
        SIZED(rows_product)(A->data, WIDTH, 1, B, C);
    else
        SIZED(rows_product)(A->data, A->row, A->column, B, C);
}

/* [a b] -> sums of neighbouring pairs, those of a first */
#ifdef __clang__
INLINE SIZED(row) SIZED(pair_sums)(SIZED(row) a, SIZED(row) b) {
    SIZED(row) sums;
#pragma clang loop unroll(full)
    for (int i = 0; i < WIDTH / 2; i++)
        sums[i] = a[2 * i] + a[2 * i + 1], sums[WIDTH / 2 + i] = b[2 * i] + b[2 * i + 1];
    return sums;
}
#else
INLINE SIZED(row) SIZED(pair_sums)(SIZED(row) a, SIZED(row) b) {
    SIZED(order) even, odd;
    for (INT i = 0; i < WIDTH; i++) even[i] = 2 * i, odd[i] = 2 * i + 1;
    return __builtin_shuffle(a, b, even) + __builtin_shuffle(a, b, odd);
}
#endif

/* The sum of all elements, in each of them. */
INLINE SIZED(row) SIZED(total)(SIZED(row) x) {
#pragma GCC unroll 4
    for (INT half = WIDTH / 2; half > 0; half /= 2) {
        SIZED(row) other;
#ifdef __clang__
#pragma clang loop unroll(full)
        for (int i = 0; i < WIDTH; i++) other[i] = x[i ^ (int)half];
#else
        SIZED(order) place;
        for (INT i = 0; i < WIDTH; i++) place[i] = i ^ half;
        other = __builtin_shuffle(x, place);
#endif
        x += other;
    }
    return x;
}

INLINE SIZED(row) SIZED(load)(const REAL *p) {
    return *(const SIZED(row) *)p;
}

/* x times y (WIDTH) if not NULL */
INLINE SIZED(row) SIZED(times)(const REAL *x, const REAL *y) {
    SIZED(row) product = SIZED(load)(x);
    if (y) product *= SIZED(load)(y);
    return product;
}

/* W (WIDTH,WIDTH) rows of `stride`, x -> W x */
INLINE SIZED(row) SIZED(apply)(const REAL *W, int64_t stride, SIZED(row) x) {
    SIZED(row) sum[WIDTH];
#pragma GCC unroll 16
    for (int64_t r = 0; r < WIDTH; r++) sum[r] = SIZED(load)(W + r * stride) * x;
#pragma GCC unroll 4
    for (int64_t half = WIDTH / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int64_t r = 0; r < half; r++) sum[r] = SIZED(pair_sums)(sum[2 * r], sum[2 * r + 1]);
    return sum[0];
}

/* W (WIDTH,WIDTH) rows of `stride`, x (WIDTH) -> W^T x */
INLINE SIZED(row) SIZED(apply_transposed)(const REAL *W, int64_t stride, const REAL *x) {
    SIZED(row) even = {0}, odd = {0};
#pragma GCC unroll 8
    for (int64_t i = 0; i < WIDTH; i += 2) {
        even += SIZED(load)(W + i * stride) * x[i];
        odd += SIZED(load)(W + (i + 1) * stride) * x[i + 1];
    }
    return even + odd;
}

/* W (WIDTH,WIDTH) with contiguous rows or columns, x (WIDTH) -> W x */
INLINE SIZED(row) SIZED(matvec)(const struct FN(matrix) * W, const REAL *x) {
    return W->column == 1 ? SIZED(apply)(W->data, W->row, SIZED(load)(x))
                          : SIZED(apply_transposed)(W->data, W->column, x);
}

/* The same; x, y, b (WIDTH), b may be NULL: y = W x + b */
MAYBE_UNUSED static void SIZED(square_matvec)(const struct FN(matrix) * W, const REAL *x, const REAL *b,
                                              REAL *y) {
    SIZED(row) sum = SIZED(matvec)(W, x);
    if (b) sum += SIZED(load)(b);
    *(SIZED(row) *)y = sum;
}

#undef WIDTH
#undef SIZED
