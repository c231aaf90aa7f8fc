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

/* element i is element order[i] of [a b]; order is a constant at every call */
#ifdef __clang__
INLINE VEC FN(shuffle)(VEC a, VEC b, FN(mask) order) {
    VEC mixed;
#pragma clang loop unroll(full)
    for (int i = 0; i < LANES; i++) mixed[i] = order[i] < LANES ? a[order[i]] : b[order[i] - LANES];
    return mixed;
}
#else
INLINE VEC FN(shuffle)(VEC a, VEC b, FN(mask) order) {
    return __builtin_shuffle(a, b, order);
}
#endif

#ifdef __clang__
#define QUAD(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define QUAD(a, b, ...) __builtin_shuffle(a, b, (FN(quad_mask)){__VA_ARGS__})
#endif

/* [a b] -> sums of neighbouring pairs, those of a first */
INLINE VEC FN(add_pairs)(VEC a, VEC b) {
    FN(mask) even, odd;
    for (INT i = 0; i < LANES; i++) even[i] = 2 * i, odd[i] = 2 * i + 1;
    return FN(shuffle)(a, b, even) + FN(shuffle)(a, b, odd);
}

/* elements of 1, 4 and 32 KiB */
enum { FN(close) = 1024 / REAL_BYTES, FN(ahead) = 4 * FN(close), FN(far_ahead) = 8 * FN(ahead) };

/* Rows that are multiplied at once: x is loaded once for them, and their sums fit the registers. */
#define DOTS (LANES < 4 ? 1 : 4)

/* Rows 0..R-1, `stride` apart, times x, in whole vectors, in lanes; R is a constant at every call.  Four chains a row,
 * because one would wait for every add.  early: 0 where the rows lie one behind the other; else they are streams of
 * their own, and it is how far ahead each is fetched. */
INLINE void FN(dot_vectors)(const int R, int64_t early, int64_t k, const REAL *rows, int64_t stride,
                            const REAL *x, VEC *sums) {
    VEC acc[4][4];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < 4; c++) acc[r][c] = (VEC){0};
    int64_t i = 0;
    for (; i + 4 * LANES <= k; i += 4 * LANES)
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            const VEC v = FN(load)(x + i + c * LANES);
#pragma GCC unroll 4
            for (int r = 0; r < R; r++) {
                const REAL *w = rows + r * stride + i + c * LANES;
                const REAL *line =
                    early ? w : rows + (i + c * LANES) * R + r * LANES; /* as memory has them */
                acc[r][c] += FN(load)(w) * v;
                FN(fetch)(line + (early ? FN(close) : FN(ahead)));
                FN(fetch_early)(line + (early ? early : FN(far_ahead)));
            }
        }
    for (; i + LANES <= k; i += LANES)
        for (int r = 0; r < R; r++) acc[r][0] += FN(load)(rows + r * stride + i) * FN(load)(x + i);
    for (int r = 0; r < R; r++) sums[r] = (acc[r][0] + acc[r][1]) + (acc[r][2] + acc[r][3]);
}

/* Sums of the elements of each of LANES vectors, in lanes. */
INLINE VEC FN(total_each)(VEC *sums) {
#pragma GCC unroll 5
    for (int half = LANES / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int64_t r = 0; r < half; r++) sums[r] = FN(add_pairs)(sums[2 * r], sums[2 * r + 1]);
    return sums[0];
}

/* LANES rows of dot products with x, in lanes: k in whole vectors, then one by one.  A few rows at a time where they are
 * long, as memory streams best; side by side where a row is a vector or a few. */
INLINE VEC FN(dot_rows)(int64_t k, const REAL *W, int64_t rs, const REAL *x) {
    VEC acc[LANES];
    int64_t i = 0;
    if (k >= 4 * LANES) {
        for (int r = 0; r < LANES; r += DOTS) FN(dot_vectors)(DOTS, 0, k, W + r * rs, rs, x, acc + r);
        i = k / LANES * LANES;
    } else {
#pragma GCC unroll 16
        for (int r = 0; r < LANES; r++) acc[r] = (VEC){0};
        for (; i + LANES <= k; i += LANES) {
            const VEC v = FN(load)(x + i);
#pragma GCC unroll 16
            for (int r = 0; r < LANES; r++) acc[r] += FN(load)(W + r * rs + i) * v;
        }
    }
    VEC y = FN(total_each)(acc);
    for (; i < k; i++)
        for (int r = 0; r < LANES; r++) y[r] += W[r * rs + i] * x[i];
    return y;
}

