/* SPDX-License-Identifier: Apache-2.0
 *
 * What a solve over segments says of its work and depth, against the formulas of newton.h: levels of
 * cyclic reduction, sweeps, tangent sweeps, flops; and every option, seen to change them as it should.
 */
#include "support/chain_check.h"
#include "support/check.h"
#include "support/newton_answer.h"
#include "support/numbers.h"
#include "support/trap_chains.h"

#include <stdlib.h>

enum { LONG = 96, WIDTH = 8, SAMPLES = 5 };

static solve_run solve_with(const chain_case *c, const void *guess, const dpcr_newton *newton, int64_t S,
                            const backend *at) {
    const solve_input in = {guess, newton};
    solve_run run =
        solve_run_create(c, in, WANT_STATES | WANT_REPORT, at, MODE_ALONE, (dpcr_plan){.segments = S});
    check_contract(run.status, run.short_status, run.intact);
    return run;
}

/* Every sample's number of that row; all must agree. */
static double common(const chain_case *c, const output *report, int row) {
    const double first = report_get(report, row, 0, c->row.B);
    for (int64_t s = 1; s < c->row.B; s++)
        CHECK(report_get(report, row, s, c->row.B) == first, "row %d: %g, but %g in sample %d", row, first,
              report_get(report, row, s, c->row.B), (int)s);
    return first;
}

static double total(const chain_case *c, const output *report, int row) {
    double sum = 0;
    for (int64_t s = 0; s < c->row.B; s++) sum += report_get(report, row, s, c->row.B);
    return sum;
}

/* The sum of a row of one solve. */
static double total_of(const chain_case *c, const void *guess, const dpcr_newton *newton, int64_t S,
                       const backend *at, int row) {
    solve_run run = solve_with(c, guess, newton, S, at);
    const double sum = total(c, &run.report, row);
    solve_run_destroy(&run);
    return sum;
}

static int64_t levels_of(int64_t S) {
    int64_t levels = 0;
    while (INT64_C(1) << levels < S) levels++;
    return levels;
}

/* ---- formulas ------------------------------------------------------------------------------- */

static double step_flops(const chain_row *row) {
    return 2 * (double)chain_row_products(row);
}

/* Of one solve of the system with S start states, the first of them known, and of the update with d:
 * cyclic reduction takes each but one element of a level in or back, and multiplies the maps of those
 * that stay, but for the first, which has none.  columns: of P, 1 where it is diagonal */
static double system_flops(int64_t S, int64_t w, int64_t columns) {
    const double vector = 2 * (double)w * (double)columns;
    double flops = vector * (double)(S - 1);
    for (int64_t count = S; count > 1; count = (count + 1) / 2) {
        const double kept = (double)((count + 1) / 2 - 1);
        flops += vector * (double)(count - 1) + vector * kept * (double)columns;
    }
    return flops;
}

/* Of `sweeps` sweeps that find one more exact segment each, the last always walked. */
static double sweep_flops(const chain_row *row, int64_t S, int64_t sweeps, int64_t columns) {
    double flops = 0;
    for (int64_t j = 0; j < sweeps; j++) {
        const int64_t exact = j < S - 1 ? j : S - 1, next = exact + 1 < S - 1 ? exact + 1 : S - 1;
        flops += step_flops(row) * (double)(row->L - segment_edge(exact, row->L, S));
        if (columns == 0) continue;
        const int64_t steps = segment_edge(S - 1, row->L, S) - segment_edge(next, row->L, S);
        flops += step_flops(row) * (double)(columns * steps) + system_flops(S, row->w, columns);
    }
    return flops;
}

