/* SPDX-License-Identifier: Apache-2.0
 *
 * The linear recurrence over any device: arguments checked once, the problem brought to one form, the
 * batch cut into tiles whose workspace fits, and the device's solver run on each.
 */
#include "pcr/device.h"

#include <float.h>
#include <math.h>

/* ---- checks --------------------------------------------------------------------------------- */

static bool empty(const dpcr_recurrence *p) {
    return p->L == 0 || p->B == 0 || p->w == 0;
}

static dpcr_status check_vectors(const char *name, const dpcr_recurrence *p, dpcr_vectors v, bool written) {
    REQUIRE(v.data, "%s.data is NULL", name);
    REQUIRE(!written || p->L <= 1 || v.step != 0, "%s.step is 0: the steps would overwrite each other", name);
    REQUIRE(!written || p->B <= 1 || v.sample != 0, "%s.sample is 0: the samples would overwrite each other",
            name);
    return DPCR_OK;
}

static dpcr_status check_blocks(const char *name, const dpcr_recurrence *p, dpcr_blocks A) {
    if (p->block == DPCR_IDENTITY) return DPCR_OK;
    REQUIRE(A.data, "%s.data is NULL, only identity blocks need none", name);
    REQUIRE(p->block != DPCR_DENSE || p->w <= 1 || A.row == 1 || A.column == 1,
            "%s.row is %lld and %s.column %lld: one of them must be 1", name, (long long)A.row, name,
            (long long)A.column);
    return DPCR_OK;
}

static dpcr_status check_plan(const dpcr_recurrence *p, const dpcr_plan *plan) {
    REQUIRE(plan, "plan is NULL");
    REQUIRE(plan->segments >= 1 && (p->L == 0 || plan->segments <= p->L),
            "plan.segments is %lld, must be between 1 and L = %lld", (long long)plan->segments,
            (long long)p->L);
    return DPCR_OK;
}

static dpcr_status check_problem(dpcr_exec exec, const dpcr_recurrence *p, const dpcr_plan *plan) {
    RETURN_IF(dpcr_check_exec(exec));
    REQUIRE(p, "problem is NULL");
    REQUIRE(p->dtype == DPCR_F32 || p->dtype == DPCR_F64, "dtype %d is not a dpcr_dtype", (int)p->dtype);
    REQUIRE((int)p->block >= 0 && p->block <= DPCR_IDENTITY, "block %d is not a dpcr_block", (int)p->block);
    REQUIRE(p->L >= 0, "L is %lld, must not be negative", (long long)p->L);
    REQUIRE(p->B >= 0, "B is %lld, must not be negative", (long long)p->B);
    REQUIRE(p->w >= 0, "w is %lld, must not be negative", (long long)p->w);
    RETURN_IF(dpcr_check_size("b", p->L, p->B, p->w));
    RETURN_IF(dpcr_check_size("A", p->L, p->w, p->block == DPCR_DENSE ? p->w : 1));
    REQUIRE(!p->transposed || !p->x0.data,
            "x0.data must be NULL where transposed: the adjoint starts from zero");
    RETURN_IF(check_plan(p, plan));
    return p->L == 0 ? DPCR_OK
                     : dpcr_check_size("segment maps", plan->segments, p->B, dpcr_map_size(p->block, p->w));
}

static dpcr_status check_arrays(const dpcr_recurrence *p) {
    if (empty(p)) return DPCR_OK;
    RETURN_IF(check_blocks("A", p, p->A));
    RETURN_IF(check_vectors("b", p, p->b, false));
    return check_vectors("x", p, p->x, true);
}

/* ---- both problems as one walk -------------------------------------------------------------- */

/* Discrepancy that rounding explains between the walk and the maps: errors of products add up like
 * sqrt(L) roundings (measured on orthogonal chains: 1 to 3 of them); 16 leaves room, and a failed
 * check costs a sample no more than the loop. */
static double check_tolerance(dpcr_dtype dtype, int64_t L) {
    return (dtype == DPCR_F32 ? FLT_EPSILON : DBL_EPSILON) * (64 + 16 * sqrt((double)L));
}

