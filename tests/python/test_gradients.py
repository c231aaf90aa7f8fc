# SPDX-License-Identifier: Apache-2.0
"""Derivatives of the chains: first, second and third, reverse and forward, and what they cost."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from cases import (
    ACTIVATIONS,
    NORMED,
    NORMS,
    SMALL_CHAINS,
    Chain,
    Spy,
    assert_close,
    gradients,
    name_of,
)
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

import torch_deeppcr as dpcr
from torch_deeppcr import _kinds


@pytest.mark.parametrize("chain", SMALL_CHAINS, ids=name_of)
def test_oracles_agree(chain: Chain) -> None:
    assert_close(chain.loop(), chain.elementary())
    assert_close(gradients(chain.loop, chain.present), gradients(chain.elementary, chain.present))


@pytest.mark.parametrize("chain", SMALL_CHAINS, ids=name_of)
def test_gradcheck(chain: Chain) -> None:
    leaves = [t.clone().requires_grad_() for t in chain.present]

    def function(*tensors: torch.Tensor) -> Any:
        return chain.run(*tensors, return_states=True)

    assert torch.autograd.gradcheck(
        function,
        leaves,
        check_forward_ad=True,
        check_batched_grad=True,
        check_batched_forward_grad=True,
    )


@pytest.mark.parametrize("chain", SMALL_CHAINS, ids=name_of)
def test_gradgradcheck(chain: Chain) -> None:
    leaves = [t.clone().requires_grad_() for t in chain.present]

    def function(*tensors: torch.Tensor) -> Any:
        return chain.run(*tensors, return_states=chain.activation == "tanh")

    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("kind", ["mlp", "residual", "layers", "denoise"])
def test_every_activation(kind: str, activation: str) -> None:
    chain = Chain(kind, 2, 3, 3, activation=activation, seed=1)
    leaves = [t.clone().requires_grad_() for t in chain.present]
    assert torch.autograd.gradcheck(chain.run, leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(chain.run, leaves, fast_mode=True)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", NORMED)
def test_every_norm(kind: str, norm: str | None) -> None:
    chain = Chain(kind, 2, 3, 3, activation="gelu", norm=norm)
    leaves = [t.clone().requires_grad_() for t in chain.present]
    assert torch.autograd.gradcheck(chain.run, leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(chain.run, leaves, fast_mode=True)


@pytest.mark.parametrize("chain", SMALL_CHAINS, ids=name_of)
def test_third_derivative(chain: Chain) -> None:
    def third(function: Any) -> list[torch.Tensor]:
        leaves = [t.clone().requires_grad_() for t in chain.present]
        value = function(*leaves).square().sum()
        for _ in range(2):
            grads = torch.autograd.grad(value, leaves, create_graph=True)
            value = sum(g.square().sum() for g in grads)
        return list(torch.autograd.grad(value, leaves))

    assert_close(third(chain.run), third(chain.elementary), factor=1e5)


def test_plain_forward_mode() -> None:
    """Dual tensors keep their tangents, with and without gradients recorded."""
    for chain in SMALL_CHAINS:
        directions = [torch.randn_like(t) for t in chain.present]
        _, expected = torch.func.jvp(chain.loop, tuple(chain.present), tuple(directions))
        for mode in (torch.enable_grad(), torch.no_grad()):
            with mode, forward_ad.dual_level():
                duals = [
                    forward_ad.make_dual(t, d)
                    for t, d in zip(chain.present, directions, strict=True)
                ]
                assert_close(forward_ad.unpack_dual(chain.run(*duals)).tangent, expected)
                one = [duals[0], *chain.present[1:]]  # the others are constants
                assert forward_ad.unpack_dual(chain.run(*one)).tangent.abs().sum() > 0


# ---- what is computed, and what is not ----------------------------------------------------------


@pytest.mark.parametrize("chain", SMALL_CHAINS, ids=name_of)
def test_frozen_tensors_cost_nothing(chain: Chain) -> None:
    """The backward operator is told which gradients are wanted, and gives no others."""
    slots = [i for i, tensor in enumerate(chain.tensors) if tensor is not None]
    for needed, slot in enumerate(slots):
        leaves = [t.clone() for t in chain.present]
        leaves[needed].requires_grad_()
        with Spy() as spy:
            chain.run(*leaves).sum().backward()
        (arguments,) = spy.arguments(f"{chain.kind}_backward")
        assert [i for i, need in enumerate(arguments[-1]) if need] == [slot]
        outputs = getattr(torch.ops.deeppcr, f"{chain.kind}_backward")(*arguments)
        assert all(
            output.shape == ((0,) if i != slot else leaves[needed].shape)
            for i, output in enumerate(outputs[:-1])
        )
        assert all((leaf.grad is not None) == (leaf is leaves[needed]) for leaf in leaves)


def kept(function: Any) -> list[str]:
    with Spy() as spy:
        function()
    return [arguments[-1] for _, arguments in spy.calls]


@pytest.mark.parametrize("chain", SMALL_CHAINS, ids=name_of)
def test_states_are_kept_only_for_gradients(chain: Chain) -> None:
    leaves = [t.clone().requires_grad_() for t in chain.present]
    recompute = chain.solver.get("memory") == "recompute"
    assert kept(lambda: chain.run(*chain.present)) == ["nothing"]
    assert kept(lambda: chain.run(*leaves)) == ["checkpoints" if recompute else "states"]
    assert kept(lambda: chain.run(*leaves, return_states=True)) == ["states"]
    with torch.no_grad():
        assert kept(lambda: chain.run(*leaves)) == ["nothing"]
    with torch.inference_mode():
        assert kept(lambda: chain.run(*leaves)) == ["nothing"]
        assert chain.run(*leaves).is_inference()
    mapped = torch.func.vmap(chain.run, (0, *(None for _ in leaves[1:])))
    stacked = torch.stack([chain.present[0]] * 2)
    assert kept(lambda: mapped(stacked, *chain.present[1:])) == ["nothing"]


def test_inference_needs_no_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients the raw operator is called, and its states take no memory."""
    from torch_deeppcr import _chain

    def refuse(*_: Any) -> None:
        raise AssertionError("an autograd.Function ran")

    monkeypatch.setattr(_chain.RecordedChain, "apply", refuse)
    monkeypatch.setattr(_chain.Chain, "apply", refuse)
    net = dpcr.nn.MLPChain(4, 5)
    with torch.no_grad():
        assert net(torch.randn(3, 4)).shape == (3, 4)
    with torch.inference_mode():
        net(torch.randn(3, 4))
    with pytest.raises(AssertionError):
        net(torch.randn(3, 4))


