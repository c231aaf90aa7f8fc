/* SPDX-License-Identifier: Apache-2.0
 *
 * The vector-Jacobian product of a chain.  With S > 1 the gradients at the segment boundaries come first,
 * by the driver of newton.h on the adjoint, which is linear: with dense P, that of the final states, one
 * sweep solves it and the next confirms it.
 *
 * Then all steps are walked back in *chunks*, from the last: its segments and tiles of samples in parallel,
 * keeping what the parameter gradients need; then those gradients (steps in parallel; of shared parameters,
 * to which all chunks add, parts of the parameter in parallel).  So what is kept
 * never grows with L, and is read again while it is still in the cache.  Where forward kept checkpoints, a
 * chunk's states are computed again first.  Frozen steps keep nothing; where the gradient of z0 is not wanted, or
 * known already, the walk of a segment ends at its first step that is not frozen.
 */
#include "ops/device.h"
#include "ops/kernels.h"

#include <string.h>

/* What a chunk keeps should stay in the L2 cache next to its states. */
static const int64_t kChunkBytes = 512 << 10;

struct backward {
    dpcr_exec exec;
    const dpcr_chain *chain;
    const dpcr_pullback *arrays;
    const struct chain_kernels *kernels;
    dpcr_newton options;
    int64_t S;
    int64_t units, chunk;      /* a chunk is a run of that many of the `units` pieces of the chain */
    int64_t tasks, saved_size; /* saved_size in elements per step and sample */
    size_t scratch_bytes;
    bool parameters, recompute;
    bool alone;   /* the walk for the parameter gradients serves nothing else */
    int64_t tile; /* samples that Newton takes at once */

    char *scratch, *saved, *states; /* states: of one chunk */
    struct segment_rows starts, ends;
    void *newton;

    int64_t first, samples; /* of the tile that Newton works on */
};

/* ---- chunks ---------------------------------------------------------------------------------- */

static bool wants_parameters(const dpcr_pullback *arrays) {
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (arrays->gparameter[i]) return true;
    return false;
}

static int64_t edge(const struct backward *b, int64_t unit) {
    return dpcr_edge(unit, b->chain->L, b->units);
}

/* Steps of the largest chunk. */
static int64_t chunk_steps(const struct backward *b) {
    return dpcr_min(b->chain->L, b->chunk * dpcr_ceil_div(b->chain->L, dpcr_max(b->units, 1)));
}

static struct propagate_pass forward_pass(const struct backward *b) {
    return (struct propagate_pass){.exec = b->exec,
                                   .chain = b->chain,
                                   .first = b->first,
                                   .samples = b->samples,
                                   .scratch = b->scratch,
                                   .scratch_bytes = b->scratch_bytes};
}

/* Puts the states of the units u0..u1-1 in place. */
static void provide_states(const struct backward *b, int64_t u0, int64_t u1, struct pullback_pass *pass) {
    const dpcr_chain *chain = b->chain;
    const size_t step = (size_t)(chain->B * chain->w) * dpcr_size_of(chain->dtype);
    pass->first = edge(b, u0), pass->last = edge(b, u1);
    if (!b->recompute) {
        pass->states = b->arrays->states;
        pass->before = pass->first == 0 ? b->arrays->z0
                                        : (const char *)b->arrays->states + (size_t)(pass->first - 1) * step;
        return;
    }
    struct propagate_pass again = forward_pass(b);
    again.S = b->units, again.k0 = u0, again.k1 = u1;
    again.starts = (struct segment_rows){(void *)b->arrays->checkpoints, chain->B, b->first};
    again.states = b->states, again.states_first = pass->first;
    b->kernels->propagate(&again);
    pass->states = b->states, pass->states_first = pass->first;
    pass->before = (const char *)b->arrays->checkpoints + (size_t)u0 * step;
}

/* Whether no step of the units u0..u1-1, or before them where the walk goes on, has a parameter gradient. */
static bool is_idle(const struct backward *b, int64_t u0, int64_t u1) {
    const int64_t first = b->S > 1 ? edge(b, u0) : 0, last = edge(b, u1);
    return b->alone && dpcr_first_unfrozen(b->arrays, first, last) == last;
}