/* Chaotic: no boundary is found before its turn, so that the counts are those of the formulas. */
static void check_formulas(const backend *at, dpcr_dtype dtype) {
    static const int64_t segments[] = {7, 13, 32, 33, 64, 95, 96};
    const chain_row row = trap_layers(DPCR_TANH, LONG, SAMPLES, WIDTH, 6);
    chain_case c = chain_case_create(&row, dtype);
    for (int k = 0; k < 7; k++)
        for (int way = 1; way < TRAP_WAYS; way++) {
            const int64_t S = segments[k], sweeps = 4, columns = way == 1 ? WIDTH : way == 4;
            dpcr_newton newton = trap_options(dtype, way);
            if (way == 4) newton.refresh = DPCR_ALWAYS;
            newton.max_sweeps = sweeps;
            newton.finish = false;
            check_context("S=%d, way %d, %s, %s", (int)S, way, number_name(dtype), at->name);
            solve_run run = solve_with(&c, NULL, &newton, S, at);
            const double expected = sweep_flops(&row, S, sweeps, columns);
            CHECK(common(&c, &run.report, DPCR_VERDICT) == DPCR_UNCONVERGED, "not chaotic enough");
            CHECK(common(&c, &run.report, DPCR_SWEEPS) == (double)sweeps, "sweeps");
            CHECK(common(&c, &run.report, DPCR_TANGENT_SWEEPS) == (columns > 0 ? (double)sweeps : 0), "%g",
                  common(&c, &run.report, DPCR_TANGENT_SWEEPS));
            CHECK(common(&c, &run.report, DPCR_LEVELS) == (way == 2 ? 0 : (double)levels_of(S)), "%g levels",
                  common(&c, &run.report, DPCR_LEVELS));
            CHECK(common(&c, &run.report, DPCR_FLOPS) == expected, "%.17g flops, expected %.17g",
                  common(&c, &run.report, DPCR_FLOPS), expected);
            solve_run_destroy(&run);
            newton.finish = true;
            run = solve_with(&c, NULL, &newton, S, at);
            CHECK(common(&c, &run.report, DPCR_VERDICT) == DPCR_SEQUENTIAL, "not finished");
            CHECK(common(&c, &run.report, DPCR_FLOPS)
                      == expected + step_flops(&row) * (double)(LONG - segment_edge(sweeps, LONG, S)),
                  "%.17g flops, %.17g and a walk expected", common(&c, &run.report, DPCR_FLOPS), expected);
            solve_run_destroy(&run);
        }
    chain_case_destroy(&c);
}

/* ---- without anything to solve -------------------------------------------------------------- */

static void check_sequential(const backend *at, dpcr_dtype dtype) {
    chain_row row = trap_layers(DPCR_TANH, LONG, SAMPLES, WIDTH, 1);
    for (int k = 0; k < DPCR_STEPS; k++) {
        row.step = (dpcr_step)k;
        row.scale = 0.01;
        row.layers = 3;
        row.h = chain_row_has_width(&row) ? 3 : WIDTH;
        row.present = 0;
        for (int i = 0; i < DPCR_PARAMETERS; i++)
            if (chain_row_has(&row, i) && CHAIN_WEIGHTS >> i & 1) row.present |= 1U << i;
        chain_case c = chain_case_create(&row, dtype);
        check_context("S=1, step %d, %s, %s", k, number_name(dtype), at->name);
        solve_run run = solve_with(&c, NULL, NULL, 1, at);
        CHECK(common(&c, &run.report, DPCR_SWEEPS) == 1, "sweeps");
        CHECK(common(&c, &run.report, DPCR_TANGENT_SWEEPS) == 0, "tangent sweeps");
        CHECK(common(&c, &run.report, DPCR_VERDICT) == DPCR_CONVERGED, "verdict");
        CHECK(common(&c, &run.report, DPCR_ERROR) == 0, "error");
        CHECK(common(&c, &run.report, DPCR_LEVELS) == 0, "levels");
        CHECK(common(&c, &run.report, DPCR_FLOPS) == step_flops(&row) * LONG, "%g flops",
              common(&c, &run.report, DPCR_FLOPS));
        solve_run_destroy(&run);
        chain_case_destroy(&c);
    }
    row = trap_layers(DPCR_TANH, 0, SAMPLES, WIDTH, 1);
    chain_case c = chain_case_create(&row, dtype);
    for (int64_t S = 1; S < 4; S++) {
        check_context("L=0, S=%d, %s, %s", (int)S, number_name(dtype), at->name);
        solve_run run = solve_with(&c, NULL, NULL, S, at);
        for (int what = 0; what < DPCR_REPORT; what++)
            CHECK(common(&c, &run.report, what) == 0, "row %d", what);
        solve_run_destroy(&run);
    }
    chain_case_destroy(&c);
}

/* ---- options -------------------------------------------------------------------------------- */

