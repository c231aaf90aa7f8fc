/* SPDX-License-Identifier: Apache-2.0
 *
 * Bad arguments of the chains' calls: from a good call one thing at a time is broken, and every call
 * that looks at it must say so.  And the edges that are not errors.
 */
#include "ops/chain.h"
#include "support/refusal.h"

#include <math.h>
#include <stdint.h>

enum { L = 4, B = 3, W = 2, H = 5 };

typedef struct call {
    dpcr_exec exec;
    dpcr_chain chain;
    dpcr_propagation forward;
    dpcr_pullback backward;
    dpcr_plan plan;
    dpcr_buffer workspace;
    const dpcr_chain *chain_at;
    const dpcr_plan *plan_at;
    const dpcr_propagation *forward_at;
    const dpcr_pullback *backward_at;
    size_t bytes, *bytes_at;
} call;

static float parameter[DPCR_PARAMETERS][2 * L * H * W], gradient[DPCR_PARAMETERS][2 * L * H * W];
static float starts[L * B * W], ends[L * B * W], states[L * B * W], tangents[L * B * W * W], gz[B * W],
    gz0[B * W];
static _Alignas(DPCR_ALIGNMENT) char work[1 << 20];

/* A residual chain with a layer norm: it has most parameters. */
static void good(call *c) {
    *c = (call){.exec = dpcr_serial(), .plan = {.segments = 1}, .workspace = {work, sizeof work}};
    c->chain = (dpcr_chain){.step = DPCR_RESIDUAL,
                            .dtype = DPCR_F32,
                            .L = L,
                            .B = B,
                            .w = W,
                            .h = H,
                            .activation = DPCR_TANH,
                            .norm = DPCR_LAYER_NORM,
                            .norm_eps = 1e-5,
                            .scale = 1};
    c->forward = (dpcr_propagation){starts, ends, states, tangents};
    c->backward = (dpcr_pullback){.z0 = starts, .states = states, .gz = gz, .gz0 = gz0};
    for (int i = 0; i <= DPCR_BETA; i++) {
        c->chain.parameter[i] = parameter[i];
        c->backward.gparameter[i] = gradient[i];
    }
    c->chain_at = &c->chain;
    c->plan_at = &c->plan;
    c->forward_at = &c->forward;
    c->backward_at = &c->backward;
    c->bytes_at = &c->bytes;
}

/* The same chain as steps of two layers with a norm. */
static void layers(call *c) {
    c->chain.step = DPCR_LAYERS;
    c->chain.h = W;
    c->chain.layers = 2;
    for (int i = DPCR_W2; i <= DPCR_B2; i++) c->chain.parameter[i] = c->backward.gparameter[i] = NULL;
}

/* The same chain as one plain layer a step. */
static void mlp(call *c) {
    c->chain.step = DPCR_MLP;
    c->chain.h = W;
    for (int i = DPCR_W2; i < DPCR_PARAMETERS; i++) c->chain.parameter[i] = c->backward.gparameter[i] = NULL;
}

/* Steps of denoising with all that they have. */
static void denoise(call *c) {
    c->chain.step = DPCR_DENOISE;
    c->chain.layers = 2;
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        const bool normed = i == DPCR_GAMMA || i == DPCR_BETA;
        c->chain.parameter[i] = normed ? NULL : parameter[i];
        c->backward.gparameter[i] = normed ? NULL : gradient[i];
    }
}

enum {
    QUERY = 1,
    FORWARD = 2,
    QUERY_BACKWARD = 4,
    BACKWARD = 8,
    QUERIES = 5,
    RUNS = 10,
    PULLBACK = 12,
    ALL = 15
};

