/* SPDX-License-Identifier: Apache-2.0
 *
 * What all calls on a chain share: its shapes, checked once, and the two calls without a method,
 * propagate and activate.
 */
#include "ops/device.h"
#include "ops/kernels.h"

/* ---- shapes and checks ---------------------------------------------------------------------- */

static bool takes_norm(const dpcr_chain *chain) {
    return chain->step == DPCR_RESIDUAL || chain->step == DPCR_LAYERS;
}

/* Whether h is of its own. */
static bool has_width(const dpcr_chain *chain) {
    return chain->step == DPCR_RESIDUAL || chain->step == DPCR_DENOISE;
}

int64_t dpcr_parameter_size(const dpcr_chain *chain, dpcr_parameter parameter) {
    const int64_t layers = dpcr_step_layers(chain);
    if (!dpcr_has_parameter(chain, (int)parameter)) return 0;
    switch (parameter) {
    case DPCR_W1: return (chain->step == DPCR_DENOISE ? 1 : layers) * chain->h * chain->w;
    case DPCR_B1: return layers * chain->h;
    case DPCR_W2: return chain->w * chain->h;
    case DPCR_B2: return chain->w;
    case DPCR_GAMMA:
    case DPCR_BETA: return layers * chain->w;
    case DPCR_WH: return chain->layers * chain->h * chain->h;
    case DPCR_COEFFICIENTS: return 2;
    case DPCR_NOISE: return chain->B * chain->w;
    case DPCR_PARAMETERS: break;
    }
    return 0;
}

static bool is_shared(const dpcr_chain *chain, dpcr_parameter parameter) {
    return chain->step == DPCR_DENOISE
           && (parameter == DPCR_W1 || parameter == DPCR_WH || parameter == DPCR_W2 || parameter == DPCR_B2);
}

int64_t dpcr_parameter_stride(const dpcr_chain *chain, dpcr_parameter parameter) {
    return is_shared(chain, parameter) ? 0 : dpcr_parameter_size(chain, parameter);
}

int64_t dpcr_parameter_total(const dpcr_chain *chain, dpcr_parameter parameter) {
    return (is_shared(chain, parameter) ? 1 : chain->L) * dpcr_parameter_size(chain, parameter);
}

bool dpcr_has_parameter(const dpcr_chain *chain, int parameter) {
    switch ((dpcr_parameter)parameter) {
    case DPCR_W1:
    case DPCR_B1: return true;
    case DPCR_W2:
    case DPCR_B2: return has_width(chain);
    case DPCR_WH:
    case DPCR_COEFFICIENTS:
    case DPCR_NOISE: return chain->step == DPCR_DENOISE;
    case DPCR_GAMMA: return takes_norm(chain) && chain->norm != DPCR_NO_NORM;
    case DPCR_BETA: return takes_norm(chain) && chain->norm == DPCR_LAYER_NORM;
    default: return false;
    }
}

const char *const dpcr_parameter_names[DPCR_PARAMETERS] = {"W1",   "B1", "W2",           "B2",   "GAMMA",
                                                           "BETA", "WH", "COEFFICIENTS", "NOISE"};

static dpcr_status check_kinds(const dpcr_chain *chain) {
    REQUIRE((int)chain->step >= 0 && chain->step < DPCR_STEPS, "step %d is not a dpcr_step",
            (int)chain->step);
    REQUIRE(chain->dtype == DPCR_F32 || chain->dtype == DPCR_F64, "dtype %d is not a dpcr_dtype",
            (int)chain->dtype);
    REQUIRE((int)chain->activation >= 0 && chain->activation < DPCR_ACTIVATIONS,
            "activation %d is not a dpcr_activation", (int)chain->activation);
    REQUIRE(chain->activation != DPCR_SOFTPLUS || chain->activation_parameter[0] != 0,
            "activation_parameter[0] is 0, the beta of softplus must not be");
    if (!takes_norm(chain)) return DPCR_OK;
    REQUIRE((int)chain->norm >= 0 && chain->norm < DPCR_NORMS, "norm %d is not a dpcr_norm",
            (int)chain->norm);
    REQUIRE(chain->norm == DPCR_NO_NORM || chain->norm_eps >= 0, "norm_eps is %g, must not be negative",
            chain->norm_eps);
    return DPCR_OK;
}