/* A contracting chain, on which everything converges in a few sweeps. */
static void check_options(const backend *at, dpcr_dtype dtype) {
    const chain_row row = trap_layers(DPCR_TANH, LONG, SAMPLES, WIDTH, 1);
    chain_case c = chain_case_create(&row, dtype);
    const dpcr_newton base = trap_options(dtype, 0), always = trap_options(dtype, 1),
                      zero = trap_options(dtype, 2);
    const int64_t S = 12;
    check_context("options, %s, %s", number_name(dtype), at->name);
    solve_run run = solve_with(&c, NULL, &base, S, at);
    const double sweeps = total(&c, &run.report, DPCR_SWEEPS),
                 tangents = total(&c, &run.report, DPCR_TANGENT_SWEEPS);
    const double every = total_of(&c, NULL, &always, S, at, DPCR_SWEEPS);
    CHECK(common(&c, &run.report, DPCR_VERDICT) == DPCR_CONVERGED, "not converged");
    CHECK(common(&c, &run.report, DPCR_LEVELS) == (double)levels_of(S), "levels");
    const double refreshed = total_of(&c, NULL, &always, S, at, DPCR_TANGENT_SWEEPS);
    CHECK(tangents > 0 && tangents <= 0.75 * refreshed, "adaptive %g tangent sweeps, always %g", tangents,
          refreshed);
    CHECK(sweeps <= 1.4 * every + SAMPLES, "adaptive %g sweeps, always %g", sweeps, every);
    CHECK(total_of(&c, NULL, &zero, S, at, DPCR_SWEEPS) > sweeps, "P = 0 needs no more sweeps");
    dpcr_newton other = base;
    other.rtol = 1e-2;
    CHECK(total_of(&c, NULL, &other, S, at, DPCR_SWEEPS) < sweeps, "rtol changes nothing");
    other = base;
    other.atol = 1e-2;
    CHECK(total_of(&c, NULL, &other, S, at, DPCR_SWEEPS) < sweeps, "atol changes nothing");
    CHECK(total_of(&c, run.states.data, &base, S, at, DPCR_SWEEPS) < sweeps, "a good guess changes nothing");
    other = base;
    other.max_sweeps = 2;
    CHECK(total_of(&c, NULL, &other, S, at, DPCR_VERDICT) == SAMPLES * DPCR_SEQUENTIAL, "max_sweeps");
    other.finish = false;
    CHECK(total_of(&c, NULL, &other, S, at, DPCR_VERDICT) == SAMPLES * DPCR_UNCONVERGED, "finish");
    solve_run_destroy(&run);
    chain_case_destroy(&c);
}

/* The free P of blocks is the identity: where a block does little, one sweep does nearly everything. */
static void check_identity(const backend *at, dpcr_dtype dtype) {
    chain_row row = trap_layers(DPCR_TANH, LONG, SAMPLES, WIDTH, 0.5);
    row.step = DPCR_RESIDUAL;
    row.present |= 1U << DPCR_W2;
    row.scale = 0.001;
    chain_case c = chain_case_create(&row, dtype);
    const dpcr_newton identity = trap_options(dtype, 3), zero = trap_options(dtype, 2);
    check_context("blocks near the identity, %s, %s", number_name(dtype), at->name);
    solve_run run = solve_with(&c, NULL, &identity, LONG, at);
    CHECK(common(&c, &run.report, DPCR_VERDICT) == DPCR_CONVERGED, "not converged");
    CHECK(common(&c, &run.report, DPCR_TANGENT_SWEEPS) == 0, "tangent sweeps");
    CHECK(common(&c, &run.report, DPCR_LEVELS) == (double)levels_of(LONG), "levels");
    CHECK(2 * total(&c, &run.report, DPCR_SWEEPS) < total_of(&c, NULL, &zero, LONG, at, DPCR_SWEEPS),
          "P = I is no better than P = 0");
    solve_run_destroy(&run);
    chain_case_destroy(&c);
}

/* ---- backward ------------------------------------------------------------------------------- */