/* Rows that do not fill a vector.  Four chains, because one would wait for every add. */
static REAL FN(dot_strided)(int64_t k, const REAL *W, int64_t cs, const REAL *x) {
    REAL sum[4] = {0};
    int64_t i = 0;
    for (; i + 4 <= k; i += 4)
        for (int c = 0; c < 4; c++) sum[c] += W[(i + c) * cs] * x[i + c];
    for (; i < k; i++) sum[0] += W[i * cs] * x[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* LANES outputs of y = W x where the rows of W are contiguous downwards (rs = 1) */
INLINE VEC FN(combine_columns)(int64_t k, const REAL *W, int64_t cs, const REAL *x) {
    VEC acc[4] = {{0}, {0}, {0}, {0}};
    int64_t i = 0;
    for (; i + 4 <= k; i += 4)
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) acc[c] += FN(load)(W + (i + c) * cs) * x[i + c];
    for (; i < k; i++) acc[0] += FN(load)(W + i * cs) * x[i];
    return (acc[0] + acc[1]) + (acc[2] + acc[3]);
}

/* V vectors of outputs at once, a constant at every call: V chains, and whole stretches of each row of W^T.  Chains run
 * backwards through their steps where W is transposed: the step before has its row at the same place. */
INLINE void FN(combine_wide_columns)(const int V, int64_t k, const REAL *W, int64_t cs, const REAL *x,
                                     const REAL *b, REAL *y) {
    VEC acc[16];
    for (int v = 0; v < V; v++) acc[v] = b ? FN(load)(b + v * LANES) : (VEC){0};
    for (int64_t i = 0; i < k; i++)
#pragma GCC unroll 16
        for (int v = 0; v < V; v++) {
            acc[v] += FN(load)(W + i * cs + v * LANES) * x[i];
            FN(fetch)(W + (i - k) * cs + v * LANES);
        }
    for (int v = 0; v < V; v++) FN(store)(y + v * LANES, acc[v]);
}

enum { FN(STREAMS) = 4 };

/* Whether W (m,k), by rows, is long enough to be read at several places at once, in whole vectors. */
static bool FN(is_stream)(int64_t m, int64_t k) {
    return m % (FN(STREAMS) * LANES) == 0 && k % (4 * LANES) == 0 && m * k * REAL_BYTES >= 1 << 17;
}

/* y = W x + b, row r of each quarter of W at once: memory delivers more to four streams than to one (measured, GB/s of
 * one core: 23 and 19).  Fetched is the same place of the matrix behind this one, as long as the L2 cache holds both. */
INLINE void FN(stream_rows)(int64_t m, int64_t k, const REAL *W, int64_t rs, const REAL *x, const REAL *b,
                            REAL *y) {
    const int64_t part = m / FN(STREAMS), early = m * k * REAL_BYTES <= 1 << 19 ? m * k : FN(far_ahead);
    for (int64_t r = 0; r < part; r += LANES) {
        VEC sums[FN(STREAMS)][LANES];
        for (int j = 0; j < LANES; j++) {
            VEC row[FN(STREAMS)];
            FN(dot_vectors)(FN(STREAMS), early, k, W + (r + j) * rs, part * rs, x, row);
            for (int q = 0; q < FN(STREAMS); q++) sums[q][j] = row[q];
        }
        for (int q = 0; q < FN(STREAMS); q++) {
            VEC sum = FN(total_each)(sums[q]);
            if (b) sum += FN(load)(b + q * part + r);
            FN(store)(y + q * part + r, sum);
        }
    }
}

/* W (m,k), a stride of which is 1; x (k), b (m) or NULL -> y (m), which may be b */
static void FN(any_matvec)(int64_t m, int64_t k, const struct FN(matrix) * matrix, const REAL *x,
                           const REAL *b, REAL *y) {
    enum { kWide = VECTOR_REGISTERS == 32 ? 16 : 8 };
    const struct FN(matrix) W = *matrix;
    int64_t r = 0;
    for (; W.column != 1 && r + kWide * LANES <= m; r += kWide * LANES)
        FN(combine_wide_columns)(kWide, k, W.data + r, W.column, x, b ? b + r : NULL, y + r);
    for (; W.column != 1 && r + 4 * LANES <= m; r += 4 * LANES)
        FN(combine_wide_columns)(4, k, W.data + r, W.column, x, b ? b + r : NULL, y + r);
    if (W.column == 1 && FN(is_stream)(m, k)) {
        FN(stream_rows)(m, k, W.data, W.row, x, b, y);
        return;
    }
    for (; r + LANES <= m; r += LANES) {
        VEC sum = W.column == 1 ? FN(dot_rows)(k, W.data + r * W.row, W.row, x)
                                : FN(combine_columns)(k, W.data + r, W.column, x);
        if (b) sum += FN(load)(b + r);
        FN(store)(y + r, sum);
    }
    for (; r < m; r++) {
        const REAL sum = FN(dot_strided)(k, W.data + r * W.row, W.column, x);
        y[r] = b ? sum + b[r] : sum;
    }
}

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
