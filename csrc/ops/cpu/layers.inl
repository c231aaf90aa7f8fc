/* SPDX-License-Identifier: Apache-2.0
 *
 * Step kind: M layers  f(z) = (skip ? z : 0) + s a_M,  a_m = act(y_m),  y_m = norm(u_m),
 * u_m = W_m a_{m-1} + b_m,  a_0 = z.
 *
 *   tangent    V_m = act'(y_m) . norm'_m W_m V_{m-1},  V_0 = dz,  dz' = (skip ? dz : 0) + s V_M
 *   pullback   ga_M = s g;  gy_m = act'(y_m) . ga_m,  gu_m = norm'_m^T gy_m,  ga_{m-1} = W_m^T gu_m;
 *              gz = (skip ? g : 0) + ga_0
 *   gradient   gW_m = sum gu_m a_{m-1}^T,  gb_m = sum gu_m,  ggamma_m = sum gy_m . xhat_m,  gbeta_m = sum gy_m
 *
 * The norm stands behind its matrix, not before it as in a residual block.  Backward computes all layers again
 * from z_{l-1}: M products more, and only the L states are kept by forward.
 */

/* What a layer leaves behind. */
struct FN(layer) {
    REAL *a, *xhat, *slope; /* (w,n): its output; of the norm; act'(y) */
    REAL *rstd;             /* (n) */
};

static int64_t FN(layer_rows)(const dpcr_chain *chain) {
    return 3 * chain->w + 1;
}

static struct FN(layer) FN(layer_carve)(const dpcr_chain *chain, int64_t n, int64_t m, REAL *scratch) {
    const int64_t wn = chain->w * n;
    REAL *a = scratch + m * FN(layer_rows)(chain) * n;
    return (struct FN(layer)){a, a + wn, a + 2 * wn, a + 3 * wn};
}

/* All layers, then z, two gradients and the sums of a projection. */
static int64_t FN(layers_scratch_rows)(const dpcr_chain *chain) {
    return chain->layers * FN(layer_rows)(chain) + 3 * chain->w + 2;
}

/* V_m and V_{m-1}, and the sums of a projection. */
static int64_t FN(layers_tangent_rows)(const dpcr_chain *chain) {
    return 2 * chain->w + 2;
}

static const REAL *FN(layer_vector)(const dpcr_chain *chain, dpcr_parameter which, int64_t l, int64_t m) {
    const REAL *vectors = FN(parameter)(chain, which, l);
    return vectors ? vectors + m * chain->w : NULL;
}

static const REAL *FN(layer_matrix)(const dpcr_chain *chain, int64_t l, int64_t m) {
    return FN(parameter)(chain, DPCR_W1, l) + m * chain->w * chain->w;
}

/* a_{m-1} (w,n) -> layer m (counted from 0): a, xhat, rstd, and act'(y) where `slope` says so */
static void FN(layer_forward)(const dpcr_chain *chain, int64_t l, int64_t m, int64_t n, const REAL *input,
                              bool slope, struct FN(layer) * to) {
    const int64_t w = chain->w;
    FN(linear)(w, n, w, FN(layer_matrix)(chain, l, m), input, FN(layer_vector)(chain, DPCR_B1, l, m), to->a);
    if (chain->norm != DPCR_NO_NORM) {
        FN(standardise)(chain, n, to->a, to->xhat, to->rstd);
        FN(affine)(w, n, FN(layer_vector)(chain, DPCR_GAMMA, l, m), FN(layer_vector)(chain, DPCR_BETA, l, m),
                   to->xhat, to->a);
    }
    FN(activation)(chain->activation, chain->activation_parameter, w * n, to->a, to->a,
                   slope ? to->slope : NULL);
}

