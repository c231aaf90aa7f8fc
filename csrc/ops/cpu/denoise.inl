/* SPDX-License-Identifier: Apache-2.0
 *
 * Step kind: denoising step  f(z) = a z + c v + n,  v = W2 x_M + b2,  x_m = x_{m-1} + act(u_m),
 * u_m = WH_m x_{m-1} + b_m,  x_0 = act(u_0),  u_0 = W1 z + b_0.
 *
 *   tangent    V_0 = act'(u_0) . (W1 dz),  V_m = V_{m-1} + act'(u_m) . (WH_m V_{m-1}),  dz' = a dz + c W2 V_M
 *   pullback   gx_M = c W2^T g;  gu_m = act'(u_m) . gx_m,  gx_{m-1} = gx_m + WH_m^T gu_m;
 *              gu_0 = act'(u_0) . gx_0,  gz = a g + W1^T gu_0
 *   gradient   gb_m = sum gu_m,  ga = sum <g, z>,  gc = sum <g, v>,  gn = g
 *   of all steps together      gW1 = sum gu_0 z^T,  gWH_m = sum gu_m x_{m-1}^T,  gW2 = sum g (c x_M)^T,  gb2 = sum c g
 *
 * The weights are the same in all steps, so they stay in the cache, and their gradients are products over the rows of
 * a whole chunk of steps.  n has a row a sample, which the walk adds (passes.inl).  Backward computes all layers again
 * from z_{l-1}: M + 1 products more, and only the L states are kept by forward; <g, v> is <W2^T g, x_M> + <g, b2>.
 */

/* All x_m and act'(u_m), then p = W2^T g and gx, W^T gu; z and gz; <g, v>. */
static int64_t FN(denoise_scratch_rows)(const dpcr_chain *chain) {
    return (2 * dpcr_step_layers(chain) + 2) * chain->h + 2 * chain->w + 1;
}

/* V_m, and a product. */
static int64_t FN(denoise_tangent_rows)(const dpcr_chain *chain) {
    return chain->h + dpcr_max(chain->h, chain->w);
}

static const REAL *FN(denoise_bias)(const dpcr_chain *chain, int64_t l, int64_t m) {
    const REAL *vectors = FN(parameter)(chain, DPCR_B1, l);
    return vectors ? vectors + m * chain->h : NULL;
}

/* WH_m, m = 1..M */
static const REAL *FN(denoise_hidden)(const dpcr_chain *chain, int64_t m) {
    return FN(parameter)(chain, DPCR_WH, 0) + (m - 1) * chain->h * chain->h;
}

/* z (w,n) -> x_m (h,n) at x + m * next, x_M is returned; act'(u_m) at slope + m h n, or NULL; u (h,n) */
static REAL *FN(denoise_inner)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, REAL *x,
                               int64_t next, REAL *slope, REAL *u) {
    const int64_t h = chain->h, hn = h * n;
    const double *p = chain->activation_parameter;
    FN(linear)(h, n, chain->w, FN(parameter)(chain, DPCR_W1, l), z, FN(denoise_bias)(chain, l, 0), x);
    FN(activation)(chain->activation, p, hn, x, x, slope);
    for (int64_t m = 1; m <= chain->layers; m++) {
        const REAL *from = x;
        x += next;
        FN(linear)(h, n, h, FN(denoise_hidden)(chain, m), from, FN(denoise_bias)(chain, l, m), u);
        FN(activation)(chain->activation, p, hn, u, u, slope ? slope + m * hn : NULL);
        for (int64_t i = 0; i < hn; i++) x[i] = from[i] + u[i];
    }
    return x;
}

/* x_M -> next = a z + c (W2 x_M + b2) */
static void FN(denoise_outer)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, const REAL *x,
                              REAL *next) {
    const int64_t wn = chain->w * n;
    const REAL *coefficients = FN(parameter)(chain, DPCR_COEFFICIENTS, l);
    const REAL a = coefficients[0], c = coefficients[1];
    FN(linear)(chain->w, n, chain->h, FN(parameter)(chain, DPCR_W2, l), x, FN(parameter)(chain, DPCR_B2, l),
               next);
    for (int64_t i = 0; i < wn; i++) next[i] *= c; /* apart: of two products in a sum, either may be fused */
    for (int64_t i = 0; i < wn; i++) next[i] += a * z[i];
}

static void FN(denoise_forward)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, REAL *next,
                                REAL *scratch) {
    REAL *x = scratch, *u = x + chain->h * n;
    FN(denoise_outer)(chain, l, n, z, FN(denoise_inner)(chain, l, n, z, x, 0, NULL, u), next);
}

