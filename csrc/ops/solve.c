/* SPDX-License-Identifier: Apache-2.0
 *
 * The whole chain, forward: the start states of its segments by Newton's method (newton.h), a tile of
 * samples at a time where the workspace has a cap.  S = 1 is the same with nothing to solve for.
 */
#include "ops/device.h"
#include "ops/kernels.h"

#include <math.h>
#include <string.h>

int64_t dpcr_checkpoints(int64_t L, int64_t S) {
    if (L == 0 || S > 1) return L == 0 ? 0 : S;
    const int64_t root = (int64_t)sqrt((double)(L - 1));
    return root + (root * root < L);
}

/* ---- the problem of newton.h ----------------------------------------------------------------- */

static void propagate(const struct newton *n) {
    struct propagate_pass pass = *(const struct propagate_pass *)n->problem;
    pass.starts = n->starts, pass.ends = n->ends;
    pass.control = n->samples, pass.stale = n->stale;
    pass.keep_all = n->sweep == n->options.max_sweeps && !n->options.finish;
    bool tangents = false;
    for (int64_t s = 0; s < n->B; s++) tangents = tangents || n->samples[s].refresh;
    const int64_t size = n->B * dpcr_P_size(n->options.structure, n->w);
    if (tangents)
        pass.tangents = (struct tangent_maps){
            n->system.maps, size, size, false, n->options.structure == DPCR_P_DIAGONAL, n->sweep};
    dpcr_chain_kernels(n->exec.device, n->dtype)->propagate(&pass);
}

static void finish(const struct newton *n) {
    struct propagate_pass pass = *(const struct propagate_pass *)n->problem;
    pass.starts = n->starts, pass.ends = n->ends;
    pass.control = n->samples;
    dpcr_chain_kernels(n->exec.device, n->dtype)->finish(&pass);
}

static int64_t steps_from(const struct newton *n, int64_t k) {
    const struct propagate_pass *pass = n->problem;
    return pass->chain->L - dpcr_edge(k, pass->chain->L, n->S);
}

static double factor(const struct newton *n, int64_t k) {
    const struct propagate_pass *pass = n->problem;
    return dpcr_segment_factor(pass->chain, n->S, k);
}

/* ---- one tile of samples --------------------------------------------------------------------- */

struct solve {
    dpcr_exec exec;
    const dpcr_chain *chain;
    const dpcr_solution *solution;
    dpcr_newton options;
    int64_t S; /* 1 with checkpoints: the segments between them, walked one after the other */
    bool sequential;
    size_t scratch_bytes;
    int64_t tasks;
};

static struct newton make_newton(const struct solve *solve, int64_t first, int64_t samples) {
    const dpcr_chain *chain = solve->chain;
    struct newton n = {.exec = solve->exec,
                       .dtype = chain->dtype,
                       .options = solve->options,
                       .free = dpcr_has_skip(chain) ? DPCR_P_IDENTITY : DPCR_P_ZERO,
                       .S = solve->S,
                       .B = samples,
                       .w = chain->w,
                       .step_flops = dpcr_step_flops(chain),
                       .propagate = propagate,
                       .finish = finish,
                       .steps_from = steps_from,
                       .factor = factor};
    /* S = 1 needs no array of its own; checkpoints are the starts */
    if (solve->S == 1) n.starts = (struct segment_rows){(void *)solve->solution->z0, chain->B, first};
    if (solve->S == 1) n.ends = (struct segment_rows){solve->solution->z, chain->B, first};
    if (solve->solution->checkpoints)
        n.starts = (struct segment_rows){solve->solution->checkpoints, chain->B, first};
    return n;
}

static size_t carve(const struct solve *solve, int64_t samples, void *base, struct newton *n,
                    struct propagate_pass *pass) {
    struct arena arena = {base, 0};
    char *scratch = dpcr_take(&arena, (size_t)dpcr_slots(solve->exec, solve->tasks) * solve->scratch_bytes);
    if (pass) pass->scratch = scratch, pass->scratch_bytes = solve->scratch_bytes;
    struct newton trial = make_newton(solve, 0, samples);
    return arena.used + dpcr_newton_carve(n ? n : &trial, base ? (char *)base + arena.used : NULL);
}

