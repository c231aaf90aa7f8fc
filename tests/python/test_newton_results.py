# SPDX-License-Identifier: Apache-2.0
"""What Newton over segments promises, that it is never wrong; and chains that fooled others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import (
    BLOCKS,
    CHAOTIC,
    MARGINAL,
    Chain,
    all_are,
    assert_close,
    gradients,
    scale_of,
    solve,
)
from torch import Tensor

import torch_deeppcr as dpcr

F32, F64 = torch.float32, torch.float64
CONVERGED, SEQUENTIAL, _ = dpcr.Status


# ---- what the result is -------------------------------------------------------------------------


@pytest.mark.parametrize("return_states", [False, True])
@pytest.mark.parametrize("memory", ["states", "recompute"])
@pytest.mark.parametrize("jacobian", ["dense", "diagonal", "identity", "zero"])
@pytest.mark.parametrize("kind", ["mlp", "residual", "denoise"])
def test_gradcheck(kind: str, jacobian: str, memory: str, return_states: bool) -> None:
    norm = "layer_norm" if kind == "residual" else None
    chain = Chain(kind, 7, 2, 3, hidden=2, activation="gelu", norm=norm)
    chain.solver = {"segments": 3, "jacobian": jacobian, "memory": memory}
    leaves = [t.clone().requires_grad_() for t in chain.present]

    def function(*tensors: Tensor) -> Any:
        return chain.run(*tensors, return_states=return_states)

    assert torch.autograd.gradcheck(function, leaves, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("jacobian", ["dense", "diagonal", "scalar", "identity", "zero"])
def test_unfinished_business_is_finished_by_walking(jacobian: str) -> None:
    """Bit-equal to one segment: chaotic chains, too few sweeps, in both dtypes."""
    for dtype in (F32, F64):
        for limit in (0, 1, 4, None):
            chain = CHAOTIC.to(dtype)
            z, states, info = solve(chain, segments=128, jacobian=jacobian, max_sweeps=limit)
            walk_z, walk_states = chain.run(return_states=True)
            assert all_are(info.status, SEQUENTIAL) and (info.sweeps == info.plan.max_sweeps).all()
            assert torch.equal(z, walk_z) and torch.equal(states, walk_states)


def test_gradients_finished_by_walking() -> None:
    """The adjoint too: without products of Jacobians and with one sweep, nothing has converged."""
    for chain in (MARGINAL, BLOCKS):
        walk = gradients(chain.run, chain.present)
        for jacobian in ("diagonal", "identity", "zero"):
            options = {"segments": 24, "jacobian": jacobian, "max_sweeps": 1}
            ours = gradients(lambda *t, c=chain, o=options: c.run(*t, **o), chain.present)
            assert torch.equal(ours[0], walk[0])
            assert_close(ours, walk)


def test_the_exact_prefix_grows_by_a_segment_a_sweep() -> None:
    """Whatever the products of Jacobians are, and however wrong the other segments still are."""
    walk = CHAOTIC.run(return_states=True)[1]
    for jacobian in ("dense", "diagonal", "scalar", "identity", "zero"):
        for sweeps in (1, 2, 5, 9):
            options = {"segments": 16, "jacobian": jacobian, "max_sweeps": sweeps}
            states = CHAOTIC.run(return_states=True, on_unconverged="ignore", **options)[1]
            assert torch.equal(states[: sweeps * 8], walk[: sweeps * 8])
            assert not torch.equal(states, walk)


def test_threads_do_not_change_bits() -> None:
    chain = Chain("residual", 64, 70, 8, norm="layer_norm", scale=0.1).to(F32)
    for jacobian in ("dense", "diagonal", "identity"):
        chain.solver = {"segments": 16, "jacobian": jacobian}
        one = [*solve(chain)[:2], *gradients(chain.run, chain.present)]
        try:
            torch.set_num_threads(2)
            two = [*solve(chain)[:2], *gradients(chain.run, chain.present)]
        finally:
            torch.set_num_threads(1)
        assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("sizes", [(0, 3, 4), (5, 0, 4), (5, 3, 0), (0, 0, 0), (1, 1, 1)])
@pytest.mark.parametrize("kind", ["mlp", "residual", "denoise"])
def test_empty_sizes(kind: str, sizes: tuple[int, int, int]) -> None:
    chain = Chain(kind, *sizes, hidden=2)
    for memory in ("states", "recompute"):
        for segments in (1, sizes[0] or 7):
            options = {"segments": segments, "memory": memory}
            z, states, info = solve(chain, **options)
            assert_close((z, states), chain.loop(return_states=True))
            assert info.sweeps.shape == sizes[1:2] and all_are(info.status, CONVERGED)
            if 0 in sizes:
                assert not info.sweeps.any() and not info.flops.any() and info.levels == 0
            ours = gradients(lambda *t, o=options: chain.run(*t, **o), chain.present)
            assert_close(ours, gradients(chain.loop, chain.present))


# ---- chains that fooled an earlier convergence test ---------------------------------------------


STRUCTURES = [
    {"jacobian": jacobian, "refresh": refresh, "memory": memory}
    for jacobian in ("dense", "diagonal", "identity", "zero")
    for refresh, memory in (("adaptive", "states"), ("always", "recompute"))
]
each_structure = pytest.mark.parametrize("options", STRUCTURES, ids=lambda o: "-".join(o.values()))


def assert_as_good_as_the_walk(chain: Chain, **options: Any) -> dpcr.ChainInfo:
    """Every state against float64, relative to itself."""
    z, states, info = solve(chain, **options)
    exact = chain.to(F64).loop(return_states=True)[1]
    walk = chain.run(return_states=True)[1]
    scale = exact.abs().amax(-1, keepdim=True)
    error = ((states.double() - exact) / scale).abs().nan_to_num(0.0)
    allowed = ((walk.double() - exact) / scale).abs().nan_to_num(0.0)
    normal = (scale > 1e4 * torch.finfo(chain.dtype).tiny).expand_as(error)
    loops = (allowed * normal).amax((0, 2), keepdim=True)
    tolerance = 10 * loops + 64 * torch.finfo(chain.dtype).eps
    assert (error <= tolerance)[normal].all(), float((error / tolerance)[normal].max())
    assert torch.equal(states.isfinite(), walk.isfinite())
    assert torch.equal(states[-1], z)
    return info


@each_structure
@pytest.mark.parametrize("segments", [7, 40, 120])
def test_shrinks_grows_and_shrinks_again(segments: int, options: dict[str, str]) -> None:
    """From the guess the growing part overflows, and the largest state hides all others."""
    chain = Chain("mlp", 120, 3, 4, activation="relu", bias=False).to(F32)
    weight = torch.eye(4).repeat(120, 1, 1) + 0.02 * torch.randn(120, 4, 4)
    weight[:40] *= 0.1
    weight[40:80] *= 12
    weight[80:] *= 0.2
    chain.tensors[0] = chain.tensors[0].abs() + 0.1
    chain.tensors[1] = weight
    assert_as_good_as_the_walk(chain, segments=segments, **options)


@each_structure
@pytest.mark.parametrize("segments", [13, 64])
def test_states_that_die_out(segments: int, options: dict[str, str]) -> None:
    """tanh without bias: the last states are 1e-30 and must be right relative to that."""
    chain = Chain("mlp", 1000, 2, 4, gain=1.05, bias=False).to(F32)
    assert 1e-32 < scale_of(chain.loop()) < 1e-28
    assert_as_good_as_the_walk(chain, segments=segments, **options)


@each_structure
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e38])
def test_bad_mates(bad: float, options: dict[str, str]) -> None:
    """NaN, infinity and overflow in one sample: that sample alone, with the walk's pattern."""
    for chain in (MARGINAL.to(F32), BLOCKS.to(F32)):
        clean = solve(chain, segments=20, **options)
        clean_gradient = gradients(
            lambda *t, c=chain: c.run(*t, segments=20, **options), chain.present
        )
        chain.tensors[0] = chain.tensors[0].clone()
        chain.tensors[0][1] = bad
        z, states, info = solve(chain, segments=20, **options)
        walk_z, walk_states = chain.run(return_states=True)
        for ours, walk in ((z, walk_z), (states, walk_states)):
            assert torch.equal(ours.isnan(), walk.isnan())
            assert torch.equal(ours.isinf(), walk.isinf())
        others = [0, 2]
        assert torch.equal(z[others], clean[0][others])
        assert torch.equal(states[:, others], clean[1][:, others])
        for ours, theirs in zip(info[:4], clean[2][:4], strict=True):
            assert torch.equal(ours[others], theirs[others])
        gradient = gradients(lambda *t, c=chain: c.run(*t, segments=20, **options), chain.present)[
            0
        ]
        walk_gradient = gradients(chain.run, chain.present)[0]
        assert torch.equal(gradient[others], clean_gradient[0][others])
        assert torch.equal(gradient.isfinite(), walk_gradient.isfinite())


@each_structure
@pytest.mark.parametrize("segments", [7, 60])
def test_gradients_of_30_orders_of_magnitude(segments: int, options: dict[str, str]) -> None:
    """Small gradients are right relative to themselves: Adam looks at them."""
    chain = Chain("mlp", 60, 2, 4, gain=0.3)
    exact = gradients(chain.loop, chain.present)
    assert scale_of(exact[2][-1]) / scale_of(exact[2][0]) > 1e20
    for dtype, tolerance in ((F64, 1e-12), (F32, 1e-3)):
        chain = chain.to(dtype)
        chain.solver = {"segments": segments, **options}
        ours = gradients(chain.run, chain.present)
        for gradient, true in zip(ours[1:], exact[1:], strict=True):
            rows, true_rows = gradient.flatten(1).double(), true.flatten(1)
            normal = true_rows.abs().amax(1) > 1e4 * torch.finfo(dtype).tiny
            error = (rows - true_rows).abs().amax(1) / true_rows.abs().amax(1)
            assert (error[normal] <= tolerance).all()
