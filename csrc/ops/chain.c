/* SPDX-License-Identifier: Apache-2.0
 *
 * Chains over any device: arguments checked once, workspace carved, passes run.
 *
 * Backward goes in *chunks* of steps, from the last: walk the chunk back (tiles of samples in
 * parallel), keeping what the parameter gradients need; then those gradients (steps in parallel).
 * So what is kept never grows with L, and is read again while it is still in the cache.
 */
#include "ops/kernels.h"

#include <math.h>
#include <string.h>

/* ---- shapes and checks ---------------------------------------------------------------------- */

int64_t dpcr_parameter_size(const dpcr_chain *chain, dpcr_parameter parameter) {
    const bool residual = chain->step == DPCR_RESIDUAL, norm = residual && chain->norm != DPCR_NO_NORM;
    switch (parameter) {
    case DPCR_W1: return chain->h * chain->w;
    case DPCR_B1: return chain->h;
    case DPCR_W2: return residual ? chain->w * chain->h : 0;
    case DPCR_B2: return residual ? chain->w : 0;
    case DPCR_GAMMA: return norm ? chain->w : 0;
    case DPCR_BETA: return norm && chain->norm == DPCR_LAYER_NORM ? chain->w : 0;
    case DPCR_PARAMETERS: break;
    }
    return 0;
}

static bool exists(const dpcr_chain *chain, int parameter) {
    switch ((dpcr_parameter)parameter) {
    case DPCR_W1:
    case DPCR_B1: return true;
    case DPCR_W2:
    case DPCR_B2: return chain->step == DPCR_RESIDUAL;
    case DPCR_GAMMA: return chain->step == DPCR_RESIDUAL && chain->norm != DPCR_NO_NORM;
    default: return chain->step == DPCR_RESIDUAL && chain->norm == DPCR_LAYER_NORM;
    }
}

static const char *const parameter_names[DPCR_PARAMETERS] = {"W1", "B1", "W2", "B2", "GAMMA", "BETA"};

static dpcr_status check_kinds(const dpcr_chain *chain) {
    REQUIRE((int)chain->step >= 0 && chain->step < DPCR_STEPS, "step %d is not a dpcr_step",
            (int)chain->step);
    REQUIRE(chain->dtype == DPCR_F32 || chain->dtype == DPCR_F64, "dtype %d is not a dpcr_dtype",
            (int)chain->dtype);
    REQUIRE((int)chain->activation >= 0 && chain->activation < DPCR_ACTIVATIONS,
            "activation %d is not a dpcr_activation", (int)chain->activation);
    REQUIRE(chain->activation != DPCR_SOFTPLUS || chain->activation_parameter[0] != 0,
            "activation_parameter[0] is 0, the beta of softplus must not be");
    if (chain->step != DPCR_RESIDUAL) return DPCR_OK;
    REQUIRE((int)chain->norm >= 0 && chain->norm < DPCR_NORMS, "norm %d is not a dpcr_norm",
            (int)chain->norm);
    REQUIRE(chain->norm == DPCR_NO_NORM || chain->norm_eps >= 0, "norm_eps is %g, must not be negative",
            chain->norm_eps);
    return DPCR_OK;
}

static dpcr_status check_chain(dpcr_exec exec, const dpcr_chain *chain, const dpcr_plan *plan) {
    RETURN_IF(dpcr_check_exec(exec));
    REQUIRE(chain, "chain is NULL");
    REQUIRE(plan, "plan is NULL");
    RETURN_IF(check_kinds(chain));
    REQUIRE(chain->L >= 0, "L is %lld, must not be negative", (long long)chain->L);
    REQUIRE(chain->B >= 0, "B is %lld, must not be negative", (long long)chain->B);
    REQUIRE(chain->w >= 0, "w is %lld, must not be negative", (long long)chain->w);
    REQUIRE(chain->h >= 0, "h is %lld, must not be negative", (long long)chain->h);
    REQUIRE(chain->step != DPCR_MLP || chain->h == chain->w, "h is %lld, must be w = %lld for DPCR_MLP",
            (long long)chain->h, (long long)chain->w);
    RETURN_IF(dpcr_check_size("states", chain->L, chain->B, dpcr_max(chain->w, chain->h)));
    RETURN_IF(dpcr_check_size("W1", chain->L, chain->w, chain->h));
    REQUIRE(plan->segments >= 1 && (chain->L == 0 || plan->segments <= chain->L),
            "plan.segments is %lld, must be between 1 and L = %lld", (long long)plan->segments,
            (long long)chain->L);
    return DPCR_OK;
}

