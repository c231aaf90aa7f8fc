// SPDX-License-Identifier: Apache-2.0
//
// torch.ops.deeppcr.mlp, .euler, .residual, .layers, .denoise and their backwards.
#include "bridge.h"
#include "operators.h"
#include "solver.h"

#include <array>

namespace deeppcr {
namespace {

struct ActivationName {
    const char *name;
    dpcr_activation kind;
    size_t parameters;
};

constexpr ActivationName kActivations[] = {
    {"identity", DPCR_LINEAR, 0},   {"relu", DPCR_RELU, 0}, {"leaky_relu", DPCR_LEAKY_RELU, 1},
    {"elu", DPCR_ELU, 1},           {"tanh", DPCR_TANH, 0}, {"sigmoid", DPCR_SIGMOID, 0},
    {"silu", DPCR_SILU, 0},         {"gelu", DPCR_GELU, 0}, {"gelu_tanh", DPCR_GELU_TANH, 0},
    {"softplus", DPCR_SOFTPLUS, 2},
};

void set_activation(dpcr_chain &chain, const std::string &name, const Numbers &given) {
    const std::vector<double> none, &parameters = given ? *given : none;
    for (const ActivationName &activation : kActivations) {
        if (name != activation.name) continue;
        require(parameters.size() == activation.parameters, [&] {
            return "activation_parameters must hold " + std::to_string(activation.parameters)
                   + " numbers for '" + name + "', got " + std::to_string(parameters.size());
        });
        chain.activation = activation.kind;
        for (size_t i = 0; i < parameters.size(); i++) chain.activation_parameter[i] = parameters[i];
        return;
    }
    throw std::invalid_argument("activation '" + name + "' is unknown");
}

dpcr_norm norm_of(const std::string &norm) {
    if (norm == "none") return DPCR_NO_NORM;
    if (norm == "layer_norm") return DPCR_LAYER_NORM;
    require(norm == "rms_norm",
            [&] { return "norm must be 'none', 'layer_norm' or 'rms_norm', got '" + norm + "'"; });
    return DPCR_RMS_NORM;
}

using Parameters = std::array<std::optional<Tensor>, DPCR_PARAMETERS>;

using Order = torch::headeronly::HeaderOnlyArrayRef<dpcr_parameter>;
constexpr dpcr_parameter kMlpOrder[] = {DPCR_W1, DPCR_B1};
constexpr dpcr_parameter kResidualOrder[] = {DPCR_W1, DPCR_B1, DPCR_W2, DPCR_B2, DPCR_GAMMA, DPCR_BETA};
constexpr dpcr_parameter kLayersOrder[] = {DPCR_W1, DPCR_B1, DPCR_GAMMA, DPCR_BETA};
constexpr dpcr_parameter kDenoiseOrder[] = {DPCR_W1, DPCR_B1,           DPCR_WH,   DPCR_W2,
                                            DPCR_B2, DPCR_COEFFICIENTS, DPCR_NOISE};

// A chain with the tensors whose memory it points to.
struct Chain {
    dpcr_chain c = {};
    Tensor z0;
    Parameters parameters; // contiguous
    Order order;           // in which the operator has them
};

void set_parameter(Chain &chain, dpcr_parameter which, const char *name, Shape shape) {
    std::optional<Tensor> &parameter = chain.parameters[which];
    if (!parameter) return;
    check_like(name, *parameter, chain.z0);
    check_shape(name, *parameter, shape);
    parameter = packed(*parameter);
    chain.c.parameter[which] = parameter->const_data_ptr();
}

Chain start_chain(dpcr_step step, const Tensor &z0, const Tensor &weight, const char *weight_name,
                  int64_t dimensions = 3) {
    require(z0.dim() == 2, [&] { return "z0 must have shape (B, w), got " + text(z0.sizes()); });
    require(weight.dim() == dimensions, [&] {
        return std::string(weight_name) + " must have " + std::to_string(dimensions) + " dimensions, got "
               + text(weight.sizes());
    });
    check_like("z0", z0, z0);
    Chain chain;
    chain.z0 = packed(z0);
    chain.c.step = step;
    chain.c.dtype = dtype_of("z0", z0);
    chain.c.L = weight.size(0), chain.c.h = weight.size(dimensions - 2), chain.c.B = z0.size(0),
    chain.c.w = z0.size(1);
    return chain;
}

Chain mlp_chain(const Tensor &z0, const Tensor &weight, const std::optional<Tensor> &bias,
                const std::string &activation, const Numbers &activation_parameters) {
    Chain chain = start_chain(DPCR_MLP, z0, weight, "weight");
    const int64_t L = chain.c.L, w = chain.c.w;
    set_activation(chain.c, activation, activation_parameters);
    chain.parameters[DPCR_W1] = weight, chain.parameters[DPCR_B1] = bias;
    chain.order = kMlpOrder;
    set_parameter(chain, DPCR_W1, "weight", {L, w, w});
    set_parameter(chain, DPCR_B1, "bias", {L, w});
    return chain;
}

Chain euler_chain(const Tensor &z0, const Tensor &weight, const std::optional<Tensor> &bias,
                  const std::string &activation, const Numbers &activation_parameters, double scale) {
    Chain chain = mlp_chain(z0, weight, bias, activation, activation_parameters);
    chain.c.step = DPCR_EULER, chain.c.scale = scale;
    return chain;
}

// chain.parameters must be set.
void set_norm(Chain &chain, const std::string &norm, double eps) {
    chain.c.norm = norm_of(norm), chain.c.norm_eps = eps;
    require(chain.c.norm != DPCR_NO_NORM || !chain.parameters[DPCR_GAMMA],
            "norm_weight must be None where norm is 'none'");
    require(chain.c.norm == DPCR_LAYER_NORM || !chain.parameters[DPCR_BETA],
            "norm_bias must be None unless norm is 'layer_norm'");
}

struct ResidualOptions {
    std::string activation;
    Numbers activation_parameters;
    std::string norm;
    double norm_eps, scale;
};

Chain residual_chain(const Tensor &z0, const Parameters &parameters, const ResidualOptions &options) {
    Chain chain = start_chain(DPCR_RESIDUAL, z0, *parameters[DPCR_W1], "weight1");
    const int64_t L = chain.c.L, w = chain.c.w, h = chain.c.h;
    set_activation(chain.c, options.activation, options.activation_parameters);
    chain.c.scale = options.scale;
    chain.parameters = parameters;
    chain.order = kResidualOrder;
    set_norm(chain, options.norm, options.norm_eps);
    set_parameter(chain, DPCR_W1, "weight1", {L, h, w});
    set_parameter(chain, DPCR_B1, "bias1", {L, h});
    set_parameter(chain, DPCR_W2, "weight2", {L, w, h});
    set_parameter(chain, DPCR_B2, "bias2", {L, w});
    set_parameter(chain, DPCR_GAMMA, "norm_weight", {L, w});
    set_parameter(chain, DPCR_BETA, "norm_bias", {L, w});
    return chain;
}

struct LayersOptions {
    std::string activation;
    Numbers activation_parameters;
    std::string norm;
    double norm_eps;
    bool skip;
    double scale;
};

Chain layers_chain(const Tensor &z0, const Parameters &parameters, const LayersOptions &options) {
    Chain chain = start_chain(DPCR_LAYERS, z0, *parameters[DPCR_W1], "weight", 4);
    const int64_t L = chain.c.L, M = parameters[DPCR_W1]->size(1), w = chain.c.w;
    require(M >= 1, "weight must have shape (L, M, w, w) with M >= 1");
    set_activation(chain.c, options.activation, options.activation_parameters);
    chain.c.layers = M, chain.c.skip = options.skip, chain.c.scale = options.scale;
    chain.parameters = parameters;
    chain.order = kLayersOrder;
    set_norm(chain, options.norm, options.norm_eps);
    set_parameter(chain, DPCR_W1, "weight", {L, M, w, w});
    set_parameter(chain, DPCR_B1, "bias", {L, M, w});
    set_parameter(chain, DPCR_GAMMA, "norm_weight", {L, M, w});
    set_parameter(chain, DPCR_BETA, "norm_bias", {L, M, w});
    return chain;
}

// M, L and h are those of the biases (L,M+1,h).
Chain denoise_chain(const Tensor &z0, const Parameters &parameters, const std::string &activation,
                    const Numbers &activation_parameters) {
    const Tensor &bias = *parameters[DPCR_B1];
    Chain chain = start_chain(DPCR_DENOISE, z0, bias, "bias");
    const int64_t L = chain.c.L, M = bias.size(1) - 1, h = bias.size(2), B = chain.c.B, w = chain.c.w;
    require(M >= 0, "bias must have shape (L, M + 1, h) with M >= 0");
    require(M == 0 || parameters[DPCR_WH],
            "weight_hidden must be given where bias has shape (L, M + 1, h) with M >= 1");
    chain.c.layers = M, chain.c.h = h;
    set_activation(chain.c, activation, activation_parameters);
    chain.parameters = parameters;
    chain.order = kDenoiseOrder;
    set_parameter(chain, DPCR_W1, "weight_in", {h, w});
    set_parameter(chain, DPCR_B1, "bias", {L, M + 1, h});
    set_parameter(chain, DPCR_WH, "weight_hidden", {M, h, h});
    set_parameter(chain, DPCR_W2, "weight_out", {w, h});
    set_parameter(chain, DPCR_B2, "bias_out", {w});
    set_parameter(chain, DPCR_COEFFICIENTS, "coefficients", {L, 2});
    set_parameter(chain, DPCR_NOISE, "noise", {L, B, w});
    return chain;
}

Tensor allocate_report(const Chain &chain) {
    return allocate({DPCR_REPORT, chain.c.B}, ScalarType::Double, chain.z0);
}

// ---- the two passes ---------------------------------------------------------------------------------

std::tuple<Tensor, Tensor, Tensor> forward(const Chain &chain, const std::optional<Tensor> &guess,
                                           const Solver &solver) {
    const ScalarType type = chain.z0.scalar_type();
    solver.check_frozen(chain.c);
    std::optional<Tensor> start;
    if (guess) {
        check_like("guess", *guess, chain.z0);
        check_shape("guess", *guess, {chain.c.L, chain.c.B, chain.c.w});
        start = packed(*guess);
    }
    const Tensor z = allocate({chain.c.B, chain.c.w}, type, chain.z0), report = allocate_report(chain);
    const Tensor kept = allocate(solver.kept_shape(chain.c), type, chain.z0);
    dpcr_solution solution = {};
    solution.z0 = chain.z0.const_data_ptr();
    solution.guess = start ? start->const_data_ptr() : nullptr;
    solution.z = z.mutable_data_ptr();
    solution.states = solver.keep == Keep::states ? kept.mutable_data_ptr() : nullptr;
    solution.checkpoints = solver.keep == Keep::checkpoints ? kept.mutable_data_ptr() : nullptr;
    solution.report = static_cast<double *>(report.mutable_data_ptr());
    solution.newton = &solver.newton;
    const Run run = run_beside(chain.z0);
    size_t bytes = 0;
    check(dpcr_chain_solve_workspace(run.exec, &chain.c, &solution, &solver.plan, &bytes));
    Workspace workspace(bytes, chain.z0);
    check(dpcr_chain_solve(run.exec, &chain.c, &solution, &solver.plan, workspace.buffer()));
    return {z, kept, report};
}

// What comes into a backward pass; all contiguous.
struct Incoming {
    std::optional<Tensor> z, states;
    Tensor kept;
};

Incoming check_incoming(const Chain &chain, const Solver &solver, const std::optional<Tensor> &gz,
                        const std::optional<Tensor> &gstates, const Tensor &kept) {
    require(solver.keep != Keep::nothing, "keep must be 'states' or 'checkpoints' in a backward pass");
    check_like("kept", kept, chain.z0);
    check_shape("kept", kept, solver.kept_shape(chain.c));
    Incoming incoming = {std::nullopt, std::nullopt, packed(kept)};
    if (gz) {
        check_like("gz", *gz, chain.z0), check_shape("gz", *gz, chain.z0.sizes());
        incoming.z = packed(*gz);
    }
    if (gstates) {
        check_like("gstates", *gstates, chain.z0);
        check_shape("gstates", *gstates, {chain.c.L, chain.c.B, chain.c.w});
        incoming.states = packed(*gstates);
    }
    return incoming;
}

// -> gradients of z0 and of the parameters, in the order of `needs`, and the report
std::vector<Tensor> backward(const Chain &chain, const Solver &solver, const Incoming &incoming,
                             const std::vector<bool> &needs) {
    solver.check_frozen(chain.c);
    require(needs.size() == chain.order.size() + 1, [&] {
        return "needs must hold " + std::to_string(chain.order.size() + 1) + " flags, got "
               + std::to_string(needs.size());
    });
    dpcr_pullback pass = {};
    pass.z0 = chain.z0.const_data_ptr();
    (solver.keep == Keep::states ? pass.states : pass.checkpoints) = incoming.kept.const_data_ptr();
    pass.gz = incoming.z ? incoming.z->const_data_ptr() : nullptr;
    pass.gstates = incoming.states ? incoming.states->const_data_ptr() : nullptr;
    pass.newton = &solver.newton;
    std::vector<Tensor> outputs;
    outputs.push_back(needs[0] ? allocate_like(chain.z0) : nothing(chain.z0));
    if (needs[0]) pass.gz0 = outputs[0].mutable_data_ptr();
    pass.frozen = solver.frozen.empty() ? nullptr : solver.frozen.data();
    for (size_t i = 0; i < chain.order.size(); i++) {
        const dpcr_parameter which = chain.order[i];
        const bool wanted = needs[i + 1] && chain.parameters[which].has_value();
        outputs.push_back(wanted ? allocate_like(*chain.parameters[which]) : nothing(chain.z0));
        if (wanted) pass.gparameter[which] = outputs.back().mutable_data_ptr();
    }
    outputs.push_back(allocate_report(chain));
    pass.report = static_cast<double *>(outputs.back().mutable_data_ptr());
    const Run run = run_beside(chain.z0);
    size_t bytes = 0;
    check(dpcr_chain_backward_workspace(run.exec, &chain.c, &pass, &solver.plan, &bytes));
    Workspace workspace(bytes, chain.z0);
    check(dpcr_chain_backward(run.exec, &chain.c, &pass, &solver.plan, workspace.buffer()));
    return outputs;
}

} // namespace

std::tuple<Tensor, Tensor, Tensor> mlp(Tensor z0, Tensor weight, std::optional<Tensor> bias,
                                       std::optional<Tensor> guess, std::string activation,
                                       Numbers activation_parameters, int64_t segments, Text jacobian,
                                       Text refresh, Number rtol, Number atol, Count max_sweeps, Flag finish,
                                       Flags frozen, std::string keep) {
    return forward(mlp_chain(z0, weight, bias, activation, activation_parameters), guess,
                   Solver(z0, segments, jacobian, refresh, rtol, atol, max_sweeps, finish, frozen, keep));
}

std::tuple<Tensor, Tensor, Tensor, Tensor>
mlp_backward(std::optional<Tensor> gz, std::optional<Tensor> gstates, Tensor z0, Tensor kept, Tensor weight,
             std::optional<Tensor> bias, std::string activation, Numbers activation_parameters,
             int64_t segments, Text jacobian, Text refresh, Number rtol, Number atol, Count max_sweeps,
             Flag finish, Flags frozen, std::string keep, std::vector<bool> needs) {
    const Chain chain = mlp_chain(z0, weight, bias, activation, activation_parameters);
    const Solver solver(z0, segments, jacobian, refresh, rtol, atol, max_sweeps, finish, frozen, keep);
    const std::vector<Tensor> g =
        backward(chain, solver, check_incoming(chain, solver, gz, gstates, kept), needs);
    return {g[0], g[1], g[2], g[3]};
}

std::tuple<Tensor, Tensor, Tensor> euler(Tensor z0, Tensor weight, std::optional<Tensor> bias,
                                         std::optional<Tensor> guess, std::string activation,
                                         Numbers activation_parameters, double scale, int64_t segments,
                                         Text jacobian, Text refresh, Number rtol, Number atol,
                                         Count max_sweeps, Flag finish, Flags frozen, std::string keep) {
    return forward(euler_chain(z0, weight, bias, activation, activation_parameters, scale), guess,
                   Solver(z0, segments, jacobian, refresh, rtol, atol, max_sweeps, finish, frozen, keep));
}

std::tuple<Tensor, Tensor, Tensor, Tensor>
euler_backward(std::optional<Tensor> gz, std::optional<Tensor> gstates, Tensor z0, Tensor kept, Tensor weight,
               std::optional<Tensor> bias, std::string activation, Numbers activation_parameters,
               double scale, int64_t segments, Text jacobian, Text refresh, Number rtol, Number atol,
               Count max_sweeps, Flag finish, Flags frozen, std::string keep, std::vector<bool> needs) {
    const Chain chain = euler_chain(z0, weight, bias, activation, activation_parameters, scale);
    const Solver solver(z0, segments, jacobian, refresh, rtol, atol, max_sweeps, finish, frozen, keep);
    const std::vector<Tensor> g =
        backward(chain, solver, check_incoming(chain, solver, gz, gstates, kept), needs);
    return {g[0], g[1], g[2], g[3]};
}

std::tuple<Tensor, Tensor, Tensor>
residual(Tensor z0, Tensor weight1, std::optional<Tensor> bias1, Tensor weight2, std::optional<Tensor> bias2,
         std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias, std::optional<Tensor> guess,
         std::string activation, Numbers activation_parameters, std::string norm, double norm_eps,
         double scale, int64_t segments, Text jacobian, Text refresh, Number rtol, Number atol,
         Count max_sweeps, Flag finish, Flags frozen, std::string keep) {
    const Parameters parameters = {weight1, bias1, weight2, bias2, norm_weight, norm_bias};
    return forward(residual_chain(z0, parameters, {activation, activation_parameters, norm, norm_eps, scale}),
                   guess,
                   Solver(z0, segments, jacobian, refresh, rtol, atol, max_sweeps, finish, frozen, keep));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
residual_backward(std::optional<Tensor> gz, std::optional<Tensor> gstates, Tensor z0, Tensor kept,
                  Tensor weight1, std::optional<Tensor> bias1, Tensor weight2, std::optional<Tensor> bias2,
                  std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias, std::string activation,
                  Numbers activation_parameters, std::string norm, double norm_eps, double scale,
                  int64_t segments, Text jacobian, Text refresh, Number rtol, Number atol, Count max_sweeps,
                  Flag finish, Flags frozen, std::string keep, std::vector<bool> needs) {
    const Parameters parameters = {weight1, bias1, weight2, bias2, norm_weight, norm_bias};
    const Chain chain =
        residual_chain(z0, parameters, {activation, activation_parameters, norm, norm_eps, scale});
    const Solver solver(z0, segments, jacobian, refresh, rtol, atol, max_sweeps, finish, frozen, keep);
    const std::vector<Tensor> g =
        backward(chain, solver, check_incoming(chain, solver, gz, gstates, kept), needs);
    return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7]};
}

