# SPDX-License-Identifier: Apache-2.0
"""newton_update: one Newton sweep over steps that somebody else evaluates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

import torch_deeppcr as dpcr
from torch_deeppcr import reference
from torch_deeppcr._update import newton_update

STRUCTURES = ("dense", "diagonal", "scalar", "identity", "zero")
F64 = torch.float64


def problem(
    structure: str,
    length: int = 6,
    batch: int = 3,
    width: int = 5,
    shared: bool = False,
    dtype: torch.dtype = F64,
    device: str | torch.device = "cpu",
) -> list[Any]:
    """states, ends, jacobian, structure, tolerance, rtol."""
    blocks = (length, 1 if shared else batch)
    shapes = {
        "dense": (*blocks, width, width),
        "diagonal": (*blocks, width),
        "scalar": (*blocks, 1),
    }
    jacobian = torch.randn(shapes[structure]) / width**0.5 if structure in shapes else None
    states = torch.randn(length + 1, batch, width)
    ends = states[1:] + 0.1 * torch.randn(length, batch, width)
    tolerance = 0.1 + 0.3 * torch.rand(length, dtype=F64, device=device)
    tensors = [None if t is None else t.to(device, dtype) for t in (states, ends, jacobian)]
    return [*tensors, structure, tolerance, 1e-2]


def assert_same(ours: tuple[Tensor, ...], loop: tuple[Tensor, ...]) -> None:
    for name, a, b in zip(("states", "error"), ours, loop, strict=False):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
    assert torch.equal(ours[2], loop[2])


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_is_the_reference(structure: str, shared: bool, dtype: torch.dtype) -> None:
    for shape in ((6, 3, 5), (9, 1, 1), (2, 2, 1500), (0, 2, 3), (4, 0, 3), (4, 2, 0)):
        if structure == "dense" and shape[2] > 100:
            continue
        arguments = problem(structure, *shape, shared=shared, dtype=dtype)
        before = [None if t is None else t.clone() for t in arguments[:3]]
        for segments in (0, 1, max(shape[0], 1)):
            assert_same(newton_update(*arguments, segments), reference.newton_update(*arguments))
        for old, new in zip(before, arguments[:3], strict=True):
            assert old is None or torch.equal(old, new)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_what_is_not_finite_is_treated_as_in_the_reference(structure: str) -> None:
    for step, value in ((0, torch.nan), (2, torch.inf), (1, 1e300)):
        arguments = problem(structure)
        arguments[1][step, 1, 2] = value
        ours = newton_update(*arguments)
        assert_same(
            [t.nan_to_num(nan=7.0) for t in ours],
            [t.nan_to_num(nan=7.0) for t in reference.newton_update(*arguments)],
        )
        if step == 0:
            assert ours[2][1] == 1
    arguments = problem(structure)
    arguments[1][:3] = arguments[0][1:4]
    if arguments[2] is not None:
        arguments[2][1:4] = torch.inf
    states, error, converged = newton_update(*arguments)
    assert_same((states, error, converged), reference.newton_update(*arguments))
    assert torch.equal(states[4], arguments[1][3]) and (converged >= 3).all()


def test_newton_of_a_linear_chain_takes_one_sweep() -> None:
    length, batch, width = 12, 2, 4
    A, b = (
        torch.randn(length, batch, width, width, dtype=F64) / 2,
        torch.randn(length, batch, width, dtype=F64),
    )
    x = torch.randn(length + 1, batch, width, dtype=F64)
    tolerance = torch.full((length,), 1e-9, dtype=F64)
    loop = dpcr.linear_recurrence(A, b, x[0], segments=1)
    converged = torch.zeros(batch)
    for _ in range(2):
        ends = torch.einsum("lbij,lbj->lbi", A, x[:-1]) + b
        x, error, converged = newton_update(x, ends, A, "dense", tolerance, 0.0)
    torch.testing.assert_close(x[1:], loop)
    assert (converged == length).all() and error.max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_runs_the_loop(dtype: torch.dtype) -> None:
    arguments = problem("diagonal", dtype=dtype)
    ours = newton_update(*arguments)
    assert ours[0].dtype == ours[1].dtype == dtype
    assert_same(ours, reference.newton_update(*arguments))


def test_sequential_runs_the_loop() -> None:
    arguments = problem("dense")
    with dpcr.sequential():
        ours = newton_update(*arguments)
    assert all(map(torch.equal, ours, reference.newton_update(*arguments)))


def test_strides_do_not_matter() -> None:
    states, ends, jacobian, *rest = problem("dense")
    moved = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in (states, ends, jacobian)]
    ours = newton_update(*moved, *rest)
    assert all(map(torch.equal, ours, newton_update(states, ends, jacobian, *rest)))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_opcheck(structure: str) -> None:
    opcheck(torch.ops.deeppcr.newton_update.default, (*problem(structure), 0))
    leaf = problem(structure, dtype=torch.float32)
    leaf[0].requires_grad_()
    opcheck(
        torch.ops.deeppcr.newton_update.default,
        (*leaf, 2),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def test_compiled() -> None:
    arguments = problem("diagonal")
    compiled = torch.compile(newton_update, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert all(map(torch.equal, compiled(*arguments), newton_update(*arguments)))


def test_derivatives_are_refused() -> None:
    arguments = problem("dense")
    arguments[1].requires_grad_()
    with pytest.raises(NotImplementedError, match="no derivatives"):
        newton_update(*arguments)
    with torch.no_grad():
        newton_update(*arguments)
    outputs = torch.ops.deeppcr.newton_update(*arguments, 0)
    with pytest.raises(NotImplementedError, match="no derivative"):
        outputs[0].sum().backward()
    plain = problem("identity")
    with pytest.raises(NotImplementedError, match="transforms"):
        torch.func.vmap(lambda x: newton_update(x, *plain[1:])[0])(plain[0].expand(2, 7, 3, 5))
    with pytest.raises(NotImplementedError, match="vmap"):
        torch.func.vmap(lambda x: torch.ops.deeppcr.newton_update(x, *plain[1:], 0)[0])(
            plain[0].expand(2, 7, 3, 5)
        )


BAD: list[tuple[type[Exception], str, dict[int, Any]]] = [
    (TypeError, "states must be a tensor", {0: 3}),
    (TypeError, "states must be float32", {0: torch.zeros(7, 3, 5, dtype=torch.int64)}),
    (ValueError, r"states must have shape .* = \(7, 3, 5\)", {0: torch.zeros(6, 3, 5, dtype=F64)}),
    (TypeError, "ends must have the dtype of states", {1: torch.zeros(6, 3, 5)}),
    (ValueError, "ends must have shape", {1: torch.zeros(6, 3, dtype=F64)}),
    (TypeError, "jacobian must be a tensor", {2: None}),
    (ValueError, "jacobian must have shape", {2: torch.zeros(6, 3, 5, dtype=F64)}),
    (ValueError, "jacobian must have shape", {2: torch.zeros(6, 2, 5, 5, dtype=F64)}),
    (ValueError, "jacobian must be None", {3: "zero"}),
    (ValueError, "structure must be one of", {3: "newton"}),
    (TypeError, "tolerance must be a float64 tensor, got float32", {4: torch.zeros(6)}),
    (TypeError, "tolerance must be a float64 tensor, got float", {4: 0.1}),
    (ValueError, "tolerance must have shape", {4: torch.zeros(5, dtype=F64)}),
    (ValueError, "rtol must be at least 0", {5: -1.0}),
    (TypeError, "rtol must be a number", {5: "small"}),
    (ValueError, "segments must be in", {6: 7}),
    (ValueError, "segments must be in", {6: -1}),
    (TypeError, "segments must be an int", {6: 2.0}),
]


@pytest.mark.parametrize(("error", "message", "changes"), BAD, ids=[m for _, m, _ in BAD])
def test_bad_input(error: type[Exception], message: str, changes: dict[int, Any]) -> None:
    arguments = [*problem("dense"), 0]
    for index, value in changes.items():
        arguments[index] = value
    with pytest.raises(error, match=message):
        newton_update(*arguments)


@pytest.mark.cuda
@pytest.mark.parametrize("structure", STRUCTURES)
def test_cuda_is_the_reference(structure: str, device: torch.device) -> None:
    for shape in ((6, 3, 5), (40, 2, 70), (3, 2, 3000), (0, 2, 3)):
        if structure == "dense" and shape[2] > 100:
            continue
        arguments = problem(structure, *shape, device=device)
        for segments in (0, max(shape[0] // 2, 1)):
            assert_same(newton_update(*arguments, segments), reference.newton_update(*arguments))
