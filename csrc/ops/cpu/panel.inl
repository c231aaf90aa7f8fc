/* SPDX-License-Identifier: Apache-2.0
 *
 * What step kinds and passes are made of.  A *panel* (rows, n) holds one tile with its samples in lanes; n = 1
 * is a single sample as a plain vector.  Rows of samples in memory are (count, w).
 */

/* W (m,k), X (k,n), bias (m) or NULL -> Y (m,n) = W X + bias; n: lanes of a tile, or of its tangents */
static void FN(linear)(int64_t m, int64_t n, int64_t k, const REAL *W, const REAL *X, const REAL *bias,
                       REAL *Y) {
    const struct FN(matrix) matrix = {W, k, 1};
    if (n == 1)
        FN(matvec)(m, k, &matrix, X, bias, Y);
    else
        FN(panel_product)(m, n, k, &matrix, &(struct FN(panel)){X, n}, bias, Y, n);
}

/* W (m,k), G (m,n) -> Y (k,n) = W^T G */
static void FN(linear_transposed)(int64_t m, int64_t n, int64_t k, const REAL *W, const REAL *G, REAL *Y) {
    const struct FN(matrix) transposed = {W, 1, k};
    if (n == 1)
        FN(matvec)(k, m, &transposed, G, NULL, Y);
    else
        FN(panel_product)(k, n, m, &transposed, &(struct FN(panel)){G, n}, NULL, Y, n);
}

static void FN(load_tile)(int64_t w, int64_t count, int64_t n, const REAL *rows, REAL *panel) {
    if (n == 1)
        memcpy(panel, rows, (size_t)w * sizeof(REAL));
    else
        FN(load_panel)(w, count, rows, w, panel, n);
}

/* stride: elements from one sample's row to the next */
static void FN(store_tile)(int64_t w, int64_t count, int64_t n, const REAL *panel, REAL *rows,
                           int64_t stride) {
    if (n == 1 && panel != rows)
        memcpy(rows, panel, (size_t)w * sizeof(REAL));
    else if (n > 1)
        FN(store_panel)(w, count, panel, n, rows, stride);
}

static void FN(add_tile)(int64_t w, int64_t count, int64_t n, const REAL *rows, REAL *panel) {
    for (int64_t i = 0; i < w; i++)
        for (int64_t j = 0; j < count; j++) panel[i * n + j] += rows[j * w + i];
}

/* Lanes of the panel of `count` samples: whole vectors, but 1 for a tile of one sample. */
static int64_t FN(lanes_of)(int64_t tile, int64_t count) {
    return tile == 1 ? 1 : dpcr_ceil_div(count, LANES) * LANES;
}

static const REAL *FN(parameter)(const dpcr_chain *chain, dpcr_parameter which, int64_t l) {
    const REAL *data = chain->parameter[which];
    return data ? data + l * dpcr_parameter_stride(chain, which) : NULL;
}

static REAL *FN(gradient_of)(const struct pullback_pass *pass, dpcr_parameter which, int64_t l) {
    REAL *data = pass->arrays->gparameter[which];
    return data ? data + l * dpcr_parameter_stride(pass->chain, which) : NULL;
}

/* Row (l, s) of an array (-,B,w) of the chain. */
static REAL *FN(row)(const void *rows, int64_t l, int64_t s, const dpcr_chain *chain) {
    return rows ? (REAL *)rows + (l * chain->B + s) * chain->w : NULL;
}

/* rows (B,w) of the state before step l */
static const REAL *FN(before)(const struct pullback_pass *pass, int64_t l, int64_t s) {
    return l == pass->first ? FN(row)(pass->before, 0, s, pass->chain)
                            : FN(row)(pass->states, l - 1 - pass->states_first, s, pass->chain);
}

static bool FN(is_frozen)(const struct pullback_pass *pass, int64_t l) {
    return pass->arrays->frozen && pass->arrays->frozen[l];
}

/* (count,saved_size) of step l from sample s on, or NULL */
static REAL *FN(saved_row)(const struct pullback_pass *pass, int64_t l, int64_t s) {
    if (!pass->saved || FN(is_frozen)(pass, l)) return NULL;
    return (REAL *)pass->saved + ((l - pass->first) * pass->chain->B + s) * pass->saved_size;
}

/* D (w,n) times V (w,lanes), D broadcast along the lanes where n = 1 */
static void FN(scale_panel)(int64_t w, int64_t n, int64_t lanes, const REAL *D, REAL *V) {
    for (int64_t i = 0; i < w; i++)
        if (n == 1)
            for (int64_t j = 0; j < lanes; j++) V[i * lanes + j] *= D[i];
        else
            for (int64_t j = 0; j < lanes; j++) V[i * lanes + j] *= D[i * n + j];
}

/* g (m), x (k) -> out (m,k) = g x^T */
static void FN(outer)(int64_t m, int64_t k, const REAL *g, const REAL *x, REAL *out) {
    for (int64_t i = 0; i < m; i++) {
        int64_t j = 0;
        for (; j + LANES <= k; j += LANES) FN(store)(out + i * k + j, g[i] * FN(load)(x + j));
        for (; j + 4 <= k; j += 4) *(FN(quad) *)(out + i * k + j) = g[i] * *(const FN(quad) *)(x + j);
        for (; j < k; j++) out[i * k + j] = g[i] * x[j];
    }
}

