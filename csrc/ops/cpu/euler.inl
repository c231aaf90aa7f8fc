/* SPDX-License-Identifier: Apache-2.0
 *
 * Step kind: explicit Euler step of z' = act(u)  f(z) = z + s act(u), u = W z + b.
 *
 *   tangent    dz' = dz + s act'(u) . (W dz)
 *   pullback   gu = s act'(u) . g,  gz = g + W^T gu         kept: gu
 *   gradient   gW = sum gu z^T,   gb = sum gu               as of an MLP layer
 *
 * Backward computes u again from z_{l-1}: one product more, and only the states are kept by forward.
 */

static int64_t FN(euler_scratch_rows)(const dpcr_chain *chain) {
    return 3 * chain->w; /* u, then act(u) or act'(u); z_{l-1}; W^T gu */
}

static void FN(euler_forward)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, REAL *next,
                              REAL *scratch) {
    const int64_t w = chain->w;
    const REAL scale = (REAL)chain->scale;
    FN(linear)(w, n, w, FN(parameter)(chain, DPCR_W1, l), z, FN(parameter)(chain, DPCR_B1, l), scratch);
    FN(activation)(chain->activation, chain->activation_parameter, w * n, scratch, scratch, NULL);
    for (int64_t i = 0; i < w * n; i++) next[i] = z[i] + scale * scratch[i];
}

static void FN(euler_tangent)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, REAL *next,
                              struct FN(tangents) tangents, REAL *scratch) {
    const int64_t w = chain->w, size = w * tangents.lanes;
    const REAL scale = (REAL)chain->scale, *W = FN(parameter)(chain, DPCR_W1, l);
    REAL *D = scratch + w * n, *product = scratch + FN(euler_scratch_rows)(chain) * n;
    FN(linear)(w, n, w, W, z, FN(parameter)(chain, DPCR_B1, l), D);
    FN(activation)(chain->activation, chain->activation_parameter, w * n, D, scratch, D);
    for (int64_t i = 0; i < w * n; i++) next[i] = z[i] + scale * scratch[i];
    for (int64_t p = 0; p < tangents.panels; p++) {
        REAL *Q = tangents.data + p * size;
        FN(linear)(w, tangents.lanes, w, W, Q, NULL, product);
        FN(scale_panel)(w, n, tangents.lanes, D, product);
        for (int64_t i = 0; i < size; i++) Q[i] += scale * product[i];
    }
}

static void FN(euler_pullback)(const dpcr_chain *chain, const struct FN(step_back) * back) {
    const int64_t w = chain->w, n = back->n;
    const REAL scale = (REAL)chain->scale, *W = FN(parameter)(chain, DPCR_W1, back->l);
    REAL *gu = back->scratch, *z = gu + w * n, *gz = z + w * n;
    FN(load_tile)(w, back->count, n, back->before, z);
    FN(linear)(w, n, w, W, z, FN(parameter)(chain, DPCR_B1, back->l), gu);
    FN(activation)(chain->activation, chain->activation_parameter, w * n, gu, NULL, gu);
    for (int64_t i = 0; i < w * n; i++) gu[i] *= scale * back->g[i];
    if (back->saved) FN(store_tile)(w, back->count, n, gu, back->saved, w);
    FN(linear_transposed)(w, n, w, W, gu, gz);
    for (int64_t i = 0; i < w * n; i++) back->g[i] += gz[i];
}

static const struct FN(step_kind) FN(euler) = {
    FN(euler_scratch_rows),
    FN(mlp_tangent_rows),
    FN(euler_forward),
    FN(euler_tangent),
    FN(euler_pullback),
    FN(mlp_saved_size),
    FN(mlp_gradient),
    NULL,
    NULL,
};