/* x (count) -> y = (skip ? x : 0) + factor v; y may be x or v */
static void FN(layers_outer)(const dpcr_chain *chain, int64_t count, const REAL *x, REAL factor,
                             const REAL *v, REAL *y) {
    if (chain->skip)
        for (int64_t i = 0; i < count; i++) y[i] = x[i] + factor * v[i];
    else
        for (int64_t i = 0; i < count; i++) y[i] = factor * v[i];
}

/* All layers, each in a place of its own; the last is returned. */
static struct FN(layer)
    FN(layers_inner)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, REAL *scratch) {
    struct FN(layer) layer = {0};
    for (int64_t m = 0; m < chain->layers; m++) {
        layer = FN(layer_carve)(chain, n, m, scratch);
        FN(layer_forward)(chain, l, m, n, z, true, &layer);
        z = layer.a;
    }
    return layer;
}

static void FN(layers_forward)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, REAL *next,
                               REAL *scratch) {
    const REAL *a = z;
    for (int64_t m = 0; m < chain->layers; m++) {
        struct FN(layer) layer = FN(layer_carve)(chain, n, m % 2, scratch); /* two places stay in the cache */
        FN(layer_forward)(chain, l, m, n, a, false, &layer);
        a = layer.a;
    }
    FN(layers_outer)(chain, chain->w * n, z, (REAL)chain->scale, a, next);
}

/* V (w,lanes) -> out (w,lanes) = act'(y) . norm' W V of layer m */
static void FN(layer_tangent)(const dpcr_chain *chain, int64_t l, int64_t m, int64_t n, int64_t lanes,
                              const struct FN(layer) * at, const REAL *V, REAL *out, REAL *sums) {
    const int64_t w = chain->w;
    const REAL *gamma = FN(layer_vector)(chain, DPCR_GAMMA, l, m);
    FN(linear)(w, lanes, w, FN(layer_matrix)(chain, l, m), V, NULL, out);
    if (chain->norm != DPCR_NO_NORM) FN(project)(chain, n, lanes, at->xhat, at->rstd, out, sums);
    if (gamma) FN(scale_panel)(w, 1, lanes, gamma, out);
    FN(scale_panel)(w, n, lanes, at->slope, out);
}

static void FN(layers_tangent)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, REAL *next,
                               struct FN(tangents) tangents, REAL *scratch) {
    const int64_t w = chain->w, lanes = tangents.lanes, size = w * lanes;
    const REAL scale = (REAL)chain->scale;
    REAL *panels = scratch + FN(layers_scratch_rows)(chain) * n, *sums = panels + 2 * size;
    FN(layers_outer)(chain, w * n, z, scale, FN(layers_inner)(chain, l, n, z, scratch).a, next);
    for (int64_t c = 0; c < tangents.panels; c++) {
        REAL *Q = tangents.data + c * size, *V = Q;
        for (int64_t m = 0; m < chain->layers; m++) {
            const struct FN(layer) at = FN(layer_carve)(chain, n, m, scratch);
            REAL *out = panels + m % 2 * size;
            FN(layer_tangent)(chain, l, m, n, lanes, &at, V, out, sums);
            V = out;
        }
        FN(layers_outer)(chain, size, Q, scale, V, Q);
    }
}

/* Elements that a layer has in one sample's row of what the gradients need: gu, a, and with a norm gy, xhat
 * (w each). */
static int64_t FN(layer_saved)(const dpcr_chain *chain) {
    return (chain->norm == DPCR_NO_NORM ? 2 : 4) * chain->w;
}

/* a is the last piece of a layer, so that of the last one, which no gradient needs, is left out. */
static int64_t FN(layers_saved_size)(const dpcr_chain *chain) {
    return chain->layers * FN(layer_saved)(chain) - chain->w;
}