/* What a step has M of can be counted: parameters, what backward saves, panels of the largest tile. */
static dpcr_status check_layers(const dpcr_chain *chain) {
    const int64_t least = chain->step == DPCR_LAYERS ? 1 : 0, width = dpcr_max(chain->w, chain->h);
    if (chain->step != DPCR_LAYERS && chain->step != DPCR_DENOISE) return DPCR_OK;
    REQUIRE(chain->layers >= least && chain->layers < INT64_MAX, "layers is %lld, must be at least %lld",
            (long long)chain->layers, (long long)least);
    RETURN_IF(dpcr_check_size("layers", chain->L, dpcr_step_layers(chain), 1));
    if (chain->step == DPCR_DENOISE) {
        RETURN_IF(dpcr_check_size("B1", chain->L, dpcr_step_layers(chain), chain->h));
        RETURN_IF(dpcr_check_size("WH", chain->layers, chain->h, chain->h));
    }
    if (width == 0) return DPCR_OK;
    return dpcr_check_size("layers", dpcr_max(chain->L * chain->B, 64), dpcr_step_layers(chain), width);
}

static dpcr_status check_device(dpcr_exec exec) {
    RETURN_IF(dpcr_check_exec(exec));
    if (!exec.device->recurrence[0] && !exec.device->chains)
        return dpcr_fail(DPCR_UNSUPPORTED, "exec.device: chains do not run on %s", exec.device->name);
    return DPCR_OK;
}

dpcr_status dpcr_check_chain(dpcr_exec exec, const dpcr_chain *chain, const dpcr_plan *plan) {
    RETURN_IF(check_device(exec));
    REQUIRE(chain, "chain is NULL");
    REQUIRE(plan, "plan is NULL");
    RETURN_IF(check_kinds(chain));
    REQUIRE(chain->L >= 0, "L is %lld, must not be negative", (long long)chain->L);
    REQUIRE(chain->B >= 0, "B is %lld, must not be negative", (long long)chain->B);
    REQUIRE(chain->w >= 0, "w is %lld, must not be negative", (long long)chain->w);
    REQUIRE(chain->h >= 0, "h is %lld, must not be negative", (long long)chain->h);
    REQUIRE(has_width(chain) || chain->h == chain->w,
            "h is %lld, must be w = %lld but for DPCR_RESIDUAL and DPCR_DENOISE", (long long)chain->h,
            (long long)chain->w);
    RETURN_IF(dpcr_check_size("states", chain->L, chain->B, dpcr_max(chain->w, chain->h)));
    RETURN_IF(check_layers(chain));
    RETURN_IF(dpcr_check_size("W1", chain->step == DPCR_DENOISE ? 1 : chain->L * dpcr_step_layers(chain),
                              chain->w, chain->h));
    REQUIRE(plan->segments >= 1 && (chain->L == 0 || plan->segments <= chain->L),
            "plan.segments is %lld, must be between 1 and L = %lld", (long long)plan->segments,
            (long long)chain->L);
    return DPCR_OK;
}

dpcr_status dpcr_check_parameters(const dpcr_chain *chain) {
    for (int i = 0; i < DPCR_PARAMETERS; i++) {
        const bool weight = i == DPCR_W1 || i == DPCR_W2 || i == DPCR_WH || i == DPCR_COEFFICIENTS;
        const bool needed = weight && dpcr_has_parameter(chain, i);
        const bool empty = chain->L == 0 || dpcr_parameter_size(chain, (dpcr_parameter)i) == 0;
        REQUIRE(!needed || empty || chain->parameter[i], "parameter[DPCR_%s] is NULL",
                dpcr_parameter_names[i]);
        REQUIRE(dpcr_has_parameter(chain, i) || !chain->parameter[i],
                "parameter[DPCR_%s] is given, but this chain has none", dpcr_parameter_names[i]);
    }
    return DPCR_OK;
}

dpcr_status dpcr_check_segments(const dpcr_chain *chain, const dpcr_plan *plan, int64_t *S) {
    const int64_t w = dpcr_max(chain->w, 1);
    *S = chain->L == 0 ? 1 : plan->segments;
    RETURN_IF(dpcr_check_size("starts", *S, chain->B, w));
    return dpcr_check_size("segment maps", *S * chain->B, w, 2 * w);
}

dpcr_status dpcr_fit_cap(const dpcr_plan *plan, size_t bytes) {
    REQUIRE(plan->workspace_cap == 0 || bytes <= plan->workspace_cap,
            "plan.workspace_cap is %zu bytes, the least that this chain needs is %zu", plan->workspace_cap,
            bytes);
    return DPCR_OK;
}