static struct walk make_walk(dpcr_exec exec, const dpcr_recurrence *p, int64_t segments) {
    struct walk walk = {
        .exec = exec, .dtype = p->dtype, .block = p->block, .L = p->L, .B = p->B, .w = p->w, .S = segments};
    walk.shared = p->A.sample == 0 || p->B <= 1 || p->block == DPCR_IDENTITY;
    walk.wide = walk.shared && p->B >= 4; /* below, a panel is mostly empty lanes */
    walk.tolerance = check_tolerance(p->dtype, p->L);
    walk.x0 = (struct vector_view){p->x0.data, 0, 0, p->x0.sample};
    if (p->transposed) { /* y_j over l = L+1-j, whose block is that of the step above it, transposed */
        walk.M =
            (struct block_view){p->A.data, p->L * p->A.step, -p->A.step, p->A.sample, p->A.column, p->A.row};
        walk.b = (struct vector_view){p->b.data, (p->L - 1) * p->b.step, -p->b.step, p->b.sample};
        walk.x = (struct vector_view){p->x.data, (p->L - 1) * p->x.step, -p->x.step, p->x.sample};
    } else {
        walk.M = (struct block_view){p->A.data, 0, p->A.step, p->A.sample, p->A.row, p->A.column};
        walk.b = (struct vector_view){p->b.data, 0, p->b.step, p->b.sample};
        walk.x = (struct vector_view){p->x.data, 0, p->x.step, p->x.sample};
    }
    return walk;
}

/* Samples [s0, s0 + n) of a walk over all of them. */
static struct walk tile_of(const struct walk *whole, int64_t s0, int64_t n) {
    struct walk walk = *whole;
    walk.B = n;
    walk.M.first += s0 * walk.M.sample;
    walk.b.first += s0 * walk.b.sample;
    walk.x.first += s0 * walk.x.sample;
    walk.x0.first += s0 * walk.x0.sample;
    return walk;
}

/* The largest tile of samples whose workspace fits the cap: bytes grow with the tile, so bisect. */
static dpcr_status choose_tile(const struct walk *walk, const dpcr_plan *plan, int64_t *tile, size_t *bytes) {
    const struct recurrence_solver *solver = walk->exec.device->solver;
    struct walk trial = *walk;
    *tile = walk->B;
    *bytes = solver->workspace(&trial);
    if (plan->workspace_cap == 0 || *bytes <= plan->workspace_cap) return DPCR_OK;
    int64_t fits = 0, over = walk->B;
    while (over - fits > 1) {
        trial.B = fits + (over - fits) / 2;
        if (solver->workspace(&trial) <= plan->workspace_cap)
            fits = trial.B;
        else
            over = trial.B;
    }
    trial.B = 1;
    REQUIRE(fits > 0, "plan.workspace_cap is %zu bytes, one sample needs %zu", plan->workspace_cap,
            solver->workspace(&trial));
    trial.B = *tile = fits;
    *bytes = solver->workspace(&trial);
    return DPCR_OK;
}

dpcr_status dpcr_recurrence_workspace(dpcr_exec exec, const dpcr_recurrence *problem, const dpcr_plan *plan,
                                      size_t *bytes) {
    RETURN_IF(check_problem(exec, problem, plan));
    REQUIRE(bytes, "bytes is NULL");
    *bytes = 0;
    if (empty(problem)) return DPCR_OK;
    const struct walk walk = make_walk(exec, problem, plan->segments);
    int64_t tile;
    return choose_tile(&walk, plan, &tile, bytes);
}

/* ---- solve ---------------------------------------------------------------------------------- */

static dpcr_status clear_flags(dpcr_exec exec, const dpcr_recurrence *p) {
    const struct strided flags = {p->recomputed, sizeof *p->recomputed, {p->B, 1, 1, 1}, {1, 0, 0, 0}};
    return p->recomputed ? exec.device->solver->clear(exec, &flags) : DPCR_OK;
}

dpcr_status dpcr_recurrence_solve(dpcr_exec exec, const dpcr_recurrence *problem, const dpcr_plan *plan,
                                  dpcr_buffer workspace, int64_t *levels) {
    RETURN_IF(check_problem(exec, problem, plan));
    RETURN_IF(check_arrays(problem));
    if (levels) *levels = 0;
    if (empty(problem)) return clear_flags(exec, problem);
    const struct walk walk = make_walk(exec, problem, plan->segments);
    int64_t tile;
    size_t bytes;
    RETURN_IF(choose_tile(&walk, plan, &tile, &bytes));
    RETURN_IF(dpcr_check_workspace(workspace, bytes));
    for (int64_t s0 = 0; s0 < problem->B; s0 += tile) {
        const struct walk part = tile_of(&walk, s0, dpcr_min(tile, problem->B - s0));
        int64_t ran;
        RETURN_IF(exec.device->solver->solve(&part, workspace.data,
                                             problem->recomputed ? problem->recomputed + s0 : NULL, &ran));
        if (levels) *levels = ran;
    }
    return DPCR_OK;
}

