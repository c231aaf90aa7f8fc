/* SPDX-License-Identifier: Apache-2.0
 *
 * Small dense products: all matrix arithmetic of the library goes through these five functions.
 *
 *   panel_product   Y = W X + bias    W (m,k) with any strides, X (k,n), Y (m,n) rows of lanes
 *   panel_add       Y = Y + W X       the same sum, begun at Y: it can be cut anywhere along k
 *   square_product  C = A B           all (w,w), A with any strides
 *   matvec          y = W x + b       W (m,k) with one unit stride
 *   row_dot         x . y
 *
 * A *panel* is a row-major matrix whose columns lie in SIMD lanes: samples, columns of a map, or
 * columns of a weight gradient.  W is broadcast element by element straight from the caller's
 * layout, so W and W^T cost the same and nothing is packed; kRows x 2 vectors of Y stay in registers.
 * Every element of Y is one sum over k in ascending order, whatever the other lanes hold.
 * matvec puts the outputs in lanes instead: partial sums of `vec` rows, then a tree of pairwise adds.
 *
 * Work 2 m n k; W, X, Y are each read or written once per block of kRows rows or 2 vectors of lanes.
 * To tune one instruction set, replace the bodies here; nothing outside depends on their blocking.
 */

typedef REAL FN(vec) __attribute__((vector_size(VECTOR_BYTES), aligned(sizeof(REAL)), may_alias));
typedef INT FN(mask) __attribute__((vector_size(VECTOR_BYTES)));
typedef REAL FN(quad) __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
typedef INT FN(quad_mask) __attribute__((vector_size(4 * sizeof(REAL))));
#define VEC FN(vec)

#define LANES ((int64_t)(VECTOR_BYTES / sizeof(REAL)))

/* Both go by pointer: by value they would pass through the stack, 10 ns a step at w = 16. */
/* element (i, j) at i * row + j * column: either order, or its transpose */
struct FN(matrix) {
    const REAL *data;
    int64_t row, column;
};

/* rows of contiguous lanes */
struct FN(panel) {
    const REAL *data;
    int64_t row;
};

INLINE struct FN(matrix) FN(from_row)(struct FN(matrix) W, int64_t r) {
    return (struct FN(matrix)){W.data + r * W.row, W.row, W.column};
}

INLINE struct FN(panel) FN(from_lane)(struct FN(panel) X, int64_t j) {
    return (struct FN(panel)){X.data + j, X.row};
}

INLINE VEC FN(load)(const REAL *p) {
    return *(const VEC *)p;
}

INLINE void FN(store)(REAL *p, VEC v) {
    *(VEC *)p = v;
}

/* Weights are read once: by the time a processor has noticed the stream a small matrix is over.  Stacked, that of the
 * next step lies behind it, and that of the step before in front.  p may lie anywhere: a fetch does not fault. */
INLINE void FN(fetch)(const REAL *p) {
    __builtin_prefetch(p);
}

/* Into the L2 cache, from which more can be on its way at once than the L1 cache waits for: measured 1.17 times the
 * bandwidth of one core. */
INLINE void FN(fetch_early)(const REAL *p) {
    __builtin_prefetch(p, 0, 2);
}

INLINE VEC FN(splat)(REAL a) {
    return a - (VEC){0};
}

/* R rows by C vectors of Y.  R, C and add are constants at every call, so acc lives in registers. */
INLINE void FN(micro)(const int R, const int C, const bool add, int64_t k, struct FN(matrix) W,
                      struct FN(panel) X, const REAL *bias, REAL *Y, int64_t ldy) {
    VEC acc[8][2];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++)
            acc[r][c] = add ? FN(load)(Y + r * ldy + c * LANES) : FN(splat)(bias ? bias[r] : 0);
    for (int64_t i = 0; i < k; i++) {
        if (i % LANES == 0 && W.column == 1) /* a line of each of the rows behind these */
            for (int r = 0; r < R; r++) FN(fetch)(W.data + (R + r) * W.row + i);
        else if (W.row == 1) /* columns are long strides */
            FN(fetch)(W.data + (i + 16) * W.column);
        VEC x[2];
        for (int c = 0; c < C; c++) x[c] = FN(load)(X.data + i * X.row + c * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const VEC a = FN(splat)(W.data[r * W.row + i * W.column]);
            for (int c = 0; c < C; c++) acc[r][c] += a * x[c];
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) FN(store)(Y + r * ldy + c * LANES, acc[r][c]);
}

