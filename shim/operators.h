// SPDX-License-Identifier: Apache-2.0
//
// The operators, the same for every device.  Schemas: library.cpp; mathematics: csrc/pcr/pcr.h, csrc/ops/chain.h,
// csrc/ops/update.h.
#pragma once

#include "bridge.h"

namespace deeppcr {

using Text = std::optional<std::string>;
using Number = std::optional<double>;
using Numbers = std::optional<std::vector<double>>;
using Count = std::optional<int64_t>;
using Flag = std::optional<bool>;
using Flags = std::optional<std::vector<bool>>;

std::tuple<Tensor, Tensor> linear_recurrence(std::optional<Tensor> A, Tensor b, std::optional<Tensor> x0,
                                             std::string blocks, bool reverse, int64_t segments);

std::tuple<Tensor, Tensor, Tensor> linear_recurrence_backward(Tensor gx, std::optional<Tensor> A,
                                                              std::optional<Tensor> x0, Tensor x,
                                                              std::string blocks, bool reverse,
                                                              int64_t segments, bool need_A, bool need_x0);

std::tuple<Tensor, Tensor, Tensor> newton_update(Tensor states, Tensor ends, std::optional<Tensor> jacobian,
                                                 std::string structure, Tensor tolerance, double rtol,
                                                 int64_t segments);

std::tuple<Tensor, Tensor, Tensor> mlp(Tensor z0, Tensor weight, std::optional<Tensor> bias,
                                       std::optional<Tensor> guess, std::string activation,
                                       Numbers activation_parameters, int64_t segments, Text jacobian,
                                       Text refresh, Number rtol, Number atol, Count max_sweeps, Flag finish,
                                       Flags frozen, std::string keep);

std::tuple<Tensor, Tensor, Tensor, Tensor>
mlp_backward(std::optional<Tensor> gz, std::optional<Tensor> gstates, Tensor z0, Tensor kept, Tensor weight,
             std::optional<Tensor> bias, std::string activation, Numbers activation_parameters,
             int64_t segments, Text jacobian, Text refresh, Number rtol, Number atol, Count max_sweeps,
             Flag finish, Flags frozen, std::string keep, std::vector<bool> needs);

std::tuple<Tensor, Tensor, Tensor>
residual(Tensor z0, Tensor weight1, std::optional<Tensor> bias1, Tensor weight2, std::optional<Tensor> bias2,
         std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias, std::optional<Tensor> guess,
         std::string activation, Numbers activation_parameters, std::string norm, double norm_eps,
         double scale, int64_t segments, Text jacobian, Text refresh, Number rtol, Number atol,
         Count max_sweeps, Flag finish, Flags frozen, std::string keep);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
residual_backward(std::optional<Tensor> gz, std::optional<Tensor> gstates, Tensor z0, Tensor kept,
                  Tensor weight1, std::optional<Tensor> bias1, Tensor weight2, std::optional<Tensor> bias2,
                  std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias, std::string activation,
                  Numbers activation_parameters, std::string norm, double norm_eps, double scale,
                  int64_t segments, Text jacobian, Text refresh, Number rtol, Number atol, Count max_sweeps,
                  Flag finish, Flags frozen, std::string keep, std::vector<bool> needs);

std::tuple<Tensor, Tensor, Tensor> euler(Tensor z0, Tensor weight, std::optional<Tensor> bias,
                                         std::optional<Tensor> guess, std::string activation,
                                         Numbers activation_parameters, double scale, int64_t segments,
                                         Text jacobian, Text refresh, Number rtol, Number atol,
                                         Count max_sweeps, Flag finish, Flags frozen, std::string keep);

std::tuple<Tensor, Tensor, Tensor, Tensor>
euler_backward(std::optional<Tensor> gz, std::optional<Tensor> gstates, Tensor z0, Tensor kept, Tensor weight,
               std::optional<Tensor> bias, std::string activation, Numbers activation_parameters,
               double scale, int64_t segments, Text jacobian, Text refresh, Number rtol, Number atol,
               Count max_sweeps, Flag finish, Flags frozen, std::string keep, std::vector<bool> needs);

std::tuple<Tensor, Tensor, Tensor> layers(Tensor z0, Tensor weight, std::optional<Tensor> bias,
                                          std::optional<Tensor> norm_weight, std::optional<Tensor> norm_bias,
                                          std::optional<Tensor> guess, std::string activation,
                                          Numbers activation_parameters, std::string norm, double norm_eps,
                                          bool skip, double scale, int64_t segments, Text jacobian,
                                          Text refresh, Number rtol, Number atol, Count max_sweeps,
                                          Flag finish, Flags frozen, std::string keep);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
layers_backward(std::optional<Tensor> gz, std::optional<Tensor> gstates, Tensor z0, Tensor kept,
                Tensor weight, std::optional<Tensor> bias, std::optional<Tensor> norm_weight,
                std::optional<Tensor> norm_bias, std::string activation, Numbers activation_parameters,
                std::string norm, double norm_eps, bool skip, double scale, int64_t segments, Text jacobian,
                Text refresh, Number rtol, Number atol, Count max_sweeps, Flag finish, Flags frozen,
                std::string keep, std::vector<bool> needs);

std::tuple<Tensor, Tensor, Tensor>
denoise(Tensor z0, Tensor weight_in, Tensor bias, std::optional<Tensor> weight_hidden, Tensor weight_out,
        std::optional<Tensor> bias_out, Tensor coefficients, std::optional<Tensor> noise,
        std::optional<Tensor> guess, std::string activation, Numbers activation_parameters, int64_t segments,
        Text jacobian, Text refresh, Number rtol, Number atol, Count max_sweeps, Flag finish, Flags frozen,
        std::string keep);

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
denoise_backward(std::optional<Tensor> gz, std::optional<Tensor> gstates, Tensor z0, Tensor kept,
                 Tensor weight_in, Tensor bias, std::optional<Tensor> weight_hidden, Tensor weight_out,
                 std::optional<Tensor> bias_out, Tensor coefficients, std::optional<Tensor> noise,
                 std::string activation, Numbers activation_parameters, int64_t segments, Text jacobian,
                 Text refresh, Number rtol, Number atol, Count max_sweeps, Flag finish, Flags frozen,
                 std::string keep, std::vector<bool> needs);

// As the kernels of the library's device.
inline void implement(torch::stable::detail::StableLibrary &m) {
    m.impl("linear_recurrence", TORCH_BOX(&linear_recurrence));
    m.impl("linear_recurrence_backward", TORCH_BOX(&linear_recurrence_backward));
    m.impl("newton_update", TORCH_BOX(&newton_update));
    m.impl("mlp", TORCH_BOX(&mlp));
    m.impl("mlp_backward", TORCH_BOX(&mlp_backward));
    m.impl("euler", TORCH_BOX(&euler));
    m.impl("euler_backward", TORCH_BOX(&euler_backward));
    m.impl("residual", TORCH_BOX(&residual));
    m.impl("residual_backward", TORCH_BOX(&residual_backward));
    m.impl("layers", TORCH_BOX(&layers));
    m.impl("layers_backward", TORCH_BOX(&layers_backward));
    m.impl("denoise", TORCH_BOX(&denoise));
    m.impl("denoise_backward", TORCH_BOX(&denoise_backward));
}

} // namespace deeppcr