/* s_0 = z0, and the guess for the others */
static void begin(const struct solve *solve, const struct newton *n, int64_t first) {
    const dpcr_chain *chain = solve->chain;
    const size_t element = dpcr_size_of(chain->dtype), bytes = (size_t)(n->B * n->w) * element;
    for (int64_t k = 0; k < n->S; k++) {
        const int64_t before = dpcr_edge(k, chain->L, n->S) - 1;
        const bool guessed = k > 0 && solve->solution->guess;
        const char *from = guessed ? solve->solution->guess : solve->solution->z0;
        char *to =
            (char *)n->starts.data + (size_t)((k * n->starts.samples + n->starts.first) * n->w) * element;
        from += (size_t)(((guessed ? before * chain->B : 0) + first) * n->w) * element;
        if (to != from) memcpy(to, from, bytes);
    }
}

static void solve_tile(const struct solve *solve, int64_t first, int64_t samples, void *base) {
    const dpcr_chain *chain = solve->chain;
    const dpcr_solution *solution = solve->solution;
    struct propagate_pass pass = {.exec = solve->exec,
                                  .chain = chain,
                                  .S = solve->S,
                                  .k1 = solve->S,
                                  .first = first,
                                  .samples = samples,
                                  .states = solution->states};
    struct newton n = make_newton(solve, first, samples);
    carve(solve, samples, base, &n, &pass);
    n.problem = &pass;
    begin(solve, &n, first);
    dpcr_newton_solve(&n);
    const size_t element = dpcr_size_of(chain->dtype), row = (size_t)n.w * element;
    char *z = (char *)solution->z + (size_t)first * row;
    const char *end = (const char *)n.ends.data + (size_t)((n.S - 1) * n.ends.samples + n.ends.first) * row;
    if (z != end) memcpy(z, end, (size_t)n.B * row);
    if (solve->sequential)
        for (int64_t s = 0; s < n.B; s++) n.samples[s].verdict = DPCR_CONVERGED, n.samples[s].sweeps = 1;
    dpcr_newton_report(&n, solution->report, chain->B, first);
}

/* ---- the calls ------------------------------------------------------------------------------- */

static dpcr_status check_arrays(const dpcr_chain *chain, const dpcr_solution *solution) {
    if (dpcr_no_states(chain)) return DPCR_OK;
    REQUIRE(solution->z0, "solution.z0 is NULL");
    REQUIRE(solution->z, "solution.z is NULL");
    return DPCR_OK;
}

static dpcr_status solve_on_device(dpcr_exec exec, const dpcr_chain *chain, const dpcr_solution *solution,
                                   const dpcr_plan *plan, const dpcr_newton *options, dpcr_buffer workspace) {
    const struct chain_solver *device = exec.device->chains;
    size_t bytes = 0;
    if (!dpcr_no_states(chain) && chain->L > 0)
        RETURN_IF(device->solve(exec, chain, solution, plan, options, NULL, &bytes));
    RETURN_IF(dpcr_check_workspace(workspace, bytes));
    return device->solve(exec, chain, solution, plan, options, workspace.data, NULL);
}

/* Fewer threads, then fewer samples at a time (a multiple of the kernels' tile where it can be) until the
 * workspace fits the cap. */