static dpcr_status check_parameters(const dpcr_chain *chain) {
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        const bool needed = i == DPCR_W1 || (i == DPCR_W2 && exists(chain, i));
        const bool empty = chain->L == 0 || dpcr_parameter_size(chain, (dpcr_parameter)i) == 0;
        REQUIRE(!needed || empty || chain->parameter[i], "parameter[DPCR_%s] is NULL", parameter_names[i]);
        REQUIRE(exists(chain, i) || !chain->parameter[i],
                "parameter[DPCR_%s] is given, but this chain has none", parameter_names[i]);
    }
    return DPCR_OK;
}

static bool no_states(const dpcr_chain *chain) {
    return chain->B == 0 || chain->w == 0;
}

/* ---- forward -------------------------------------------------------------------------------- */

static int64_t tile_count(const struct chain_kernels *kernels, const dpcr_chain *chain, int64_t S) {
    return no_states(chain) ? 0 : S * dpcr_ceil_div(chain->B, kernels->tile(chain));
}

static dpcr_status fit_cap(const dpcr_plan *plan, size_t bytes) {
    REQUIRE(plan->workspace_cap == 0 || bytes <= plan->workspace_cap,
            "plan.workspace_cap is %zu bytes, the least that this chain needs is %zu", plan->workspace_cap,
            bytes);
    return DPCR_OK;
}

/* The least scratch is that of one running task: a cap may leave fewer threads, never another result. */
static int64_t slots_within(const dpcr_plan *plan, int64_t slots, size_t each, size_t others) {
    while (slots > 1 && plan->workspace_cap > 0 && (size_t)slots * each + others > plan->workspace_cap)
        slots--;
    return slots;
}

static dpcr_status carve_propagation(struct propagate_pass *pass, const dpcr_plan *plan, void *base,
                                     size_t *bytes) {
    const struct chain_kernels *kernels = dpcr_chain_kernels(pass->exec.device, pass->chain->dtype);
    struct arena arena = {base, 0};
    const int64_t tasks = tile_count(kernels, pass->chain, pass->S);
    pass->scratch_bytes = tasks ? kernels->propagate_scratch(pass->chain, pass->arrays.tangents != NULL) : 0;
    const int64_t slots = slots_within(plan, dpcr_slots(pass->exec, tasks), pass->scratch_bytes, 0);
    if (slots > 0) pass->exec.threads = slots;
    pass->scratch = dpcr_take(&arena, (size_t)slots * pass->scratch_bytes);
    *bytes = arena.used;
    return fit_cap(plan, *bytes);
}

static dpcr_status check_propagation(dpcr_exec exec, const dpcr_chain *chain, const dpcr_propagation *arrays,
                                     const dpcr_plan *plan) {
    RETURN_IF(check_chain(exec, chain, plan));
    REQUIRE(arrays, "pass is NULL");
    RETURN_IF(dpcr_check_size("starts", plan->segments, chain->B, chain->w));
    if (arrays->tangents) RETURN_IF(dpcr_check_size("tangents", plan->segments, chain->B, chain->w));
    return DPCR_OK;
}

dpcr_status dpcr_chain_propagate_workspace(dpcr_exec exec, const dpcr_chain *chain,
                                           const dpcr_propagation *pass, const dpcr_plan *plan,
                                           size_t *bytes) {
    RETURN_IF(check_propagation(exec, chain, pass, plan));
    REQUIRE(bytes, "bytes is NULL");
    struct propagate_pass propagation = {.exec = exec, .chain = chain, .arrays = *pass, .S = plan->segments};
    return carve_propagation(&propagation, plan, NULL, bytes);
}

