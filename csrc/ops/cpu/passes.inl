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
                                                                  [DPCR_RESIDUAL] = &FN(residual),
                                                                  [DPCR_EULER] = &FN(euler),
                                                                  [DPCR_LAYERS] = &FN(layers),
                                                                  [DPCR_DENOISE] = &FN(denoise)};
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
    return dpcr_step_flops(chain) + 40.0 * (double)dpcr_step_layers(chain) * (double)chain->h;
}

static REAL *FN(segment_row)(const struct segment_rows *rows, int64_t k, int64_t s, int64_t w) {
    return (REAL *)rows->data + (k * rows->samples + rows->first + s) * w;
}

/* ---- tiles ------------------------------------------------------------------------------------ */

/* A tile on its way: its samples s0..s0+count-1 of a pass, in panels of n lanes. */
struct FN(tile_at) {
    int64_t s0, count, n;
};

/* task -> tile; returns the segment, counted from 0 */
static int64_t FN(tile_of)(const dpcr_chain *chain, int64_t samples, int64_t task, struct FN(tile_at) * at) {
    const int64_t tile = FN(tile)(chain);
    /* one tile: without divisions, which cost a good part of a segment of one step */
    const int64_t tiles = samples <= tile ? 1 : dpcr_ceil_div(samples, tile),
                  k = tiles == 1 ? task : task / tiles;
    at->s0 = (task - k * tiles) * tile;
    at->count = dpcr_min(tile, samples - at->s0);
    at->n = FN(lanes_of)(tile, at->count);
    return k;
}

/* What the samples of a tile want of a segment.  A tile does what any of its samples wants: the others only
 * see their own numbers again. */
struct FN(wants) {
    bool walk, tangents, states;
};

static struct FN(wants) FN(wants_of)(const struct newton_sample *control, const struct FN(tile_at) * at,
                                     int64_t k, bool states, bool all) {
    struct FN(wants) wants = {false, false, false};
    for (int64_t s = at->s0; s < at->s0 + at->count; s++) {
        const struct newton_sample *sample = &control[s];
        if (sample->phase == NEWTON_SETTLED) continue;
        const bool keep = states && (all || sample->phase == NEWTON_CANDIDATE);
        wants.states |= keep;
        wants.walk |= keep || k >= sample->exact;
    }
    return wants;
}

/* Whether P_k of a sample is computed: not before its first boundary that is not exact, where it would meet
 * zeros, and not of the last segment, after which there is no boundary. */
static bool FN(wants_P)(const struct propagate_pass *pass, int64_t k, int64_t s) {
    if (!pass->tangents.data) return false;
    if (!pass->control) return true;
    const struct newton_sample *sample = &pass->control[s];
    return sample->refresh && pass->stale[k * pass->samples + s] && k > sample->exact && k < pass->S - 1;
}

/* ---- propagate ------------------------------------------------------------------------------ */

/* Of so many columns a sample, in tiles of n lanes. */
static struct FN(tangents) FN(tangents_of)(int64_t columns, int64_t n) {
    if (n > 1) return (struct FN(tangents)){NULL, columns, n};
    return (struct FN(tangents)){NULL, 1, columns > 1 ? dpcr_ceil_div(columns, LANES) * LANES : columns};
}

static size_t FN(propagate_scratch)(const dpcr_chain *chain, int64_t columns) {
    const struct FN(step_kind) *kind = FN(kind_of)(chain);
    const int64_t n = FN(tile)(chain), w = chain->w;
    const struct FN(tangents) Q = FN(tangents_of)(columns, n);
    size_t bytes = 2 * FN(bytes)(w * n);
    bytes += FN(bytes)(kind->scratch_rows(chain) * n + (columns ? kind->tangent_rows(chain) * Q.lanes : 0));
    if (columns) bytes += FN(bytes)(Q.panels * w * Q.lanes);
    return bytes;
}

