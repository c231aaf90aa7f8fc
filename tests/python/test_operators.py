# SPDX-License-Identifier: Apache-2.0
"""The raw operators torch.ops.deeppcr.*: schemas, registrations, activations, direct calls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import ACTIVATIONS, RAW_CHAINS, Chain, assert_close, name_of
from torch import Tensor
from torch.library import opcheck

import torch_deeppcr as dpcr
from torch_deeppcr import _activations, reference

ops = torch.ops.deeppcr
F64 = torch.float64


def test_the_native_library_is_loaded() -> None:
    """Everything else in this folder would test PyTorch against itself."""
    assert dpcr.native_available()


SOLVER = (
    "SymInt segments, str? jacobian, str? refresh, float? rtol, float? atol, int? max_sweeps, "
    "bool? finish, bool[]? frozen, str keep"
)
ACTIVATION = "str activation, float[]? activation_parameters"
MLP = "Tensor weight, Tensor? bias"
RESIDUAL = (
    "Tensor weight1, Tensor? bias1, Tensor weight2, Tensor? bias2, Tensor? norm_weight, "
    "Tensor? norm_bias"
)
LAYERS = "Tensor weight, Tensor? bias, Tensor? norm_weight, Tensor? norm_bias"
DENOISE = (
    "Tensor weight_in, Tensor bias, Tensor? weight_hidden, Tensor weight_out, Tensor? bias_out, "
    "Tensor coefficients, Tensor? noise"
)
NORM = "str norm, float norm_eps, float scale"
LAYERS_NORM = "str norm, float norm_eps, bool skip, float scale"
CHAIN_OUTPUTS = "(Tensor z, Tensor states, Tensor info)"
INCOMING = "Tensor? gz, Tensor? gstates, Tensor z0, Tensor kept"
SCHEMAS = {
    "linear_recurrence": "Tensor? A, Tensor b, Tensor? x0, str blocks, bool reverse, "
    "SymInt segments) -> (Tensor x, Tensor info)",
    "linear_recurrence_backward": "Tensor gx, Tensor? A, Tensor? x0, Tensor x, str blocks, "
    "bool reverse, SymInt segments, bool need_A, bool need_x0) -> "
    "(Tensor gA, Tensor gb, Tensor gx0)",
    "newton_update": "Tensor states, Tensor ends, Tensor? jacobian, str structure, "
    "Tensor tolerance, float rtol, SymInt segments) -> "
    "(Tensor states, Tensor error, Tensor converged)",
    "mlp": f"Tensor z0, {MLP}, Tensor? guess, {ACTIVATION}, {SOLVER}) -> {CHAIN_OUTPUTS}",
    "mlp_backward": f"{INCOMING}, {MLP}, {ACTIVATION}, {SOLVER}, bool[] needs) -> "
    "(Tensor gz0, Tensor gweight, Tensor gbias, Tensor info)",
    "euler": f"Tensor z0, {MLP}, Tensor? guess, {ACTIVATION}, float scale, {SOLVER}) -> "
    f"{CHAIN_OUTPUTS}",
    "euler_backward": f"{INCOMING}, {MLP}, {ACTIVATION}, float scale, {SOLVER}, bool[] needs) -> "
    "(Tensor gz0, Tensor gweight, Tensor gbias, Tensor info)",
    "residual": f"Tensor z0, {RESIDUAL}, Tensor? guess, {ACTIVATION}, {NORM}, {SOLVER}) -> "
    f"{CHAIN_OUTPUTS}",
    "residual_backward": f"{INCOMING}, {RESIDUAL}, {ACTIVATION}, {NORM}, {SOLVER}, "
    "bool[] needs) -> (Tensor gz0, Tensor gweight1, Tensor gbias1, Tensor gweight2, Tensor gbias2, "
    "Tensor gnorm_weight, Tensor gnorm_bias, Tensor info)",
    "layers": f"Tensor z0, {LAYERS}, Tensor? guess, {ACTIVATION}, {LAYERS_NORM}, {SOLVER}) -> "
    f"{CHAIN_OUTPUTS}",
    "layers_backward": f"{INCOMING}, {LAYERS}, {ACTIVATION}, {LAYERS_NORM}, {SOLVER}, "
    "bool[] needs) -> (Tensor gz0, Tensor gweight, Tensor gbias, Tensor gnorm_weight, "
    "Tensor gnorm_bias, Tensor info)",
    "denoise": f"Tensor z0, {DENOISE}, Tensor? guess, {ACTIVATION}, {SOLVER}) -> {CHAIN_OUTPUTS}",
    "denoise_backward": f"{INCOMING}, {DENOISE}, {ACTIVATION}, {SOLVER}, bool[] needs) -> "
    "(Tensor gz0, Tensor gweight_in, Tensor gbias, Tensor gweight_hidden, Tensor gweight_out, "
    "Tensor gbias_out, Tensor gcoefficients, Tensor gnoise, Tensor info)",
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema(name: str) -> None:
    """Graphs that were exported earlier hold on to these."""
    assert str(getattr(ops, name).default._schema) == f"deeppcr::{name}({SCHEMAS[name]}"


# Solver options of the operators and frozen, without keep.
WALK = (1, "dense", "adaptive", 1e-6, 0.0, -1, True, [])
NEWTON = (2, "dense", "always", 1e-12, 0.0, 10, True, [])

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
    actual, *_ = ops.mlp(u, one, None, None, name, resolved.parameters, *WALK, "states")
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
        one = torch.ones(1, 1, 1)
        ours, *_ = ops.mlp(zero, one, None, None, name, parameters, *WALK, "states")
        loop = TORCH_FUNCTIONS[name](zero, *parameters)
        left, right = (torch.autograd.grad(y.sum(), zero)[0] for y in (ours, loop))
        torch.testing.assert_close(left, right, msg=name)


# ---- registrations ------------------------------------------------------------------------------


def chain_arguments(chain: Chain, solver: tuple[Any, ...] = WALK) -> tuple[Any, ...]:
    """Of the forward operator, without keep."""
    return (*chain.tensors, None, *chain.options, *solver)


def backward_arguments(
    chain: Chain, solver: tuple[Any, ...] = WALK, keep: str = "states"
) -> tuple[Any, ...]:
    arguments = chain_arguments(chain, solver)
    kept = getattr(ops, chain.kind)(*arguments, keep)[1]
    z0, *parameters = arguments[: len(chain.tensors)]
    options = arguments[len(chain.tensors) + 1 :]
    needs = [tensor is not None for tensor in chain.tensors]
    gstates = torch.randn(chain.length, *z0.shape, dtype=z0.dtype)
    return (torch.randn_like(z0), gstates, z0, kept, *parameters, *options, keep, needs)


def recording(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        a.detach().clone().requires_grad_() if isinstance(a, Tensor) else a for a in arguments
    )


@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("solver", [WALK, NEWTON], ids=["walk", "newton"])
@pytest.mark.parametrize("chain", RAW_CHAINS, ids=name_of)
def test_opcheck_chain(chain: Chain, solver: tuple[Any, ...], recorded: bool) -> None:
    mark = recording if recorded else tuple
    forward = getattr(ops, chain.kind).default
    for keep in ("nothing", "states", "checkpoints"):
        arguments = [*chain_arguments(chain, solver), keep]
        opcheck(forward, mark(arguments))
    arguments[len(chain.tensors)] = torch.randn(
        chain.length, *chain.present[0].shape, dtype=chain.dtype
    )
    opcheck(forward, tuple(arguments))
    backward = getattr(ops, f"{chain.kind}_backward").default
    for keep in ("states", "checkpoints"):
        opcheck(backward, mark(backward_arguments(chain, solver, keep)))
    arguments = backward_arguments(chain, solver)
    some = [False] * len(arguments[-1])
    opcheck(backward, (None, *arguments[1:-1], [True, *some[1:]]))
    opcheck(backward, (arguments[0], None, *arguments[2:-1], some))


@pytest.mark.parametrize("segments", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_none_is_the_librarys_default(dtype: torch.dtype, segments: int) -> None:
    z0, weight = torch.randn(3, 4, dtype=dtype), torch.randn(9, 4, 4, dtype=dtype)
    tensors = (z0, weight, None)
    default = ("dense", "adaptive", 8 * torch.finfo(dtype).eps, 0.0, -1, True, [])
    results = []
    for step, solver in ((("relu", []), default), (("relu", None), (None,) * len(default))):
        forward = ops.mlp(*tensors, None, *step, segments, *solver, "states")
        inputs = (z0, None, z0, forward[1], weight, None)
        backward = ops.mlp_backward(*inputs, *step, segments, *solver, "states", [True] * 3)
        results.append([*forward, *backward])
    for told, untold in zip(*results, strict=True):
        assert torch.equal(told, untold)
    opcheck(ops.mlp.default, (*tensors, None, *step, segments, *solver, "states"))
    opcheck(ops.mlp_backward.default, (*inputs, *step, segments, *solver, "states", [True] * 3))


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


@pytest.mark.parametrize("keep", ["nothing", "states", "checkpoints"])
@pytest.mark.parametrize("chain", RAW_CHAINS, ids=name_of)
def test_direct_calls_are_differentiable(chain: Chain, keep: str) -> None:
    """Twice, and without the states too: backward then recomputes them."""
    leaves = [t.clone().requires_grad_() for t in chain.present]
    copy = Chain(chain.kind, chain.length, chain.batch, chain.width, chain.hidden)
    copy.activation, copy.norm, copy.scale = chain.activation, chain.norm, chain.scale
    copy.layers, copy.skip, copy.noise = chain.layers, chain.skip, chain.noise
    given = iter(leaves)
    copy.tensors = [None if t is None else next(given) for t in chain.tensors]
    z, *_ = getattr(ops, chain.kind)(*chain_arguments(copy, NEWTON), keep)
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
    rest = chain_arguments(chain, NEWTON)[1:]
    many = torch.randn(5, 2, 4, dtype=F64)
    out, states, info = torch.vmap(lambda z: ops.mlp(z, *rest, "states"))(many)
    assert_close(out, torch.stack([chain.loop(z, *chain.present[1:]) for z in many]))
    assert states.shape == (5, 3, 2, 4) and info.shape == (5, 6, 2)
    guess = torch.randn(5, 3, 2, 4, dtype=F64)
    guessed = torch.vmap(lambda z, g: ops.mlp(z, *rest[:2], g, *rest[3:], "nothing")[0])
    assert_close(guessed(many, guess), out)
    arguments = backward_arguments(chain, NEWTON)
    gz = torch.randn(5, 2, 4, dtype=F64)
    for needs in ([True] * 3, [True, False, False]):
        call = (*arguments[2:-1], needs)
        mapped = torch.vmap(lambda g, a=call: ops.mlp_backward(g, None, *a))(gz)
        one = [ops.mlp_backward(g, None, *call) for g in gz]
        stacked = tuple(torch.stack(column) for column in zip(*one, strict=True))
        assert_close(mapped, stacked)
    b = torch.randn(5, 6, 2, 3, dtype=F64)
    x = torch.vmap(lambda b: ops.linear_recurrence(None, b, None, "identity", False, 1)[0])(b)
    assert_close(x, b.cumsum(1))


def test_direct_calls_do_not_drop_tangents() -> None:
    """Forward mode is for the functions; the operators refuse it rather than give zero."""
    z, *rest = chain_arguments(Chain("mlp", 3, 2, 4))
    with pytest.raises(NotImplementedError, match="forward-mode"):
        torch.func.jvp(lambda z: ops.mlp(z, *rest, "nothing")[0], (z,), (z,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(z, z)
        with pytest.raises(NotImplementedError, match="forward-mode"):
            ops.mlp(dual, *rest, "nothing")
        ops.mlp(z, *rest, "nothing")  # no tangent, nothing to drop


def test_direct_calls_under_autocast() -> None:
    chain = Chain("mlp", 3, 2, 4).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        z, states, info = ops.mlp(*chain_arguments(chain), "states")
        x, _ = ops.linear_recurrence(None, states, None, "identity", False, 1)
    assert z.dtype == states.dtype == x.dtype == torch.float32 and info.dtype == F64
    assert_close(z, chain.to(torch.float32).loop())


# ---- bad arguments, checked in the kernel and in the fake kernel --------------------------------

z, W, b = torch.randn(2, 4), torch.randn(3, 4, 4), torch.randn(3, 4)
GOOD_MLP = {
    **{"z0": z, "weight": W, "bias": b, "guess": None},
    **{"activation": "tanh", "activation_parameters": []},
    **{"segments": 2, "jacobian": "dense", "refresh": "adaptive", "rtol": 1e-6, "atol": 0.0},
    **{"max_sweeps": -1, "finish": True, "frozen": [], "keep": "nothing"},
}
NAN = float("nan")
BAD_MLP = [
    ({"z0": z[0]}, "z0 must have"),
    ({"weight": W[:, :3]}, "weight must have shape"),
    ({"bias": b[:2]}, "bias must have shape"),
    ({"weight": W.double()}, "dtype"),
    ({"z0": z.half(), "weight": W.half(), "bias": b.half()}, "float32 or float64"),
    ({"z0": z.int(), "weight": W.int(), "bias": b.int()}, "float32 or float64"),
    ({"activation": "swish"}, "activation"),
    ({"activation_parameters": [1.0]}, "activation_parameters must hold 0"),
    ({"activation": "softplus", "activation_parameters": [1.0]}, "must hold 2"),
    ({"guess": torch.randn(2, 2, 4)}, "guess must have shape"),
    ({"guess": torch.randn(3, 2, 4).double()}, "guess must have the dtype"),
    ({"segments": 0}, "segments"),
    ({"segments": 4}, "segments"),
    ({"jacobian": "full"}, "jacobian must be one of 'dense', 'diagonal', 'scalar', 'identity'"),
    ({"refresh": "never"}, "refresh must be one of 'adaptive', 'always'"),
    *(({"rtol": rtol}, "rtol") for rtol in (0.0, -1.0, NAN, float("inf"))),
    *(({"atol": atol}, "atol") for atol in (-1.0, NAN, float("inf"))),
    ({"frozen": [True]}, "frozen must be empty or hold 3 flags"),
    ({"keep": "everything"}, "keep must be one of 'nothing', 'states', 'checkpoints'"),
]


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize(("arguments", "message"), BAD_MLP)
def test_bad_arguments(arguments: dict[str, Any], message: str, meta: bool) -> None:
    given = {**GOOD_MLP, **arguments}
    if meta:
        given = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in given.items()}
    with pytest.raises((ValueError, TypeError), match=message):
        ops.mlp(*given.values())


def test_good_arguments() -> None:
    """What the bad ones are changes of."""
    assert ops.mlp(*GOOD_MLP.values())[0].shape == (2, 4)


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
    states = torch.randn(3, 2, 4)
    for device in ("cpu", "meta"):
        z0, kept, *rest = (t.to(device) for t in (z, states, W, b))
        rest += ["tanh", []]
        good = (z0, None, z0, kept, *rest, *NEWTON, "states", [True] * 3)
        ops.mlp_backward(*good)
        for index, bad, message in (
            (0, z0[:1], "gz must have shape"),
            (1, kept[:2], "gstates must have shape"),
            (3, kept[:2], "kept must have shape"),
            (-2, "checkpoints", "kept must have shape"),
            (-2, "nothing", "keep must be"),
            (-3, [True] * 4, "frozen must be empty or hold 3 flags"),
            (-1, [True] * 2, "needs must hold|shorter|longer|argument"),
        ):
            arguments = list(good)
            arguments[index] = bad
            with pytest.raises((ValueError, TypeError), match=message):
                ops.mlp_backward(*arguments)