/* Runs `walk` (and the parameter gradients, if asked for) over all chunks, from the last. */
static void for_chunks(const struct backward *b, const struct newton *n,
                       void (*walk)(const struct pullback_pass *), bool gradients) {
    for (int64_t u1 = b->units; u1 > 0; u1 = dpcr_max(0, u1 - b->chunk)) {
        const int64_t u0 = dpcr_max(0, u1 - b->chunk);
        struct pullback_pass pass = {.exec = b->exec,
                                     .chain = b->chain,
                                     .arrays = b->arrays,
                                     .S = b->S,
                                     .k0 = b->S > 1 ? b->S - u1 : 0,
                                     .k1 = b->S > 1 ? b->S - u0 : 1,
                                     .sample = b->first,
                                     .samples = b->samples,
                                     .starts = n ? n->starts : b->starts,
                                     .ends = n ? n->ends : b->ends,
                                     .control = n ? n->samples : NULL,
                                     .saved = gradients ? b->saved : NULL,
                                     .saved_size = b->saved_size,
                                     .parameters_alone = gradients && b->alone,
                                     .scratch = b->scratch,
                                     .scratch_bytes = b->scratch_bytes};
        if (gradients && is_idle(b, u0, u1)) continue;
        provide_states(b, u0, u1, &pass);
        walk(&pass);
        if (gradients) b->kernels->gradient(&pass);
    }
}

/* ---- the adjoint as a problem of newton.h: its segment k is the chain's S-1-k ---------------- */

/* P_k^T of the chain's segments 1..S-2, from the final states. */
static void compute_tangents(const struct backward *b, const struct newton *n) {
    const int64_t size = n->B * dpcr_P_size(n->options.structure, n->w);
    struct propagate_pass pass = forward_pass(b);
    pass.S = n->S, pass.k0 = 1, pass.k1 = n->S - 1;
    pass.trajectory = (struct trajectory){b->arrays->z0, b->arrays->states};
    if (b->recompute)
        pass.starts = (struct segment_rows){(void *)b->arrays->checkpoints, b->chain->B, b->first};
    pass.tangents = (struct tangent_maps){
        n->system.maps, n->S * size, -size, true, n->options.structure == DPCR_P_DIAGONAL, n->sweep};
    if (pass.k1 > pass.k0) b->kernels->propagate(&pass);
}

static void propagate(const struct newton *n) {
    const struct backward *b = n->problem;
    if (n->sweep == 1 && dpcr_P_columns(n->options.structure, n->w) > 0) compute_tangents(b, n);
    for_chunks(b, n, b->kernels->pullback, false);
}

static void finish(const struct newton *n) {
    const struct backward *b = n->problem;
    for_chunks(b, n, b->kernels->finish_pullback, false);
}

static int64_t steps_from(const struct newton *n, int64_t k) {
    const struct backward *b = n->problem;
    return dpcr_edge(n->S - k, b->chain->L, n->S);
}

static double factor(const struct newton *n, int64_t k) {
    const struct backward *b = n->problem;
    return dpcr_segment_factor(b->chain, n->S, n->S - 1 - k);
}

static struct newton make_newton(const struct backward *b) {
    return (struct newton){.exec = b->exec,
                           .dtype = b->chain->dtype,
                           .options = b->options,
                           .once = true,
                           .S = b->S,
                           .B = b->samples,
                           .w = b->chain->w,
                           .starts = {b->starts.data, b->chain->B, b->first},
                           .ends = {b->ends.data, b->chain->B, b->first},
                           .step_flops = dpcr_step_flops(b->chain),
                           .propagate = propagate,
                           .finish = finish,
                           .steps_from = steps_from,
                           .factor = factor,
                           .problem = b};
}

/* Gradients of the states after every segment. */
static void solve_adjoint(struct backward *b) {
    for (b->first = 0; b->first < b->chain->B; b->first += b->tile) {
        b->samples = dpcr_min(b->tile, b->chain->B - b->first);
        struct newton n = make_newton(b);
        dpcr_newton_carve(&n, b->newton);
        dpcr_newton_solve(&n);
        dpcr_newton_report(&n, b->arrays->report, b->chain->B, b->first);
    }
    b->first = 0, b->samples = b->chain->B;
}

static void report_sequential(const struct backward *b) {
    const int64_t B = b->chain->B, L = b->chain->L,
                  first = b->alone ? dpcr_first_unfrozen(b->arrays, 0, L) : 0;
    for (int64_t s = 0; b->arrays->report && s < B; s++) {
        b->arrays->report[DPCR_SWEEPS * B + s] = 1;
        b->arrays->report[DPCR_FLOPS * B + s] = (double)(L - first) * dpcr_step_flops(b->chain);
    }
}

/* ---- workspace ------------------------------------------------------------------------------- */