dpcr_status dpcr_chain_propagate(dpcr_exec exec, const dpcr_chain *chain, const dpcr_propagation *pass,
                                 const dpcr_plan *plan, dpcr_buffer workspace) {
    RETURN_IF(check_propagation(exec, chain, pass, plan));
    RETURN_IF(check_parameters(chain));
    struct propagate_pass propagation = {.exec = exec, .chain = chain, .arrays = *pass, .S = plan->segments};
    size_t bytes;
    RETURN_IF(carve_propagation(&propagation, plan, workspace.data, &bytes));
    RETURN_IF(dpcr_check_workspace(workspace, bytes));
    if (no_states(chain)) return DPCR_OK;
    REQUIRE(pass->starts, "pass.starts is NULL");
    REQUIRE(pass->ends, "pass.ends is NULL");
    dpcr_chain_kernels(exec.device, chain->dtype)->propagate(&propagation);
    return DPCR_OK;
}

/* ---- backward ------------------------------------------------------------------------------- */

/* What a chunk keeps should stay in the L2 cache next to its states. */
static const int64_t kChunkBytes = 512 << 10;

static bool wants_parameters(const dpcr_pullback *arrays) {
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (arrays->gparameter[i]) return true;
    return false;
}

/* Steps of a chunk: as many as kChunkBytes hold, fewer under a cap, at least one. */
static int64_t chunk_steps(const dpcr_chain *chain, const dpcr_plan *plan, int64_t step_bytes,
                           size_t others) {
    int64_t room = kChunkBytes;
    if (plan->workspace_cap > 0) {
        const int64_t left =
            plan->workspace_cap > others ? (int64_t)(plan->workspace_cap - others) - DPCR_ALIGNMENT : 0;
        room = dpcr_min(room, left);
    }
    return dpcr_max(1, dpcr_min(chain->L, room / dpcr_max(step_bytes, 1)));
}

static dpcr_status carve_pullback(struct pullback_pass *pass, const dpcr_plan *plan, void *base,
                                  int64_t *chunk, size_t *bytes) {
    const dpcr_chain *chain = pass->chain;
    const struct chain_kernels *kernels = dpcr_chain_kernels(pass->exec.device, chain->dtype);
    const size_t element = dpcr_size_of(chain->dtype);
    struct arena arena = {base, 0};
    const int64_t tasks = tile_count(kernels, chain, 1);
    pass->scratch_bytes = tasks ? kernels->pullback_scratch(chain) : 0;
    pass->saved_size = kernels->saved_size(chain);
    const int64_t step_bytes = chain->B * pass->saved_size * (int64_t)element;
    const size_t adjoint = dpcr_round_up((size_t)(chain->B * chain->w) * element);
    const size_t least = wants_parameters(pass->arrays) ? (size_t)step_bytes + DPCR_ALIGNMENT : 0;
    const int64_t slots =
        slots_within(plan, dpcr_slots(pass->exec, tasks), pass->scratch_bytes, adjoint + least);
    if (slots > 0) pass->exec.threads = slots;
    pass->adjoint = dpcr_take(&arena, adjoint);
    pass->scratch = dpcr_take(&arena, (size_t)slots * pass->scratch_bytes);
    *chunk = dpcr_max(chain->L, 1);
    if (wants_parameters(pass->arrays)) {
        *chunk = chunk_steps(chain, plan, step_bytes, arena.used);
        pass->saved = dpcr_take(&arena, (size_t)(*chunk * step_bytes));
    }
    *bytes = arena.used;
    return fit_cap(plan, *bytes);
}

static dpcr_status check_pullback(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *arrays,
                                  const dpcr_plan *plan) {
    RETURN_IF(check_chain(exec, chain, plan));
    REQUIRE(arrays, "pass is NULL");
    if (plan->segments != 1)
        return dpcr_fail(DPCR_UNSUPPORTED, "plan.segments is %lld, backward runs as one segment",
                         (long long)plan->segments);
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        REQUIRE(exists(chain, i) || !arrays->gparameter[i],
                "gparameter[DPCR_%s] is given, but this chain has none", parameter_names[i]);
    return DPCR_OK;
}