static dpcr_status choose_tile(struct solve *solve, const dpcr_plan *plan, int64_t *tile, size_t *bytes) {
    const dpcr_chain *chain = solve->chain;
    const struct chain_kernels *kernels = dpcr_chain_kernels(solve->exec.device, chain->dtype);
    const int64_t unit = kernels->tile(chain);
    solve->tasks = dpcr_tile_count(chain, unit, solve->S, chain->B);
    solve->scratch_bytes =
        kernels->propagate_scratch(chain, dpcr_P_columns(solve->options.structure, chain->w));
    *tile = chain->B;
    *bytes = carve(solve, *tile, NULL, NULL, NULL);
    if (plan->workspace_cap == 0) return DPCR_OK;
    while (solve->exec.threads > 1 && *bytes > plan->workspace_cap) {
        solve->exec.threads--;
        *bytes = carve(solve, *tile, NULL, NULL, NULL);
    }
    int64_t fits = 0,
            over = *bytes > plan->workspace_cap ? chain->B : 0; /* bytes grow with the tile: bisect */
    while (over - fits > 1) {
        const int64_t trial = fits + (over - fits) / 2;
        if (carve(solve, trial, NULL, NULL, NULL) <= plan->workspace_cap)
            fits = trial;
        else
            over = trial;
    }
    if (over > 0) *tile = fits > unit ? fits / unit * unit : dpcr_max(fits, 1);
    *bytes = carve(solve, *tile, NULL, NULL, NULL);
    return dpcr_fit_cap(plan, *bytes);
}

static dpcr_status prepare(dpcr_exec exec, const dpcr_chain *chain, const dpcr_solution *solution,
                           const dpcr_plan *plan, struct solve *solve) {
    RETURN_IF(dpcr_check_chain(exec, chain, plan));
    REQUIRE(solution, "solution is NULL");
    RETURN_IF(dpcr_check_newton(solution->newton));
    int64_t S;
    RETURN_IF(dpcr_check_segments(chain, plan, &S));
    *solve = (struct solve){.exec = exec, .chain = chain, .solution = solution, .S = S};
    solve->options = solution->newton ? *solution->newton : dpcr_newton_default(chain->dtype);
    if (S > 1 || exec.device->chains) return DPCR_OK;
    solve->sequential = true;
    solve->options = dpcr_newton_default(chain->dtype);
    solve->options.structure = DPCR_P_ZERO;
    if (solution->checkpoints && dpcr_checkpoints(chain->L, 1) > 1) {
        solve->S = dpcr_checkpoints(chain->L, 1);
        solve->options.max_sweeps = 0;
    }
    return DPCR_OK;
}

dpcr_status dpcr_chain_solve_workspace(dpcr_exec exec, const dpcr_chain *chain, const dpcr_solution *solution,
                                       const dpcr_plan *plan, size_t *bytes) {
    struct solve solve = {.chain = chain, .S = 1};
    RETURN_IF(prepare(exec, chain, solution, plan, &solve));
    REQUIRE(bytes, "bytes is NULL");
    *bytes = 0;
    if (dpcr_no_states(chain) || chain->L == 0) return DPCR_OK;
    if (exec.device->chains)
        return exec.device->chains->solve(exec, chain, solution, plan, &solve.options, NULL, bytes);
    int64_t tile;
    return choose_tile(&solve, plan, &tile, bytes);
}

dpcr_status dpcr_chain_solve(dpcr_exec exec, const dpcr_chain *chain, const dpcr_solution *solution,
                             const dpcr_plan *plan, dpcr_buffer workspace) {
    struct solve solve = {.chain = chain, .S = 1};
    RETURN_IF(prepare(exec, chain, solution, plan, &solve));
    RETURN_IF(dpcr_check_parameters(chain));
    RETURN_IF(check_arrays(chain, solution));
    if (exec.device->chains) return solve_on_device(exec, chain, solution, plan, &solve.options, workspace);
    if (solution->report)
        memset(solution->report, 0, (size_t)(DPCR_REPORT * chain->B) * sizeof *solution->report);
    if (dpcr_no_states(chain)) return DPCR_OK;
    if (chain->L == 0) {
        memcpy(solution->z, solution->z0, (size_t)(chain->B * chain->w) * dpcr_size_of(chain->dtype));
        return DPCR_OK;
    }
    int64_t tile;
    size_t bytes;
    RETURN_IF(choose_tile(&solve, plan, &tile, &bytes));
    RETURN_IF(dpcr_check_workspace(workspace, bytes));
    for (int64_t first = 0; first < chain->B; first += tile)
        solve_tile(&solve, first, dpcr_min(tile, chain->B - first), workspace.data);
    return DPCR_OK;
}