/* G rows (count, gs), X rows (count, xs) -> out (m,k) = sum of the outer products g x^T */
static void FN(sum_outer)(int64_t m, int64_t k, int64_t count, const REAL *G, int64_t gs, const REAL *X,
                          int64_t xs, REAL *out) {
    if (count == 1) {
        FN(outer)(m, k, G, X, out);
        return;
    }
    FN(panel_product)(m, k, count, &(struct FN(matrix)){G, 1, gs}, &(struct FN(panel)){X, xs}, NULL, out, k);
}

/* The same added to out, from the last row: however the rows are cut into runs, taken from the last, no bit of the
 * sum changes. */
static void FN(add_outer)(int64_t m, int64_t k, int64_t count, const REAL *G, int64_t gs, const REAL *X,
                          int64_t xs, REAL *out) {
    const struct FN(matrix) last = {G + (count - 1) * gs, 1, -gs};
    FN(panel_add)(m, k, count, &last, &(struct FN(panel)){X + (count - 1) * xs, -xs}, out, k);
}

/* rows (count, stride) -> out (m) = their sum */
static void FN(sum_rows)(int64_t m, int64_t count, const REAL *rows, int64_t stride, REAL *out) {
    static const REAL one = 1;
    FN(panel_product)(1, m, count, &(struct FN(matrix)){&one, 0, 0}, &(struct FN(panel)){rows, stride}, NULL,
                      out, m);
}

/* G rows (count, stride), X rows (count, stride) -> out (m) = sum of g . x */
static void FN(sum_products)(int64_t m, int64_t count, const REAL *G, const REAL *X, int64_t stride,
                             REAL *out) {
    int64_t i = 0;
    for (; i + LANES <= m; i += LANES) {
        VEC sum = {0};
        for (int64_t s = 0; s < count; s++)
            sum += FN(load)(G + s * stride + i) * FN(load)(X + s * stride + i);
        FN(store)(out + i, sum);
    }
    for (; i + 4 <= m; i += 4) {
        FN(quad) sum = {0};
        for (int64_t s = 0; s < count; s++)
            sum += *(const FN(quad) *)(G + s * stride + i) * *(const FN(quad) *)(X + s * stride + i);
        *(FN(quad) *)(out + i) = sum;
    }
    for (; i < m; i++) {
        REAL sum = 0;
        for (int64_t s = 0; s < count; s++) sum += G[s * stride + i] * X[s * stride + i];
        out[i] = sum;
    }
}

/* ---- what a step kind offers ---------------------------------------------------------------- */

/* Product of step Jacobians, or its product with one vector, a column in every lane: `panels` panels (w, lanes).
 * n > 1: panel c holds column c of every sample.  n = 1: one panel holds all columns of the one sample. */
struct FN(tangents) {
    REAL *data;
    int64_t panels, lanes;
};

/* One step back for one tile. */
struct FN(step_back) {
    int64_t l, n, count;
    const REAL *before, *after; /* rows (count,w) of z_{l-1} and z_l */
    REAL *g;                    /* panel (w,n): gradient of z_l in, of z_{l-1} out */
    REAL *saved;                /* rows (count,saved_size), or NULL: no parameter gradient is wanted */
    REAL *scratch;              /* scratch_rows panels rows of n */
};

/* Steps that follow each other: saved rows (count,B,saved_size), before rows (count,B,w). */
struct FN(steps) {
    int64_t first, count;
    const REAL *saved, *before;
};

struct FN(step_kind) {
    /* Panel rows of scratch: of n lanes (forward, tangent, pullback), and of tangent lanes. */
    int64_t (*scratch_rows)(const dpcr_chain *chain);
    int64_t (*tangent_rows)(const dpcr_chain *chain);
    /* z (w,n) -> next (w,n) = f_l(z) */
    void (*forward)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, REAL *next, REAL *scratch);
    /* also tangents <- J_l(z) tangents; scratch: scratch_rows of n, then tangent_rows of tangent lanes */
    void (*tangent)(const dpcr_chain *chain, int64_t l, int64_t n, const REAL *z, REAL *next,
                    struct FN(tangents) tangents, REAL *scratch);
    void (*pullback)(const dpcr_chain *chain, const struct FN(step_back) * back);
    /* Elements per sample that pullback keeps for gradient. */
    int64_t (*saved_size)(const dpcr_chain *chain);
    /* saved rows (B,saved_size), before rows (B,w) -> the wanted parameter gradients of step l */
    void (*gradient)(const struct pullback_pass *pass, int64_t l, const REAL *saved, const REAL *before);
    /* NULL, or of parameters that all steps share: parts of their gradients, computed in parallel; and how a run of
     * steps is added to one of them, from its last row */
    int64_t (*parts)(const dpcr_chain *chain);
    void (*add_gradient)(const struct pullback_pass *pass, int64_t part, struct FN(steps) run);
};