dpcr_status dpcr_chain_backward_workspace(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *pass,
                                          const dpcr_plan *plan, size_t *bytes) {
    RETURN_IF(check_pullback(exec, chain, pass, plan));
    REQUIRE(bytes, "bytes is NULL");
    struct pullback_pass pullback = {.exec = exec, .chain = chain, .arrays = pass};
    int64_t chunk;
    return carve_pullback(&pullback, plan, NULL, &chunk, bytes);
}

/* Without samples or width every parameter gradient is an empty sum. */
static void clear_gradients(const dpcr_chain *chain, const dpcr_pullback *arrays) {
    const size_t element = dpcr_size_of(chain->dtype);
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        if (arrays->gparameter[i])
            memset(arrays->gparameter[i], 0,
                   (size_t)(chain->L * dpcr_parameter_size(chain, (dpcr_parameter)i)) * element);
}

static dpcr_status run_backward(struct pullback_pass *pass, int64_t chunk) {
    const dpcr_chain *chain = pass->chain;
    const dpcr_pullback *arrays = pass->arrays;
    const struct chain_kernels *kernels = dpcr_chain_kernels(pass->exec.device, chain->dtype);
    const size_t state = (size_t)(chain->B * chain->w) * dpcr_size_of(chain->dtype);
    if (arrays->gz)
        memcpy(pass->adjoint, arrays->gz, state);
    else
        memset(pass->adjoint, 0, state);
    for (pass->last = chain->L; pass->last > 0; pass->last = pass->first) {
        pass->first = dpcr_max(0, pass->last - chunk);
        kernels->pullback(pass);
        if (pass->saved) kernels->gradient(pass);
    }
    if (arrays->gz0) memcpy(arrays->gz0, pass->adjoint, state);
    return DPCR_OK;
}

dpcr_status dpcr_chain_backward(dpcr_exec exec, const dpcr_chain *chain, const dpcr_pullback *pass,
                                const dpcr_plan *plan, dpcr_buffer workspace) {
    RETURN_IF(check_pullback(exec, chain, pass, plan));
    RETURN_IF(check_parameters(chain));
    struct pullback_pass pullback = {.exec = exec, .chain = chain, .arrays = pass};
    int64_t chunk;
    size_t bytes;
    RETURN_IF(carve_pullback(&pullback, plan, workspace.data, &chunk, &bytes));
    RETURN_IF(dpcr_check_workspace(workspace, bytes));
    if (no_states(chain)) {
        clear_gradients(chain, pass);
        return DPCR_OK;
    }
    REQUIRE(chain->L == 0 || pass->z0, "pass.z0 is NULL");
    REQUIRE(chain->L == 0 || pass->states, "pass.states is NULL");
    return run_backward(&pullback, chunk);
}

/* ---- activation alone ----------------------------------------------------------------------- */

dpcr_status dpcr_activate(dpcr_exec exec, dpcr_dtype dtype, dpcr_activation activation,
                          const double parameter[2], int64_t count, const void *u, void *y, void *d) {
    RETURN_IF(dpcr_check_exec(exec));
    const dpcr_chain chain = {
        .dtype = dtype,
        .activation = activation,
        .activation_parameter = {parameter ? parameter[0] : 0, parameter ? parameter[1] : 0}};
    REQUIRE(parameter, "parameter is NULL");
    RETURN_IF(check_kinds(&chain));
    REQUIRE(count >= 0, "count is %lld, must not be negative", (long long)count);
    REQUIRE(count == 0 || u, "u is NULL");
    REQUIRE(count == 0 || y, "y is NULL");
    if (count > 0) dpcr_chain_kernels(exec.device, dtype)->activate(activation, parameter, count, u, y, d);
    return DPCR_OK;
}