std::tuple<Tensor, Tensor, Tensor> layers(Tensor z0, Tensor weight, std::optional<Tensor> bias,
                                          std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias,
                                          std::optional<Tensor> guess, std::string activation,
                                          Numbers activation_parameters, std::string norm, double norm_eps,
                                          bool skip, double scale, int64_t segments, Text jacobian,
                                          Text refresh, Number rtol, Number atol, Count max_sweeps,
                                          Flag finish, Flags frozen, std::string keep) {
    const Parameters parameters = {weight, bias, std::nullopt, std::nullopt, norm_weight, norm_bias};
    return forward(
        layers_chain(z0, parameters, {activation, activation_parameters, norm, norm_eps, skip, scale}), guess,
        Solver(z0, segments, jacobian, refresh, rtol, atol, max_sweeps, finish, frozen, keep));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
layers_backward(std::optional<Tensor> gz, std::optional<Tensor> gstates, Tensor z0, Tensor kept,
                Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> norm_weight,
                std::optional<Tensor> norm_bias, std::string activation, Numbers activation_parameters,
                std::string norm, double norm_eps, bool skip, double scale, int64_t segments, Text jacobian,
                Text refresh, Number rtol, Number atol, Count max_sweeps, Flag finish, Flags frozen,
                std::string keep, std::vector<bool> needs) {
    const Parameters parameters = {weight, bias, std::nullopt, std::nullopt, norm_weight, norm_bias};
    const Chain chain =
        layers_chain(z0, parameters, {activation, activation_parameters, norm, norm_eps, skip, scale});
    const Solver solver(z0, segments, jacobian, refresh, rtol, atol, max_sweeps, finish, frozen, keep);
    const std::vector<Tensor> g =
        backward(chain, solver, check_incoming(chain, solver, gz, gstates, kept), needs);
    return {g[0], g[1], g[2], g[3], g[4], g[5]};
}

std::tuple<Tensor, Tensor, Tensor>
denoise(Tensor z0, Tensor weight_in, Tensor bias, std::optional<Tensor> weight_hidden, Tensor weight_out,
        std::optional<Tensor> bias_out, Tensor coefficients, std::optional<Tensor> noise,
        std::optional<Tensor> guess, std::string activation, Numbers activation_parameters, int64_t segments,
        Text jacobian, Text refresh, Number rtol, Number atol, Count max_sweeps, Flag finish, Flags frozen,
        std::string keep) {
    const Parameters parameters = {weight_in,    bias,          weight_out,   bias_out, std::nullopt,
                                   std::nullopt, weight_hidden, coefficients, noise};
    return forward(denoise_chain(z0, parameters, activation, activation_parameters), guess,
                   Solver(z0, segments, jacobian, refresh, rtol, atol, max_sweeps, finish, frozen, keep));
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
denoise_backward(std::optional<Tensor> gz, std::optional<Tensor> gstates, Tensor z0, Tensor kept,
                 Tensor weight_in, Tensor bias, std::optional<Tensor> weight_hidden, Tensor weight_out,
                 std::optional<Tensor> bias_out, Tensor coefficients, std::optional<Tensor> noise,
                 std::string activation, Numbers activation_parameters, int64_t segments, Text jacobian,
                 Text refresh, Number rtol, Number atol, Count max_sweeps, Flag finish, Flags frozen,
                 std::string keep, std::vector<bool> needs) {
    const Parameters parameters = {weight_in,    bias,          weight_out,   bias_out, std::nullopt,
                                   std::nullopt, weight_hidden, coefficients, noise};
    const Chain chain = denoise_chain(z0, parameters, activation, activation_parameters);
    const Solver solver(z0, segments, jacobian, refresh, rtol, atol, max_sweeps, finish, frozen, keep);
    const std::vector<Tensor> g =
        backward(chain, solver, check_incoming(chain, solver, gz, gstates, kept), needs);
    return {g[0], g[1], g[2], g[3], g[4], g[5], g[6], g[7], g[8]};
}

} // namespace deeppcr