static void FN(layer_save)(const dpcr_chain *chain, const struct FN(step_back) * back, int64_t m,
                           const struct FN(layer) * at, const REAL *gy, const REAL *gu) {
    const int64_t w = chain->w, n = back->n, stride = FN(layers_saved_size)(chain);
    REAL *rows = back->saved + m * FN(layer_saved)(chain);
    FN(store_tile)(w, back->count, n, gu, rows, stride);
    if (chain->norm != DPCR_NO_NORM) {
        FN(store_tile)(w, back->count, n, gy, rows + w, stride);
        FN(store_tile)(w, back->count, n, at->xhat, rows + 2 * w, stride);
        rows += 2 * w;
    }
    if (m + 1 < chain->layers) FN(store_tile)(w, back->count, n, at->a, rows + w, stride);
}

static void FN(layers_pullback)(const dpcr_chain *chain, const struct FN(step_back) * back) {
    const int64_t w = chain->w, n = back->n, l = back->l, size = w * n;
    const bool norm = chain->norm != DPCR_NO_NORM;
    REAL *z = back->scratch + chain->layers * FN(layer_rows)(chain) * n, *g = z + size, *gu = g + size,
         *sums = gu + size;
    FN(load_tile)(w, back->count, n, back->before, z);
    FN(layers_inner)(chain, l, n, z, back->scratch);
    for (int64_t i = 0; i < size; i++) g[i] = (REAL)chain->scale * back->g[i];
    for (int64_t m = chain->layers - 1; m >= 0; m--) {
        const struct FN(layer) at = FN(layer_carve)(chain, n, m, back->scratch);
        const REAL *gamma = FN(layer_vector)(chain, DPCR_GAMMA, l, m);
        for (int64_t i = 0; i < size; i++) g[i] *= at.slope[i];
        memcpy(gu, g, (size_t)size * sizeof(REAL));
        if (gamma) FN(scale_panel)(w, 1, n, gamma, gu);
        if (norm) FN(project)(chain, n, n, at.xhat, at.rstd, gu, sums);
        if (back->saved) FN(layer_save)(chain, back, m, &at, g, gu);
        FN(linear_transposed)(w, n, w, FN(layer_matrix)(chain, l, m), gu, g);
    }
    FN(layers_outer)(chain, size, back->g, 1, g, back->g);
}

static void FN(layer_gradient)(const struct pullback_pass *pass, int64_t l, int64_t m, const REAL *saved,
                               const REAL *input, int64_t input_stride) {
    const int64_t w = pass->chain->w, B = pass->chain->B, stride = FN(layers_saved_size)(pass->chain);
    const REAL *gu = saved, *gy = gu + w, *xhat = gy + w;
    REAL *gW = FN(gradient_of)(pass, DPCR_W1, l), *gb = FN(gradient_of)(pass, DPCR_B1, l);
    REAL *ggamma = FN(gradient_of)(pass, DPCR_GAMMA, l), *gbeta = FN(gradient_of)(pass, DPCR_BETA, l);
    if (gW) FN(sum_outer)(w, w, B, gu, stride, input, input_stride, gW + m * w * w);
    if (gb) FN(sum_rows)(w, B, gu, stride, gb + m * w);
    if (gbeta) FN(sum_rows)(w, B, gy, stride, gbeta + m * w);
    if (ggamma) FN(sum_products)(w, B, gy, xhat, stride, ggamma + m * w);
}

static void FN(layers_gradient)(const struct pullback_pass *pass, int64_t l, const REAL *saved,
                                const REAL *before) {
    const dpcr_chain *chain = pass->chain;
    const int64_t w = chain->w, piece = FN(layer_saved)(chain), stride = FN(layers_saved_size)(chain);
    FN(layer_gradient)(pass, l, 0, saved, before, w);
    for (int64_t m = 1; m < chain->layers; m++)
        FN(layer_gradient)(pass, l, m, saved + m * piece, saved + m * piece - w, stride);
}

static const struct FN(step_kind) FN(layers) = {
    FN(layers_scratch_rows),
    FN(layers_tangent_rows),
    FN(layers_forward),
    FN(layers_tangent),
    FN(layers_pullback),
    FN(layers_saved_size),
    FN(layers_gradient),
    NULL,
    NULL,
};
