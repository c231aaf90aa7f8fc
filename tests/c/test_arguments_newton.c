/* SPDX-License-Identifier: Apache-2.0
 *
 * Bad arguments of dpcr_chain_solve and of dpcr_chain_backward over segments: from a good call one
 * thing at a time is broken, and every call that looks at it must say so.  And what is no error.
 */
#include "ops/chain.h"
#include "support/refusal.h"

#include <math.h>
#include <stdint.h>

enum { L = 6, B = 3, W = 2, S = 3 };

typedef struct call {
    dpcr_exec exec;
    dpcr_chain chain;
    dpcr_solution solution;
    dpcr_pullback pullback;
    dpcr_newton newton;
    dpcr_plan plan;
    dpcr_buffer workspace;
    const dpcr_chain *chain_at;
    const dpcr_plan *plan_at;
    const dpcr_solution *solution_at;
    const dpcr_pullback *pullback_at;
    size_t bytes, *bytes_at;
} call;

static float weight[L * W * W], bias[L * W], gweight[L * W * W], gbias[L * W];
static float z0[B * W], guess[L * B * W], z[B * W], states[L * B * W], checkpoints[L * B * W];
static float gz[B * W], gstates[L * B * W], gz0[B * W];
static double report[DPCR_REPORT * B];
static _Alignas(DPCR_ALIGNMENT) char work[1 << 20];

static void good(call *c) {
    *c = (call){.exec = dpcr_serial(), .plan = {.segments = S}, .workspace = {work, sizeof work}};
    c->chain = (dpcr_chain){.step = DPCR_MLP,
                            .dtype = DPCR_F32,
                            .L = L,
                            .B = B,
                            .w = W,
                            .h = W,
                            .activation = DPCR_TANH,
                            .parameter = {[DPCR_W1] = weight, [DPCR_B1] = bias}};
    c->newton = dpcr_newton_default(DPCR_F32);
    c->solution = (dpcr_solution){z0, guess, z, states, checkpoints, report, NULL};
    c->pullback = (dpcr_pullback){.z0 = z0,
                                  .states = states,
                                  .gz = gz,
                                  .gstates = gstates,
                                  .gz0 = gz0,
                                  .gparameter = {[DPCR_W1] = gweight, [DPCR_B1] = gbias},
                                  .report = report};
    c->solution.newton = c->pullback.newton = &c->newton;
    c->chain_at = &c->chain;
    c->plan_at = &c->plan;
    c->solution_at = &c->solution;
    c->pullback_at = &c->pullback;
    c->bytes_at = &c->bytes;
}

enum { QUERY = 1, SOLVE = 2, QUERY_BACKWARD = 4, BACKWARD = 8, QUERIES = 5, RUNS = 10, ALL = 15 };

static void run(const call *c, int calls, dpcr_status expected, const char *name) {
    if (calls & QUERY) {
        refusal_expected(name);
        refusal_check(
            dpcr_chain_solve_workspace(c->exec, c->chain_at, c->solution_at, c->plan_at, c->bytes_at),
            expected, "solve_workspace");
    }
    if (calls & SOLVE) {
        refusal_expected(name);
        refusal_check(dpcr_chain_solve(c->exec, c->chain_at, c->solution_at, c->plan_at, c->workspace),
                      expected, "solve");
    }
    if (calls & QUERY_BACKWARD) {
        refusal_expected(name);
        refusal_check(
            dpcr_chain_backward_workspace(c->exec, c->chain_at, c->pullback_at, c->plan_at, c->bytes_at),
            expected, "backward_workspace");
    }
    if (calls & BACKWARD) {
        refusal_expected(name);
        refusal_check(dpcr_chain_backward(c->exec, c->chain_at, c->pullback_at, c->plan_at, c->workspace),
                      expected, "backward");
    }
}

