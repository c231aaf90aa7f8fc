# SPDX-License-Identifier: Apache-2.0
"""Values and gradients of the chains against the plain loop."""

from __future__ import annotations

import pytest
import torch
from cases import (
    ACTIVATIONS,
    KINDS,
    NORMED,
    NORMS,
    WIDE,
    Chain,
    assert_close,
    gradients,
    name_of,
    scale_of,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    sizes = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 15, 16, 17, 32, 33])
    kind = draw(st.sampled_from(KINDS))
    return Chain(
        kind,
        length=draw(st.sampled_from([0, 1, 2, 3, 8, 31])),
        batch=draw(sizes),
        width=draw(sizes),
        hidden=draw(st.sampled_from([1, 3, 8, 20])) if kind in WIDE else 0,
        activation=draw(st.sampled_from(sorted(ACTIVATIONS))),
        norm=draw(st.sampled_from(NORMS)) if kind in NORMED else None,
        bias=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 0.25, -0.5])),
        gain=draw(st.sampled_from([0.5, 1.0])),
        seed=draw(st.integers(0, 2**16)),
        layers=draw(st.integers(0 if kind == "denoise" else 1, 3)),
        skip=draw(st.booleans()),
        noise=draw(st.booleans()),
    )


def steepest(chain: Chain) -> float:
    """How much a chain may enlarge roundings: its gradient, and 1 / sqrt(eps) of a norm, by which
    PyTorch's loop multiplies the rounding of a state without variance (width 1)."""
    norm = chain.eps**-0.5 if chain.norm and chain.width == 1 else 1.0
    return norm * max(1.0, scale_of(gradients(chain.loop, chain.present)[0]))


@SETTINGS
@given(chains())
def test_float64_agrees_with_the_loop(chain: Chain) -> None:
    factor = 1e4 * steepest(chain)
    assert_close(chain.run(return_states=True), chain.loop(return_states=True), factor=factor)

    def both(function):
        return lambda *tensors: function(*tensors, return_states=True)

    actual = gradients(both(chain.run), chain.present)
    expected = gradients(both(chain.loop), chain.present)
    assert_close(actual, expected, factor=factor)


def errors(chain: Chain) -> tuple[float, float]:
    """Largest error of our float32 result and of the float32 loop, against float64."""
    exact = chain.loop()
    single = chain.to(torch.float32)
    scale = max(scale_of(exact), 1e-30)
    return tuple(
        scale_of(result.double() - exact) / scale for result in (single.run(), single.loop())
    )


@SETTINGS
@given(chains())
def test_float32_is_as_accurate_as_the_loop(chain: Chain) -> None:
    ours, loops = errors(chain.to(torch.float32).to(torch.float64))
    assert ours <= 8 * loops + 64 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("width", [16, 64, 100])
@pytest.mark.parametrize("batch", [1, 33])
@pytest.mark.parametrize("kind", KINDS)
def test_long_chains(kind: str, batch: int, width: int) -> None:
    norm = "layer_norm" if kind in NORMED else None
    chain = Chain(kind, 257, batch, width, norm=norm, scale=0.05, gain=0.9).to(torch.float32)
    exact = chain.to(torch.float64)
    for ours, loop, true in zip(
        gradients(chain.run, chain.present),
        gradients(chain.loop, chain.present),
        gradients(exact.loop, exact.present),
        strict=True,
    ):
        scale = scale_of(true)
        error, allowed = scale_of(ours.double() - true), scale_of(loop.double() - true)
        assert error <= 8 * allowed + 1e-5 * scale


