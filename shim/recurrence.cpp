// SPDX-License-Identifier: Apache-2.0
//
// torch.ops.deeppcr.linear_recurrence and its backward.  Any strides that PyTorch users
// have go to the library as they are; only an operand without a unit stride inside is copied.
#include "bridge.h"
#include "operators.h"

namespace deeppcr {
namespace {

dpcr_block block_of(const std::string &blocks) {
    if (blocks == "dense") return DPCR_DENSE;
    if (blocks == "diagonal") return DPCR_DIAGONAL;
    if (blocks == "scalar") return DPCR_SCALAR;
    require(blocks == "identity", [&] {
        return "blocks must be 'dense', 'diagonal', 'scalar' or 'identity', got '" + blocks + "'";
    });
    return DPCR_IDENTITY;
}

bool unit_inside(const Tensor &tensor) {
    const int64_t last = tensor.dim() - 1;
    return tensor.size(last) <= 1 || tensor.stride(last) == 1;
}

Tensor with_unit_rows(const Tensor &tensor) {
    return unit_inside(tensor) ? tensor : torch::stable::contiguous(tensor);
}

Tensor with_unit_blocks(const Tensor &A, dpcr_block block) {
    if (block != DPCR_DENSE) return with_unit_rows(A);
    const bool unit = A.size(3) <= 1 || A.stride(2) == 1 || A.stride(3) == 1;
    return unit ? A : torch::stable::contiguous(A);
}

// Reversed: the walk starts at the last step and goes down.
struct Direction {
    int64_t L;
    bool reverse;
    char *start(void *data, int64_t step, size_t element) const {
        const int64_t offset = reverse && L > 0 ? (L - 1) * step : 0;
        return static_cast<char *>(data) + offset * static_cast<int64_t>(element);
    }
    int64_t step(int64_t step) const {
        return reverse ? -step : step;
    }
};

dpcr_vectors vectors(const Tensor &v, Direction direction) {
    return {direction.start(const_cast<void *>(v.const_data_ptr()), v.stride(0), v.element_size()),
            direction.step(v.stride(0)), v.stride(1)};
}

dpcr_blocks blocks_view(const Tensor &A, dpcr_block block, Direction direction) {
    const int64_t row = block == DPCR_DENSE ? A.stride(2) : 1, column = block == DPCR_DENSE ? A.stride(3) : 1;
    return {direction.start(const_cast<void *>(A.const_data_ptr()), A.stride(0), A.element_size()),
            direction.step(A.stride(0)), A.size(1) == 1 ? 0 : A.stride(1), row, column};
}

dpcr_vectors start_view(const std::optional<Tensor> &x0) {
    if (!x0) return {};
    return {const_cast<void *>(x0->const_data_ptr()), 0, x0->stride(0)};
}

void check_blocks(const std::optional<Tensor> &A, const Tensor &b, dpcr_block block) {
    require(A.has_value() == (block != DPCR_IDENTITY), block == DPCR_IDENTITY
                                                           ? "A must be None where blocks is 'identity'"
                                                           : "A is missing: only identity blocks need none");
    if (!A) return;
    check_like("A", *A, b);
    const int64_t L = b.size(0), B = b.size(1), w = b.size(2);
    std::vector<int64_t> expected = {L, A->dim() > 1 && A->size(1) == 1 ? 1 : B,
                                     block == DPCR_SCALAR ? 1 : w};
    if (block == DPCR_DENSE) expected.push_back(w);
    check_shape("A", *A, expected);
}

// Tensors whose memory a problem points to.
struct Operands {
    std::optional<Tensor> A;
    Tensor b;
    std::optional<Tensor> x0;
};

Operands check_operands(const std::optional<Tensor> &A, const Tensor &b, const std::optional<Tensor> &x0,
                        dpcr_block block) {
    require(b.dim() == 3, [&] { return "b must have shape (L, B, w), got " + text(b.sizes()); });
    check_like("b", b, b);
    check_blocks(A, b, block);
    if (x0) check_like("x0", *x0, b), check_shape("x0", *x0, {b.size(1), b.size(2)});
    Operands operands = {std::nullopt, with_unit_rows(b), std::nullopt};
    if (A) operands.A = with_unit_blocks(*A, block);
    if (x0) operands.x0 = with_unit_rows(*x0);
    return operands;
}

dpcr_recurrence problem_of(const Operands &operands, const Tensor &x, dpcr_block block, Direction direction) {
    dpcr_recurrence problem = {};
    problem.dtype = dtype_of("b", operands.b);
    problem.block = block;
    problem.L = operands.b.size(0), problem.B = operands.b.size(1), problem.w = operands.b.size(2);
    if (operands.A) problem.A = blocks_view(*operands.A, block, direction);
    problem.b = vectors(operands.b, direction);
    problem.x0 = start_view(operands.x0);
    problem.x = vectors(x, direction);
    return problem;
}

Workspace workspace_of(dpcr_exec exec, const dpcr_recurrence &problem, const dpcr_plan &plan,
                       const Tensor &beside) {
    size_t bytes = 0;
    check(dpcr_recurrence_workspace(exec, &problem, &plan, &bytes));
    return Workspace(bytes, beside);
}

} // namespace

std::tuple<Tensor, Tensor> linear_recurrence(std::optional<Tensor> A, Tensor b, std::optional<Tensor> x0,
                                             std::string blocks, bool reverse, int64_t segments) {
    const dpcr_block block = block_of(blocks);
    const Operands operands = check_operands(A, b, x0, block);
    const Tensor x = allocate_like(operands.b), recomputed = allocate({b.size(1)}, ScalarType::Int, b);
    dpcr_recurrence problem = problem_of(operands, x, block, {b.size(0), reverse});
    problem.recomputed = static_cast<int32_t *>(recomputed.mutable_data_ptr());
    const Run run = run_beside(b);
    const dpcr_plan plan = {segments, 0};
    Workspace workspace = workspace_of(run.exec, problem, plan, b);
    check(dpcr_recurrence_solve(run.exec, &problem, &plan, workspace.buffer(), nullptr));
    return {x, recomputed};
}

std::tuple<Tensor, Tensor, Tensor> linear_recurrence_backward(Tensor gx, std::optional<Tensor> A,
                                                              std::optional<Tensor> x0, Tensor x,
                                                              std::string blocks, bool reverse,
                                                              int64_t segments, bool need_A, bool need_x0) {
    const dpcr_block block = block_of(blocks);
    const Operands operands = check_operands(A, x, x0, block); // of b only the shape matters here
    check_like("gx", gx, x);
    check_shape("gx", gx, x.sizes());
    const Tensor incoming = with_unit_rows(gx), gb = allocate_like(x);
    const Tensor gA = need_A && A ? allocate_like(*A) : nothing(x);
    const Tensor gx0 = need_x0 && x0 ? allocate_like(*x0) : nothing(x);
    const Direction direction = {x.size(0), reverse};
    const dpcr_recurrence problem = problem_of(operands, operands.b, block, direction);
    dpcr_recurrence_gradients gradients = {};
    gradients.x = vectors(incoming, direction);
    gradients.b = vectors(gb, direction);
    if (need_A && A) gradients.A = blocks_view(gA, block, direction);
    if (need_x0 && x0) gradients.x0 = start_view(gx0);
    const Run run = run_beside(x);
    const dpcr_plan plan = {segments, 0};
    Workspace workspace = workspace_of(run.exec, problem, plan, x);
    check(dpcr_recurrence_backward(run.exec, &problem, &gradients, &plan, workspace.buffer()));
    return {gA, gb, gx0};
}

} // namespace deeppcr
