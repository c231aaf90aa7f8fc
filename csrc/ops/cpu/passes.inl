/* SPDX-License-Identifier: Apache-2.0
 *
 * The fused passes over any step kind: a tile of samples walks through a segment of steps, forward or
 * back, without leaving the cache; then parameter gradients, step by step.
 *
 * Tiles are of a size that depends on the chain alone, and every sum over samples runs in their order,
 * so neither the number of threads nor who runs a task changes a bit.
 */

static const struct FN(step_kind) * FN(kind_of)(const dpcr_chain *chain) {
    static const struct FN(step_kind) *const kinds[DPCR_STEPS] = {[DPCR_MLP] = &FN(mlp),
                                                                  [DPCR_RESIDUAL] = &FN(residual)};
    return kinds[chain->step];
}

/* Samples of a tile.  Below 4 a panel is mostly empty lanes: each sample is a vector of its own.  For
 * wide states a tile must be large enough to pay for reading the weights (64 samples: 32 operations a
 * byte); for narrow ones the weights stay in the L2 cache, and a small tile leaves work for threads. */
static int64_t FN(tile)(const dpcr_chain *chain) {
    return chain->B < 4 ? 1 : chain->B <= LANES ? LANES : chain->w <= 32 ? 2 * LANES : 4 * LANES;
}

static size_t FN(bytes)(int64_t elements) {
    return dpcr_round_up((size_t)elements * sizeof(REAL));
}

/* Operations of one pass over the chain, per sample. */
static double FN(step_work)(const dpcr_chain *chain) {
    return (chain->step == DPCR_MLP ? 2.0 : 4.0) * (double)chain->w * (double)chain->h
           + 40.0 * (double)chain->h;
}

static REAL *FN(row)(const void *rows, int64_t index, int64_t s, const dpcr_chain *chain) {
    return rows ? (REAL *)rows + (index * chain->B + s) * chain->w : NULL;
}

/* ---- propagate ------------------------------------------------------------------------------ */

static int64_t FN(tangent_lanes)(const dpcr_chain *chain, int64_t n) {
    return n == 1 ? dpcr_ceil_div(chain->w, LANES) * LANES : n;
}

static size_t FN(propagate_scratch)(const dpcr_chain *chain, bool tangents) {
    const struct FN(step_kind) *kind = FN(kind_of)(chain);
    const int64_t n = FN(tile)(chain), w = chain->w, lanes = FN(tangent_lanes)(chain, n);
    size_t bytes = 2 * FN(bytes)(w * n);
    bytes += FN(bytes)(kind->scratch_rows(chain) * n + (tangents ? kind->tangent_rows(chain) * lanes : 0));
    if (tangents) bytes += FN(bytes)((n == 1 ? 1 : w) * w * lanes);
    return bytes;
}

/* The identity, as tangents of a tile. */
static void FN(seed_tangents)(int64_t w, int64_t n, struct FN(tangents) Q) {
    memset(Q.data, 0, (size_t)(Q.panels * w * Q.lanes) * sizeof(REAL));
    for (int64_t i = 0; i < w; i++)
        if (n == 1)
            Q.data[i * Q.lanes + i] = 1;
        else
            for (int64_t j = 0; j < n; j++) Q.data[(i * w + i) * n + j] = 1;
}

/* -> P (count,w,w) of the tile's samples */
static void FN(store_tangents)(int64_t w, int64_t n, int64_t count, struct FN(tangents) Q, REAL *P) {
    for (int64_t s = 0; s < count; s++)
        for (int64_t i = 0; i < w; i++)
            for (int64_t c = 0; c < w; c++)
                P[(s * w + i) * w + c] = n == 1 ? Q.data[i * Q.lanes + c] : Q.data[(c * w + i) * n + s];
}

static void FN(propagate_task)(const void *argument, int64_t task, void *memory) {
    const struct propagate_pass *pass = argument;
    const dpcr_chain *chain = pass->chain;
    const struct FN(step_kind) *kind = FN(kind_of)(chain);
    const int64_t w = chain->w, tile = FN(tile)(chain), tiles = dpcr_ceil_div(chain->B, tile);
    const int64_t k = task / tiles, s0 = task % tiles * tile, count = dpcr_min(tile, chain->B - s0);
    const int64_t n = FN(lanes_of)(tile, count), lanes = FN(tangent_lanes)(chain, n);
    struct arena arena = {memory, 0};
    REAL *z = dpcr_take(&arena, FN(bytes)(w * n)), *next = dpcr_take(&arena, FN(bytes)(w * n));
    const bool tangents = pass->arrays.tangents != NULL;
    struct FN(tangents) Q = {NULL, n == 1 ? 1 : w, lanes};
    if (tangents) {
        Q.data = dpcr_take(&arena, FN(bytes)(Q.panels * w * lanes));
        FN(seed_tangents)(w, n, Q);
    }
    REAL *scratch = dpcr_take(&arena, 0);
    FN(load_tile)(w, count, n, FN(row)(pass->arrays.starts, k, s0, chain), z);
    const int64_t last = dpcr_edge(k + 1, chain->L, pass->S);
    for (int64_t l = dpcr_edge(k, chain->L, pass->S); l < last; l++) {
        if (tangents)
            kind->tangent(chain, l, n, z, next, Q, scratch);
        else
            kind->forward(chain, l, n, z, next, scratch);
        if (pass->arrays.states)
            FN(store_tile)(w, count, n, next, FN(row)(pass->arrays.states, l, s0, chain), w);
        REAL *swap = z;
        z = next, next = swap;
    }
    FN(store_tile)(w, count, n, z, FN(row)(pass->arrays.ends, k, s0, chain), w);
    if (tangents)
        FN(store_tangents)(w, n, count, Q, (REAL *)pass->arrays.tangents + (k * chain->B + s0) * w * w);
}

