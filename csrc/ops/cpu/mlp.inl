/* SPDX-License-Identifier: Apache-2.0
 *
 * Step kind: MLP layer  f(z) = act(u), u = W z + b.
 *
 *   tangent    dz' = act'(u) . (W dz)
 *   pullback   gu = act'(u) . g,  gz = W^T gu         kept: gu
 *   gradient   gW = sum gu z^T,   gb = sum gu
 *
 * act'(u) comes from z' itself for the kinds that allow it; else u is computed again.
 */

static int64_t FN(mlp_scratch_rows)(const dpcr_chain *chain) {
    return 2 * chain->w; /* u or act'(u), z_{l-1} */
}

static int64_t FN(mlp_tangent_rows)(const dpcr_chain *chain) {
    return chain->w;
}

static void FN(mlp_forward)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, REAL *next,
                            REAL *scratch) {
    (void)scratch;
    const int64_t w = chain->w;
    FN(linear)(w, n, w, FN(parameter)(chain, DPCR_W1, l), z, FN(parameter)(chain, DPCR_B1, l), next);
    FN(activation)(chain->activation, chain->activation_parameter, w * n, next, next, NULL);
}

static void FN(mlp_tangent)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, REAL *next,
                            struct FN(tangents) tangents, REAL *scratch) {
    const int64_t w = chain->w, size = w * tangents.lanes;
    const REAL *W = FN(parameter)(chain, DPCR_W1, l);
    REAL *D = scratch, *product = scratch + FN(mlp_scratch_rows)(chain) * n;
    FN(linear)(w, n, w, W, z, FN(parameter)(chain, DPCR_B1, l), D);
    FN(activation)(chain->activation, chain->activation_parameter, w * n, D, next, D);
    for (int64_t p = 0; p < tangents.panels; p++) {
        REAL *Q = tangents.data + p * size;
        FN(linear)(w, tangents.lanes, w, W, Q, NULL, product);
        FN(scale_panel)(w, n, tangents.lanes, D, product);
        memcpy(Q, product, (size_t)size * sizeof(REAL));
    }
}

static int64_t FN(mlp_saved_size)(const dpcr_chain *chain) {
    return chain->w;
}

static void FN(mlp_pullback)(const dpcr_chain *chain, const struct FN(step_back) * back) {
    const int64_t w = chain->w, n = back->n;
    const REAL *W = FN(parameter)(chain, DPCR_W1, back->l);
    REAL *D = back->scratch, *z = back->scratch + w * n;
    if (FN(slope_from_value)(chain->activation)) {
        FN(load_tile)(w, back->count, n, back->after, D);
        FN(slope_of_value)(chain->activation, w * n, D, D);
    } else {
        FN(load_tile)(w, back->count, n, back->before, z);
        FN(linear)(w, n, w, W, z, FN(parameter)(chain, DPCR_B1, back->l), D);
        FN(activation)(chain->activation, chain->activation_parameter, w * n, D, NULL, D);
    }
    for (int64_t i = 0; i < w * n; i++) D[i] *= back->g[i];
    if (back->saved) FN(store_tile)(w, back->count, n, D, back->saved, w);
    FN(linear_transposed)(w, n, w, W, D, back->g);
}

static void FN(mlp_gradient)(const struct pullback_pass *pass, int64_t l, const REAL *saved,
                             const REAL *before) {
    const int64_t w = pass->chain->w, B = pass->chain->B;
    REAL *gW = FN(gradient_of)(pass, DPCR_W1, l), *gb = FN(gradient_of)(pass, DPCR_B1, l);
    if (gW) FN(sum_outer)(w, w, B, saved, w, before, w, gW);
    if (gb) FN(sum_rows)(w, B, saved, w, gb);
}

static const struct FN(step_kind) FN(mlp) = {
    FN(mlp_scratch_rows),
    FN(mlp_tangent_rows),
    FN(mlp_forward),
    FN(mlp_tangent),
    FN(mlp_pullback),
    FN(mlp_saved_size),
    FN(mlp_gradient),
    NULL,
    NULL,
};