/* All rows of one column of blocks, C vectors wide. */
INLINE void FN(micro_rows)(const int C, const bool add, int64_t m, int64_t k, struct FN(matrix) W,
                           struct FN(panel) X, const REAL *bias, REAL *Y, int64_t ldy) {
    /* 8 x 2 accumulators, 2 of X and a broadcast fit 32 registers; with 16 they spill, 4 x 2 does not */
    enum { kRows = VECTOR_REGISTERS == 32 ? 8 : 4 };
    int64_t r = 0;
    for (; r + kRows <= m; r += kRows)
        FN(micro)(kRows, C, add, k, FN(from_row)(W, r), X, bias ? bias + r : NULL, Y + r * ldy, ldy);
    for (; r < m; r++)
        FN(micro)(1, C, add, k, FN(from_row)(W, r), X, bias ? bias + r : NULL, Y + r * ldy, ldy);
}

/* The same for fewer lanes than a vector has: its halves, their halves, down to one lane. */
#define PART 1
#define SIZED(name) FN(name##_1)
#include "pcr/cpu/part.inl"
#if 2 * REAL_BYTES < VECTOR_BYTES
#define PART 2
#define SIZED(name) FN(name##_2)
#include "pcr/cpu/part.inl"
#endif
#if 4 * REAL_BYTES < VECTOR_BYTES
#define PART 4
#define SIZED(name) FN(name##_4)
#include "pcr/cpu/part.inl"
#endif
#if 8 * REAL_BYTES < VECTOR_BYTES
#define PART 8
#define SIZED(name) FN(name##_8)
#include "pcr/cpu/part.inl"
#endif

INLINE void FN(micro_tail)(int64_t n, const bool add, int64_t m, int64_t k, struct FN(matrix) W,
                           struct FN(panel) X, const REAL *bias, REAL *Y, int64_t ldy) {
    int64_t j = 0;
#if 8 * REAL_BYTES < VECTOR_BYTES
    if (n & 8) FN(part_8)(add, m, k, W, X, bias, Y, ldy), j = 8;
#endif
#if 4 * REAL_BYTES < VECTOR_BYTES
    if (n & 4) FN(part_4)(add, m, k, W, FN(from_lane)(X, j), bias, Y + j, ldy), j += 4;
#endif
#if 2 * REAL_BYTES < VECTOR_BYTES
    if (n & 2) FN(part_2)(add, m, k, W, FN(from_lane)(X, j), bias, Y + j, ldy), j += 2;
#endif
    if (n & 1) FN(part_1)(add, m, k, W, FN(from_lane)(X, j), bias, Y + j, ldy);
}

/* W (m,k), X (k,n), bias (m) or NULL -> Y (m,n) rows of ldy */
MAYBE_UNUSED static void FN(panel_product)(int64_t m, int64_t n, int64_t k, const struct FN(matrix) * matrix,
                                           const struct FN(panel) * panel, const REAL *bias, REAL *Y,
                                           int64_t ldy) {
    const struct FN(matrix) W = *matrix;
    const struct FN(panel) X = *panel;
    int64_t j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES)
        FN(micro_rows)(2, false, m, k, W, FN(from_lane)(X, j), bias, Y + j, ldy);
    for (; j + LANES <= n; j += LANES)
        FN(micro_rows)(1, false, m, k, W, FN(from_lane)(X, j), bias, Y + j, ldy);
    if (j < n) FN(micro_tail)(n - j, false, m, k, W, FN(from_lane)(X, j), bias, Y + j, ldy);
}

/* W (m,k), X (k,n) added to Y (m,n) rows of ldy */
MAYBE_UNUSED static void FN(panel_add)(int64_t m, int64_t n, int64_t k, const struct FN(matrix) * matrix,
                                       const struct FN(panel) * panel, REAL *Y, int64_t ldy) {
    const struct FN(matrix) W = *matrix;
    const struct FN(panel) X = *panel;
    int64_t j = 0;
    for (; j + 2 * LANES <= n; j += 2 * LANES)
        FN(micro_rows)(2, true, m, k, W, FN(from_lane)(X, j), NULL, Y + j, ldy);
    for (; j + LANES <= n; j += LANES)
        FN(micro_rows)(1, true, m, k, W, FN(from_lane)(X, j), NULL, Y + j, ldy);
    if (j < n) FN(micro_tail)(n - j, true, m, k, W, FN(from_lane)(X, j), NULL, Y + j, ldy);
}

