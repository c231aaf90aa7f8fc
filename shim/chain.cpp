// SPDX-License-Identifier: Apache-2.0
//
// torch.ops.deeppcr.mlp, .residual and their backwards on the CPU.
#include "bridge.h"
#include "operators.h"

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

void set_activation(dpcr_chain &chain, const std::string &name, const std::vector<double> &parameters) {
    for (const ActivationName &activation : kActivations) {
        if (name != activation.name) continue;
        require(parameters.size() == activation.parameters,
                "activation_parameters must hold " + std::to_string(activation.parameters) + " numbers for '"
                    + name + "', got " + std::to_string(parameters.size()));
        chain.activation = activation.kind;
        for (size_t i = 0; i < parameters.size(); i++) chain.activation_parameter[i] = parameters[i];
        return;
    }
    throw std::invalid_argument("activation '" + name + "' is unknown");
}

dpcr_norm norm_of(const std::string &norm) {
    if (norm == "none") return DPCR_NO_NORM;
    if (norm == "layer_norm") return DPCR_LAYER_NORM;
    require(norm == "rms_norm", "norm must be 'none', 'layer_norm' or 'rms_norm', got '" + norm + "'");
    return DPCR_RMS_NORM;
}

constexpr std::array<const char *, DPCR_PARAMETERS> kParameterNames = {"weight1", "bias1",       "weight2",
                                                                       "bias2",   "norm_weight", "norm_bias"};
using Parameters = std::array<std::optional<Tensor>, DPCR_PARAMETERS>;

// A chain with the tensors whose memory it points to.
struct Chain {
    dpcr_chain c = {};
    Tensor z0;
    Parameters parameters; // contiguous
};

void set_parameter(Chain &chain, dpcr_parameter which, const char *name, const Shape &shape) {
    std::optional<Tensor> &parameter = chain.parameters[which];
    if (!parameter) return;
    check_like(name, *parameter, chain.z0);
    check_shape(name, *parameter, shape);
    parameter = torch::stable::contiguous(*parameter);
    chain.c.parameter[which] = parameter->const_data_ptr();
}

Chain start_chain(dpcr_step step, const Tensor &z0, const Tensor &weight, const char *weight_name) {
    require(z0.dim() == 2, "z0 must have shape (B, w), got " + text(shape_of(z0)));
    require(weight.dim() == 3,
            std::string(weight_name) + " must have 3 dimensions, got " + text(shape_of(weight)));
    check_like("z0", z0, z0);
    Chain chain;
    chain.z0 = torch::stable::contiguous(z0);
    chain.c.step = step;
    chain.c.dtype = dtype_of("z0", z0);
    chain.c.L = weight.size(0), chain.c.h = weight.size(1), chain.c.B = z0.size(0), chain.c.w = z0.size(1);
    return chain;
}

Chain mlp_chain(const Tensor &z0, const Tensor &weight, const std::optional<Tensor> &bias,
                const std::string &activation, const std::vector<double> &activation_parameters) {
    Chain chain = start_chain(DPCR_MLP, z0, weight, "weight");
    const int64_t L = chain.c.L, w = chain.c.w;
    set_activation(chain.c, activation, activation_parameters);
    chain.parameters[DPCR_W1] = weight, chain.parameters[DPCR_B1] = bias;
    set_parameter(chain, DPCR_W1, "weight", {L, w, w});
    set_parameter(chain, DPCR_B1, "bias", {L, w});
    return chain;
}

struct ResidualOptions {
    std::string activation;
    std::vector<double> activation_parameters;
    std::string norm;
    double norm_eps, scale;
};

Chain residual_chain(const Tensor &z0, const Parameters &parameters, const ResidualOptions &options) {
    Chain chain = start_chain(DPCR_RESIDUAL, z0, *parameters[DPCR_W1], "weight1");
    const int64_t L = chain.c.L, w = chain.c.w, h = chain.c.h;
    set_activation(chain.c, options.activation, options.activation_parameters);
    chain.c.norm = norm_of(options.norm);
    chain.c.norm_eps = options.norm_eps, chain.c.scale = options.scale;
    require(chain.c.norm != DPCR_NO_NORM || !parameters[DPCR_GAMMA],
            "norm_weight must be None where norm is 'none'");
    require(chain.c.norm == DPCR_LAYER_NORM || !parameters[DPCR_BETA],
            "norm_bias must be None unless norm is 'layer_norm'");
    chain.parameters = parameters;
    const Shape shapes[DPCR_PARAMETERS] = {{L, h, w}, {L, h}, {L, w, h}, {L, w}, {L, w}, {L, w}};
    for (int i = 0; i < DPCR_PARAMETERS; i++)
        set_parameter(chain, static_cast<dpcr_parameter>(i), kParameterNames[static_cast<size_t>(i)],
                      shapes[i]);
    return chain;
}

std::tuple<Tensor, Tensor> forward(const Chain &chain, bool save_states) {
    const ScalarType type = chain.z0.scalar_type();
    const Tensor z = allocate({chain.c.B, chain.c.w}, type);
    const Tensor states = allocate({save_states ? chain.c.L : 0, chain.c.B, chain.c.w}, type);
    const dpcr_propagation pass = {chain.z0.const_data_ptr(), z.mutable_data_ptr(),
                                   save_states ? states.mutable_data_ptr() : nullptr, nullptr};
    const dpcr_exec exec = cpu_exec();
    const dpcr_plan plan = {1, 0};
    size_t bytes = 0;
    check(dpcr_chain_propagate_workspace(exec, &chain.c, &pass, &plan, &bytes));
    const Workspace workspace(bytes);
    check(dpcr_chain_propagate(exec, &chain.c, &pass, &plan, workspace.buffer()));
    return {z, states};
}