/* V_0 = act'(u_0) . (W1 Q), then V_m in its place; product (h,lanes) */
static void FN(denoise_inner_tangent)(const dpcr_chain *chain, int64_t n, int64_t lanes, const REAL *slope,
                                      const REAL *Q, REAL *V, REAL *product) {
    const int64_t h = chain->h;
    FN(linear)(h, lanes, chain->w, FN(parameter)(chain, DPCR_W1, 0), Q, NULL, V);
    FN(scale_panel)(h, n, lanes, slope, V);
    for (int64_t m = 1; m <= chain->layers; m++) {
        FN(linear)(h, lanes, h, FN(denoise_hidden)(chain, m), V, NULL, product);
        FN(scale_panel)(h, n, lanes, slope + m * h * n, product);
        for (int64_t i = 0; i < h * lanes; i++) V[i] += product[i];
    }
}

static void FN(denoise_tangent)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, REAL *next,
                                struct FN(tangents) tangents, REAL *scratch) {
    const int64_t w = chain->w, hn = chain->h * n, lanes = tangents.lanes, size = w * lanes;
    const REAL *coefficients = FN(parameter)(chain, DPCR_COEFFICIENTS, l);
    const REAL a = coefficients[0], c = coefficients[1];
    REAL *x = scratch, *u = x + hn, *slope = u + hn;
    REAL *V = scratch + FN(denoise_scratch_rows)(chain) * n, *product = V + chain->h * lanes;
    FN(denoise_outer)(chain, l, n, z, FN(denoise_inner)(chain, l, n, z, x, 0, slope, u), next);
    for (int64_t i = 0; i < tangents.panels; i++) {
        REAL *Q = tangents.data + i * size;
        FN(denoise_inner_tangent)(chain, n, lanes, slope, Q, V, product);
        FN(linear)(w, lanes, chain->h, FN(parameter)(chain, DPCR_W2, l), V, NULL, product);
        for (int64_t j = 0; j < size; j++) Q[j] = a * Q[j] + c * product[j];
    }
}

/* One sample's row of what the gradients need: g (w), <g, v>, gu_0..gu_M, x_0..x_{M-1}, c x_M (h each). */
static int64_t FN(denoise_saved_size)(const dpcr_chain *chain) {
    return chain->w + 1 + 2 * dpcr_step_layers(chain) * chain->h;
}

/* p (h,n) = W2^T g, x_M (h,n), g (w,n) -> dot (n) = <g, W2 x_M + b2> */
static void FN(denoise_dot)(const dpcr_chain *chain, int64_t n, const REAL *p, const REAL *x, const REAL *g,
                            REAL *dot) {
    const int64_t w = chain->w, h = chain->h;
    const REAL *b2 = FN(parameter)(chain, DPCR_B2, 0);
    memset(dot, 0, (size_t)n * sizeof(REAL));
    if (n == 1) {
        *dot = FN(row_dot)(h, p, x) + (b2 ? FN(row_dot)(w, g, b2) : 0);
        return;
    }
    for (int64_t i = 0; i < h; i++)
        for (int64_t j = 0; j < n; j++) dot[j] += p[i * n + j] * x[i * n + j];
    for (int64_t i = 0; i < w && b2; i++)
        for (int64_t j = 0; j < n; j++) dot[j] += b2[i] * g[i * n + j];
}

/* What is known before gx: g, <g, v> and the x, of which x_M becomes c x_M. */
static void FN(denoise_save)(const dpcr_chain *chain, const struct FN(step_back) * back, REAL c, REAL *x,
                             const REAL *p, REAL *dot) {
    const int64_t w = chain->w, h = chain->h, M = chain->layers, n = back->n, hn = h * n;
    const int64_t stride = FN(denoise_saved_size)(chain);
    REAL *rows = back->saved + w + 1 + (M + 1) * h, *last = x + M * hn;
    FN(denoise_dot)(chain, n, p, last, back->g, dot);
    for (int64_t i = 0; i < hn; i++) last[i] *= c;
    FN(store_tile)(w, back->count, n, back->g, back->saved, stride);
    FN(store_tile)(1, back->count, n, dot, back->saved + w, stride);
    for (int64_t m = 0; m <= M; m++) FN(store_tile)(h, back->count, n, x + m * hn, rows + m * h, stride);
}

static void FN(denoise_pullback)(const dpcr_chain *chain, const struct FN(step_back) * back) {
    const int64_t w = chain->w, h = chain->h, M = chain->layers, n = back->n, wn = w * n, hn = h * n;
    const REAL *coefficients = FN(parameter)(chain, DPCR_COEFFICIENTS, back->l);
    const REAL a = coefficients[0], c = coefficients[1];
    REAL *x = back->scratch, *slope = x + (M + 1) * hn, *gx = slope + (M + 1) * hn, *other = gx + hn;
    REAL *z = other + hn, *gz = z + wn, *dot = gz + wn;
    FN(load_tile)(w, back->count, n, back->before, z);
    FN(denoise_inner)(chain, back->l, n, z, x, hn, slope, other);
    FN(linear_transposed)(w, n, h, FN(parameter)(chain, DPCR_W2, back->l), back->g, gx);
    if (back->saved) FN(denoise_save)(chain, back, c, x, gx, dot);
    for (int64_t i = 0; i < hn; i++) gx[i] *= c;
    for (int64_t m = M; m >= 0; m--) {
        REAL *gu = slope + m * hn;
        for (int64_t i = 0; i < hn; i++) gu[i] *= gx[i];
        if (back->saved)
            FN(store_tile)(h, back->count, n, gu, back->saved + w + 1 + m * h, FN(denoise_saved_size)(chain));
        if (m == 0) break;
        FN(linear_transposed)(h, n, h, FN(denoise_hidden)(chain, m), gu, other);
        for (int64_t i = 0; i < hn; i++) gx[i] += other[i];
    }
    FN(linear_transposed)(h, n, w, FN(parameter)(chain, DPCR_W1, back->l), slope, gz);
    for (int64_t i = 0; i < wn; i++) back->g[i] = a * back->g[i] + gz[i];
}