/* (w,w) times (w,w) for one w, a constant at every call, at most 16: as panels the smallest take 30 times as long */
INLINE void FN(fixed_product)(const int w, struct FN(matrix) A, const REAL *B, REAL *C) {
    for (int r = 0; r < w; r++) {
        REAL sum[16] = {0};
        for (int i = 0; i < w; i++)
            for (int j = 0; j < w; j++) sum[j] += A.data[r * A.row + i * A.column] * B[i * w + j];
        for (int j = 0; j < w; j++) C[r * w + j] = sum[j];
    }
}

#include "pcr/cpu/matvec.inl"

/* ---- widths whose rows are one register or part of one -------------------------------------- */

#if 4 * REAL_BYTES <= VECTOR_BYTES
#define WIDTH 4
#define SIZED(name) FN(name##_4)
#include "pcr/cpu/square.inl"
#else
MAYBE_UNUSED static void FN(square_4)(const struct FN(matrix) * A, const REAL *B, REAL *C) {
    FN(fixed_product)(4, *A, B, C);
}
MAYBE_UNUSED static void FN(square_matvec_4)(const struct FN(matrix) * W, const REAL *x, const REAL *b,
                                             REAL *y) {
    for (int r = 0; r < 4; r++) {
        const REAL sum = FN(dot_strided)(4, W->data + r * W->row, W->column, x);
        y[r] = b ? sum + b[r] : sum;
    }
}
#endif

#if 8 * REAL_BYTES <= VECTOR_BYTES
#define WIDTH 8
#define SIZED(name) FN(name##_8)
#include "pcr/cpu/square.inl"
#else
MAYBE_UNUSED static void FN(square_8)(const struct FN(matrix) * A, const REAL *B, REAL *C) {
    FN(fixed_product)(8, *A, B, C);
}
MAYBE_UNUSED static void FN(square_matvec_8)(const struct FN(matrix) * W, const REAL *x, const REAL *b,
                                             REAL *y) {
    for (int r = 0; r < 8; r++) {
        const REAL sum = FN(dot_strided)(8, W->data + r * W->row, W->column, x);
        y[r] = b ? sum + b[r] : sum;
    }
}
#endif

#if 16 * REAL_BYTES <= VECTOR_BYTES
#define WIDTH 16
#define SIZED(name) FN(name##_16)
#include "pcr/cpu/square.inl"
#else
MAYBE_UNUSED static void FN(square_16)(const struct FN(matrix) * A, const REAL *B, REAL *C) {
    FN(fixed_product)(16, *A, B, C);
}
#endif

/* A (w,w) with any strides, B (w,w) -> C (w,w) = A B */
MAYBE_UNUSED static void FN(square_product)(int64_t w, const struct FN(matrix) * A, const REAL *B, REAL *C) {
    switch (w) {
    case 1: FN(fixed_product)(1, *A, B, C); break;
    case 2: FN(fixed_product)(2, *A, B, C); break;
    case 3: FN(fixed_product)(3, *A, B, C); break;
    case 4: FN(square_4)(A, B, C); break;
    case 8: FN(square_8)(A, B, C); break;
    case 16: FN(square_16)(A, B, C); break;
    default: FN(panel_product)(w, w, w, A, &(struct FN(panel)){B, w}, NULL, C, w);
    }
}

/* W (m,k), a stride of which is 1; x (k), b (m) or NULL -> y (m), which may be b */
MAYBE_UNUSED static void FN(matvec)(int64_t m, int64_t k, const struct FN(matrix) * W, const REAL *x,
                                    const REAL *b, REAL *y) {
    if (m == 4 && k == 4)
        FN(square_matvec_4)(W, x, b, y);
    else if (m == 8 && k == 8)
        FN(square_matvec_8)(W, x, b, y);
#if 16 * REAL_BYTES <= VECTOR_BYTES
    else if (m == 16 && k == 16)
        FN(square_matvec_16)(W, x, b, y);
#endif
    else
        FN(any_matvec)(m, k, W, x, b, y);
}

/* x . y (w): whole vectors, then their lanes, then the rest */
MAYBE_UNUSED static REAL FN(row_dot)(int64_t w, const REAL *x, const REAL *y) {
    VEC acc = {0};
    REAL sum = 0;
    int64_t i = 0;
    for (; i + LANES <= w; i += LANES) acc += FN(load)(x + i) * FN(load)(y + i);
    for (int j = 0; j < LANES; j++) sum += acc[j];
    for (; i < w; i++) sum += x[i] * y[i];
    return sum;
}
