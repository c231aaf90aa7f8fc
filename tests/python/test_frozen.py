# SPDX-License-Identifier: Apache-2.0
"""Frozen steps: their parameters are constants to every derivative, and cost backward nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Chain, assert_close, name_of
from torch import Tensor
from torch.library import opcheck

from torch_deeppcr import _kinds, _solve
from torch_deeppcr._plan import solver_of

ops = torch.ops.deeppcr
FROZEN = (True, True, False, True, False)
LIVE = [i for i, frozen in enumerate(FROZEN) if not frozen]
DEAD = [i for i, frozen in enumerate(FROZEN) if frozen]
CHAINS = [
    Chain("mlp", 5, 2, 3),
    Chain("euler", 5, 2, 3, activation="silu", solver={"segments": 3}),
    Chain("residual", 5, 2, 3, activation="silu", norm="layer_norm"),
    Chain("layers", 5, 2, 3, activation="silu", norm="rms_norm", solver={"segments": 2}),
    Chain("layers", 5, 4, 3, layers=1, skip=False, solver={"memory": "recompute"}),
]
each_chain = pytest.mark.parametrize("chain", CHAINS, ids=name_of)


def runs(chain: Chain, frozen: tuple[bool, ...] = FROZEN) -> Callable[..., Tensor]:
    """(input, *present parameters) -> z_L, by the product."""
    (kind,) = (kind for kind in _kinds.KINDS if kind.name == chain.kind)

    def run(*present: Tensor) -> Tensor:
        call = _solve.Call(False, None, False, solver_of(chain.solver), frozen=frozen)
        state, *parameters = chain.all(present)
        return _solve.run(kind, call, state, tuple(parameters), tuple(chain.options))

    return run


def loops(chain: Chain) -> Callable[..., Tensor]:
    """The same by the reference, its frozen rows detached one by one."""

    def run(z: Tensor, *present: Tensor) -> Tensor:
        def rows(p: Tensor) -> Tensor:
            pairs = zip(FROZEN, p.unbind(0), strict=True)
            return torch.stack([row.detach() if frozen else row for frozen, row in pairs])

        return chain.loop(z, *map(rows, present))

    return run


def leaves_of(chain: Chain) -> list[Tensor]:
    return [t.clone().requires_grad_() for t in chain.present]


def arguments_of(chain: Chain, keep: str, frozen: tuple[bool, ...]) -> tuple[Any, ...]:
    """Of the raw forward operator."""
    segments = chain.solver.get("segments", 1)
    solver = (segments, "dense", "adaptive", 1e-14, 0.0, -1, True)
    return (*chain.tensors, None, *chain.options, *solver, list(frozen), keep)


def backward_of(
    chain: Chain, needs: list[bool], frozen: tuple[bool, ...] = FROZEN, poison: int = 0
) -> tuple[Any, ...]:
    """Arguments of the raw backward operator; ``poison``: so many of the kept states are NaN."""
    forward = arguments_of(chain, "states", frozen)
    kept = getattr(ops, chain.kind)(*forward)[1]
    kept[:poison] = float("nan")
    tensors = len(chain.tensors)
    gz = torch.ones_like(chain.tensors[0])
    return (gz, None, chain.tensors[0], kept, *chain.tensors[1:], *forward[tensors + 1 :], needs)


def all_needed(chain: Chain) -> list[bool]:
    return [tensor is not None for tensor in chain.tensors]


# ---- the raw operators --------------------------------------------------------------------------


@each_chain
def test_rows_are_zero_and_the_others_the_same(chain: Chain) -> None:
    backward = getattr(ops, f"{chain.kind}_backward")
    needs = all_needed(chain)
    frozen, whole = (
        backward(*backward_of(chain, needs, flags))[:-1] for flags in (FROZEN, (False,) * 5)
    )
    assert torch.equal(frozen[0], whole[0])
    for ours, all_rows, need in zip(frozen[1:], whole[1:], needs[1:], strict=True):
        if need:
            assert torch.equal(ours[LIVE], all_rows[LIVE]) and all_rows[DEAD].abs().sum() > 0
            assert torch.equal(ours[DEAD], torch.zeros_like(ours[DEAD]))
    values = [
        getattr(ops, chain.kind)(*arguments_of(chain, "nothing", flags))[0]
        for flags in ((), FROZEN)
    ]
    assert torch.equal(*values)


@each_chain
def test_a_frozen_prefix_is_not_read(chain: Chain) -> None:
    """Without a gradient of the input.  The state before the first step that learns is needed."""
    if chain.solver.get("segments", 1) > 1:
        pytest.skip("the adjoint of every segment is needed")
    backward = getattr(ops, f"{chain.kind}_backward")
    needs = [False, *all_needed(chain)[1:]]
    clean, poisoned = (
        backward(*backward_of(chain, needs, poison=LIVE[0] - 1 if bad else 0))
        for bad in (False, True)
    )
    for ours, same in zip(poisoned, clean, strict=True):
        assert torch.equal(ours, same) and ours.isfinite().all()
    whole = backward(*backward_of(chain, needs, (False,) * 5))
    assert (clean[-1][5] < whole[-1][5]).all()  # flops


@each_chain
def test_opcheck(chain: Chain) -> None:
    for keep in ("nothing", "states"):
        arguments = arguments_of(chain, keep, FROZEN)
        opcheck(
            getattr(ops, chain.kind).default,
            tuple(
                a.detach().clone().requires_grad_() if isinstance(a, Tensor) else a
                for a in arguments
            ),
        )
    backward = getattr(ops, f"{chain.kind}_backward").default
    opcheck(backward, backward_of(chain, all_needed(chain)))
    opcheck(backward, backward_of(chain, [False, *all_needed(chain)[1:]]))


# ---- derivatives --------------------------------------------------------------------------------


@each_chain
def test_first_and_second_derivatives(chain: Chain) -> None:
    """The rows are constants of the gradient, too: nothing comes back to them from it."""
    results = []
    for function in (runs(chain), loops(chain)):
        leaves = leaves_of(chain)
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        for gradient in (*first[1:], *second[1:]):
            assert torch.equal(gradient[DEAD], torch.zeros_like(gradient[DEAD]))
            assert (gradient[LIVE].abs().sum() > 0).all()
        results.append([*first, *second])
    assert_close(*results)


@each_chain
def test_gradcheck_of_what_learns(chain: Chain) -> None:
    z, *parameters = chain.present

    def function(z: Tensor, *rows: Tensor) -> Tensor:
        whole = [
            p.index_copy(0, torch.tensor(LIVE), r) for p, r in zip(parameters, rows, strict=True)
        ]
        return runs(chain)(z, *whole)

    leaves = [t.clone().requires_grad_() for t in (z, *(p[LIVE] for p in parameters))]
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@each_chain
def test_forward_mode(chain: Chain) -> None:
    present = tuple(chain.present)
    directions = tuple(torch.randn_like(t) for t in present)
    _, ours = torch.func.jvp(runs(chain), present, directions)
    kept = [d.index_fill(0, torch.tensor(DEAD), 0.0) for d in directions[1:]]
    _, expected = torch.func.jvp(chain.loop, present, (directions[0], *kept))
    assert_close(ours, expected)


@each_chain
def test_transforms(chain: Chain) -> None:
    z, *parameters = chain.present

    def loss(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *present: function(*present).square().sum()

    arguments = tuple(range(len(chain.present)))
    both = (
        torch.func.grad(loss(f), arguments)(z, *parameters) for f in (runs(chain), loops(chain))
    )
    assert_close(*both)
    many = torch.stack([z, z + 1])
    per_sample = torch.func.vmap(
        torch.func.grad(loss(runs(chain)), 1), (0, *(None,) * len(parameters))
    )
    for gradient in per_sample(many, *parameters):
        assert torch.equal(gradient[DEAD], torch.zeros_like(gradient[DEAD]))


@each_chain
def test_compiled(chain: Chain) -> None:
    torch.compiler.reset()
    compiled = torch.compile(runs(chain), fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, runs(chain)):
        leaves = leaves_of(chain)
        results.append(torch.autograd.grad(function(*leaves).square().sum(), leaves))
    assert_close(*results)
    assert torch.equal(results[0][1][DEAD], torch.zeros_like(results[0][1][DEAD]))


def test_the_loop_of_other_dtypes() -> None:
    chain = CHAINS[2].to(torch.bfloat16)
    leaves = leaves_of(chain)
    for gradient in torch.autograd.grad(runs(chain)(*leaves).sum(), leaves)[1:]:
        assert torch.equal(gradient[DEAD], torch.zeros_like(gradient[DEAD]))
        assert gradient[LIVE].abs().sum() > 0


def test_as_many_flags_as_steps() -> None:
    for wrong in ((True,), (True,) * 6):
        with pytest.raises(ValueError, match="frozen must be empty or hold 5 flags"):
            runs(CHAINS[0], wrong)(*CHAINS[0].present)