int64_t dpcr_slots_within(const dpcr_plan *plan, int64_t slots, size_t each, size_t others) {
    while (slots > 1 && plan->workspace_cap > 0 && (size_t)slots * each + others > plan->workspace_cap)
        slots--;
    return slots;
}

/* ---- propagate ------------------------------------------------------------------------------ */

static struct propagate_pass make_pass(dpcr_exec exec, const dpcr_chain *chain,
                                       const dpcr_propagation *arrays, int64_t S) {
    return (struct propagate_pass){
        .exec = exec,
        .chain = chain,
        .S = S,
        .k1 = S,
        .samples = chain->B,
        .starts = {(void *)arrays->starts, chain->B, 0},
        .ends = {arrays->ends, chain->B, 0},
        .states = arrays->states,
        .tangents = {.data = arrays->tangents, .step = chain->B * chain->w * chain->w},
    };
}

static dpcr_status carve_propagation(struct propagate_pass *pass, const dpcr_plan *plan, void *base,
                                     size_t *bytes) {
    const struct chain_kernels *kernels = dpcr_chain_kernels(pass->exec.device, pass->chain->dtype);
    struct arena arena = {base, 0};
    const int64_t tasks = dpcr_tile_count(pass->chain, kernels->tile(pass->chain), pass->S, pass->chain->B);
    pass->scratch_bytes =
        tasks ? kernels->propagate_scratch(pass->chain, pass->tangents.data ? pass->chain->w : 0) : 0;
    const int64_t slots = dpcr_slots_within(plan, dpcr_slots(pass->exec, tasks), pass->scratch_bytes, 0);
    if (slots > 0) pass->exec.threads = slots;
    pass->scratch = dpcr_take(&arena, (size_t)slots * pass->scratch_bytes);
    *bytes = arena.used;
    return dpcr_fit_cap(plan, *bytes);
}

static dpcr_status check_propagation(dpcr_exec exec, const dpcr_chain *chain, const dpcr_propagation *arrays,
                                     const dpcr_plan *plan) {
    RETURN_IF(dpcr_check_chain(exec, chain, plan));
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
    *bytes = 0;
    if (exec.device->chains) return DPCR_OK;
    struct propagate_pass propagation = make_pass(exec, chain, pass, plan->segments);
    return carve_propagation(&propagation, plan, NULL, bytes);
}

dpcr_status dpcr_chain_propagate(dpcr_exec exec, const dpcr_chain *chain, const dpcr_propagation *pass,
                                 const dpcr_plan *plan, dpcr_buffer workspace) {
    RETURN_IF(check_propagation(exec, chain, pass, plan));
    RETURN_IF(dpcr_check_parameters(chain));
    struct propagate_pass propagation = make_pass(exec, chain, pass, plan->segments);
    size_t bytes;
    if (!exec.device->chains) {
        RETURN_IF(carve_propagation(&propagation, plan, workspace.data, &bytes));
        RETURN_IF(dpcr_check_workspace(workspace, bytes));
    }
    if (dpcr_no_states(chain)) return DPCR_OK;
    REQUIRE(pass->starts, "pass.starts is NULL");
    REQUIRE(pass->ends, "pass.ends is NULL");
    if (exec.device->chains) return exec.device->chains->propagate(exec, chain, pass, plan->segments);
    dpcr_chain_kernels(exec.device, chain->dtype)->propagate(&propagation);
    return DPCR_OK;
}

/* ---- activation alone ----------------------------------------------------------------------- */

dpcr_status dpcr_activate(dpcr_exec exec, dpcr_dtype dtype, dpcr_activation activation,
                          const double parameter[2], int64_t count, const void *u, void *y, void *d) {
    RETURN_IF(check_device(exec));
    const dpcr_chain chain = {
        .dtype = dtype,
        .activation = activation,
        .activation_parameter = {parameter ? parameter[0] : 0, parameter ? parameter[1] : 0}};
    REQUIRE(parameter, "parameter is NULL");
    RETURN_IF(check_kinds(&chain));
    REQUIRE(count >= 0, "count is %lld, must not be negative", (long long)count);
    REQUIRE(count == 0 || u, "u is NULL");
    REQUIRE(count == 0 || y, "y is NULL");
    if (count > 0 && exec.device->chains) return exec.device->chains->activate(exec, &chain, count, u, y, d);
    if (count > 0) dpcr_chain_kernels(exec.device, dtype)->activate(activation, parameter, count, u, y, d);
    return DPCR_OK;
}