def test_first_gradients_need_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain loop runs for derivatives of derivatives alone."""
    chain = Chain("mlp", 3, 2, 3)
    ran = []
    loop = _kinds.ChainKind.loop
    monkeypatch.setattr(
        "torch_deeppcr._kinds.ChainKind.loop",
        lambda self, *arguments: ran.append(1) or loop(self, *arguments),
    )
    leaves = [t.clone().requires_grad_() for t in chain.present]
    grads = torch.autograd.grad(chain.run(*leaves).square().sum(), leaves, create_graph=True)
    assert not ran
    grads[0].square().sum().backward()
    assert ran


def test_either_output_alone_or_both() -> None:
    """gz and gstates add up; an unused output costs no array of zeros."""
    chain = Chain("residual", 3, 2, 4)
    picks = {
        "z": lambda z, states: (z,),
        "states": lambda z, states: (states,),
        "middle": lambda z, states: (states[1],),
        "both": lambda z, states: (z, states),
    }
    for name, pick in picks.items():
        ours = gradients(lambda *t, p=pick: p(*chain.run(*t, return_states=True)), chain.present)
        loop = gradients(lambda *t, p=pick: p(*chain.loop(*t, return_states=True)), chain.present)
        assert_close(ours, loop)
        leaves = [t.clone().requires_grad_() for t in chain.present]
        with Spy() as spy:
            sum(o.sum() for o in pick(*chain.run(*leaves, return_states=True))).backward()
        (arguments,) = spy.arguments("residual_backward")
        assert (arguments[0] is None) == (name in ("states", "middle"))
        assert (arguments[1] is None) == (name == "z")


def test_nothing_outlives_its_graph() -> None:
    """No reference cycle: what a forward pass saved goes with its result, without the collector."""
    net = dpcr.nn.MLPChain(4, 3)
    A, b = torch.randn(5, 2, 3, 3, requires_grad=True), torch.randn(5, 2, 3)
    x = torch.randn(2, 4)

    def plain() -> list[torch.Tensor]:
        return [*net(x, return_states=True), dpcr.linear_recurrence(A, b)]

    def twice() -> list[torch.Tensor]:
        grads = torch.autograd.grad(net(x).sum(), list(net.parameters()), create_graph=True)
        x_A = torch.autograd.grad(dpcr.linear_recurrence(A, b).sum(), A, create_graph=True)
        return [*grads, *x_A]

    def forward() -> list[torch.Tensor]:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(A, A.detach())
            return [net(forward_ad.make_dual(x, x)), dpcr.linear_recurrence(dual, b)]

    gc.collect()
    gc.disable()
    try:
        for function in (plain, twice, forward):
            graphs = [weakref.ref(tensor.grad_fn) for tensor in function()]
            assert graphs and all(graph() is None for graph in graphs), function
    finally:
        gc.enable()


def test_backward_twice_and_in_place_changes() -> None:
    net = dpcr.nn.MLPChain(4, 3)
    x = torch.randn(2, 4)
    loss = net(x).sum()
    loss.backward(retain_graph=True)
    first = net.weight.grad.clone()
    loss.backward()
    assert torch.equal(net.weight.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()
    loss = net(x).sum()
    with torch.no_grad():
        net.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(reentrant: bool) -> None:
    net = dpcr.nn.ResidualChain(4, 3, norm="rms_norm", dtype=torch.float64)
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    leaves = [x, *net.parameters()]
    expected = torch.autograd.grad(net(x).square().sum(), leaves)
    checkpoint(net, x, use_reentrant=reentrant).square().sum().backward()
    assert_close([leaf.grad for leaf in leaves], list(expected))


def test_training_follows_the_plain_modules() -> None:
    """Ten steps of SGD with momentum, same losses as the nn.Sequential."""
    chain = dpcr.nn.ResidualChain(
        6, 20, hidden=9, activation="silu", norm="layer_norm", scale=0.2, dtype=torch.float64
    )
    losses = []
    x, y = torch.randn(2, 16, 6, dtype=torch.float64)
    for net in (chain.to_sequential(), chain):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        curve = []
        for _ in range(10):
            optimizer.zero_grad()
            loss = (net(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            curve.append(loss.item())
        losses.append(torch.tensor(curve))
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert_close(losses[1], losses[0], factor=1e4)