static size_t carve(struct backward *b, void *base) {
    const dpcr_chain *chain = b->chain;
    const size_t element = dpcr_size_of(chain->dtype), rows = (size_t)(b->S * chain->B * chain->w) * element,
                 steps = (size_t)(chunk_steps(b) * chain->B) * element;
    struct arena arena = {base, 0};
    b->scratch = dpcr_take(&arena, (size_t)dpcr_slots(b->exec, b->tasks) * b->scratch_bytes);
    b->starts = (struct segment_rows){dpcr_take(&arena, rows), chain->B, 0};
    b->ends = b->starts;
    if (b->S > 1) b->ends.data = dpcr_take(&arena, rows);
    b->saved = b->parameters ? dpcr_take(&arena, steps * (size_t)b->saved_size) : NULL;
    b->states = b->recompute ? dpcr_take(&arena, steps * (size_t)chain->w) : NULL;
    if (b->S == 1) return arena.used;
    struct newton n = make_newton(b);
    n.B = b->tile;
    if (!base) n.starts.data = n.ends.data = b; /* set, so that they are not taken: never read */
    b->newton = base ? (char *)base + arena.used : NULL;
    return arena.used + dpcr_newton_carve(&n, b->newton);
}

/* The largest value up to `most` with which the workspace fits the cap, at least 1: bytes grow with it. */
static void shrink(struct backward *b, int64_t *value, int64_t most, const dpcr_plan *plan) {
    *value = dpcr_max(most, 1);
    if (plan->workspace_cap == 0 || carve(b, NULL) <= plan->workspace_cap) return;
    int64_t fits = 1, over = *value;
    while (over - fits > 1) {
        *value = fits + (over - fits) / 2;
        if (carve(b, NULL) <= plan->workspace_cap)
            fits = *value;
        else
            over = *value;
    }
    *value = fits;
}

static dpcr_status plan_workspace(struct backward *b, const dpcr_plan *plan, size_t *bytes) {
    const dpcr_chain *chain = b->chain;
    const int64_t element = (int64_t)dpcr_size_of(chain->dtype);
    const int64_t columns = b->S > 1 ? dpcr_P_columns(b->options.structure, chain->w) : 0;
    b->kernels = dpcr_chain_kernels(b->exec.device, chain->dtype);
    b->units = b->S > 1 ? b->S : b->recompute ? dpcr_checkpoints(chain->L, 1) : chain->L;
    b->tasks = dpcr_tile_count(chain, b->kernels->tile(chain), dpcr_max(b->units, 1), chain->B);
    const size_t back = b->kernels->pullback_scratch(chain),
                 forth = columns || b->recompute ? b->kernels->propagate_scratch(chain, columns) : 0;
    b->scratch_bytes = b->tasks == 0 ? 0 : back > forth ? back : forth;
    b->saved_size = b->kernels->saved_size(chain);
    const int64_t step =
        chain->B * element * ((b->parameters ? b->saved_size : 0) + (b->recompute ? chain->w : 0));
    const int64_t unit = step * dpcr_ceil_div(chain->L, dpcr_max(b->units, 1));
    const int64_t threads = b->exec.threads;
    b->exec.threads = b->chunk = b->tile = 1;
    shrink(b, &b->chunk, unit > 0 ? dpcr_min(b->units, kChunkBytes / unit) : b->units, plan);
    if (b->S > 1) shrink(b, &b->tile, chain->B, plan);
    shrink(b, &b->exec.threads, threads, plan);
    *bytes = carve(b, NULL);
    return dpcr_fit_cap(plan, *bytes);
}

/* ---- the calls ------------------------------------------------------------------------------- */

static dpcr_status prepare(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *arrays,
                           const dpcr_plan *plan, struct backward *b) {
    RETURN_IF(dpcr_check_chain(exec, chain, plan));
    REQUIRE(arrays, "pass is NULL");
    RETURN_IF(dpcr_check_newton(arrays->newton));
    int64_t S;
    RETURN_IF(dpcr_check_segments(chain, plan, &S));
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        REQUIRE(dpcr_has_parameter(chain, i) || !arrays->gparameter[i],
                "gparameter[DPCR_%s] is given, but this chain has none", dpcr_parameter_names[i]);
    *b = (struct backward){.exec = exec,
                           .chain = chain,
                           .arrays = arrays,
                           .S = S,
                           .samples = chain->B,
                           .parameters = wants_parameters(arrays),
                           .recompute = !arrays->states && arrays->checkpoints};
    b->alone = b->parameters && (S > 1 || !arrays->gz0);
    b->options = arrays->newton ? *arrays->newton : dpcr_newton_default(chain->dtype);
    b->options.finish = true; /* a gradient is exact or it is none */
    b->options.atol = 0;      /* of states; gradients span many orders of magnitude */
    return DPCR_OK;
}