static void FN(propagate)(const struct propagate_pass *pass) {
    const dpcr_chain *chain = pass->chain;
    const double columns = pass->arrays.tangents ? (double)chain->w + 1 : 1;
    const struct tasks tasks = {.run = FN(propagate_task),
                                .pass = pass,
                                .count = pass->S * dpcr_ceil_div(chain->B, FN(tile)(chain)),
                                .work = (double)chain->L * (double)chain->B * columns * FN(step_work)(chain),
                                .scratch = pass->scratch,
                                .scratch_bytes = pass->scratch_bytes};
    dpcr_run_tasks(pass->exec, &tasks);
}

/* ---- pullback ------------------------------------------------------------------------------- */

static size_t FN(pullback_scratch)(const dpcr_chain *chain) {
    const int64_t n = FN(tile)(chain);
    return FN(bytes)(chain->w * n) + FN(bytes)(FN(kind_of)(chain)->scratch_rows(chain) * n);
}

static int64_t FN(saved_size)(const dpcr_chain *chain) {
    return FN(kind_of)(chain)->saved_size(chain);
}

/* rows (B,w) of z_{l-1} */
static const REAL *FN(before)(const struct pullback_pass *pass, int64_t l, int64_t s) {
    return l == 0 ? FN(row)(pass->arrays->z0, 0, s, pass->chain)
                  : FN(row)(pass->arrays->states, l - 1, s, pass->chain);
}

static void FN(pullback_task)(const void *argument, int64_t task, void *memory) {
    const struct pullback_pass *pass = argument;
    const dpcr_chain *chain = pass->chain;
    const struct FN(step_kind) *kind = FN(kind_of)(chain);
    const int64_t w = chain->w, tile = FN(tile)(chain), s0 = task * tile,
                  count = dpcr_min(tile, chain->B - s0);
    const int64_t n = FN(lanes_of)(tile, count);
    struct arena arena = {memory, 0};
    REAL *g = dpcr_take(&arena, FN(bytes)(w * n)), *adjoint = FN(row)(pass->adjoint, 0, s0, chain);
    struct FN(step_back) back = {.n = n, .count = count, .g = g, .scratch = dpcr_take(&arena, 0)};
    FN(load_tile)(w, count, n, adjoint, g);
    for (int64_t l = pass->last - 1; l >= pass->first; l--) {
        back.l = l;
        back.before = FN(before)(pass, l, s0);
        back.after = FN(row)(pass->arrays->states, l, s0, chain);
        if (pass->saved)
            back.saved = (REAL *)pass->saved + ((l - pass->first) * chain->B + s0) * pass->saved_size;
        if (pass->arrays->gstates) FN(add_tile)(w, count, n, FN(row)(pass->arrays->gstates, l, s0, chain), g);
        kind->pullback(chain, &back);
    }
    FN(store_tile)(w, count, n, g, adjoint, w);
}

static void FN(pullback)(const struct pullback_pass *pass) {
    const dpcr_chain *chain = pass->chain;
    const struct tasks tasks = {.run = FN(pullback_task),
                                .pass = pass,
                                .count = dpcr_ceil_div(chain->B, FN(tile)(chain)),
                                .work = 2.0 * (double)(pass->last - pass->first) * (double)chain->B
                                        * FN(step_work)(chain),
                                .scratch = pass->scratch,
                                .scratch_bytes = pass->scratch_bytes};
    dpcr_run_tasks(pass->exec, &tasks);
}

static void FN(gradient_task)(const void *argument, int64_t task, void *memory) {
    (void)memory;
    const struct pullback_pass *pass = argument;
    const REAL *saved = (const REAL *)pass->saved + task * pass->chain->B * pass->saved_size;
    FN(kind_of)(pass->chain)
        ->gradient(pass, pass->first + task, saved, FN(before)(pass, pass->first + task, 0));
}

static void FN(gradient)(const struct pullback_pass *pass) {
    const dpcr_chain *chain = pass->chain;
    const struct tasks tasks = {.run = FN(gradient_task),
                                .pass = pass,
                                .count = pass->last - pass->first,
                                .work = (double)(pass->last - pass->first) * (double)chain->B
                                        * FN(step_work)(chain)};
    dpcr_run_tasks(pass->exec, &tasks);
}