/* ---- gradients ------------------------------------------------------------------------------ */

static dpcr_status check_gradients(const dpcr_recurrence *p, const dpcr_recurrence_gradients *g) {
    REQUIRE(g, "gradients is NULL");
    REQUIRE(!p->transposed, "problem.transposed must be false: give the forward problem");
    REQUIRE(!g->x0.data || p->x0.data, "gradients.x0.data is given, but problem.x0.data is NULL");
    if (empty(p)) return DPCR_OK;
    REQUIRE(!g->x0.data || p->B <= 1 || g->x0.sample != 0,
            "gradients.x0.sample is 0: the samples would overwrite each other");
    RETURN_IF(check_arrays(p));
    RETURN_IF(check_vectors("gradients.x", p, g->x, false));
    RETURN_IF(check_vectors("gradients.b", p, g->b, true));
    if (!g->A.data || p->block == DPCR_IDENTITY) return DPCR_OK;
    RETURN_IF(check_blocks("gradients.A", p, g->A));
    REQUIRE(p->L <= 1 || g->A.step != 0, "gradients.A.step is 0: the steps would overwrite each other");
    return DPCR_OK;
}

/* Gradients of a problem without elements: those that have any are empty sums. */
static dpcr_status clear_gradients(dpcr_exec exec, const dpcr_recurrence *p,
                                   const dpcr_recurrence_gradients *g) {
    const size_t element = dpcr_size_of(p->dtype);
    const bool dense = p->block == DPCR_DENSE;
    const struct strided x0 = {g->x0.data, element, {1, 1, p->B, p->w}, {0, 0, g->x0.sample, 1}};
    const struct strided A = {
        g->A.data,
        element,
        {p->L, g->A.sample == 0 ? 1 : p->B, p->block == DPCR_SCALAR ? 1 : p->w, dense ? p->w : 1},
        {g->A.step, g->A.sample, dense ? g->A.row : 1, g->A.column}};
    if (x0.data) RETURN_IF(exec.device->solver->clear(exec, &x0));
    return A.data ? exec.device->solver->clear(exec, &A) : DPCR_OK;
}

dpcr_status dpcr_recurrence_backward(dpcr_exec exec, const dpcr_recurrence *problem,
                                     const dpcr_recurrence_gradients *gradients, const dpcr_plan *plan,
                                     dpcr_buffer workspace) {
    RETURN_IF(check_problem(exec, problem, plan));
    RETURN_IF(check_gradients(problem, gradients));
    if (empty(problem)) return clear_gradients(exec, problem, gradients);
    dpcr_recurrence adjoint = *problem;
    adjoint.transposed = true;
    adjoint.b = gradients->x;
    adjoint.x = gradients->b;
    adjoint.x0 = (dpcr_vectors){0};
    adjoint.recomputed = NULL;
    RETURN_IF(dpcr_recurrence_solve(exec, &adjoint, plan, workspace, NULL));

    const struct recurrence_solver *solver = exec.device->solver;
    struct walk walk = make_walk(exec, problem, 1);
    walk.b = (struct vector_view){gradients->b.data, 0, gradients->b.step, gradients->b.sample};
    const bool shared = walk.shared;
    walk.shared =
        gradients->A.sample == 0; /* may differ: shared blocks can be seen as equal ones of every sample */
    if (gradients->A.data)
        RETURN_IF(
            solver->gradient(&walk, workspace.data,
                             (struct block_view){gradients->A.data, 0, gradients->A.step, gradients->A.sample,
                                                 gradients->A.row, gradients->A.column}));
    walk.shared = shared;
    const struct vector_view start = {gradients->x0.data, 0, 0, gradients->x0.sample};
    return start.data ? solver->start_gradient(&walk, workspace.data, start) : DPCR_OK;
}