dpcr_status dpcr_chain_backward_workspace(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *pass,
                                          const dpcr_plan *plan, size_t *bytes) {
    struct backward b = {.chain = chain, .arrays = pass, .S = 1};
    RETURN_IF(prepare(exec, chain, pass, plan, &b));
    REQUIRE(bytes, "bytes is NULL");
    *bytes = 0;
    if (dpcr_no_states(chain)) return DPCR_OK;
    if (exec.device->chains)
        return exec.device->chains->backward(exec, chain, pass, plan, &b.options, NULL, bytes);
    return plan_workspace(&b, plan, bytes);
}

/* Parameter gradients that are empty sums, of frozen steps or all; and those to which the steps are added. */
static void clear_gradients(const dpcr_chain *chain, const dpcr_pullback *arrays, bool all) {
    const size_t element = dpcr_size_of(chain->dtype);
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        const dpcr_parameter which = (dpcr_parameter)i;
        const size_t row = (size_t)dpcr_parameter_stride(chain, which) * element;
        if (!arrays->gparameter[i]) continue;
        if (all || row == 0)
            memset(arrays->gparameter[i], 0, (size_t)dpcr_parameter_total(chain, which) * element);
        for (int64_t l = 0; l < chain->L && !all; l++)
            if (arrays->frozen && arrays->frozen[l])
                memset((char *)arrays->gparameter[i] + (size_t)l * row, 0, row);
    }
}

static void run(struct backward *b) {
    const dpcr_pullback *arrays = b->arrays;
    const size_t state = (size_t)(b->chain->B * b->chain->w) * dpcr_size_of(b->chain->dtype);
    char *starts = b->starts.data;
    if (!starts) return; /* no samples */
    memset(starts, 0, (size_t)b->S * state);
    if (arrays->gz) memcpy(starts, arrays->gz, state);
    if (b->S > 1)
        solve_adjoint(b);
    else
        report_sequential(b);
    /* before the walk below, which need not reach the ends of the segments that Newton's last sweep did */
    const bool solved = b->S > 1;
    char *end = (char *)b->ends.data + (size_t)(b->S - 1) * state;
    if (arrays->gz0 && solved) memcpy(arrays->gz0, end, state);
    if (!solved || b->parameters) for_chunks(b, NULL, b->kernels->pullback, b->parameters);
    if (arrays->gz0 && !solved) memcpy(arrays->gz0, end, state);
}

static dpcr_status check_arrays(const dpcr_chain *chain, const dpcr_pullback *pass) {
    if (dpcr_no_states(chain) || chain->L == 0) return DPCR_OK;
    REQUIRE(pass->z0, "pass.z0 is NULL");
    REQUIRE(pass->states || pass->checkpoints, "pass.states and pass.checkpoints are NULL");
    return DPCR_OK;
}

static dpcr_status run_on_device(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *pass,
                                 const dpcr_plan *plan, const dpcr_newton *options, dpcr_buffer workspace) {
    const struct chain_solver *device = exec.device->chains;
    size_t bytes = 0;
    if (!dpcr_no_states(chain)) RETURN_IF(device->backward(exec, chain, pass, plan, options, NULL, &bytes));
    RETURN_IF(dpcr_check_workspace(workspace, bytes));
    return device->backward(exec, chain, pass, plan, options, workspace.data, NULL);
}

dpcr_status dpcr_chain_backward(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *pass,
                                const dpcr_plan *plan, dpcr_buffer workspace) {
    struct backward b = {.chain = chain, .arrays = pass, .S = 1};
    RETURN_IF(prepare(exec, chain, pass, plan, &b));
    RETURN_IF(dpcr_check_parameters(chain));
    RETURN_IF(check_arrays(chain, pass));
    if (exec.device->chains) return run_on_device(exec, chain, pass, plan, &b.options, workspace);
    if (pass->report) memset(pass->report, 0, (size_t)(DPCR_REPORT * chain->B) * sizeof *pass->report);
    if (dpcr_no_states(chain)) {
        clear_gradients(chain, pass, true); /* without samples or width */
        return DPCR_OK;
    }
    size_t bytes;
    RETURN_IF(plan_workspace(&b, plan, &bytes));
    RETURN_IF(dpcr_check_workspace(workspace, bytes));
    carve(&b, workspace.data);
    clear_gradients(chain, pass, false);
    run(&b);
    return DPCR_OK;
}
