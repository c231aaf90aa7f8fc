/* SPDX-License-Identifier: Apache-2.0
 *
 * LayerNorm and RMSNorm over the w rows of a panel, every lane for itself:
 *
 *   xhat = (z - mean) rstd,  rstd = 1 / sqrt(mean((z - mean)^2) + eps)      (RMS: mean = 0)
 *   y    = gamma . xhat + beta
 *
 * Their Jacobian is diag(gamma) rstd (I - 1 1^T / w - xhat xhat^T / w), without the middle term for
 * RMS: symmetric but for gamma, so project() serves tangents (before gamma) and vjps (after it).
 */

/* sum of x (w), times y (w) if not NULL */
static REAL FN(state_sum)(int64_t w, const REAL *x, const REAL *y) {
    switch (w * REAL_BYTES <= VECTOR_BYTES ? w : 0) {
#if 4 * REAL_BYTES <= VECTOR_BYTES
    case 4: return FN(total_4)(FN(times_4)(x, y))[0];
#endif
#if 8 * REAL_BYTES <= VECTOR_BYTES
    case 8: return FN(total_8)(FN(times_8)(x, y))[0];
#endif
#if 16 * REAL_BYTES <= VECTOR_BYTES
    case 16: return FN(total_16)(FN(times_16)(x, y))[0];
#endif
    default: break;
    }
    if (y) return FN(row_dot)(w, x, y);
    VEC acc = {0};
    REAL sum = 0;
    int64_t i = 0;
    for (; i + LANES <= w; i += LANES) acc += FN(load)(x + i);
    for (int j = 0; j < LANES; j++) sum += acc[j];
    for (; i < w; i++) sum += x[i];
    return sum;
}

/* column sums of x (w,n), times y (w,n) if not NULL -> sums (n); n is 1 or whole vectors */
static void FN(lane_sums)(int64_t w, int64_t n, const REAL *x, const REAL *y, REAL *sums) {
    if (n == 1) sums[0] = FN(state_sum)(w, x, y);
    for (int64_t j = 0; n > 1 && j < n; j += LANES) {
        VEC sum = {0};
        if (y)
            for (int64_t i = 0; i < w; i++) sum += FN(load)(x + i * n + j) * FN(load)(y + i * n + j);
        else
            for (int64_t i = 0; i < w; i++) sum += FN(load)(x + i * n + j);
        FN(store)(sums + j, sum);
    }
}

/* share: 1 / w */
INLINE REAL FN(inverse_deviation)(REAL squares, REAL share, REAL eps) {
    return 1 / FN(root)(squares * share + eps);
}

/* z (w,n) -> xhat (w,n), rstd (n); xhat may be z */
static void FN(standardise)(const dpcr_chain *chain, int64_t n, const REAL *z, REAL *xhat, REAL *rstd) {
    const int64_t w = chain->w;
    const REAL share = 1 / (REAL)w, eps = (REAL)chain->norm_eps;
    if (xhat != z) memcpy(xhat, z, (size_t)(w * n) * sizeof(REAL));
    if (chain->norm == DPCR_LAYER_NORM) {
        FN(lane_sums)(w, n, z, NULL, rstd);
        for (int64_t i = 0; i < w; i++)
            for (int64_t j = 0; j < n; j++) xhat[i * n + j] -= rstd[j] * share;
    }
    FN(lane_sums)(w, n, xhat, xhat, rstd);
    for (int64_t j = 0; j < n; j++) rstd[j] = FN(inverse_deviation)(rstd[j], share, eps);
    for (int64_t i = 0; i < w; i++)
        for (int64_t j = 0; j < n; j++) xhat[i * n + j] *= rstd[j];
}

/* xhat (w,n), gamma, beta (w) or NULL -> y (w,n) = gamma . xhat + beta; y may be xhat */
static void FN(affine)(int64_t w, int64_t n, const REAL *gamma, const REAL *beta, const REAL *xhat, REAL *y) {
    for (int64_t i = 0; i < w; i++) {
        const REAL a = gamma ? gamma[i] : 1, b = beta ? beta[i] : 0;
        for (int64_t j = 0; j < n; j++) y[i * n + j] = a * xhat[i * n + j] + b;
    }
}

/* v <- rstd (v - mean - xhat along), rows of lanes; step is a constant at every call: 1, or 0 to broadcast */
INLINE void FN(subtract_projection)(const int64_t step, int64_t w, int64_t lanes, const REAL *xhat,
                                    const REAL *rstd, const REAL *sums, REAL *v) {
    const REAL share = 1 / (REAL)w, *mean = sums, *along = sums + lanes;
    for (int64_t i = 0; i < w; i++) {
        const REAL *x = xhat + i * (step ? lanes : 1);
        REAL *row = v + i * lanes;
        for (int64_t j = 0; j < lanes; j++)
            row[j] = rstd[j * step] * (row[j] - mean[j] * share - x[j * step] * (along[j] * share));
    }
}

/* v (w,lanes) <- rstd (v - mean(v) - xhat mean(xhat v)); xhat (w,n), rstd (n), broadcast along the
 * lanes where n = 1; sums: 2 lanes */
static void FN(project)(const dpcr_chain *chain, int64_t n, int64_t lanes, const REAL *xhat, const REAL *rstd,
                        REAL *v, REAL *sums) {
    const int64_t w = chain->w;
    REAL *mean = sums, *along = sums + lanes;
    memset(sums, 0, (size_t)(2 * lanes) * sizeof(REAL));
    if (chain->norm == DPCR_LAYER_NORM) FN(lane_sums)(w, lanes, v, NULL, mean);
    if (n == lanes) {
        FN(lane_sums)(w, lanes, v, xhat, along);
        FN(subtract_projection)(1, w, lanes, xhat, rstd, sums, v);
        return;
    }
    for (int64_t i = 0; i < w; i++)
        for (int64_t j = 0; j < lanes; j++) along[j] += xhat[i] * v[i * lanes + j];
    FN(subtract_projection)(0, w, lanes, xhat, rstd, sums, v);
}
