# SPDX-License-Identifier: Apache-2.0
"""torch.func on the chains and the recurrence, each transform against the same one on the loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import SMALL_CHAINS, Chain, Spy, assert_close, name_of
from torch import Tensor
from torch.func import (
    functional_call,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    stack_module_state,
    vjp,
    vmap,
)

import torch_deeppcr as dpcr
from torch_deeppcr import reference

Function = Callable[..., Any]
F64 = torch.float64


def tangents(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.full_like(t, 0.5) for t in tensors)


def scalar(f: Function) -> Function:
    return lambda *t: f(*t).square().sum()


def everything(t: tuple[Tensor, ...]) -> tuple[int, ...]:
    return tuple(range(len(t)))


# name -> transform(f)(*tensors), for f: tensors -> one tensor
TRANSFORMS: dict[str, Function] = {
    "grad": lambda f, *t: grad(scalar(f), everything(t))(*t),
    "vjp": lambda f, *t: vjp(f, *t)[1](torch.ones_like(f(*t))),
    "jvp": lambda f, *t: jvp(f, t, tangents(t)),
    "jacrev": lambda f, *t: jacrev(f, everything(t))(*t),
    "jacfwd": lambda f, *t: jacfwd(f, everything(t))(*t),
    "hessian": lambda f, *t: hessian(scalar(f))(*t),
    "hessian of all": lambda f, *t: hessian(scalar(f), everything(t)[:2])(*t),
    "jacrev(jacrev)": lambda f, *t: jacrev(jacrev(f))(*t),
    "jacfwd(jacfwd)": lambda f, *t: jacfwd(jacfwd(f))(*t),
    "jacrev(jacfwd)": lambda f, *t: jacrev(jacfwd(f))(*t),
    "jvp(jvp(jvp))": lambda f, *t: jvp(
        lambda *a: jvp(lambda *b: jvp(f, b, tangents(b))[1], a, tangents(a))[1], t, tangents(t)
    )[1],
    "jvp(grad)": lambda f, *t: jvp(grad(scalar(f), everything(t)), t, tangents(t))[1],
    "grad(jvp)": lambda f, *t: grad(
        lambda *a: jvp(f, a, tangents(a))[1].square().sum(), everything(t)
    )(*t),
    "vmap": lambda f, *t: vmap(lambda z: f(z, *t[1:]))(torch.stack([t[0], 2 * t[0]])),
    "vmap over all": lambda f, *t: vmap(f)(*(torch.stack([a, 0.5 * a, -a]) for a in t)),
    "vmap(grad)": lambda f, *t: vmap(grad(scalar(f), everything(t)), (0, *(None for _ in t[1:])))(
        torch.stack([t[0], 2 * t[0]]), *t[1:]
    ),
    "vmap(vmap)": lambda f, *t: vmap(vmap(lambda z: f(z, *t[1:]), 1, 1))(
        torch.stack([torch.stack([t[0], 2 * t[0]], 1), torch.stack([t[0], -t[0]], 1)])
    ),
    "vmap(jvp)": lambda f, *t: vmap(lambda z: jvp(lambda a: f(a, *t[1:]), (z,), (z,)))(
        torch.stack([t[0], 2 * t[0]])
    ),
    "vmap(hessian)": lambda f, *t: vmap(lambda z: hessian(scalar(f))(z, *t[1:]))(
        torch.stack([t[0], 2 * t[0]])
    ),
    "grad(vmap)": lambda f, *t: grad(
        lambda *a: vmap(lambda z: f(z, *a[1:]))(torch.stack([a[0], 2 * a[0]])).square().sum(),
        everything(t),
    )(*t),
}


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("chain", SMALL_CHAINS[::2], ids=name_of)
def test_chain(chain: Chain, name: str) -> None:
    transform = TRANSFORMS[name]
    ours = transform(lambda *t: chain.run(*t), *chain.present)
    assert_close(ours, transform(lambda *t: chain.elementary(*t), *chain.present))


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("blocks", ["dense", "diagonal"])
def test_recurrence(blocks: str, name: str) -> None:
    b, x0 = torch.randn(3, 2, 2, dtype=F64), torch.randn(2, 2, dtype=F64)
    A = torch.randn(*((3, 2, 2, 2) if blocks == "dense" else (3, 2, 2)), dtype=F64)
    transform = TRANSFORMS[name]

    # The tensor that is transformed first comes first: A, in which the recurrence is nonlinear.
    def ours(A: Tensor, b: Tensor, x0: Tensor) -> Tensor:
        return dpcr.linear_recurrence(A, b, x0, blocks=blocks, segments=2)

    def loop(A: Tensor, b: Tensor, x0: Tensor) -> Tensor:
        return reference.linear_recurrence(A, b, x0, blocks, False)

    assert_close(transform(ours, A, b, x0), transform(loop, A, b, x0))


@pytest.mark.parametrize("name", ["grad", "hessian", "jvp", "vmap", "vmap(grad)"])
def test_one_dimensional_input(name: str) -> None:
    """The usual torch.func style: a function of one sample."""
    chain = Chain("mlp", 3, 1, 3)
    one = (chain.present[0][0], *chain.present[1:])
    transform = TRANSFORMS[name]
    assert_close(transform(chain.run, *one), transform(chain.loop, *one))


# ---- vmap: which calls it makes -----------------------------------------------------------------


def test_shared_parameters_fold_into_the_batch() -> None:
    chain = Chain("mlp", 3, 2, 4)
    parameters = chain.present[1:]
    many = torch.randn(5, 2, 4, dtype=F64)
    with Spy() as spy:
        out = vmap(lambda z: chain.run(z, *parameters))(many)
    assert [arguments[0].shape for _, arguments in spy.calls] == [(10, 4)]
    assert_close(out, torch.stack([chain.loop(z, *parameters) for z in many]))
    with Spy() as spy:
        vmap(grad(lambda z: chain.run(z, *parameters).sum()))(many)
    assert [name for name, _ in spy.calls] == ["mlp", "mlp_backward"]


def test_states_are_mapped_in_place() -> None:
    chain = Chain("mlp", 3, 2, 4)
    many = torch.randn(5, 2, 4, dtype=F64)
    z, states = vmap(lambda z: chain.run(z, *chain.present[1:], return_states=True))(many)
    assert z.shape == (5, 2, 4) and states.shape == (5, 3, 2, 4)
    expected = [chain.loop(z, *chain.present[1:], return_states=True)[1] for z in many]
    assert_close(states, torch.stack(expected))


@pytest.mark.parametrize(
    "dims", [(None, 1, None), (0, 0, 0), (None, None, 0), (2, 1, 1), (0, None, None)]
)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("batch", [1, 3])
def test_vmap_of_the_recurrence(batch: int, shared: bool, dims: tuple[int | None, ...]) -> None:
    shapes = ((4, 1 if shared else batch, 2, 2), (4, batch, 2), (batch, 2))
    tensors = [
        torch.randn(*shape, dtype=F64)
        if dim is None
        else torch.stack([torch.randn(*shape, dtype=F64) for _ in range(3)], dim)
        for shape, dim in zip(shapes, dims, strict=True)
    ]

    def loop(A: Tensor, b: Tensor, x0: Tensor) -> Tensor:
        return reference.linear_recurrence(A, b, x0, "dense", True)

    def ours(A: Tensor, b: Tensor, x0: Tensor) -> Tensor:
        return dpcr.linear_recurrence(A, b, x0, reverse=True)

    assert_close(vmap(ours, dims)(*tensors), vmap(loop, dims)(*tensors))
    for f in (ours, loop):
        f.gradient = vmap(grad(scalar(f), (0, 1, 2)), dims)(*tensors)
    assert_close(ours.gradient, loop.gradient)


def test_info_under_vmap() -> None:
    b = torch.randn(2, 8, 3, 1)
    A = torch.ones(8, 3, 1)
    info = vmap(lambda b: dpcr.linear_recurrence(A, b, segments=8, return_info=True)[1])(b)
    assert info.levels.tolist() == [3, 3] and info.recomputed.shape == (2, 3)


def test_newton_under_vmap() -> None:
    """A guess for every sample, a report of every sample."""
    chain = Chain("mlp", 6, 2, 4, solver={"segments": 3, "refresh": "always"})
    many, guesses = torch.randn(5, 2, 4, dtype=F64), torch.randn(5, 6, 2, 4, dtype=F64)

    def one(z: Tensor, guess: Tensor) -> tuple[Tensor, ...]:
        options = {"warm_start": guess, "return_states": True, "return_info": True}
        z, states, info = chain.run(z, *chain.present[1:], **options)
        return z, states, info.sweeps, info.levels

    z, states, sweeps, levels = vmap(one)(many, guesses)
    expected = [chain.loop(z, *chain.present[1:], return_states=True) for z in many]
    assert_close((z, states), tuple(map(torch.stack, zip(*expected, strict=True))))
    assert sweeps.shape == (5, 2) and (sweeps > 1).all() and levels.tolist() == [2] * 5
    gradient = vmap(grad(lambda z, g: one(z, g)[0].sum()), (0, 0))(many, guesses)
    loops = [grad(lambda z: chain.loop(z, *chain.present[1:]).sum())(z) for z in many]
    assert_close(gradient, torch.stack(loops))


@pytest.mark.parametrize("solver", [{}, {"segments": 3, "memory": "recompute"}])
def test_ensemble(solver: dict[str, Any]) -> None:
    nets = [dpcr.nn.ResidualChain(3, 4, norm="layer_norm", dtype=F64, **solver) for _ in range(3)]
    x = torch.randn(5, 3, dtype=F64)
    parameters, buffers = stack_module_state(nets)

    def call(parameters: Any, x: Tensor) -> Tensor:
        return functional_call(nets[0], (parameters, buffers), (x,))

    expected = torch.stack([net(x) for net in nets])
    assert_close(vmap(call, (0, None))(parameters, x), expected)
    gradient = vmap(grad(lambda p, x: call(p, x).square().sum()), (0, None))(parameters, x)
    for index, net in enumerate(nets):
        net(x).square().sum().backward()
        for name, parameter in net.named_parameters():
            assert_close(gradient[name][index], parameter.grad)


def test_empty_maps() -> None:
    chain = Chain("mlp", 3, 2, 4)
    z, *parameters = chain.present
    assert vmap(lambda z: chain.run(z, *parameters))(z.new_zeros(0, 2, 4)).shape == (0, 2, 4)
    weights = parameters[0].new_zeros(0, 3, 4, 4)
    out = vmap(lambda w: chain.run(z, w, parameters[1]))(weights)
    assert out.shape == (0, 2, 4)
    b = z.new_zeros(0, 5, 2, 4)
    assert vmap(lambda b: dpcr.linear_recurrence(None, b))(b).shape == b.shape


def test_vectorized_jacobians() -> None:
    """torch.autograd's own vmaps: is_grads_batched and functional.jacobian."""
    chain = Chain("mlp", 3, 2, 3)
    leaves = [t.clone().requires_grad_() for t in chain.present]
    for vectorize in (False, True):
        for strategy in ("reverse-mode", "forward-mode") if vectorize else ("reverse-mode",):
            actual = torch.autograd.functional.jacobian(
                chain.run, tuple(leaves), vectorize=vectorize, strategy=strategy
            )
            assert_close(actual, jacrev(chain.loop, (0, 1, 2))(*chain.present))
    out = chain.run(*leaves)
    basis = torch.eye(6, dtype=F64).reshape(6, 2, 3)
    batched = torch.autograd.grad(out, leaves, basis, is_grads_batched=True)
    assert_close(batched[1].reshape(2, 3, 3, 3, 3), jacrev(chain.loop, 1)(*chain.present))