/* One broken thing: BREAK(calls that must refuse, name in the detail, statement). */
#define BREAK(calls, name, ...)                  \
    do {                                         \
        call c;                                  \
        good(&c);                                \
        check_context("%s", #__VA_ARGS__);       \
        __VA_ARGS__;                             \
        run(&c, calls, DPCR_BAD_ARGUMENT, name); \
    } while (0)

static void check_pointers(void) {
    BREAK(ALL, "exec.device", c.exec.device = NULL);
    BREAK(ALL, "chain", c.chain_at = NULL);
    BREAK(ALL, "plan", c.plan_at = NULL);
    BREAK(QUERY | SOLVE, "solution", c.solution_at = NULL);
    BREAK(QUERY_BACKWARD | BACKWARD, "pass", c.pullback_at = NULL);
    BREAK(QUERIES, "bytes", c.bytes_at = NULL);
    BREAK(SOLVE, "solution.z0", c.solution.z0 = NULL);
    BREAK(SOLVE, "solution.z", c.solution.z = NULL);
    BREAK(BACKWARD, "pass.z0", c.pullback.z0 = NULL);
    BREAK(BACKWARD, "pass.states", c.pullback.states = NULL);
    BREAK(BACKWARD, "pass.states", c.pullback.states = NULL, c.plan.segments = 1);
    BREAK(RUNS, "parameter[DPCR_W1]", c.chain.parameter[DPCR_W1] = NULL);
    BREAK(RUNS, "workspace.data", c.workspace.data = NULL);
    BREAK(RUNS, "workspace.data", c.workspace.data = work + 4);
}

static void check_options(void) {
    BREAK(ALL, "newton.structure", c.newton.structure = (dpcr_structure)DPCR_STRUCTURES);
    BREAK(ALL, "newton.structure", c.newton.structure = (dpcr_structure)-1);
    BREAK(ALL, "newton.refresh", c.newton.refresh = (dpcr_refresh)DPCR_REFRESHES);
    BREAK(ALL, "newton.refresh", c.newton.refresh = (dpcr_refresh)-1);
    BREAK(ALL, "newton.rtol", c.newton.rtol = 0);
    BREAK(ALL, "newton.rtol", c.newton.rtol = -1e-6);
    BREAK(ALL, "newton.rtol", c.newton.rtol = NAN);
    BREAK(ALL, "newton.rtol", c.newton.rtol = INFINITY);
    BREAK(ALL, "newton.atol", c.newton.atol = -1e-30);
    BREAK(ALL, "newton.atol", c.newton.atol = NAN);
    BREAK(ALL, "newton.atol", c.newton.atol = INFINITY);
    BREAK(ALL, "newton.rtol", c.newton.rtol = 0, c.plan.segments = 1);
}

static void check_numbers(void) {
    BREAK(ALL, "exec.threads", c.exec.threads = 0);
    BREAK(ALL, "step", c.chain.step = (dpcr_step)DPCR_STEPS);
    BREAK(ALL, "dtype", c.chain.dtype = (dpcr_dtype)2);
    BREAK(ALL, "L", c.chain.L = -1);
    BREAK(ALL, "h", c.chain.h = W + 1);
    BREAK(ALL, "plan.segments", c.plan.segments = 0);
    BREAK(ALL, "plan.segments", c.plan.segments = L + 1);
    BREAK(ALL, "plan.workspace_cap", c.plan.workspace_cap = 1);
    BREAK(RUNS, "parameter[DPCR_W2]", c.chain.parameter[DPCR_W2] = weight);
    BREAK(QUERY_BACKWARD | BACKWARD, "gparameter[DPCR_W2]", c.pullback.gparameter[DPCR_W2] = gweight);
}

static void check_short_workspace(int64_t segments) {
    call c;
    good(&c);
    c.plan.segments = segments;
    check_context("S=%d, one byte less of workspace", (int)segments);
    CHECK(dpcr_chain_solve_workspace(c.exec, &c.chain, &c.solution, &c.plan, &c.bytes) == DPCR_OK, "%s",
          dpcr_detail());
    CHECK(c.bytes > 0 && c.bytes <= sizeof work, "%zu bytes", c.bytes);
    c.workspace.bytes = c.bytes - 1;
    run(&c, SOLVE, DPCR_SMALL_WORKSPACE, "workspace.bytes");
    CHECK(dpcr_chain_backward_workspace(c.exec, &c.chain, &c.pullback, &c.plan, &c.bytes) == DPCR_OK, "%s",
          dpcr_detail());
    CHECK(c.bytes > 0 && c.bytes <= sizeof work, "%zu bytes", c.bytes);
    c.workspace.bytes = c.bytes - 1;
    run(&c, BACKWARD, DPCR_SMALL_WORKSPACE, "workspace.bytes");
}

/* ---- what is no error ----------------------------------------------------------------------- */

static void allowed(const call *c) {
    size_t bytes;
    CHECK(dpcr_chain_solve_workspace(c->exec, &c->chain, &c->solution, &c->plan, &bytes) == DPCR_OK, "%s",
          dpcr_detail());
    CHECK(dpcr_chain_solve(c->exec, &c->chain, &c->solution, &c->plan, c->workspace) == DPCR_OK, "%s",
          dpcr_detail());
    CHECK(dpcr_chain_backward_workspace(c->exec, &c->chain, &c->pullback, &c->plan, &bytes) == DPCR_OK, "%s",
          dpcr_detail());
    CHECK(dpcr_chain_backward(c->exec, &c->chain, &c->pullback, &c->plan, c->workspace) == DPCR_OK, "%s",
          dpcr_detail());
}

#define ALLOW(...)                         \
    do {                                   \
        call c;                            \
        good(&c);                          \
        check_context("%s", #__VA_ARGS__); \
        __VA_ARGS__;                       \
        allowed(&c);                       \
    } while (0)

static void forget_arrays(call *c) {
    c->solution = (dpcr_solution){.newton = &c->newton};
    c->pullback = (dpcr_pullback){.newton = &c->newton};
    c->workspace = (dpcr_buffer){NULL, 0};
}

static void check_edges(void) {
    ALLOW((void)c);
    ALLOW(c.plan.segments = 1);
    ALLOW(c.plan.segments = L);
    ALLOW(c.solution.newton = c.pullback.newton = NULL);
    ALLOW(c.solution.guess = NULL);
    ALLOW(c.solution.states = NULL, c.solution.checkpoints = NULL);
    ALLOW(c.solution.report = NULL, c.pullback.report = NULL);
    ALLOW(c.pullback.states = NULL, c.pullback.checkpoints = checkpoints);
    ALLOW(c.pullback.states = NULL, c.pullback.checkpoints = checkpoints, c.plan.segments = 1);
    ALLOW(c.pullback.gz = NULL, c.pullback.gstates = NULL);
    ALLOW(c.pullback.gz0 = NULL, c.pullback.gparameter[DPCR_W1] = NULL);
    ALLOW(c.newton.max_sweeps = 0);
    ALLOW(c.newton.max_sweeps = INT64_MAX);
    ALLOW(c.newton.max_sweeps = INT64_MIN);
    ALLOW(c.newton.finish = false, c.newton.max_sweeps = 1);
    ALLOW(c.newton.rtol = 1e-300);
    ALLOW(c.newton.rtol = 1e300, c.newton.atol = 1e300);
    ALLOW(c.chain.B = 0, forget_arrays(&c));
    ALLOW(c.chain.w = c.chain.h = 0, forget_arrays(&c));
    ALLOW(c.chain.L = 0);
    ALLOW(c.chain.L = 0, c.pullback.states = NULL);
    ALLOW(c.chain.L = 0, c.plan.segments = 3);
}

static void check_helpers(void) {
    const dpcr_newton narrow = dpcr_newton_default(DPCR_F32), wide = dpcr_newton_default(DPCR_F64);
    check_context("dpcr_newton_default");
    CHECK(narrow.rtol == 8 * 0x1p-23 && wide.rtol == 8 * 0x1p-52, "rtol %g, %g", narrow.rtol, wide.rtol);
    CHECK(narrow.structure == DPCR_P_DENSE && narrow.refresh == DPCR_ADAPTIVE && narrow.atol == 0
              && narrow.max_sweeps < 0 && narrow.finish,
          "other defaults");
    check_context("dpcr_checkpoints");
    for (int64_t length = 0; length < 200; length++) {
        const int64_t C = dpcr_checkpoints(length, 1);
        CHECK(length == 0 ? C <= 1 : C >= 1 && fabs((double)C - sqrt((double)length)) <= 1, "L=%d: %d",
              (int)length, (int)C);
        for (int64_t segments = 2; segments <= length; segments++)
            CHECK(dpcr_checkpoints(length, segments) == segments, "L=%d S=%d", (int)length, (int)segments);
    }
    CHECK(dpcr_checkpoints(INT64_C(1) << 40, 1) == INT64_C(1) << 20, "L=2^40");
}

int main(void) {
    check_pointers();
    check_options();
    check_numbers();
    check_short_workspace(S);
    check_short_workspace(1);
    check_edges();
    check_helpers();
    return check_finish();
}