struct Incoming {
    std::optional<Tensor> z, states; // contiguous
};

Incoming check_incoming(const Chain &chain, const std::optional<Tensor> &gz,
                        const std::optional<Tensor> &gstates, const Tensor &states) {
    check_like("states", states, chain.z0);
    check_shape("states", states, {chain.c.L, chain.c.B, chain.c.w});
    Incoming incoming;
    if (gz) {
        check_like("gz", *gz, chain.z0), check_shape("gz", *gz, shape_of(chain.z0));
        incoming.z = torch::stable::contiguous(*gz);
    }
    if (gstates) {
        check_like("gstates", *gstates, chain.z0), check_shape("gstates", *gstates, shape_of(states));
        incoming.states = torch::stable::contiguous(*gstates);
    }
    return incoming;
}

// -> gradients of z0 and of the parameters, in the order of `needs`
std::vector<Tensor> backward(const Chain &chain, const Incoming &incoming, const Tensor &states,
                             const std::vector<bool> &needs, size_t parameters) {
    require(needs.size() == parameters + 1, "needs must hold " + std::to_string(parameters + 1)
                                                + " flags, got " + std::to_string(needs.size()));
    const Tensor kept = torch::stable::contiguous(states);
    dpcr_pullback pass = {};
    pass.z0 = chain.z0.const_data_ptr();
    pass.states = kept.const_data_ptr();
    pass.gz = incoming.z ? incoming.z->const_data_ptr() : nullptr;
    pass.gstates = incoming.states ? incoming.states->const_data_ptr() : nullptr;
    std::vector<Tensor> gradients;
    gradients.push_back(needs[0] ? allocate_like(chain.z0) : nothing(chain.z0));
    if (needs[0]) pass.gz0 = gradients[0].mutable_data_ptr();
    for (size_t i = 0; i < parameters; i++) {
        const bool wanted = needs[i + 1] && chain.parameters[i].has_value();
        gradients.push_back(wanted ? allocate_like(*chain.parameters[i]) : nothing(chain.z0));
        if (wanted) pass.gparameter[i] = gradients.back().mutable_data_ptr();
    }
    const dpcr_exec exec = cpu_exec();
    const dpcr_plan plan = {1, 0};
    size_t bytes = 0;
    check(dpcr_chain_backward_workspace(exec, &chain.c, &pass, &plan, &bytes));
    const Workspace workspace(bytes);
    check(dpcr_chain_backward(exec, &chain.c, &pass, &plan, workspace.buffer()));
    return gradients;
}

} // namespace

std::tuple<Tensor, Tensor> mlp(Tensor z0, Tensor weight, std::optional<Tensor> bias, std::string activation,
                               std::vector<double> activation_parameters, bool save_states) {
    return forward(mlp_chain(z0, weight, bias, activation, activation_parameters), save_states);
}

std::tuple<Tensor, Tensor, Tensor> mlp_backward(std::optional<Tensor> gz, std::optional<Tensor> gstates,
                                                Tensor z0, Tensor states, Tensor weight,
                                                std::optional<Tensor> bias, std::string activation,
                                                std::vector<double> activation_parameters,
                                                std::vector<bool> needs) {
    const Chain chain = mlp_chain(z0, weight, bias, activation, activation_parameters);
    const std::vector<Tensor> g =
        backward(chain, check_incoming(chain, gz, gstates, states), states, needs, 2);
    return {g[0], g[1], g[2]};
}

std::tuple<Tensor, Tensor> residual(Tensor z0, Tensor weight1, std::optional<Tensor> bias1, Tensor weight2,
                                    std::optional<Tensor> bias2, std::optional<Tensor> norm_weight,
                                    std::optional<Tensor> norm_bias, std::string activation,
                                    std::vector<double> activation_parameters, std::string norm,
                                    double norm_eps, double scale, bool save_states) {
    const Parameters parameters = {weight1, bias1, weight2, bias2, norm_weight, norm_bias};
    return forward(residual_chain(z0, parameters, {activation, activation_parameters, norm, norm_eps, scale}),
                   save_states);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
residual_backward(std::optional<Tensor> gz, std::optional<Tensor> gstates, Tensor z0, Tensor states,
                  Tensor weight1, std::optional<Tensor> bias1, Tensor weight2, std::optional<Tensor> bias2,
                  std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias, std::string activation,
                  std::vector<double> activation_parameters, std::string norm, double norm_eps, double scale,
                  std::vector<bool> needs) {
    const Parameters parameters = {weight1, bias1, weight2, bias2, norm_weight, norm_bias};
    const Chain chain =
        residual_chain(z0, parameters, {activation, activation_parameters, norm, norm_eps, scale});
    const std::vector<Tensor> g =
        backward(chain, check_incoming(chain, gz, gstates, states), states, needs, DPCR_PARAMETERS);
    return {g[0], g[1], g[2], g[3], g[4], g[5], g[6]};
}

} // namespace deeppcr