/* v of segment k, in every lane of its one panel. */
static void FN(seed_probe)(const struct tangent_maps *maps, int64_t k, int64_t w, struct FN(tangents) Q) {
    for (int64_t i = 0; i < w; i++) {
        const REAL v = dpcr_probe_is_negative(maps->sweep, k, i) ? -1 : 1;
        for (int64_t j = 0; j < Q.lanes; j++) Q.data[i * Q.lanes + j] = v;
    }
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

/* v . Q -> P (count,w) of the tile's samples that want it */
static void FN(store_diagonals)(const struct propagate_pass *pass, int64_t k, const struct FN(tile_at) * at,
                                struct FN(tangents) Q) {
    const struct tangent_maps *maps = &pass->tangents;
    const int64_t w = pass->chain->w;
    for (int64_t s = 0; s < at->count; s++) {
        if (!FN(wants_P)(pass, k, at->s0 + s)) continue;
        REAL *P = (REAL *)maps->data + maps->first + k * maps->step + (at->s0 + s) * w;
        for (int64_t i = 0; i < w; i++) {
            const REAL q = Q.data[i * Q.lanes + s];
            P[i] = dpcr_probe_is_negative(maps->sweep, k, i) ? -q : q;
        }
    }
}

/* -> P (count,w,w) of the tile's samples that want it */
static void FN(store_tangents)(const struct propagate_pass *pass, int64_t k, const struct FN(tile_at) * at,
                               struct FN(tangents) Q) {
    const struct tangent_maps *maps = &pass->tangents;
    const int64_t w = pass->chain->w, row = maps->transposed ? 1 : w, column = maps->transposed ? w : 1;
    for (int64_t s = 0; s < at->count; s++) {
        if (!FN(wants_P)(pass, k, at->s0 + s)) continue;
        REAL *P = (REAL *)maps->data + maps->first + k * maps->step + (at->s0 + s) * w * w;
        for (int64_t i = 0; i < w; i++)
            for (int64_t c = 0; c < w; c++)
                P[i * row + c * column] =
                    at->n == 1 ? Q.data[i * Q.lanes + c] : Q.data[(c * w + i) * at->n + s];
    }
}

static const REAL *FN(start_row)(const struct propagate_pass *pass, int64_t k, int64_t s) {
    const int64_t before = dpcr_edge(k, pass->chain->L, pass->S) - 1, sample = pass->first + s;
    if (pass->starts.data) return FN(segment_row)(&pass->starts, k, s, pass->chain->w);
    return before < 0 ? FN(row)(pass->trajectory.z0, 0, sample, pass->chain)
                      : FN(row)(pass->trajectory.states, before, sample, pass->chain);
}

/* One tile through one segment. */
static void FN(walk_segment)(const struct propagate_pass *pass, int64_t k, const struct FN(tile_at) * at,
                             struct FN(wants) wants, void *memory) {
    const dpcr_chain *chain = pass->chain;
    const struct FN(step_kind) *kind = FN(kind_of)(chain);
    const int64_t w = chain->w, n = at->n;
    struct arena arena = {memory, 0};
    REAL *z = dpcr_take(&arena, FN(bytes)(w * n)), *next = dpcr_take(&arena, FN(bytes)(w * n));
    struct FN(tangents) Q = FN(tangents_of)(pass->tangents.diagonal ? 1 : w, n);
    if (wants.tangents) {
        Q.data = dpcr_take(&arena, FN(bytes)(Q.panels * w * Q.lanes));
        if (pass->tangents.diagonal)
            FN(seed_probe)(&pass->tangents, k, w, Q);
        else
            FN(seed_tangents)(w, n, Q);
    }
    REAL *scratch = dpcr_take(&arena, 0);
    const void *noise = chain->parameter[DPCR_NOISE];
    FN(load_tile)(w, at->count, n, FN(start_row)(pass, k, at->s0), z);
    const int64_t first = dpcr_edge(k, chain->L, pass->S), last = dpcr_edge(k + 1, chain->L, pass->S);
    const bool dense = wants.tangents && !pass->tangents.diagonal;
    const struct FN(walks) *walks = dense == wants.tangents ? FN(walks_of)(chain, n, !dense) : NULL;
    if (walks) {
        REAL *states = wants.states
                           ? FN(row)(pass->states, first - pass->states_first, pass->first + at->s0, chain)
                           : NULL;
        const struct FN(walk) walk = {first, last, z, states, chain->B * w};
        if (dense)
            walks->tangents(chain, &walk, Q.data, Q.lanes);
        else
            walks->forward(chain, &walk);
    }
    for (int64_t l = first; l < last && !walks; l++) {
        if (wants.tangents)
            kind->tangent(chain, l, n, z, next, Q, scratch);
        else
            kind->forward(chain, l, n, z, next, scratch);
        if (noise) FN(add_tile)(w, at->count, n, FN(row)(noise, l, pass->first + at->s0, chain), next);
        if (wants.states)
            FN(store_tile)(w, at->count, n, next,
                           FN(row)(pass->states, l - pass->states_first, pass->first + at->s0, chain), w);
        REAL *swap = z;
        z = next, next = swap;
    }
    if (pass->ends.data) FN(store_tile)(w, at->count, n, z, FN(segment_row)(&pass->ends, k, at->s0, w), w);
    if (wants.tangents && pass->tangents.diagonal)
        FN(store_diagonals)(pass, k, at, Q);
    else if (wants.tangents)
        FN(store_tangents)(pass, k, at, Q);
}

static void FN(propagate_task)(const void *argument, int64_t task, void *memory) {
    const struct propagate_pass *pass = argument;
    struct FN(tile_at) at;
    const int64_t k = pass->k0 + FN(tile_of)(pass->chain, pass->samples, task, &at);
    struct FN(wants) wants = {true, false, pass->states != NULL};
    if (pass->control) wants = FN(wants_of)(pass->control, &at, k, pass->states != NULL, pass->keep_all);
    for (int64_t s = at.s0; s < at.s0 + at.count; s++) wants.tangents |= FN(wants_P)(pass, k, s);
    if (wants.walk) FN(walk_segment)(pass, k, &at, wants, memory);
}

static void FN(run_propagation)(const struct propagate_pass *pass, void (*run)(const void *, int64_t, void *),
                                int64_t segments, double work) {
    const struct tasks tasks = {.run = run,
                                .pass = pass,
                                .count = segments * dpcr_ceil_div(pass->samples, FN(tile)(pass->chain)),
                                .work = work * (double)pass->chain->L * (double)pass->samples
                                        * FN(step_work)(pass->chain),
                                .scratch = pass->scratch,
                                .scratch_bytes = pass->scratch_bytes};
    dpcr_run_tasks(pass->exec, &tasks);
}

static void FN(propagate)(const struct propagate_pass *pass) {
    FN(run_propagation)(pass, FN(propagate_task), pass->k1 - pass->k0,
                        !pass->tangents.data      ? 1
                        : pass->tangents.diagonal ? 2
                                                  : (double)pass->chain->w + 1);
}

/* ---- the sequential walk of what is not settled ---------------------------------------------- */

/* First segment that a tile has to walk, S: none.  Puts e_{exact-1} in place as s_exact. */
static int64_t FN(first_inexact)(const struct newton_sample *control, const struct FN(tile_at) * at,
                                 int64_t S, int64_t w, const struct segment_rows *starts,
                                 const struct segment_rows *ends) {
    int64_t first = S;
    for (int64_t s = at->s0; s < at->s0 + at->count; s++) {
        const int64_t exact = control[s].exact;
        if (control[s].phase == NEWTON_SETTLED) continue;
        first = dpcr_min(first, exact);
        if (exact > 0)
            memcpy(FN(segment_row)(starts, exact, s, w), FN(segment_row)(ends, exact - 1, s, w),
                   (size_t)w * sizeof(REAL));
    }
    return first;
}

/* s_{k+1} = e_k for the samples of a tile that are not settled */
static void FN(advance)(const struct newton_sample *control, const struct FN(tile_at) * at, int64_t k,
                        int64_t w, const struct segment_rows *starts, const struct segment_rows *ends) {
    for (int64_t s = at->s0; s < at->s0 + at->count; s++)
        if (control[s].phase != NEWTON_SETTLED)
            memcpy(FN(segment_row)(starts, k + 1, s, w), FN(segment_row)(ends, k, s, w),
                   (size_t)w * sizeof(REAL));
}

static void FN(finish_task)(const void *argument, int64_t task, void *memory) {
    const struct propagate_pass *pass = argument;
    const int64_t S = pass->S, w = pass->chain->w;
    const struct FN(wants) wants = {true, false, pass->states != NULL};
    struct FN(tile_at) at;
    FN(tile_of)(pass->chain, pass->samples, task, &at);
    int64_t k = FN(first_inexact)(pass->control, &at, S, w, &pass->starts, &pass->ends);
    if (k == S) return;
    /* the states before the first inexact segment have not been kept by anybody yet */
    for (k = pass->states ? 0 : k; k < S; k++) {
        FN(walk_segment)(pass, k, &at, wants, memory);
        if (k + 1 < S) FN(advance)(pass->control, &at, k, w, &pass->starts, &pass->ends);
    }
}

static void FN(finish)(const struct propagate_pass *pass) {
    FN(run_propagation)(pass, FN(finish_task), 1, 1);
}

/* ---- pullback ------------------------------------------------------------------------------- */

static size_t FN(pullback_scratch)(const dpcr_chain *chain) {
    const int64_t n = FN(tile)(chain);
    return FN(bytes)(chain->w * n) + FN(bytes)(FN(kind_of)(chain)->scratch_rows(chain) * n);
}

static int64_t FN(saved_size)(const dpcr_chain *chain) {
    return FN(kind_of)(chain)->saved_size(chain);
}

/* One tile back through the steps of a segment that are in the pass. */
static void FN(walk_back)(const struct pullback_pass *pass, int64_t k, const struct FN(tile_at) * at,
                          void *memory) {
    const dpcr_chain *chain = pass->chain;
    const struct FN(step_kind) *kind = FN(kind_of)(chain);
    const int64_t w = chain->w, n = at->n, s0 = pass->sample + at->s0, own = pass->S - 1 - k;
    const int64_t start = dpcr_edge(own, chain->L, pass->S), end = dpcr_edge(own + 1, chain->L, pass->S);
    const int64_t unfrozen = pass->parameters_alone ? dpcr_first_unfrozen(pass->arrays, start, end) : start,
                  first = dpcr_max(pass->first, unfrozen), last = dpcr_min(pass->last, end);
    struct arena arena = {memory, 0};
    REAL *g = dpcr_take(&arena, FN(bytes)(w * n));
    struct FN(step_back) back = {.n = n, .count = at->count, .g = g, .scratch = dpcr_take(&arena, 0)};
    FN(load_tile)(w, at->count, n, FN(segment_row)(&pass->starts, k, at->s0, w), g);
    const struct FN(walks) *walks = FN(walks_of)(chain, n, false);
    if (walks) walks->back(pass, &(struct FN(walk_back)){first, last, s0, g});
    for (int64_t l = last - 1; l >= first && !walks; l--) {
        back.l = l;
        back.before = FN(before)(pass, l, s0);
        back.after = FN(row)(pass->states, l - pass->states_first, s0, chain);
        back.saved = FN(saved_row)(pass, l, s0);
        if (pass->arrays->gstates)
            FN(add_tile)(w, at->count, n, FN(row)(pass->arrays->gstates, l, s0, chain), g);
        kind->pullback(chain, &back);
    }
    FN(store_tile)(w, at->count, n, g, FN(segment_row)(&pass->ends, k, at->s0, w), w);
}

static void FN(pullback_task)(const void *argument, int64_t task, void *memory) {
    const struct pullback_pass *pass = argument;
    struct FN(tile_at) at;
    const int64_t k = pass->k0 + FN(tile_of)(pass->chain, pass->samples, task, &at);
    if (!pass->control || FN(wants_of)(pass->control, &at, k, false, false).walk)
        FN(walk_back)(pass, k, &at, memory);
}

static void FN(finish_pullback_task)(const void *argument, int64_t task, void *memory) {
    const struct pullback_pass *pass = argument;
    const int64_t w = pass->chain->w;
    struct FN(tile_at) at;
    FN(tile_of)(pass->chain, pass->samples, task, &at);
    int64_t k = FN(first_inexact)(pass->control, &at, pass->S, w, &pass->starts, &pass->ends);
    for (k = dpcr_max(k, pass->k0); k < pass->k1; k++) {
        FN(walk_back)(pass, k, &at, memory);
        if (k + 1 < pass->S) FN(advance)(pass->control, &at, k, w, &pass->starts, &pass->ends);
    }
}

static void FN(run_pullback)(const struct pullback_pass *pass, void (*run)(const void *, int64_t, void *),
                             int64_t segments) {
    const dpcr_chain *chain = pass->chain;
    const struct tasks tasks = {.run = run,
                                .pass = pass,
                                .count = segments * dpcr_ceil_div(pass->samples, FN(tile)(chain)),
                                .work = 2.0 * (double)(pass->last - pass->first) * (double)pass->samples
                                        * FN(step_work)(chain),
                                .scratch = pass->scratch,
                                .scratch_bytes = pass->scratch_bytes};
    dpcr_run_tasks(pass->exec, &tasks);
}

static void FN(pullback)(const struct pullback_pass *pass) {
    FN(run_pullback)(pass, FN(pullback_task), pass->k1 - pass->k0);
}

static void FN(finish_pullback)(const struct pullback_pass *pass) {
    FN(run_pullback)(pass, FN(finish_pullback_task), 1);
}

/* Steps first..last-1 of the pass. */
static struct FN(steps) FN(steps_of)(const struct pullback_pass *pass, int64_t first, int64_t last) {
    const REAL *saved = pass->saved;
    return (struct FN(steps)){first, last - first,
                              saved + (first - pass->first) * pass->chain->B * pass->saved_size,
                              FN(before)(pass, first, 0)};
}

/* One part of the gradients of shared parameters: runs of steps that are not frozen, from the last. */
static void FN(add_runs)(const struct pullback_pass *pass, int64_t part) {
    int64_t first;
    for (int64_t end = pass->last; end > pass->first; end = first) {
        first = end - 1;
        if (FN(is_frozen)(pass, first)) continue;
        /* the state before step pass->first lies elsewhere than the others */
        while (first > pass->first + 1 && !FN(is_frozen)(pass, first - 1)) first--;
        FN(kind_of)(pass->chain)->add_gradient(pass, part, FN(steps_of)(pass, first, end));
    }
}

/* The steps, then the parts of what they share. */
static void FN(gradient_task)(const void *argument, int64_t task, void *memory) {
    (void)memory;
    const struct pullback_pass *pass = argument;
    const int64_t steps = pass->last - pass->first, l = pass->first + task;
    if (task >= steps) {
        FN(add_runs)(pass, task - steps);
    } else if (!FN(is_frozen)(pass, l)) {
        const struct FN(steps) step = FN(steps_of)(pass, l, l + 1);
        FN(kind_of)(pass->chain)->gradient(pass, l, step.saved, step.before);
    }
}

static void FN(gradient)(const struct pullback_pass *pass) {
    const dpcr_chain *chain = pass->chain;
    const struct FN(step_kind) *kind = FN(kind_of)(chain);
    if (chain->B == 1 && FN(walks_of)(chain, 1, false)) return; /* the walk back has them */
    const struct tasks tasks = {.run = FN(gradient_task),
                                .pass = pass,
                                .count = pass->last - pass->first + (kind->parts ? kind->parts(chain) : 0),
                                .work = (double)(pass->last - pass->first) * (double)chain->B
                                        * FN(step_work)(chain)};
    dpcr_run_tasks(pass->exec, &tasks);
}