/* ---- parameter gradients -------------------------------------------------------------------- */

static void FN(denoise_gradient)(const struct pullback_pass *pass, int64_t l, const REAL *saved,
                                 const REAL *before) {
    const dpcr_chain *chain = pass->chain;
    const int64_t w = chain->w, B = chain->B, stride = FN(denoise_saved_size)(chain);
    REAL *gb = FN(gradient_of)(pass, DPCR_B1, l), *gn = FN(gradient_of)(pass, DPCR_NOISE, l);
    REAL *coefficients = FN(gradient_of)(pass, DPCR_COEFFICIENTS, l);
    if (gb) FN(sum_rows)((chain->layers + 1) * chain->h, B, saved + w + 1, stride, gb);
    if (coefficients) coefficients[0] = coefficients[1] = 0;
    for (int64_t s = 0; s < B; s++, saved += stride) {
        if (gn) memcpy(gn + s * w, saved, (size_t)w * sizeof(REAL));
        if (coefficients)
            coefficients[0] += FN(row_dot)(w, saved, before + s * w), coefficients[1] += saved[w];
    }
}

/* Rows of a matrix that one part takes. */
enum { FN(kPartRows) = 16 };

/* The matrices W1, WH_1..WH_M, W2 by kPartRows rows each; then b2. */
static int64_t FN(denoise_parts)(const dpcr_chain *chain) {
    return (chain->layers + 1) * dpcr_ceil_div(chain->h, FN(kPartRows))
           + dpcr_ceil_div(chain->w, FN(kPartRows)) + 1;
}

/* The steps of a run, from the last: gb2 = gb2 + c g */
static void FN(denoise_add_bias)(const struct pullback_pass *pass, struct FN(steps) run) {
    const dpcr_chain *chain = pass->chain;
    const int64_t w = chain->w, stride = FN(denoise_saved_size)(chain);
    REAL *gb = FN(gradient_of)(pass, DPCR_B2, 0);
    for (int64_t s = run.count * chain->B - 1; s >= 0 && gb; s--) {
        const REAL c = FN(parameter)(chain, DPCR_COEFFICIENTS, run.first + s / chain->B)[1];
        for (int64_t i = 0; i < w; i++) gb[i] += c * run.saved[s * stride + i];
    }
}

static void FN(denoise_add_gradient)(const struct pullback_pass *pass, int64_t part, struct FN(steps) run) {
    const dpcr_chain *chain = pass->chain;
    const int64_t w = chain->w, h = chain->h, M = chain->layers, stride = FN(denoise_saved_size)(chain);
    const int64_t per_layer = dpcr_ceil_div(h, FN(kPartRows)), layers = (M + 1) * per_layer;
    const REAL *g = run.saved, *gu = g + w + 1, *x = gu + (M + 1) * h;
    if (part == FN(denoise_parts)(chain) - 1) {
        FN(denoise_add_bias)(pass, run);
        return;
    }
    const bool last = part >= layers; /* W2 */
    const int64_t m = last ? M + 1 : part / per_layer;
    const int64_t row = (last ? part - layers : part % per_layer) * FN(kPartRows);
    const int64_t rows = dpcr_min(FN(kPartRows), (last ? w : h) - row), columns = m == 0 ? w : h;
    REAL *gW = FN(gradient_of)(pass, m == 0 ? DPCR_W1 : last ? DPCR_W2 : DPCR_WH, 0);
    if (!gW) return;
    const REAL *from = (last ? g : gu + m * h) + row, *to = m == 0 ? run.before : x + (m - 1) * h;
    gW += (m > 0 && !last ? (m - 1) * h * h : 0) + row * columns;
    FN(add_outer)(rows, columns, run.count * chain->B, from, stride, to, m == 0 ? w : stride, gW);
}

static const struct FN(step_kind) FN(denoise) = {
    FN(denoise_scratch_rows), FN(denoise_tangent_rows), FN(denoise_forward),
    FN(denoise_tangent),      FN(denoise_pullback),     FN(denoise_saved_size),
    FN(denoise_gradient),     FN(denoise_parts),        FN(denoise_add_gradient),
};
