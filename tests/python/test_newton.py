# SPDX-License-Identifier: Apache-2.0
"""Newton's method over segments: every option changes something, and the report is right."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from cases import (
    BLOCKS,
    EASY,
    MARGINAL,
    NORMED,
    Chain,
    Spy,
    all_are,
    assert_close,
    gradients,
    scale_of,
    solve,
)
from torch import Tensor

import torch_deeppcr as dpcr
from torch_deeppcr import _plan

F32, F64 = torch.float32, torch.float64
CONVERGED, SEQUENTIAL, UNCONVERGED = dpcr.Status


# ---- every option changes something -------------------------------------------------------------


@pytest.mark.parametrize("segments", [1, 2, 3, 7, 32, 95, 96])
def test_segments(segments: int) -> None:
    z, states, info = solve(EASY, segments=segments)
    assert_close((z, states), EASY.loop(return_states=True))
    assert all_are(info.status, CONVERGED)
    assert info.plan.segments == segments and f"segments={segments}" in info.why
    assert info.sweeps.shape == (3,) and info.sweeps.dtype == torch.int64
    assert (info.sweeps == 1).all() if segments == 1 else (info.sweeps > 1).all()


def test_levels_are_those_of_cyclic_reduction() -> None:
    for segments in (1, 2, 3, 4, 5, 8, 9, 64, 65, 96):
        info = solve(EASY, segments=segments, refresh="always")[2]
        assert info.levels == math.ceil(math.log2(segments))


def test_jacobian() -> None:
    sweeps = {}
    for jacobian in _plan.JACOBIANS:
        chain = BLOCKS if jacobian == "identity" else EASY
        z, _, info = solve(chain, segments=32, jacobian=jacobian)
        assert_close(z, chain.loop())
        assert all_are(info.status, CONVERGED) and info.plan.jacobian == jacobian
        assert bool((info.tangent_sweeps > 0).all()) == (jacobian in ("dense", "diagonal"))
        sweeps[jacobian] = int(info.sweeps.max())
    assert sweeps["dense"] < sweeps["zero"]
    assert solve(EASY, segments=32, jacobian="auto")[2].plan.jacobian == "dense"
    # Without products of Jacobians there is nothing to reduce.
    assert solve(EASY, segments=32, jacobian="zero")[2].levels == 0


def test_scalar_is_what_the_steps_multiply_their_input_by() -> None:
    for chain, other in ((BLOCKS, "identity"), (EASY, "zero")):
        scalar, same = (solve(chain, segments=32, jacobian=j) for j in ("scalar", other))
        assert torch.equal(scalar[2].sweeps, same[2].sweeps)
        assert_close(scalar[:2], same[:2])


def test_diagonal_is_newton_where_jacobians_are_nearly_diagonal() -> None:
    """One tangent a segment then does nearly what w of them do, and neither 1 nor 0 does."""
    length, width = 128, 16
    mixing = torch.randn(length, width, width, dtype=F64) / width**0.5
    weight = 0.9 * torch.eye(width, dtype=F64) + 0.02 * mixing
    x, bias = torch.randn(3, width, dtype=F64), 0.3 * torch.randn(length, width, dtype=F64)
    expected, sweeps, flops = dpcr.mlp_chain(x, weight, bias, activation="tanh"), {}, {}
    for jacobian in ("dense", "diagonal", "identity", "zero"):
        z, info = dpcr.mlp_chain(
            x, weight, bias, activation="tanh", segments=64, jacobian=jacobian, return_info=True
        )
        assert_close(z, expected)
        sweeps[jacobian], flops[jacobian] = int(info.sweeps.max()), float(info.flops.max())
    assert sweeps["diagonal"] < 2 * sweeps["dense"]
    assert 1.5 * sweeps["diagonal"] < min(sweeps["identity"], sweeps["zero"])
    assert 3 * flops["diagonal"] < flops["dense"]


@pytest.mark.parametrize("width", [_plan.WIDEST_DENSE, _plan.WIDEST_DENSE + 1])
@pytest.mark.parametrize("kind", ["mlp", "residual", "euler", "layers", "layers without skip"])
def test_jacobian_of_wide_chains(kind: str, width: int) -> None:
    """By kind and width; both passes then converge without a product of Jacobians."""
    name, *without = kind.split(maxsplit=1)
    norm = "layer_norm" if name in NORMED else None
    chain = Chain(name, 24, 2, width, norm=norm, scale=0.1, gain=0.7, skip=not without)
    z, info = chain.run(segments=6, return_info=True)
    wide = width > _plan.WIDEST_DENSE and name != "mlp" and not without
    assert info.plan.jacobian == ("identity" if wide else "dense")
    assert all_are(info.status, CONVERGED) and bool((info.tangent_sweeps > 0).all()) != wide
    assert_close(z, chain.loop())
    wanted = [t.clone().requires_grad_() for t in chain.present]
    with Spy() as spy:
        ours = torch.autograd.grad(chain.run(*wanted, segments=6).square().sum(), wanted)
    (arguments,) = spy.arguments(f"{chain.kind}_backward")
    report = getattr(torch.ops.deeppcr, f"{chain.kind}_backward")(*arguments)[-1]
    assert (report[2] == 0).all() and (report[1] == 0).all() == wide
    assert_close(ours, torch.autograd.grad(chain.loop(*wanted).square().sum(), wanted))


def test_refresh() -> None:
    always, adaptive = (solve(MARGINAL, segments=48, refresh=r)[2] for r in ("always", "adaptive"))
    # All but the last sweep, which confirms.
    assert torch.equal(always.tangent_sweeps, always.sweeps - 1)
    assert (adaptive.tangent_sweeps < always.tangent_sweeps).all()
    assert (adaptive.sweeps <= 2 * always.sweeps).all()


def test_rtol() -> None:
    exact = MARGINAL.loop()
    results = [solve(MARGINAL, segments=48, rtol=rtol) for rtol in (1e-2, 1e-6, None)]
    sweeps = [int(info.sweeps.sum()) for *_, info in results]
    assert sweeps[0] < sweeps[1] < sweeps[2]
    error = [scale_of(z - exact) for z, *_ in results]
    assert 1e-2 > error[0] > error[1] > error[2]
    for (*_, info), rtol in zip(results, (1e-2, 1e-6, 8 * torch.finfo(F64).eps), strict=True):
        assert info.plan.rtol == rtol
        assert (info.residual <= rtol).all() or rtol < 1e-6  # where it may have stopped at rounding
        assert (info.residual > 0).all() and (info.residual <= 4 * rtol).all()


def test_atol() -> None:
    """States that have shrunk below atol need not be right relatively."""
    chain = Chain("mlp", 96, 3, 4, gain=0.5, bias=False)
    fine, coarse = (solve(chain, segments=48, atol=atol)[2] for atol in (0.0, 1e-6))
    assert (coarse.sweeps < fine.sweeps).all() and coarse.plan.atol == 1e-6


def test_max_sweeps() -> None:
    for limit in (0, 1, 3):
        z, _, info = solve(MARGINAL, segments=48, max_sweeps=limit)
        assert torch.equal(z, MARGINAL.run())
        assert all_are(info.status, SEQUENTIAL) and (info.sweeps == limit).all()
        assert info.plan.max_sweeps == limit
    assert all_are(solve(MARGINAL, segments=48, max_sweeps=48)[2].status, CONVERGED)
    assert solve(MARGINAL, segments=48)[2].plan.max_sweeps == 40
    assert solve(MARGINAL, segments=5)[2].plan.max_sweeps == 5


def test_on_unconverged() -> None:
    options = {"segments": 48, "max_sweeps": 3}
    exact = MARGINAL.run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        z, _, info = solve(MARGINAL, **options, on_unconverged="sequential")
        assert torch.equal(z, exact) and all_are(info.status, SEQUENTIAL)
        z, _, info = solve(MARGINAL, **options, on_unconverged="ignore")
        assert not torch.equal(z, exact) and all_are(info.status, UNCONVERGED)
        for quiet in ("warn", "raise"):  # where all went well
            solve(MARGINAL, segments=48, on_unconverged=quiet)
    with pytest.warns(dpcr.ConvergenceWarning, match="3 of 3 samples did not converge in 3 sweeps"):
        z, _, info = solve(MARGINAL, **options, on_unconverged="warn")
    assert torch.equal(z, exact) and all_are(info.status, SEQUENTIAL)
    with pytest.raises(dpcr.ConvergenceError, match=r"forward pass, segments=48, jacobian='dense'"):
        solve(MARGINAL, **options, on_unconverged="raise")


def test_on_unconverged_in_backward() -> None:
    """A warm start can make forward easy; the way back has none.  A gradient is never left as it
    is: its errors would not show."""
    chain = Chain("mlp", 32, 3, 4, activation="identity", gain=1.0).require_grad()
    options = {"segments": 16, "jacobian": "zero", "max_sweeps": 5}
    states = chain.run(return_states=True)[1].detach()

    def run(policy: str) -> list[Tensor]:
        z = chain.run(warm_start=states, on_unconverged=policy, **options)
        return list(torch.autograd.grad(z.sum(), chain.present))

    expected = torch.autograd.grad(chain.run().sum(), chain.present)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for policy in ("sequential", "ignore"):
            assert_close(run(policy), list(expected))
    with pytest.warns(dpcr.ConvergenceWarning, match="backward pass"):
        assert_close(run("warn"), list(expected))
    with pytest.raises(dpcr.ConvergenceError, match="backward pass"):
        run("raise")


def saved_elements(chain: Chain, **options: Any) -> int:
    """What a forward pass saves for backward, besides its inputs."""
    chain.require_grad()
    inputs = {t.untyped_storage().data_ptr() for t in chain.present}
    sizes = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in inputs:
            sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        chain.run(**options)
    return sum(sizes)


@pytest.mark.parametrize("jacobian", _plan.JACOBIANS)
@pytest.mark.parametrize("segments", [1, 5, 12])
def test_memory(segments: int, jacobian: str) -> None:
    chain = Chain("residual", 37, 3, 4, hidden=5, scale=0.05)
    options = {"segments": segments, "jacobian": jacobian}
    state = 3 * 4
    assert saved_elements(chain, **options) == 37 * state
    kept = segments if segments > 1 else 7  # the root of L
    assert saved_elements(chain, **options, memory="recompute") == kept * state
    states, recomputed = (
        gradients(lambda *t, m=m: chain.run(*t, **options, memory=m), chain.present)
        for m in ("states", "recompute")
    )
    assert_close(recomputed, gradients(chain.loop, chain.present))
    assert_close(recomputed, states)
    with Spy() as spy:  # what the user sees is kept anyway
        chain.run(**options, memory="recompute", return_states=True)
    assert [arguments[-1] for _, arguments in spy.calls] == ["states"]


@pytest.mark.parametrize("outer", [(), (3,), (2, 3)])
def test_warm_start(outer: tuple[int, ...]) -> None:
    chain = Chain("mlp", 64, 1, 4, gain=1.1)
    near = [torch.randn(*outer, 4, dtype=F64), *chain.present[1:]]
    here = [near[0] + 1e-6, *near[1:]]
    options = {"segments": 32, "return_states": True, "return_info": True}
    cold_z, states, cold = chain.run(*here, **options)
    guess = chain.run(*near, **options)[1]
    assert guess.shape == (64, *outer, 4)
    warm_z, _, warm = chain.run(*here, **options, warm_start=guess)
    assert_close(warm_z, cold_z)
    assert int(warm.sweeps.sum()) < int(cold.sweeps.sum()) and warm.sweeps.shape == outer
    exact_z, _, exact = chain.run(*here, **options, warm_start=states)
    assert_close(exact_z, cold_z)
    assert (exact.sweeps < cold.sweeps).all()
    for bad in (torch.full_like(guess, 1e30), torch.full_like(guess, float("nan")), -guess):
        z = chain.run(*here, **options, warm_start=bad)[0]
        assert_close(z, cold_z)
    # Not read by the walk, and never differentiated.
    assert torch.equal(chain.run(*here, warm_start=bad), chain.run(*here))
    guess = guess.requires_grad_()
    assert not chain.run(*here, segments=4, warm_start=guess).requires_grad


def test_info_of_the_walk() -> None:
    for chain in (EASY, BLOCKS):
        z, info = chain.run(return_info=True)
        assert_close(z, chain.loop())
        assert (info.sweeps == 1).all() and (info.tangent_sweeps == 0).all()
        assert all_are(info.status, CONVERGED) and info.levels == 0
        assert (info.residual == 0).all() and info.plan.segments == 1
        products = 2 * 4 * 4 if chain is EASY else 2 * 2 * 4 * 5
        assert (info.flops == 96 * products).all()


@pytest.mark.parametrize("refresh", ["always", "adaptive"])
@pytest.mark.parametrize("segments", [6, 48, 96])
def test_flops(segments: int, refresh: str) -> None:
    """At most the full sweeps; at least those without the prefix that is exact already."""
    info = solve(MARGINAL, segments=segments, refresh=refresh)[2]
    L, w, S = 96, 4, segments
    step, product = 2 * w * w, 2 * w**3
    sweeps, tangents = info.sweeps.double(), info.tangent_sweeps.double()
    most = sweeps * (L * step + 3 * S * step) + tangents * product * (L - S + S * info.levels)
    rest = 1 - (sweeps - 1) / (
        2 * S
    )  # of the steps, on the mean, with one segment more exact a sweep
    least = sweeps * L * step * rest + tangents * product * (L - S) * rest / 2
    assert (info.flops <= most).all() and (info.flops >= least).all()
