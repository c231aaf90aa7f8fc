/* SPDX-License-Identifier: Apache-2.0
 *
 * Bad arguments of the recurrence's calls: from a good call one thing at a time is broken, and every
 * call that looks at it must say so.  And the edges that are not errors.
 */
#include "support/refusal.h"

#include <stdint.h>

enum { L = 4, B = 3, W = 2 };

/* A call with all that it needs; the breaks below change one thing of it. */
typedef struct call {
    dpcr_exec exec;
    dpcr_recurrence problem;
    dpcr_recurrence_gradients gradients;
    dpcr_plan plan;
    dpcr_buffer workspace;
    const dpcr_recurrence *problem_at;
    const dpcr_plan *plan_at;
    const dpcr_recurrence_gradients *gradients_at;
    size_t bytes, *bytes_at;
} call;

static double A[L * B * W * W], b[L * B * W], x0[B * W], x[L * B * W], gx[L * B * W], gb[L * B * W],
    gA[L * B * W * W], gx0[B * W];
static _Alignas(DPCR_ALIGNMENT) char work[1 << 16];

static void good(call *c) {
    const dpcr_vectors vectors = {NULL, B * W, W};
    const dpcr_blocks blocks = {NULL, B * W * W, W * W, W, 1};
    *c = (call){.exec = dpcr_serial(), .plan = {.segments = 2}, .workspace = {work, sizeof work}};
    c->problem = (dpcr_recurrence){.dtype = DPCR_F64,
                                   .block = DPCR_DENSE,
                                   .L = L,
                                   .B = B,
                                   .w = W,
                                   .A = blocks,
                                   .b = vectors,
                                   .x0 = {x0, 0, W},
                                   .x = vectors};
    c->problem.A.data = A;
    c->problem.b.data = b;
    c->problem.x.data = x;
    c->gradients = (dpcr_recurrence_gradients){.x = vectors, .b = vectors, .A = blocks, .x0 = {gx0, 0, W}};
    c->gradients.x.data = gx;
    c->gradients.b.data = gb;
    c->gradients.A.data = gA;
    c->problem_at = &c->problem;
    c->plan_at = &c->plan;
    c->gradients_at = &c->gradients;
    c->bytes_at = &c->bytes;
}

enum { QUERY = 1, SOLVE = 2, BACKWARD = 4, RUNS = SOLVE | BACKWARD, ALL = QUERY | RUNS };

