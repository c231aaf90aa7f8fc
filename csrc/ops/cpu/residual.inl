/* SPDX-License-Identifier: Apache-2.0
 *
 * Step kind: residual block  f(z) = z + s v,  v = W2 a + b2,  a = act(u),  u = W1 y + b1,  y = norm(z).
 *
 *   tangent    dz' = dz + s W2 (act'(u) . W1 (norm' dz))
 *   pullback   gv = s g,  gu = act'(u) . (W2^T gv),  gy = W1^T gu,  gz = g + norm'^T gy
 *   gradient   gW2 = sum gv a^T,  gb2 = sum gv,  gW1 = sum gu y^T,  gb1 = sum gu,
 *              ggamma = sum gy . xhat,  gbeta = sum gy
 *
 * Backward computes u again from z_{l-1}: one product more, and only the states are kept by forward.
 */

/* Panels of one block: forward uses the first two rows of this list. */
struct FN(residual_panels) {
    REAL *y, *u;          /* (w,n), (h,n) */
    REAL *slope, *gu;     /* (h,n): act'(u); gu */
    REAL *xhat, *gv, *gy; /* (w,n) */
    REAL *rstd, *sums;    /* (n), (2,n) */
};

static int64_t FN(residual_scratch_rows)(const dpcr_chain *chain) {
    return 4 * chain->w + 3 * chain->h + 3;
}

static struct FN(residual_panels) FN(residual_carve)(const dpcr_chain *chain, int64_t n, REAL *scratch) {
    const int64_t wn = chain->w * n, hn = chain->h * n;
    struct FN(residual_panels) p;
    p.y = scratch, p.xhat = p.y + wn, p.gv = p.xhat + wn, p.gy = p.gv + wn;
    p.u = p.gy + wn, p.slope = p.u + hn, p.gu = p.slope + hn;
    p.rstd = p.gu + hn, p.sums = p.rstd + n;
    return p;
}

static int64_t FN(residual_tangent_rows)(const dpcr_chain *chain) {
    return chain->w + chain->h + 2;
}

/* z -> y, u (and xhat, rstd) */
static void FN(residual_inner)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z,
                               struct FN(residual_panels) * p) {
    const REAL *y = z;
    if (chain->norm != DPCR_NO_NORM) {
        FN(standardise)(chain, n, z, p->xhat, p->rstd);
        FN(affine)(chain->w, n, FN(parameter)(chain, DPCR_GAMMA, l), FN(parameter)(chain, DPCR_BETA, l),
                   p->xhat, p->y);
        y = p->y;
    }
    FN(linear)(chain->h, n, chain->w, FN(parameter)(chain, DPCR_W1, l), y, FN(parameter)(chain, DPCR_B1, l),
               p->u);
}

/* next = z + s (W2 a + b2) */
static void FN(residual_outer)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, const REAL *a,
                               REAL *next) {
    const REAL scale = (REAL)chain->scale;
    FN(linear)(chain->w, n, chain->h, FN(parameter)(chain, DPCR_W2, l), a, FN(parameter)(chain, DPCR_B2, l),
               next);
    for (int64_t i = 0; i < chain->w * n; i++) next[i] = z[i] + scale * next[i];
}

static void FN(residual_forward)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, REAL *next,
                                 REAL *scratch) {
    struct FN(residual_panels) p = FN(residual_carve)(chain, n, scratch);
    FN(residual_inner)(chain, l, n, z, &p);
    FN(activation)(chain->activation, chain->activation_parameter, chain->h * n, p.u, p.u, NULL);
    FN(residual_outer)(chain, l, n, z, p.u, next);
}

static void FN(residual_tangent)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, REAL *next,
                                 struct FN(tangents) tangents, REAL *scratch) {
    const int64_t w = chain->w, h = chain->h, lanes = tangents.lanes, size = w * lanes;
    const REAL *W1 = FN(parameter)(chain, DPCR_W1, l), *W2 = FN(parameter)(chain, DPCR_W2, l);
    const REAL *gamma = FN(parameter)(chain, DPCR_GAMMA, l), scale = (REAL)chain->scale;
    struct FN(residual_panels) p = FN(residual_carve)(chain, n, scratch);
    REAL *outer = scratch + FN(residual_scratch_rows)(chain) * n, *inner = outer + size,
         *sums = inner + h * lanes;
    FN(residual_inner)(chain, l, n, z, &p);
    FN(activation)(chain->activation, chain->activation_parameter, h * n, p.u, p.u, p.slope);
    FN(residual_outer)(chain, l, n, z, p.u, next);
    for (int64_t c = 0; c < tangents.panels; c++) {
        REAL *Q = tangents.data + c * size;
        memcpy(outer, Q, (size_t)size * sizeof(REAL));
        if (chain->norm != DPCR_NO_NORM) {
            FN(project)(chain, n, lanes, p.xhat, p.rstd, outer, sums);
            if (gamma) FN(scale_panel)(w, 1, lanes, gamma, outer);
        }
        FN(linear)(h, lanes, w, W1, outer, NULL, inner);
        FN(scale_panel)(h, n, lanes, p.slope, inner);
        FN(linear)(w, lanes, h, W2, inner, NULL, outer);
        for (int64_t i = 0; i < size; i++) Q[i] += scale * outer[i];
    }
}