/* The adjoint is linear: P is computed once, and its first solve leaves rounding. */
static void check_backward(const backend *at, dpcr_dtype dtype) {
    const chain_row row = trap_layers(DPCR_TANH, LONG, SAMPLES, WIDTH, 0.8);
    chain_case c = chain_case_create(&row, dtype);
    solve_run forward = solve_with(&c, NULL, NULL, 1, at);
    for (int64_t S = 1; S <= LONG; S = 3 * S + 1)
        for (int way = 0; way < TRAP_WAYS; way++) {
            const dpcr_newton newton = trap_options(dtype, way);
            const pullback_input in = {.states = forward.states.data, .gz = c.z0.data, .newton = &newton};
            check_context("backward, S=%d, way %d, %s, %s", (int)S, way, number_name(dtype), at->name);
            pullback_run run = pullback_run_create(&c, in, WANT_Z0 | WANT_PULLBACK_REPORT, at, MODE_ALONE,
                                                   (dpcr_plan){.segments = S});
            check_contract(run.status, run.short_status, run.intact);
            CHECK(total(&c, &run.report, DPCR_TANGENT_SWEEPS)
                      == (S > 1 && (way < 2 || way == 4) ? SAMPLES : 0),
                  "%g tangent sweeps", total(&c, &run.report, DPCR_TANGENT_SWEEPS));
            if (S == 1) CHECK(common(&c, &run.report, DPCR_SWEEPS) == 1, "sweeps");
            for (int64_t s = 0; s < SAMPLES && S > 1 && way < 2; s++) {
                const double sweeps = report_get(&run.report, DPCR_SWEEPS, s, SAMPLES);
                CHECK(sweeps >= 2 && sweeps <= 4, "sample %d: %g sweeps", (int)s, sweeps);
                CHECK(report_get(&run.report, DPCR_VERDICT, s, SAMPLES) == DPCR_CONVERGED, "sample %d",
                      (int)s);
            }
            if (way != 2)
                CHECK(common(&c, &run.report, DPCR_LEVELS) == (double)levels_of(S), "%g levels",
                      common(&c, &run.report, DPCR_LEVELS));
            CHECK(report_get(&run.report, DPCR_FLOPS, 0, SAMPLES) >= step_flops(&row) * LONG, "flops");
            pullback_run_destroy(&run);
        }
    solve_run_destroy(&forward);
    chain_case_destroy(&c);
}

/* ---- memory --------------------------------------------------------------------------------- */

/* Without a dense P no pass has room for one map per segment. */
static void check_workspace(const backend *at, dpcr_dtype dtype) {
    enum { S = 64, B = 4, W = 128 };
    for (int structure = DPCR_P_DENSE; structure < DPCR_STRUCTURES; structure++) {
        dpcr_newton newton = dpcr_newton_default(dtype);
        newton.structure = (dpcr_structure)structure;
        const dpcr_chain chain = {
            .step = DPCR_LAYERS, .dtype = dtype, .L = S, .B = B, .w = W, .h = W, .layers = 2, .skip = true};
        const dpcr_solution solution = {.newton = &newton};
        const dpcr_pullback pullback = {.newton = &newton};
        const dpcr_plan plan = {.segments = S};
        const size_t maps = (size_t)(S * B * W * W) * number_size(dtype);
        size_t forth, back;
        check_context("workspace, structure %d, %s, %s", structure, number_name(dtype), at->name);
        const dpcr_exec exec = backend_exec(at, MODE_ALONE);
        CHECK(dpcr_chain_solve_workspace(exec, &chain, &solution, &plan, &forth) == DPCR_OK, "%s",
              dpcr_detail());
        CHECK(dpcr_chain_backward_workspace(exec, &chain, &pullback, &plan, &back) == DPCR_OK, "%s",
              dpcr_detail());
        CHECK((forth >= maps) == (structure == DPCR_P_DENSE), "forward takes %zu bytes", forth);
        CHECK((back >= maps) == (structure == DPCR_P_DENSE), "backward takes %zu bytes", back);
    }
}

int main(void) {
    int count;
    const backend *list = backends(&count);
    for (int d = 0; d < count; d++)
        for (int dtype = DPCR_F32; dtype <= DPCR_F64 && list[d].device; dtype++) {
            check_formulas(&list[d], (dpcr_dtype)dtype);
            check_sequential(&list[d], (dpcr_dtype)dtype);
            check_options(&list[d], (dpcr_dtype)dtype);
            check_identity(&list[d], (dpcr_dtype)dtype);
            check_backward(&list[d], (dpcr_dtype)dtype);
            check_workspace(&list[d], (dpcr_dtype)dtype);
        }
    return check_finish();
}
