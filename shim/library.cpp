// SPDX-License-Identifier: Apache-2.0
//
// torch.ops.deeppcr.*: schemas.  Kernels: cpu.cpp and, in a library of its own, cuda.cpp; fake kernels, autograd, vmap
// and autocast: torch_deeppcr/_ops.py.
#include <torch/csrc/stable/library.h>

// What the operators of all kinds of chain take.  How the chain is solved: dpcr_plan and dpcr_newton of
// csrc/ops/chain.h, None the library's default (and to PyTorch's dispatcher, which takes a call apart argument by
// argument, a fraction of what a str or a list costs).  keep: what forward returns as states, "nothing" (0,B,w), "states" (L,B,w) or "checkpoints",
// those that backward can do with; in a backward pass, which of the two `kept` is.  frozen: empty, or for each step
// whether its parameters get no gradient; forward checks it and hands it on.
// info: float64 (6,B), the rows of enum dpcr_report; of the recurrence int32 (B), the samples recomputed by the loop.
#define MLP_OPTIONS ", str activation, float[]? activation_parameters"
#define EULER_OPTIONS MLP_OPTIONS ", float scale"
#define RESIDUAL_PARAMETERS \
    ", Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, Tensor? norm_weight, Tensor? norm_bias"
#define RESIDUAL_OPTIONS MLP_OPTIONS ", str norm, float norm_eps, float scale"
#define LAYERS_PARAMETERS ", Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias"
#define LAYERS_OPTIONS MLP_OPTIONS ", str norm, float norm_eps, bool skip, float scale"
#define DENOISE_PARAMETERS                                                                         \
    ", Tensor weight_in, Tensor bias, Tensor? weight_hidden, Tensor weight_out, Tensor? bias_out," \
    " Tensor coefficients, Tensor? noise"
#define SOLVER_OPTIONS                                                                                  \
    ", SymInt segments, str? jacobian, str? refresh, float? rtol, float? atol, int? max_sweeps, bool? " \
    "finish, "                                                                                          \
    "bool[]? frozen, str keep"

STABLE_TORCH_LIBRARY(deeppcr, m) {
    m.def("linear_recurrence(Tensor? A, Tensor b, Tensor? x0, str blocks, bool reverse, SymInt segments)"
          " -> (Tensor x, Tensor info)");
    m.def("linear_recurrence_backward(Tensor gx, Tensor? A, Tensor? x0, Tensor x, str blocks, bool reverse,"
          " SymInt segments, bool need_A, bool need_x0) -> (Tensor gA, Tensor gb, Tensor gx0)");
    m.def("newton_update(Tensor states, Tensor ends, Tensor? jacobian, str structure, Tensor tolerance, "
          "float rtol,"
          " SymInt segments) -> (Tensor states, Tensor error, Tensor converged)");
    m.def("mlp(Tensor z0, Tensor weight, Tensor? bias, Tensor? guess" MLP_OPTIONS SOLVER_OPTIONS
          ") -> (Tensor z, Tensor states, Tensor info)");
    m.def("mlp_backward(Tensor? gz, Tensor? gstates, Tensor z0, Tensor kept, Tensor weight, Tensor? "
          "bias" MLP_OPTIONS SOLVER_OPTIONS
          ", bool[] needs) -> (Tensor gz0, Tensor gweight, Tensor gbias, Tensor info)");
    m.def("euler(Tensor z0, Tensor weight, Tensor? bias, Tensor? guess" EULER_OPTIONS SOLVER_OPTIONS
          ") -> (Tensor z, Tensor states, Tensor info)");
    m.def("euler_backward(Tensor? gz, Tensor? gstates, Tensor z0, Tensor kept, Tensor weight, Tensor? "
          "bias" EULER_OPTIONS SOLVER_OPTIONS
          ", bool[] needs) -> (Tensor gz0, Tensor gweight, Tensor gbias, Tensor info)");
    m.def("residual(Tensor z0" RESIDUAL_PARAMETERS ", Tensor? guess" RESIDUAL_OPTIONS SOLVER_OPTIONS
          ") -> (Tensor z, Tensor states, Tensor info)");
    m.def("residual_backward(Tensor? gz, Tensor? gstates, Tensor z0, Tensor kept" RESIDUAL_PARAMETERS
              RESIDUAL_OPTIONS SOLVER_OPTIONS
          ", bool[] needs) -> (Tensor gz0, Tensor gweight1, Tensor gbias1, Tensor gweight2,"
          " Tensor gbias2, Tensor gnorm_weight, Tensor gnorm_bias, Tensor info)");
    m.def("layers(Tensor z0" LAYERS_PARAMETERS ", Tensor? guess" LAYERS_OPTIONS SOLVER_OPTIONS
          ") -> (Tensor z, Tensor states, Tensor info)");
    m.def("layers_backward(Tensor? gz, Tensor? gstates, Tensor z0, Tensor kept" LAYERS_PARAMETERS
              LAYERS_OPTIONS SOLVER_OPTIONS ", bool[] needs) -> (Tensor gz0, Tensor gweight, Tensor gbias, "
          "Tensor gnorm_weight, Tensor gnorm_bias,"
          " Tensor info)");
    m.def("denoise(Tensor z0" DENOISE_PARAMETERS ", Tensor? guess" MLP_OPTIONS SOLVER_OPTIONS
          ") -> (Tensor z, Tensor states, Tensor info)");
    m.def("denoise_backward(Tensor? gz, Tensor? gstates, Tensor z0, Tensor kept" DENOISE_PARAMETERS
              MLP_OPTIONS SOLVER_OPTIONS ", bool[] needs) -> (Tensor gz0, Tensor gweight_in, Tensor gbias,"
          " Tensor gweight_hidden, Tensor gweight_out, Tensor gbias_out, Tensor gcoefficients,"
          " Tensor gnoise, Tensor info)");
}
