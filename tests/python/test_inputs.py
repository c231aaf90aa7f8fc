# SPDX-License-Identifier: Apache-2.0
"""What the functions accept and refuse: dtypes, devices, autocast, bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import SMALL_CHAINS, Chain, Spy, assert_close, gradients, name_of
from torch import Tensor, nn

import torch_deeppcr as dpcr
from torch_deeppcr import reference

# ---- dtypes and devices -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chain", SMALL_CHAINS, ids=name_of)
def test_half_precision_runs_the_loop(chain: Chain, dtype: torch.dtype) -> None:
    half = chain.to(dtype)
    with Spy() as spy:
        z, states = half.run(return_states=True)
    assert not spy.calls
    assert z.dtype == states.dtype == dtype
    loop_z, loop_states = half.loop(return_states=True)
    assert torch.equal(z, loop_z) and torch.equal(states, loop_states)
    for ours, loop in zip(
        gradients(half.run, half.present), gradients(half.loop, half.present), strict=True
    ):
        assert torch.equal(ours, loop)


def test_half_precision_recurrence() -> None:
    A, b = torch.randn(5, 3, 2, 2).bfloat16(), torch.randn(5, 3, 2).bfloat16()
    x, info = dpcr.linear_recurrence(A, b, segments=5, return_info=True)
    assert x.dtype == torch.bfloat16 and info.levels == 0 and not info.recomputed.any()
    assert torch.equal(x, reference.linear_recurrence(A, b, None, "dense", False))


@pytest.mark.parametrize("inner", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chain", SMALL_CHAINS, ids=name_of)
def test_autocast_computes_and_returns_float32(chain: Chain, inner: torch.dtype) -> None:
    """Whatever mixture of half and single precision comes in, as under autocast it does."""
    single = chain.to(torch.float32)
    mixed = [single.present[0].to(inner), *single.present[1:]]
    for tensors in (single.present, mixed, [t.to(inner) for t in single.present]):
        leaves = [t.clone().requires_grad_() for t in tensors]
        with torch.autocast("cpu", inner), Spy() as spy:
            z = single.run(*leaves)
        assert z.dtype == torch.float32 and len(spy.calls) == 1
        exact = [t.detach().float().requires_grad_() for t in leaves]
        assert_close(z, single.loop(*exact))
        z.square().sum().backward()
        expected = torch.autograd.grad(single.loop(*exact).square().sum(), exact)
        for leaf, gradient in zip(leaves, expected, strict=True):
            assert leaf.grad.dtype == leaf.dtype
            assert_close(leaf.grad, gradient.to(leaf.dtype))


def test_autocast_and_derivatives_inside_it() -> None:
    """Backward, twice, with autocast still on: no half precision sneaks into the loop."""
    chain = Chain("mlp", 3, 2, 4).to(torch.float32)
    leaves = [t.clone().requires_grad_() for t in chain.present]

    def second(function: Any) -> list[Tensor]:
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in first), leaves))

    expected = second(chain.loop)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(second(chain.run), expected, factor=1e4)
        direction = torch.ones_like(leaves[0])
        rest = [t.detach() for t in leaves[1:]]
        _, tangent = torch.func.jvp(
            lambda z: chain.run(z, *rest), (leaves[0].detach(),), (direction,)
        )
    _, expected = torch.func.jvp(
        lambda z: chain.loop(z, *rest), (leaves[0].detach(),), (direction,)
    )
    assert_close(tangent, expected)


def test_autocast_and_derivatives_of_the_recurrence() -> None:
    tensors = torch.randn(6, 2, 3, 3), torch.randn(6, 2, 3), torch.randn(2, 3)
    directions = tuple(torch.randn_like(t) for t in tensors)

    def derivatives() -> Any:
        leaves = [t.clone().requires_grad_() for t in tensors]
        x = dpcr.linear_recurrence(*leaves)
        first = torch.autograd.grad(x.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        return second, torch.func.jvp(dpcr.linear_recurrence, tensors, directions)[1]

    expected = derivatives()
    with torch.autocast("cpu", torch.bfloat16):
        for ours, value in zip(derivatives(), expected, strict=True):
            assert_close(ours, value)


def test_autocast_leaves_float64_alone() -> None:
    chain = Chain("mlp", 3, 2, 4)
    with torch.autocast("cpu", torch.bfloat16):
        z = chain.run()
        x = dpcr.linear_recurrence(None, chain.present[2][:, None])
        y = dpcr.linear_recurrence(None, torch.ones(3, 1, 1, dtype=torch.bfloat16))
    assert z.dtype == x.dtype == torch.float64 and torch.equal(z, chain.run())
    assert y.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_meta_tensors(dtype: torch.dtype) -> None:
    """Shapes alone, with gradients, through the fake kernels or the loop."""
    with torch.device("meta"):
        net = dpcr.nn.ResidualChain(4, 3, norm="layer_norm", dtype=dtype)
        x = torch.empty(2, 5, 4, dtype=dtype, requires_grad=True)
        z, states = net(x, return_states=True)
        assert z.shape == (2, 5, 4) and states.shape == (3, 2, 5, 4) and z.is_meta
        z.sum().backward()
        assert x.grad.is_meta and net.weight1.grad.shape == (3, 4, 4)
        b = torch.empty(5, 3, 2, dtype=dtype)
        y, info = dpcr.linear_recurrence(None, b, return_info=True)
        assert y.shape == b.shape and info.recomputed.shape == (3,)


def test_unusual_tensors() -> None:
    chain = Chain("mlp", 3, 2, 4)
    z, weight, bias = chain.present
    negative = torch.view_as_complex(torch.stack([z, -z], -1)).conj().imag  # z by a negation bit
    assert negative.is_neg()
    assert_close(chain.run(negative, weight, bias), chain.run())
    parameter = nn.Parameter(weight)
    assert_close(chain.run(z, parameter, bias), chain.run())
    with torch.inference_mode():
        inference = z.clone()
    assert_close(chain.run(inference, weight, bias), chain.run())


# ---- bad arguments ------------------------------------------------------------------------------

Z, W, B = torch.randn(2, 4), torch.randn(3, 4, 4), torch.randn(3, 4)
W1, B1, W2 = torch.randn(3, 5, 4), torch.randn(3, 5), torch.randn(3, 4, 5)
META = torch.empty(3, 4, 4, device="meta")


def mlp(*tensors: Any, **options: Any) -> Any:
    return lambda: dpcr.mlp_chain(*tensors, **options)


def residual(*tensors: Any, **options: Any) -> Any:
    return lambda: dpcr.residual_chain(*tensors, **options)


def recurrence(*tensors: Any, **options: Any) -> Any:
    return lambda: dpcr.linear_recurrence(*tensors, **options)


def block(*values: Any, **options: Any) -> Any:
    return residual(Z, W1, B1, W2, B, *values, **options)


R = torch.randn(5, 3, 2)  # (L,B,w)
S = torch.randn(3, 2, 4)
BAD = [
    # tensors
    (mlp(None, W), TypeError, "input must be a tensor, got NoneType"),
    (mlp([1.0], W), TypeError, "input must be a tensor, got list"),
    (mlp(Z, None), TypeError, "weight must be a tensor, got NoneType"),
    (mlp(Z, W.numpy()), TypeError, "weight must be a tensor, got ndarray"),
    (mlp(Z, W, 0.0), TypeError, "bias must be a tensor, got float"),
    (residual(Z, W1, None, None, None), TypeError, "weight2 must be a tensor"),
    (recurrence(R, None), TypeError, "b must be a tensor, got NoneType"),
    (recurrence(1.0, R), TypeError, "A must be a tensor, got float"),
    (recurrence(R, R, 1.0), TypeError, "x0 must be a tensor, got float"),
    # dtypes
    (mlp(Z.int(), W), TypeError, "input must be float32, .* got int32"),
    (mlp(Z.to(torch.cfloat), W), TypeError, "input must be float32, .* got complex64"),
    (mlp(Z.bool(), W), TypeError, "input must be float32, .* got bool"),
    (mlp(Z.to(torch.float8_e4m3fn), W), TypeError, "input must be .* got float8_e4m3fn"),
    (mlp(Z, W.double()), TypeError, "weight must have the dtype of input, float32, got float64"),
    (mlp(Z, W, B.half()), TypeError, "bias must have the dtype of input, float32, got float16"),
    (block(B.double(), norm="rms_norm"), TypeError, "norm_weight must have the dtype of input"),
    (recurrence(R.int(), R.int()), TypeError, "b must be float32, .* got int32"),
    (recurrence(R.double(), R), TypeError, "A must have the dtype of b, float32, got float64"),
    (recurrence(R, R, R[0].half()), TypeError, "x0 must have the dtype of b"),
    # devices
    (mlp(Z, META), ValueError, "weight must be on the device of input, cpu, got meta"),
    (mlp(Z, W, META[:, 0]), ValueError, "bias must be on the device of input, cpu, got meta"),
    (recurrence(R, R.to("meta")), ValueError, "A must be on the device of b, meta, got cpu"),
    # shapes
    (mlp(Z[0, 0], W), ValueError, r"input must have shape \(\.\.\., w\)"),
    (mlp(Z[:, :3], W), ValueError, r"weight .* \(L, w, w\) = \(3, 3, 3\), got \(3, 4, 4\)"),
    (mlp(Z, W[0]), ValueError, r"weight .* \(L, w, w\) = \(L, 4, 4\), got \(4, 4\)"),
    (mlp(Z, W[:, :2]), ValueError, r"weight must have shape .* got \(3, 2, 4\)"),
    (mlp(Z, W, B[:2]), ValueError, r"bias .* \(L, w\) = \(3, 4\), got \(2, 4\)"),
    (mlp(Z, W, B[0]), ValueError, r"bias must have shape .* got \(4,\)"),
    (residual(Z, W1, B, W2, B), ValueError, r"bias1 .* \(L, h\) = \(3, 5\), got \(3, 4\)"),
    (residual(Z, W1, B1, W1, B), ValueError, r"weight2 .* \(L, w, h\) = \(3, 4, 5\), got"),
    (residual(Z, W1, B1, W2[:2], B), ValueError, "weight2 must have shape"),
    (residual(Z, W1, B1, W2, B1), ValueError, r"bias2 .* \(L, w\) = \(3, 4\), got \(3, 5\)"),
    (block(B1, norm="rms_norm"), ValueError, "norm_weight must have shape"),
    (block(B, B1, norm="layer_norm"), ValueError, "norm_bias must have shape"),
    (recurrence(1.0, R, blocks="dense"), TypeError, "A must be a tensor, got float"),
    (recurrence(R, R, blocks=["dense"]), ValueError, "blocks must be one of"),
    (recurrence(R, R, R[0, 0]), ValueError, r"x0 .* \(B, w\) = \(3, 2\), got \(2,\)"),
    (recurrence(R, R, R[0, :2]), ValueError, r"x0 must have shape .* got \(2, 2\)"),
    # activations
    (mlp(Z, W, activation="swish"), ValueError, "activation must be one of identity, .*'swish'"),
    (mlp(Z, W, activation=None), TypeError, "activation must be a name"),
    (mlp(Z, W, activation=torch.tanh), TypeError, "activation must be a name"),
    (mlp(Z, W, activation=nn.Tanh), TypeError, "activation must be a name"),
    (mlp(Z, W, activation=()), TypeError, "activation must be a name"),
    (mlp(Z, W, activation=("tanh", 1.0)), ValueError, "takes 0 parameters .*none.*, got 1"),
    (mlp(Z, W, activation=("softplus", 1.0)), ValueError, "takes 2 .*beta, threshold.*, got 1"),
    (mlp(Z, W, activation=("elu", "1")), TypeError, "alpha must be a number, got '1'"),
    (mlp(Z, W, activation=("elu", True)), TypeError, "alpha must be a number, got True"),
    (mlp(Z, W, activation=("elu", float("nan"))), ValueError, "alpha must not be NaN"),
    (mlp(Z, W, activation=nn.Hardtanh()), ValueError, "got Hardtanh"),
    (mlp(Z, W, activation=type("Mine", (nn.Tanh,), {})()), ValueError, "got Mine"),
    # options
    (mlp(Z, W, return_states=1), TypeError, "return_states must be True or False, got 1"),
    (block(norm="batch_norm"), ValueError, "norm must be one of None, 'layer_norm', 'rms_norm'"),
    (block(norm=["layer_norm"]), ValueError, "norm must be one of"),
    (block(norm="none"), ValueError, "norm must be one of"),
    (block(B), ValueError, "norm_weight must be None"),
    (block(B, B, norm="rms_norm"), ValueError, "norm_bias must be None"),
    (block(norm="layer_norm", norm_eps=-1.0), ValueError, "norm_eps must be at least 0"),
    (block(norm="layer_norm", norm_eps="1"), TypeError, "norm_eps must be a number"),
    (block(scale=float("nan")), ValueError, "scale must be finite, got nan"),
    (block(scale=float("inf")), ValueError, "scale must be finite"),
    (block(scale=None), TypeError, "scale must be a number, got None"),
    (block(scale=torch.ones(())), TypeError, "scale must be a number"),
    (recurrence(R, R, reverse="yes"), TypeError, "reverse must be True or False"),
    (recurrence(R, R, return_info=1), TypeError, "return_info must be True or False"),
    (recurrence(R, R, segments=0), ValueError, r"segments must be in 1\.\.L = 1\.\.5, got 0"),
    (recurrence(R, R, segments=6), ValueError, r"segments must be in 1\.\.L = 1\.\.5, got 6"),
    (recurrence(R, R, segments=-1), ValueError, "segments must be in"),
    (recurrence(R, R, segments=2.0), TypeError, 'segments must be "auto" or an int, got 2.0'),
    (recurrence(R, R, segments=True), TypeError, "segments must be"),
    (recurrence(R, R, segments="many"), ValueError, 'segments must be "auto" or an int'),
    (recurrence(R[:0], R[:0], segments=0), ValueError, "segments must be in"),
    # warm_start, of states (3, 2, 4)
    (mlp(Z, W, warm_start=0.0), TypeError, "warm_start must be a tensor, got float"),
    (mlp(Z, W, warm_start=S.double()), TypeError, "warm_start must have the dtype of input"),
    (mlp(Z, W, warm_start=S.to("meta")), ValueError, "warm_start must be on the device of input"),
    (mlp(Z, W, warm_start=S[:2]), ValueError, r"warm_start .* \(3, 2, 4\), got \(2, 2, 4\)"),
    (mlp(Z, W, warm_start=S[:, 0]), ValueError, r"warm_start .* \(3, 2, 4\), got \(3, 4\)"),
    (mlp(Z[0], W, warm_start=S), ValueError, r"warm_start .* \(3, 4\), got \(3, 2, 4\)"),
    # modules
    (lambda: dpcr.nn.MLPChain(-1, 2), ValueError, "width must be at least 0, got -1"),
    (lambda: dpcr.nn.MLPChain(2, -1), ValueError, "depth must be at least 0, got -1"),
    (lambda: dpcr.nn.MLPChain(2.0, 1), TypeError, "width must be an int, got 2.0"),
    (lambda: dpcr.nn.MLPChain(2, True), TypeError, "depth must be an int, got True"),
    (lambda: dpcr.nn.MLPChain(2, 2, bias=None), TypeError, "bias must be True or False"),
    (lambda: dpcr.nn.MLPChain(2, 2, "nope"), ValueError, "activation must be one of"),
    (lambda: dpcr.nn.ResidualChain(2, 2, hidden=-3), ValueError, "hidden must be at least 0"),
    (lambda: dpcr.nn.ResidualChain(2, 2, norm="x"), ValueError, "norm must be one of"),
    (lambda: dpcr.nn.ResidualChain(2, 2, scale="1"), TypeError, "scale must be a number"),
    (lambda: dpcr.nn.ResidualChain(2, 2, norm_eps=-1), ValueError, "norm_eps must be at least 0"),
    (lambda: dpcr.nn.ResidualBlock(-2), ValueError, "width must be at least 0"),
    (lambda: dpcr.nn.ResidualBlock(2, norm=1), ValueError, "norm must be one of"),
]


@pytest.mark.parametrize(("call", "error", "message"), BAD)
def test_bad_arguments(call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_segments_of_nothing() -> None:
    empty = torch.zeros(0, 3, 2)
    assert dpcr.linear_recurrence(None, empty, segments=7).shape == (0, 3, 2)


def test_out_of_memory_is_pytorchs_error() -> None:
    """No crash: PyTorch's allocator refuses, its message comes through."""
    z = torch.zeros(1 << 24, 1).expand(1 << 24, 1)
    weight = torch.zeros(1, 1, 1).expand(1 << 22, 1, 1)
    with pytest.raises(RuntimeError, match="alloc"):
        dpcr.mlp_chain(z, weight, return_states=True)


def test_sparse_tensors_are_refused() -> None:
    with pytest.raises((NotImplementedError, RuntimeError, TypeError)):
        dpcr.mlp_chain(Z, W.to_sparse())
