// SPDX-License-Identifier: Apache-2.0
//
// torch.ops.deeppcr.*: schemas, and the CPU kernels behind them.  A CUDA library would register its own
// with STABLE_TORCH_LIBRARY_IMPL(deeppcr, CUDA, m).  Fake kernels, autograd, vmap and autocast: torch_deeppcr/_ops.py.
#include "operators.h"

STABLE_TORCH_LIBRARY(deeppcr, m) {
    m.def("linear_recurrence(Tensor? A, Tensor b, Tensor? x0, str blocks, bool reverse, SymInt segments)"
          " -> (Tensor x, Tensor info)");
    m.def("linear_recurrence_backward(Tensor gx, Tensor? A, Tensor? x0, Tensor x, str blocks, bool reverse,"
          " SymInt segments, bool need_A, bool need_x0) -> (Tensor gA, Tensor gb, Tensor gx0)");
    m.def("mlp(Tensor z0, Tensor weight, Tensor? bias, str activation, float[] activation_parameters,"
          " bool save_states) -> (Tensor z, Tensor states)");
    m.def("mlp_backward(Tensor? gz, Tensor? gstates, Tensor z0, Tensor states, Tensor weight, Tensor? bias,"
          " str activation, float[] activation_parameters, bool[] needs)"
          " -> (Tensor gz0, Tensor gweight, Tensor gbias)");
    m.def("residual(Tensor z0, Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, Tensor? "
          "norm_weight,"
          " Tensor? norm_bias, str activation, float[] activation_parameters, str norm, float norm_eps, "
          "float scale,"
          " bool save_states) -> (Tensor z, Tensor states)");
    m.def("residual_backward(Tensor? gz, Tensor? gstates, Tensor z0, Tensor states, Tensor weight1, Tensor? "
          "bias1,"
          " Tensor weight2, Tensor? bias2, Tensor? norm_weight, Tensor? norm_bias, str activation,"
          " float[] activation_parameters, str norm, float norm_eps, float scale, bool[] needs)"
          " -> (Tensor gz0, Tensor gweight1, Tensor gbias1, Tensor gweight2, Tensor gbias2, Tensor "
          "gnorm_weight,"
          " Tensor gnorm_bias)");
}

STABLE_TORCH_LIBRARY_IMPL(deeppcr, CPU, m) {
    m.impl("linear_recurrence", TORCH_BOX(&deeppcr::linear_recurrence));
    m.impl("linear_recurrence_backward", TORCH_BOX(&deeppcr::linear_recurrence_backward));
    m.impl("mlp", TORCH_BOX(&deeppcr::mlp));
    m.impl("mlp_backward", TORCH_BOX(&deeppcr::mlp_backward));
    m.impl("residual", TORCH_BOX(&deeppcr::residual));
    m.impl("residual_backward", TORCH_BOX(&deeppcr::residual_backward));
}
