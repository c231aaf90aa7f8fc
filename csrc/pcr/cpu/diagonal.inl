/* SPDX-License-Identifier: Apache-2.0
 *
 * The loop over diagonal blocks where a step is a few elements: they stay in registers from step to step.
 */

/* Whether a step of n samples is a few elements of diagonal blocks, side by side. */
static bool FN(is_packed_diagonal)(const struct walk *walk, int64_t n) {
    const int64_t w = walk->w;
    return walk->block == DPCR_DIAGONAL && n * w <= 8 * LANES
           && (n == 1 || (walk->M.sample == w && walk->b.sample == w && walk->x.sample == w))
           && (n == 1 || !walk->x0.data || walk->x0.sample == w);
}

/* V vectors of elements from `at` on, V a constant at every call, through all steps, in registers. */
INLINE void FN(walk_elements)(const int V, const struct walk *walk, int64_t s0, int64_t at) {
    const REAL *M = FN(block_at)(&walk->M, 0, s0).M.data, *b = FN(rows_at)(&walk->b, 0, s0).data,
               *x0 = FN(start)(walk, s0).data;
    REAL *to = FN(rows_at)(&walk->x, 0, s0).data;
    VEC x[4];
    for (int v = 0; v < V; v++) x[v] = x0 ? FN(load)(x0 + at + v * LANES) : FN(load)(b + at + v * LANES);
    for (int v = 0; v < V && !x0; v++) FN(store)(to + at + v * LANES, x[v]); /* M_0 may not exist */
    for (int64_t j = x0 ? 0 : 1; j < walk->L; j++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) {
            const int64_t i = at + v * LANES;
            x[v] = FN(load)(M + j * walk->M.step + i) * x[v] + FN(load)(b + j * walk->b.step + i);
            FN(store)(to + j * walk->x.step + i, x[v]);
        }
}

/* Elements at..count-1 of a group of samples, one by one. */
static void FN(walk_rest)(const struct walk *walk, int64_t s0, int64_t at, int64_t count) {
    const REAL *M = FN(block_at)(&walk->M, 0, s0).M.data, *b = FN(rows_at)(&walk->b, 0, s0).data,
               *x0 = FN(start)(walk, s0).data;
    REAL *to = FN(rows_at)(&walk->x, 0, s0).data;
    for (int64_t i = at; i < count; i++) {
        REAL x = x0 ? x0[i] : b[i];
        if (!x0) to[i] = x;
        for (int64_t j = x0 ? 0 : 1; j < walk->L; j++)
            x = to[j * walk->x.step + i] = M[j * walk->M.step + i] * x + b[j * walk->b.step + i];
    }
}

static void FN(walk_diagonal)(const struct walk *walk, int64_t s0, int64_t n) {
    const int64_t count = n * walk->w;
    int64_t at = 0;
    for (; at + 4 * LANES <= count; at += 4 * LANES) FN(walk_elements)(4, walk, s0, at);
    for (; at + LANES <= count; at += LANES) FN(walk_elements)(1, walk, s0, at);
    FN(walk_rest)(walk, s0, at, count);
}