/* One sample's row of what the gradients need: gv (w), gu (h), a (h), and with a norm gy, xhat, y (w each). */
static int64_t FN(residual_saved_size)(const dpcr_chain *chain) {
    return (chain->norm == DPCR_NO_NORM ? 1 : 4) * chain->w + 2 * chain->h;
}

static void FN(residual_save)(const dpcr_chain *chain, const struct FN(step_back) * back,
                              const struct FN(residual_panels) * p) {
    const int64_t w = chain->w, h = chain->h, n = back->n, count = back->count;
    const int64_t stride = FN(residual_saved_size)(chain);
    REAL *rows = back->saved;
    FN(store_tile)(w, count, n, p->gv, rows, stride);
    FN(store_tile)(h, count, n, p->gu, rows + w, stride);
    FN(store_tile)(h, count, n, p->u, rows + w + h, stride);
    if (chain->norm == DPCR_NO_NORM) return;
    rows += w + 2 * h;
    FN(store_tile)(w, count, n, p->gy, rows, stride);
    FN(store_tile)(w, count, n, p->xhat, rows + w, stride);
    FN(store_tile)(w, count, n, p->y, rows + 2 * w, stride);
}

static void FN(residual_pullback)(const dpcr_chain *chain, const struct FN(step_back) * back) {
    const int64_t w = chain->w, h = chain->h, n = back->n, l = back->l;
    const REAL scale = (REAL)chain->scale, *gamma = FN(parameter)(chain, DPCR_GAMMA, l);
    struct FN(residual_panels) p = FN(residual_carve)(chain, n, back->scratch);
    FN(load_tile)(w, back->count, n, back->before, p.gy); /* z, until gy takes its place */
    FN(residual_inner)(chain, l, n, p.gy, &p);
    /* both, whoever needs a: computed alone the slope may be rounded otherwise */
    FN(activation)(chain->activation, chain->activation_parameter, h * n, p.u, p.u, p.slope);
    for (int64_t i = 0; i < w * n; i++) p.gv[i] = scale * back->g[i];
    FN(linear_transposed)(w, n, h, FN(parameter)(chain, DPCR_W2, l), p.gv, p.gu);
    for (int64_t i = 0; i < h * n; i++) p.gu[i] *= p.slope[i];
    FN(linear_transposed)(h, n, w, FN(parameter)(chain, DPCR_W1, l), p.gu, p.gy);
    if (back->saved) FN(residual_save)(chain, back, &p);
    if (chain->norm != DPCR_NO_NORM) {
        if (gamma) FN(scale_panel)(w, 1, n, gamma, p.gy);
        FN(project)(chain, n, n, p.xhat, p.rstd, p.gy, p.sums);
    }
    for (int64_t i = 0; i < w * n; i++) back->g[i] += p.gy[i];
}

static void FN(residual_gradient)(const struct pullback_pass *pass, int64_t l, const REAL *saved,
                                  const REAL *before) {
    const int64_t w = pass->chain->w, h = pass->chain->h, B = pass->chain->B;
    const int64_t stride = FN(residual_saved_size)(pass->chain);
    const bool norm = pass->chain->norm != DPCR_NO_NORM;
    const REAL *gv = saved, *gu = gv + w, *a = gu + h, *gy = a + h, *xhat = gy + w,
               *y = norm ? xhat + w : before;
    REAL *gW1 = FN(gradient_of)(pass, DPCR_W1, l), *gb1 = FN(gradient_of)(pass, DPCR_B1, l);
    REAL *gW2 = FN(gradient_of)(pass, DPCR_W2, l), *gb2 = FN(gradient_of)(pass, DPCR_B2, l);
    REAL *ggamma = FN(gradient_of)(pass, DPCR_GAMMA, l), *gbeta = FN(gradient_of)(pass, DPCR_BETA, l);
    if (gW1) FN(sum_outer)(h, w, B, gu, stride, y, norm ? stride : w, gW1);
    if (gb1) FN(sum_rows)(h, B, gu, stride, gb1);
    if (gW2) FN(sum_outer)(w, h, B, gv, stride, a, stride, gW2);
    if (gb2) FN(sum_rows)(w, B, gv, stride, gb2);
    if (gbeta) FN(sum_rows)(w, B, gy, stride, gbeta);
    if (ggamma) FN(sum_products)(w, B, gy, xhat, stride, ggamma);
}

static const struct FN(step_kind) FN(residual) = {
    FN(residual_scratch_rows),
    FN(residual_tangent_rows),
    FN(residual_forward),
    FN(residual_tangent),
    FN(residual_pullback),
    FN(residual_saved_size),
    FN(residual_gradient),
    NULL,
    NULL,
};