@pytest.mark.parametrize("outer", [(), (0,), (2,), (2, 3), (2, 0, 3), (1, 1, 1)])
@pytest.mark.parametrize("kind", KINDS)
def test_input_of_any_rank(kind: str, outer: tuple[int, ...]) -> None:
    chain = Chain(kind, 3, 1, 4, hidden=5)
    z = torch.randn(*outer, 4, dtype=torch.float64)
    inputs = [z, *chain.present[1:]]
    if kind == "denoise":  # every sample has its own noise
        inputs[-1] = torch.randn(3, *outer, 4, dtype=torch.float64)
    actual, states = chain.run(*inputs, return_states=True)
    assert actual.shape == (*outer, 4) and states.shape == (3, *outer, 4)
    assert_close((actual, states), chain.loop(*inputs, return_states=True))
    assert_close(gradients(chain.run, inputs), gradients(chain.loop, inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_strided_inputs_and_gradients(kind: str) -> None:
    """Transposed, expanded and sliced tensors mean their values, whatever their layout."""
    chain = Chain(kind, 3, 4, 4)
    z, *parameters = chain.present
    layouts = [
        z.t().contiguous().t(),
        *(torch.stack([p, p], dim=-1).select(-1, 1) for p in parameters),
    ]
    assert_close(chain.run(*layouts), chain.loop(*layouts))
    assert_close(gradients(chain.run, layouts), gradients(chain.loop, layouts))
    row = z[:1].expand(4, 4).requires_grad_()
    chain.run(row, *parameters).sum().backward()  # an expanded gradient comes in


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_aliased(kind: str) -> None:
    for length in (0, 1, 3):
        chain = Chain(kind, length, 2, 4)
        z, states = chain.run(return_states=True)
        memory = {z.untyped_storage().data_ptr(), chain.present[0].untyped_storage().data_ptr()}
        assert len(memory) == 2
        if length:
            before = states.clone()
            z.zero_()
            assert torch.equal(states, before)


@pytest.mark.parametrize("chain", [Chain(kind, 0, 3, 4) for kind in KINDS], ids=name_of)
def test_no_steps(chain: Chain) -> None:
    """L = 0 is the identity."""
    chain.require_grad()
    z, states = chain.run(return_states=True)
    assert torch.equal(z, chain.present[0]) and states.shape == (0, 3, 4)
    grads = torch.autograd.grad(z.sum(), chain.present)
    assert torch.equal(grads[0], torch.ones(3, 4, dtype=torch.float64))
    assert all(g.shape == p.shape for g, p in zip(grads, chain.present, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batch_has_zero_parameter_gradients(kind: str) -> None:
    norm = "layer_norm" if kind in NORMED else None
    chain = Chain(kind, 3, 0, 4, norm=norm).require_grad()
    z = chain.run()
    assert z.shape == (0, 4)
    for gradient in torch.autograd.grad(z.sum(), chain.present):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("norm", NORMS)
def test_hidden_width_zero(norm: str | None) -> None:
    """Without hidden units a block is z + scale * b2."""
    chain = Chain("residual", 3, 2, 4, hidden=1, norm=norm)
    z, _, _, _, bias2, *rest = chain.tensors
    empty = [z.new_zeros(3, 0, 4), z.new_zeros(3, 0), z.new_zeros(3, 4, 0), bias2]
    chain.tensors = [z, *empty, *rest]
    assert_close(chain.run(), z + 0.5 * bias2.sum(0))
    assert_close(gradients(chain.run, chain.present), gradients(chain.loop, chain.present))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("kind", KINDS)
def test_non_finite_samples_stay_alone(kind: str, activation: str, bad: float) -> None:
    norm = "layer_norm" if kind in NORMED else None
    chain = Chain(kind, 5, 6, 4, activation=activation, norm=norm)
    clean, clean_states = chain.run(return_states=True)
    chain.tensors[0] = chain.tensors[0].clone()
    chain.tensors[0][2, 1] = bad
    z, states = chain.run(return_states=True)
    loop_z, loop_states = chain.loop(return_states=True)
    for ours, loop in ((z, loop_z), (states, loop_states)):
        assert torch.equal(ours.isnan(), loop.isnan())
        assert torch.equal(ours.isinf(), loop.isinf())
    others = [0, 1, 3, 4, 5]
    assert torch.equal(z[others], clean[others])
    assert torch.equal(states[:, others], clean_states[:, others])
    ours, loop = (gradients(f, chain.present)[0] for f in (chain.run, chain.loop))
    assert torch.equal(ours.isfinite(), loop.isfinite())
    assert_close(ours[others], loop[others])


def test_causality() -> None:
    """A change at step l leaves the earlier states bit-equal."""
    chain = Chain("mlp", 9, 3, 5)
    states = chain.run(return_states=True)[1]
    chain.tensors[1][4] += 1.0
    changed = chain.run(return_states=True)[1]
    assert torch.equal(states[:4], changed[:4]) and not torch.equal(states[4], changed[4])


def test_threads_do_not_change_bits() -> None:
    chain = Chain("residual", 64, 300, 16, norm="layer_norm", scale=0.1).to(torch.float32)
    one = [chain.run(), *gradients(chain.run, chain.present)]
    try:
        torch.set_num_threads(2)
        two = [chain.run(), *gradients(chain.run, chain.present)]
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_gradients_of_30_orders_of_magnitude() -> None:
    """Small gradients are right relative to themselves, not to the largest of the chain."""
    chain = Chain("mlp", 60, 2, 4, gain=0.3)
    ours, loop = (gradients(f, chain.present)[2].abs().amax(1) for f in (chain.run, chain.loop))
    assert loop.max() / loop.min() > 1e30
    torch.testing.assert_close(ours, loop, rtol=1e-9, atol=0.0)