static void run(const call *c, int calls, dpcr_status expected, const char *name) {
    int64_t levels;
    if (calls & QUERY) {
        refusal_expected(name);
        refusal_check(dpcr_recurrence_workspace(c->exec, c->problem_at, c->plan_at, c->bytes_at), expected,
                      "workspace");
    }
    if (calls & SOLVE) {
        refusal_expected(name);
        refusal_check(dpcr_recurrence_solve(c->exec, c->problem_at, c->plan_at, c->workspace, &levels),
                      expected, "solve");
    }
    if (calls & BACKWARD) {
        refusal_expected(name);
        refusal_check(
            dpcr_recurrence_backward(c->exec, c->problem_at, c->gradients_at, c->plan_at, c->workspace),
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
    BREAK(ALL, "problem", c.problem_at = NULL);
    BREAK(ALL, "plan", c.plan_at = NULL);
    BREAK(QUERY, "bytes", c.bytes_at = NULL);
    BREAK(RUNS, "A.data", c.problem.A.data = NULL);
    BREAK(RUNS, "x.data", c.problem.x.data = NULL);
    BREAK(SOLVE, "b.data", c.problem.b.data = NULL);
    BREAK(RUNS, "workspace.data", c.workspace.data = NULL);
    BREAK(RUNS, "workspace.data", c.workspace.data = work + 8);
    BREAK(BACKWARD, "gradients", c.gradients_at = NULL);
    BREAK(BACKWARD, "gradients.x", c.gradients.x.data = NULL);
    BREAK(BACKWARD, "gradients.b", c.gradients.b.data = NULL);
    BREAK(BACKWARD, "gradients.x0", c.problem.x0.data = NULL);
}

static void check_numbers(void) {
    BREAK(ALL, "exec.threads", c.exec.threads = 0);
    BREAK(ALL, "exec.threads", c.exec.threads = -3);
    BREAK(ALL, "dtype", c.problem.dtype = (dpcr_dtype)2);
    BREAK(ALL, "dtype", c.problem.dtype = (dpcr_dtype)-1);
    BREAK(ALL, "block", c.problem.block = (dpcr_block)4);
    BREAK(ALL, "block", c.problem.block = (dpcr_block)-1);
    BREAK(ALL, "L", c.problem.L = -1);
    BREAK(ALL, "B", c.problem.B = -1);
    BREAK(ALL, "w", c.problem.w = -1);
    BREAK(ALL, "L", c.problem.L = INT64_MIN);
    BREAK(ALL, "b", c.problem.L = INT64_MAX);
    BREAK(ALL, "b", c.problem.B = INT64_MAX / 4);
    BREAK(ALL, "b", c.problem.L = c.problem.B = c.problem.w = INT64_C(1) << 21);
    BREAK(ALL, "A", c.problem.B = 1, c.problem.w = INT64_C(1) << 31);
    BREAK(ALL, "segment maps", c.problem.L = c.problem.B = INT64_C(1) << 15, c.problem.w = INT64_C(1) << 17,
          c.plan.segments = c.problem.L);
    BREAK(ALL, "plan.segments", c.plan.segments = 0);
    BREAK(ALL, "plan.segments", c.plan.segments = -1);
    BREAK(ALL, "plan.segments", c.plan.segments = L + 1);
    BREAK(ALL, "plan.segments", c.plan.segments = 0, c.problem.L = 0);
    BREAK(ALL, "plan.workspace_cap", c.plan.workspace_cap = 1);
}

static void check_layouts(void) {
    BREAK(ALL, "x0.data", c.problem.transposed = true);
    BREAK(RUNS, "A.row", c.problem.A.row = 3, c.problem.A.column = 2);
    BREAK(RUNS, "x.step", c.problem.x.step = 0);
    BREAK(RUNS, "x.sample", c.problem.x.sample = 0);
    BREAK(BACKWARD, "problem.transposed", c.problem.transposed = true, c.problem.x0.data = NULL,
          c.gradients.x0.data = NULL);
    BREAK(BACKWARD, "gradients.A.row", c.gradients.A.row = 3, c.gradients.A.column = 2);
    BREAK(BACKWARD, "gradients.A.step", c.gradients.A.step = 0);
    BREAK(BACKWARD, "gradients.b.step", c.gradients.b.step = 0);
    BREAK(BACKWARD, "gradients.b.sample", c.gradients.b.sample = 0);
    BREAK(BACKWARD, "gradients.x0.sample", c.gradients.x0.sample = 0);
}

static void check_small_workspace(void) {
    call c;
    good(&c);
    check_context("one byte less of workspace");
    CHECK(dpcr_recurrence_workspace(c.exec, &c.problem, &c.plan, &c.bytes) == DPCR_OK, "%s", dpcr_detail());
    CHECK(c.bytes > 0 && c.bytes <= sizeof work, "%zu bytes", c.bytes);
    c.workspace.bytes = c.bytes - 1;
    run(&c, RUNS, DPCR_SMALL_WORKSPACE, "workspace.bytes");
}

/* ---- what is no error ----------------------------------------------------------------------- */

#define ALLOW(calls, ...)                  \
    do {                                   \
        call c;                            \
        good(&c);                          \
        check_context("%s", #__VA_ARGS__); \
        __VA_ARGS__;                       \
        allowed(&c, calls);                \
    } while (0)

static void allowed(const call *c, int calls) {
    dpcr_status status = dpcr_recurrence_workspace(c->exec, c->problem_at, c->plan_at, c->bytes_at);
    CHECK(status == DPCR_OK, "workspace: %s", dpcr_detail());
    status = dpcr_recurrence_solve(c->exec, c->problem_at, c->plan_at, c->workspace, NULL);
    CHECK(status == DPCR_OK, "solve: %s", dpcr_detail());
    if (!(calls & BACKWARD)) return;
    status = dpcr_recurrence_backward(c->exec, c->problem_at, c->gradients_at, c->plan_at, c->workspace);
    CHECK(status == DPCR_OK, "backward: %s", dpcr_detail());
}

static void forget_arrays(call *c) {
    c->problem.A.data = c->problem.b.data = c->problem.x0.data = c->problem.x.data = NULL;
    c->gradients = (dpcr_recurrence_gradients){{0}, {0}, {0}, {0}};
    c->workspace = (dpcr_buffer){NULL, 0};
}

static void check_edges(void) {
    ALLOW(ALL, c.plan.segments = 1);
    ALLOW(ALL, c.plan.segments = L);
    ALLOW(ALL, c.problem.block = DPCR_IDENTITY, c.problem.A.data = NULL, c.gradients.A.data = NULL);
    ALLOW(ALL, c.problem.x0.data = NULL, c.gradients.x0.data = NULL);
    ALLOW(SOLVE, c.problem.transposed = true, c.problem.x0.data = NULL);
    ALLOW(ALL, c.gradients.A.data = NULL, c.gradients.x0.data = NULL);
    ALLOW(ALL, c.problem.L = 0, c.plan.segments = 9, forget_arrays(&c));
    ALLOW(ALL, c.problem.B = 0, forget_arrays(&c));
    ALLOW(ALL, c.problem.w = 0, forget_arrays(&c));
    ALLOW(ALL, c.problem.L = c.problem.B = c.problem.w = 0, forget_arrays(&c));
    ALLOW(ALL, c.problem.L = 1, c.plan.segments = 1, c.problem.x.step = 0);
    ALLOW(ALL, c.problem.B = 1, c.problem.x.sample = 0);
    ALLOW(ALL, c.problem.A.step = 0); /* the same block at every step */
    ALLOW(ALL, c.problem.b.step = c.problem.b.sample = 0);
    ALLOW(SOLVE, c.problem.x = c.problem.b, c.plan.segments = 1);
}

int main(void) {
    check_pointers();
    check_numbers();
    check_layouts();
    check_small_workspace();
    check_edges();
    return check_finish();
}