static void run(const call *c, int calls, dpcr_status expected, const char *name) {
    if (calls & QUERY) {
        refusal_expected(name);
        refusal_check(
            dpcr_chain_propagate_workspace(c->exec, c->chain_at, c->forward_at, c->plan_at, c->bytes_at),
            expected, "propagate_workspace");
    }
    if (calls & FORWARD) {
        refusal_expected(name);
        refusal_check(dpcr_chain_propagate(c->exec, c->chain_at, c->forward_at, c->plan_at, c->workspace),
                      expected, "propagate");
    }
    if (calls & QUERY_BACKWARD) {
        refusal_expected(name);
        refusal_check(
            dpcr_chain_backward_workspace(c->exec, c->chain_at, c->backward_at, c->plan_at, c->bytes_at),
            expected, "backward_workspace");
    }
    if (calls & BACKWARD) {
        refusal_expected(name);
        refusal_check(dpcr_chain_backward(c->exec, c->chain_at, c->backward_at, c->plan_at, c->workspace),
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
    BREAK(ALL, "pass", c.forward_at = NULL, c.backward_at = NULL);
    BREAK(QUERIES, "bytes", c.bytes_at = NULL);
    BREAK(FORWARD, "pass.starts", c.forward.starts = NULL);
    BREAK(FORWARD, "pass.ends", c.forward.ends = NULL);
    BREAK(BACKWARD, "pass.z0", c.backward.z0 = NULL);
    BREAK(BACKWARD, "pass.states", c.backward.states = NULL);
    BREAK(RUNS, "parameter[DPCR_W1]", c.chain.parameter[DPCR_W1] = NULL);
    BREAK(RUNS, "parameter[DPCR_W2]", c.chain.parameter[DPCR_W2] = NULL);
    BREAK(RUNS, "parameter[DPCR_W1]", denoise(&c), c.chain.parameter[DPCR_W1] = NULL);
    BREAK(RUNS, "parameter[DPCR_WH]", denoise(&c), c.chain.parameter[DPCR_WH] = NULL);
    BREAK(RUNS, "parameter[DPCR_W2]", denoise(&c), c.chain.parameter[DPCR_W2] = NULL);
    BREAK(RUNS, "parameter[DPCR_COEFFICIENTS]", denoise(&c), c.chain.parameter[DPCR_COEFFICIENTS] = NULL);
    BREAK(RUNS, "workspace.data", c.workspace.data = NULL);
    BREAK(RUNS, "workspace.data", c.workspace.data = work + 4);
}

static void check_numbers(void) {
    BREAK(ALL, "exec.threads", c.exec.threads = 0);
    BREAK(ALL, "step", c.chain.step = (dpcr_step)DPCR_STEPS);
    BREAK(ALL, "step", c.chain.step = (dpcr_step)-1);
    BREAK(ALL, "dtype", c.chain.dtype = (dpcr_dtype)2);
    BREAK(ALL, "activation", c.chain.activation = (dpcr_activation)DPCR_ACTIVATIONS);
    BREAK(ALL, "activation", c.chain.activation = (dpcr_activation)-1);
    BREAK(ALL, "activation_parameter", c.chain.activation = DPCR_SOFTPLUS);
    BREAK(ALL, "norm", c.chain.norm = (dpcr_norm)DPCR_NORMS);
    BREAK(ALL, "norm_eps", c.chain.norm_eps = -1e-5);
    BREAK(ALL, "norm_eps", c.chain.norm_eps = NAN);
    BREAK(ALL, "L", c.chain.L = -1);
    BREAK(ALL, "B", c.chain.B = -1);
    BREAK(ALL, "w", c.chain.w = -1);
    BREAK(ALL, "h", c.chain.h = -1);
    BREAK(ALL, "h", mlp(&c), c.chain.h = W + 1);
    BREAK(ALL, "h", mlp(&c), c.chain.step = DPCR_EULER, c.chain.h = W + 1);
    BREAK(ALL, "h", layers(&c), c.chain.h = W + 1);
    BREAK(ALL, "norm", layers(&c), c.chain.norm = (dpcr_norm)DPCR_NORMS);
    BREAK(ALL, "layers", layers(&c), c.chain.layers = 0);
    BREAK(ALL, "layers", layers(&c), c.chain.layers = -2);
    BREAK(ALL, "layers", layers(&c), c.chain.layers = INT64_MAX);
    BREAK(ALL, "layers", layers(&c), c.chain.layers = INT64_MAX / 1024, c.chain.L = 1);
    BREAK(ALL, "layers", denoise(&c), c.chain.layers = -1);
    BREAK(ALL, "layers", denoise(&c), c.chain.layers = INT64_MAX);
    BREAK(ALL, "layers", denoise(&c), c.chain.layers = INT64_MAX / 1024, c.chain.L = 1, c.chain.h = 0);
    BREAK(ALL, "B1", denoise(&c), c.chain.layers = INT64_C(1) << 50, c.chain.L = 8, c.chain.h = 1 << 8);
    BREAK(ALL, "WH", denoise(&c), c.chain.h = INT64_C(1) << 29, c.chain.B = 0);
    BREAK(ALL, "W1", denoise(&c), c.chain.layers = 0, c.chain.h = INT64_C(1) << 28,
          c.chain.w = INT64_C(1) << 30, c.chain.B = 0);
    BREAK(ALL, "states", c.chain.L = INT64_MAX);
    BREAK(ALL, "states", c.chain.B = INT64_MAX / 4);
    BREAK(ALL, "states", c.chain.h = INT64_MAX);
    BREAK(ALL, "W1", c.chain.w = c.chain.h = INT64_C(1) << 31, c.chain.B = 0);
    BREAK(ALL, "plan.segments", c.plan.segments = 0);
    BREAK(ALL, "plan.segments", c.plan.segments = -7);
    BREAK(ALL, "plan.segments", c.plan.segments = L + 1);
    BREAK(ALL, "plan.workspace_cap", c.plan.workspace_cap = 1);
}

static void check_misplaced(void) {
    BREAK(RUNS, "parameter[DPCR_WH]", c.chain.parameter[DPCR_WH] = parameter[DPCR_WH]);
    BREAK(RUNS, "parameter[DPCR_NOISE]", mlp(&c), c.chain.parameter[DPCR_NOISE] = parameter[DPCR_NOISE]);
    BREAK(RUNS, "parameter[DPCR_GAMMA]", denoise(&c), c.chain.parameter[DPCR_GAMMA] = parameter[DPCR_GAMMA]);
    BREAK(PULLBACK, "gparameter[DPCR_COEFFICIENTS]", layers(&c),
          c.backward.gparameter[DPCR_COEFFICIENTS] = gradient[DPCR_COEFFICIENTS]);
    BREAK(RUNS, "parameter[DPCR_W2]", mlp(&c), c.chain.parameter[DPCR_W2] = parameter[DPCR_W2]);
    BREAK(RUNS, "parameter[DPCR_B2]", mlp(&c), c.chain.step = DPCR_EULER,
          c.chain.parameter[DPCR_B2] = parameter[DPCR_B2]);
    BREAK(RUNS, "parameter[DPCR_W2]", layers(&c), c.chain.parameter[DPCR_W2] = parameter[DPCR_W2]);
    BREAK(FORWARD, "parameter[DPCR_GAMMA]", layers(&c), c.chain.norm = DPCR_NO_NORM);
    BREAK(PULLBACK, "gparameter[DPCR_B2]", layers(&c), c.backward.gparameter[DPCR_B2] = gradient[DPCR_B2]);
    BREAK(RUNS, "parameter[DPCR_GAMMA]", mlp(&c), c.chain.parameter[DPCR_GAMMA] = parameter[DPCR_GAMMA]);
    BREAK(FORWARD, "parameter[DPCR_GAMMA]", c.chain.norm = DPCR_NO_NORM);
    BREAK(RUNS, "parameter[DPCR_BETA]", c.chain.norm = DPCR_RMS_NORM,
          c.backward.gparameter[DPCR_BETA] = NULL);
    BREAK(PULLBACK, "gparameter[DPCR_W2]", mlp(&c), c.backward.gparameter[DPCR_W2] = gradient[DPCR_W2]);
    BREAK(PULLBACK, "gparameter[DPCR_BETA]", c.chain.norm = DPCR_RMS_NORM,
          c.chain.parameter[DPCR_BETA] = NULL);
}

static void check_statuses(void) {
    call c;
    good(&c);
    check_context("one byte less of workspace");
    CHECK(dpcr_chain_propagate_workspace(c.exec, &c.chain, &c.forward, &c.plan, &c.bytes) == DPCR_OK, "%s",
          dpcr_detail());
    CHECK(c.bytes > 0 && c.bytes <= sizeof work, "%zu bytes", c.bytes);
    c.workspace.bytes = c.bytes - 1;
    run(&c, FORWARD, DPCR_SMALL_WORKSPACE, "workspace.bytes");
    CHECK(dpcr_chain_backward_workspace(c.exec, &c.chain, &c.backward, &c.plan, &c.bytes) == DPCR_OK, "%s",
          dpcr_detail());
    CHECK(c.bytes > 0 && c.bytes <= sizeof work, "%zu bytes", c.bytes);
    c.workspace.bytes = c.bytes - 1;
    run(&c, BACKWARD, DPCR_SMALL_WORKSPACE, "workspace.bytes");
}

static void check_activate(void) {
    const dpcr_exec exec = dpcr_serial();
    const double p[2] = {1, 20};
    const float u[3] = {-1, 0, 1};
    float y[3], d[3];
    const dpcr_exec nowhere = {.threads = 1};
    check_context("dpcr_activate");
    refusal_expected("exec.device");
    refusal_check(dpcr_activate(nowhere, DPCR_F32, DPCR_TANH, p, 3, u, y, d), DPCR_BAD_ARGUMENT, "no device");
    refusal_expected("dtype");
    refusal_check(dpcr_activate(exec, (dpcr_dtype)7, DPCR_TANH, p, 3, u, y, d), DPCR_BAD_ARGUMENT, "dtype 7");
    refusal_expected("activation");
    refusal_check(dpcr_activate(exec, DPCR_F32, (dpcr_activation)99, p, 3, u, y, d), DPCR_BAD_ARGUMENT,
                  "activation 99");
    refusal_expected("parameter");
    refusal_check(dpcr_activate(exec, DPCR_F32, DPCR_ELU, NULL, 3, u, y, d), DPCR_BAD_ARGUMENT,
                  "no parameter");
    refusal_expected("count");
    refusal_check(dpcr_activate(exec, DPCR_F32, DPCR_TANH, p, -1, u, y, d), DPCR_BAD_ARGUMENT, "count -1");
    refusal_expected("u");
    refusal_check(dpcr_activate(exec, DPCR_F32, DPCR_TANH, p, 3, NULL, y, d), DPCR_BAD_ARGUMENT, "no u");
    refusal_expected("y");
    refusal_check(dpcr_activate(exec, DPCR_F32, DPCR_TANH, p, 3, u, NULL, d), DPCR_BAD_ARGUMENT, "no y");
    CHECK(dpcr_activate(exec, DPCR_F32, DPCR_TANH, p, 0, NULL, NULL, NULL) == DPCR_OK, "%s", dpcr_detail());
    CHECK(dpcr_activate(exec, DPCR_F32, DPCR_TANH, p, 3, u, y, NULL) == DPCR_OK, "%s", dpcr_detail());
}

/* ---- what is no error ----------------------------------------------------------------------- */

static void allowed(const call *c) {
    size_t bytes;
    CHECK(dpcr_chain_propagate_workspace(c->exec, c->chain_at, c->forward_at, c->plan_at, &bytes) == DPCR_OK,
          "%s", dpcr_detail());
    CHECK(dpcr_chain_propagate(c->exec, c->chain_at, c->forward_at, c->plan_at, c->workspace) == DPCR_OK,
          "%s", dpcr_detail());
    CHECK(dpcr_chain_backward_workspace(c->exec, c->chain_at, c->backward_at, c->plan_at, &bytes) == DPCR_OK,
          "%s", dpcr_detail());
    CHECK(dpcr_chain_backward(c->exec, c->chain_at, c->backward_at, c->plan_at, c->workspace) == DPCR_OK,
          "%s", dpcr_detail());
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
    c->forward = (dpcr_propagation){0};
    c->backward = (dpcr_pullback){0};
    c->workspace = (dpcr_buffer){NULL, 0};
}

static void check_edges(void) {
    ALLOW((void)c);
    ALLOW(mlp(&c));
    ALLOW(mlp(&c), c.chain.step = DPCR_EULER);
    ALLOW(layers(&c));
    ALLOW(layers(&c), c.chain.skip = true, c.plan.segments = 2);
    ALLOW(layers(&c), c.chain.w = c.chain.h = 0, c.chain.layers = 1 << 20, forget_arrays(&c));
    ALLOW(denoise(&c));
    ALLOW(denoise(&c), c.plan.segments = L);
    ALLOW(denoise(&c), c.chain.layers = 0, c.chain.parameter[DPCR_WH] = NULL);
    ALLOW(denoise(&c), c.chain.parameter[DPCR_B1] = c.chain.parameter[DPCR_B2] = NULL);
    ALLOW(denoise(&c), c.chain.parameter[DPCR_NOISE] = NULL);
    ALLOW(denoise(&c), c.chain.h = 0);
    ALLOW(denoise(&c), c.chain.L = 0);
    ALLOW(denoise(&c), c.chain.w = 0, forget_arrays(&c));
    ALLOW(c.plan.segments = L);
    ALLOW(c.forward.states = NULL, c.forward.tangents = NULL);
    ALLOW(c.backward.gz = NULL);
    ALLOW(c.backward.gstates = states);
    ALLOW(c.chain.parameter[DPCR_B1] = c.chain.parameter[DPCR_B2] = NULL);
    ALLOW(c.chain.parameter[DPCR_GAMMA] = c.chain.parameter[DPCR_BETA] = NULL);
    ALLOW(c.chain.norm_eps = 0);
    ALLOW(c.chain.B = 0, forget_arrays(&c));
    ALLOW(c.chain.w = 0, forget_arrays(&c));
    ALLOW(c.chain.h = 0);
    ALLOW(c.chain.L = 0);
    ALLOW(c.chain.L = 0, c.plan.segments = 3);
}

int main(void) {
    check_pointers();
    check_numbers();
    check_misplaced();
    check_statuses();
    check_activate();
    check_edges();
    return check_finish();
}
