// SPDX-License-Identifier: Apache-2.0
//
// torch.ops.deeppcr.newton_update: the second half of a sweep over steps that PyTorch has evaluated.
#include "ops/update.h"
#include "operators.h"
#include "solver.h"

namespace deeppcr {
namespace {

void check_jacobian(const std::optional<Tensor> &jacobian, const Tensor &ends, dpcr_structure structure) {
    const bool wanted = structure != DPCR_P_IDENTITY && structure != DPCR_P_ZERO;
    require(jacobian.has_value() == wanted,
            wanted ? "jacobian is missing: only structure 'identity' and 'zero' need none"
                   : "jacobian must be None where structure is 'identity' or 'zero'");
    if (!jacobian) return;
    check_like("jacobian", *jacobian, ends);
    const int64_t B = ends.size(1), w = ends.size(2);
    const bool shared = jacobian->dim() > 1 && jacobian->size(1) == 1;
    std::vector<int64_t> expected = {ends.size(0), shared ? 1 : B, structure == DPCR_P_SCALAR ? 1 : w};
    if (structure == DPCR_P_DENSE) expected.push_back(w);
    check_shape("jacobian", *jacobian, expected);
}

void check_tensors(const Tensor &states, const Tensor &ends, const Tensor &tolerance) {
    require(ends.dim() == 3, [&] { return "ends must have shape (W, B, w), got " + text(ends.sizes()); });
    check_like("ends", ends, ends);
    check_like("states", states, ends);
    check_shape("states", states, {ends.size(0) + 1, ends.size(1), ends.size(2)});
    require(tolerance.scalar_type() == ScalarType::Double, "tolerance must be float64");
    require(is_here(tolerance) && device_index(tolerance) == device_index(ends),
            [] { return std::string("tolerance must be ") + kHere; });
    check_shape("tolerance", tolerance, {ends.size(0)});
}

} // namespace

std::tuple<Tensor, Tensor, Tensor> newton_update(Tensor states, Tensor ends, std::optional<Tensor> jacobian,
                                                 std::string structure, Tensor tolerance, double rtol,
                                                 int64_t segments) {
    dpcr_update update = {};
    update.structure = choose<dpcr_structure>("structure", kStructures, structure);
    check_tensors(states, ends, tolerance);
    check_jacobian(jacobian, ends, update.structure);
    const Tensor x = packed(states), e = packed(ends), thresholds = packed(tolerance);
    std::optional<Tensor> A;
    if (jacobian) A = packed(*jacobian);
    const int64_t L = ends.size(0), B = ends.size(1);
    const Tensor updated = allocate_like(x), error = allocate({L, B}, ends.scalar_type(), ends),
                 converged = allocate({B}, ScalarType::Long, ends);
    update.dtype = dtype_of("ends", ends);
    update.L = L, update.B = B, update.w = ends.size(2);
    update.segments = segments;
    update.shared = A && A->size(1) == 1;
    update.states = x.const_data_ptr();
    update.ends = e.const_data_ptr();
    update.jacobian = A ? A->const_data_ptr() : nullptr;
    update.tolerance = static_cast<const double *>(thresholds.const_data_ptr());
    update.rtol = rtol;
    update.updated = updated.mutable_data_ptr();
    update.error = error.mutable_data_ptr();
    update.converged = static_cast<int64_t *>(converged.mutable_data_ptr());
    const Run run = run_beside(ends);
    size_t bytes = 0;
    check(dpcr_newton_update_workspace(run.exec, &update, &bytes));
    Workspace workspace(bytes, ends);
    check(dpcr_newton_update(run.exec, &update, workspace.buffer()));
    return {updated, error, converged};
}

} // namespace deeppcr
