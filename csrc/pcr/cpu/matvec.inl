/* SPDX-License-Identifier: Apache-2.0
 *
 * y = W x + b for one vector: outputs in lanes, because there are no samples to fill them.  By rows, dot products whose
 * sums are added up in a tree; by columns, whole stretches of outputs.  Most of it is about how memory is read.
 */

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
    for (; i + 4 * LANES <= k; i += 4 * LANES) {
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
