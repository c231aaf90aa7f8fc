# SPDX-License-Identifier: Apache-2.0
"""The raw operators torch.ops.deeppcr.*: schemas, registrations, activations, direct calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import ACTIVATIONS, SMALL_CHAINS, Chain, assert_close, name_of
from torch import Tensor
from torch.library import opcheck

import torch_deeppcr as dpcr
from torch_deeppcr import _activations, reference

ops = torch.ops.deeppcr
F64 = torch.float64


def test_the_native_library_is_loaded() -> None:
    """Everything else in this folder would test PyTorch against itself."""
    assert dpcr.native_available()


CHAIN = (
    "Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, Tensor? norm_weight, "
    "Tensor? norm_bias, str activation, float[] activation_parameters, str norm, float norm_eps, "
    "float scale"
)
MLP = "Tensor weight, Tensor? bias, str activation, float[] activation_parameters"
SCHEMAS = {
    "linear_recurrence": "Tensor? A, Tensor b, Tensor? x0, str blocks, bool reverse, "
    "SymInt segments) -> (Tensor x, Tensor info)",
    "linear_recurrence_backward": "Tensor gx, Tensor? A, Tensor? x0, Tensor x, str blocks, "
    "bool reverse, SymInt segments, bool need_A, bool need_x0) -> "
    "(Tensor gA, Tensor gb, Tensor gx0)",
    "mlp": f"Tensor z0, {MLP}, bool save_states) -> (Tensor z, Tensor states)",
    "mlp_backward": f"Tensor? gz, Tensor? gstates, Tensor z0, Tensor states, {MLP}, "
    "bool[] needs) -> (Tensor gz0, Tensor gweight, Tensor gbias)",
    "residual": f"Tensor z0, {CHAIN}, bool save_states) -> (Tensor z, Tensor states)",
    "residual_backward": f"Tensor? gz, Tensor? gstates, Tensor z0, Tensor states, {CHAIN}, "
    "bool[] needs) -> (Tensor gz0, Tensor gweight1, Tensor gbias1, Tensor gweight2, Tensor gbias2, "
    "Tensor gnorm_weight, Tensor gnorm_bias)",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str) -> None:
    """Graphs that were exported earlier hold on to these."""
    assert str(getattr(ops, name).default._schema) == f"deeppcr::{name}({SCHEMAS[name]}"


# ---- activations --------------------------------------------------------------------------------

TORCH_FUNCTIONS: dict[str, Any] = {
    "identity": lambda u: u,
    "relu": F.relu,
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda u: F.gelu(u, approximate="tanh"),
    "softplus": F.softplus,
}


def test_the_table_of_activations_is_complete() -> None:
    assert list(_activations.ACTIVATIONS) == list(TORCH_FUNCTIONS) == list(ACTIVATIONS)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("default", [True, False])
@pytest.mark.parametrize("name", _activations.ACTIVATIONS)
def test_activation_and_derivative(name: str, default: bool, dtype: torch.dtype) -> None:
    """One layer with W = I is the activation alone, from the kernel and from PyTorch."""
    resolved = _activations.resolve(name if default else (name, *ACTIVATIONS[name]))
    u = torch.cat(
        [
            torch.linspace(-30, 30, 401, dtype=dtype),
            torch.tensor([0.0, -0.0, 1e-30, -1e-30, 88.0, -88.0, 1e4, -1e4], dtype=dtype),
            torch.tensor([float("inf"), -float("inf"), float("nan")], dtype=dtype),
        ]
    ).reshape(-1, 1)
    u.requires_grad_()
    # In float64: PyTorch's vectorised float32 gelu(inf) is NaN, its scalar one is inf.
    expected = TORCH_FUNCTIONS[name](u.double(), *resolved.parameters).to(dtype)
    one = torch.ones(1, 1, 1, dtype=dtype)
    actual, _ = ops.mlp(u, one, None, name, resolved.parameters, True)
    tolerance = {torch.float32: 2e-6, F64: 1e-14}[dtype]
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    ours, loop = (torch.autograd.grad(y.sum(), u)[0][:-3] for y in (actual, expected))
    smooth = (u[:-3].detach() != 0) | torch.tensor(name not in ("relu", "leaky_relu", "elu"))
    torch.testing.assert_close(
        ours[smooth], loop[smooth], rtol=4 * tolerance, atol=4 * tolerance, equal_nan=True
    )


def test_subgradients_at_zero_are_those_of_pytorch() -> None:
    zero = torch.zeros(1, 1, requires_grad=True)
    for name in _activations.ACTIVATIONS:
        parameters = _activations.resolve(name).parameters
        ours, _ = ops.mlp(zero, torch.ones(1, 1, 1), None, name, parameters, True)
        loop = TORCH_FUNCTIONS[name](zero, *parameters)
        left, right = (torch.autograd.grad(y.sum(), zero)[0] for y in (ours, loop))
        torch.testing.assert_close(left, right, msg=name)


# ---- registrations ------------------------------------------------------------------------------


def chain_arguments(chain: Chain) -> tuple[Any, ...]:
    """Of the forward operator, without save_states."""
    options: tuple[Any, ...] = (chain.activation, list(ACTIVATIONS[chain.activation]))
    if chain.kind == "residual":
        options += (chain.norm or "none", chain.eps, chain.scale)
    return (*chain.tensors, *options)


def backward_arguments(chain: Chain) -> tuple[Any, ...]:
    arguments = chain_arguments(chain)
    states = getattr(ops, chain.kind)(*arguments, True)[1]
    z0, *rest = arguments
    needs = [tensor is not None for tensor in chain.tensors]
    return (torch.randn_like(z0), torch.randn_like(states), z0, states, *rest, needs)


def recording(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        a.detach().clone().requires_grad_() if isinstance(a, Tensor) else a for a in arguments
    )


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("chain", SMALL_CHAINS, ids=name_of)
def test_opcheck_chain(chain: Chain, recorded: bool) -> None:
    for save in (True, False):
        arguments = (*chain_arguments(chain), save)
        opcheck(getattr(ops, chain.kind).default, recording(arguments) if recorded else arguments)
    arguments = backward_arguments(chain)
    backward = getattr(ops, f"{chain.kind}_backward").default
    opcheck(backward, recording(arguments) if recorded else arguments)
    some = [False] * len(arguments[-1])
    opcheck(backward, (None, *arguments[1:-1], [True, *some[1:]]))
    opcheck(backward, (arguments[0], None, *arguments[2:-1], some))


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("blocks", ["dense", "diagonal", "scalar", "identity"])
def test_opcheck_recurrence(blocks: str, recorded: bool) -> None:
    b, x0 = torch.randn(5, 3, 2), torch.randn(3, 2)
    inner = {"dense": (3, 2, 2), "diagonal": (1, 2), "scalar": (3, 1), "identity": None}[blocks]
    A = None if inner is None else torch.randn(5, *inner)
    if blocks == "dense":
        A = A.mT
    mark = recording if recorded else tuple
    opcheck(ops.linear_recurrence.default, (*mark((A, b, x0)), blocks, True, 3))
    opcheck(ops.linear_recurrence.default, (*mark((A, b, None)), blocks, False, 1))
    x = ops.linear_recurrence(A, b, x0, blocks, False, 1)[0]
    for needs in ((A is not None, True), (False, False)):
        arguments = (*mark((b, A, x0, x)), blocks, False, 2, *needs)
        opcheck(ops.linear_recurrence_backward.default, arguments)


@pytest.mark.parametrize("save", [True, False])
@pytest.mark.parametrize("chain", SMALL_CHAINS, ids=name_of)
def test_direct_calls_are_differentiable(chain: Chain, save: bool) -> None:
    """Twice, and without the states too: backward then recomputes them."""
    leaves = [t.clone().requires_grad_() for t in chain.present]
    copy = Chain(chain.kind, chain.length, chain.batch, chain.width, chain.hidden)
    copy.activation, copy.norm, copy.scale = chain.activation, chain.norm, chain.scale
    given = iter(leaves)
    copy.tensors = [None if t is None else next(given) for t in chain.tensors]
    z, _ = getattr(ops, chain.kind)(*chain_arguments(copy), save)
    results = []
    for value in (z, chain.loop(*leaves)):
        first = torch.autograd.grad(value.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        results.append([*first, *second])
    assert_close(*results)


def test_direct_calls_of_the_recurrence_are_differentiable() -> None:
    leaves = [torch.randn(*shape, dtype=F64) for shape in ((5, 3, 2, 2), (5, 3, 2), (3, 2))]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    results = []
    for value in (
        ops.linear_recurrence(*leaves, "dense", True, 2)[0],
        reference.linear_recurrence(*leaves, "dense", True),
    ):
        first = torch.autograd.grad(value.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        results.append([*first, *second])
    assert_close(*results)


def test_direct_calls_under_vmap() -> None:
    chain = Chain("mlp", 3, 2, 4)
    z, *rest = chain_arguments(chain)
    many = torch.randn(5, 2, 4, dtype=F64)
    out = torch.vmap(lambda z: ops.mlp(z, *rest, False)[0])(many)
    assert_close(out, torch.stack([chain.loop(z, *chain.present[1:]) for z in many]))
    needs = [True, True, True]
    gz = torch.randn(5, 2, 4, dtype=F64)
    states = ops.mlp(z, *rest, True)[1]
    mapped = torch.vmap(lambda g: ops.mlp_backward(g, None, z, states, *rest, needs))(gz)
    one = [ops.mlp_backward(g, None, z, states, *rest, needs) for g in gz]
    assert_close(mapped, tuple(torch.stack(column) for column in zip(*one, strict=True)))
    b = torch.randn(5, 6, 2, 3, dtype=F64)
    x = torch.vmap(lambda b: ops.linear_recurrence(None, b, None, "identity", False, 1)[0])(b)
    assert_close(x, b.cumsum(1))


def test_direct_calls_do_not_drop_tangents() -> None:
    """Forward mode is for the functions; the operators refuse it rather than give zero."""
    z, *rest = chain_arguments(Chain("mlp", 3, 2, 4))
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda z: ops.mlp(z, *rest, False)[0], (z,), (z,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(z, z)
        with pytest.raises(NotImplementedError, match="forward-mode"):
            ops.mlp(dual, *rest, False)
        ops.mlp(z, *rest, False)  # no tangent, nothing to drop


def test_direct_calls_under_autocast() -> None:
    chain = Chain("mlp", 3, 2, 4).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        z, states = ops.mlp(*chain_arguments(chain), True)
        x, _ = ops.linear_recurrence(None, states, None, "identity", False, 1)
    assert z.dtype == states.dtype == x.dtype == torch.float32
    assert_close(z, chain.to(torch.float32).loop())


# ---- bad arguments, checked in the kernel and in the fake kernel --------------------------------

z, W, b = torch.randn(2, 4), torch.randn(3, 4, 4), torch.randn(3, 4)
BAD_MLP = [
    ((z[0], W, b, "tanh", [], False), "z0 must have"),
    ((z, W[:, :3], b, "tanh", [], False), "weight must have shape"),
    ((z, W, b[:2], "tanh", [], False), "bias must have shape"),
    ((z, W.double(), b, "tanh", [], False), "dtype"),
    ((z.half(), W.half(), b.half(), "tanh", [], False), "float32 or float64"),
    ((z.int(), W.int(), b.int(), "tanh", [], False), "float32 or float64"),
    ((z, W, b, "swish", [], False), "activation"),
    ((z, W, b, "tanh", [1.0], False), "activation_parameters must hold 0"),
    ((z, W, b, "softplus", [1.0], False), "activation_parameters must hold 2"),
]


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize(("arguments", "message"), BAD_MLP)
def test_bad_arguments(arguments: tuple[Any, ...], message: str, meta: bool) -> None:
    if meta:
        arguments = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in arguments)
    with pytest.raises((ValueError, TypeError), match=message):
        ops.mlp(*arguments)


c = torch.randn(5, 3, 2)
BAD_RECURRENCE = [
    ((None, c[0], None, "identity", False, 1), "b must have shape"),
    ((c, c, None, "identity", False, 1), "A must be None"),
    ((c, c, None, "banded", False, 1), "blocks must be"),
    ((c[:4], c, None, "diagonal", False, 1), "A must have shape"),
    ((c, c, c, "diagonal", False, 1), "x0 must have shape"),
    ((c, c, None, "diagonal", False, 0), "segments"),
    ((c, c, None, "diagonal", False, 6), "segments"),
    ((c.double(), c, None, "diagonal", False, 1), "dtype"),
]


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize(("arguments", "message"), BAD_RECURRENCE)
def test_bad_recurrence(arguments: tuple[Any, ...], message: str, meta: bool) -> None:
    if meta:
        arguments = tuple(a.to("meta") if isinstance(a, Tensor) else a for a in arguments)
    with pytest.raises((ValueError, TypeError), match=message):
        ops.linear_recurrence(*arguments)


def test_bad_backward_arguments() -> None:
    rest = (W, b, "tanh", [])
    states = torch.randn(3, 2, 4)
    for device in ("cpu", "meta"):
        move = [t.to(device) for t in (z, states, W, b)]
        rest = (*move[2:], "tanh", [])
        for gz, gstates, kept, needs in (
            (move[0][:1], None, move[1], [True] * 3),
            (None, move[1][:2], move[1], [True] * 3),
            (move[0], None, move[1][:2], [True] * 3),
            (move[0], None, move[1], [True] * 2),
        ):
            with pytest.raises((ValueError, TypeError)):
                ops.mlp_backward(gz, gstates, move[0], kept, *rest, needs)
