# SPDX-License-Identifier: Apache-2.0
"""Denoising chains: weights that all steps share, the sampler's coefficients and its noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Chain, Spy, assert_close, gradients, scale_of
from torch import Tensor
from torch.func import grad, vmap
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

import torch_deeppcr as dpcr
from torch_deeppcr import _kinds, _solve, reference
from torch_deeppcr._plan import solver_of

F32, F64 = torch.float32, torch.float64
ops = torch.ops.deeppcr
WHOLE = Chain("denoise", 5, 3, 4, hidden=7, activation="silu", layers=2)
BARE = Chain("denoise", 5, 3, 4, hidden=2, layers=0, bias=False, noise=False)
NAMES = list(_kinds.DENOISE.shapes)
SHARED = [name for name, stacked in zip(NAMES, _kinds.DENOISE.stacked, strict=True) if not stacked]


def ddim(length: int, first: float = 1e-4, last: float = 2e-2) -> Tensor:
    """(L,2): the coefficients of DDIM's deterministic steps, from the noise down."""
    kept = (1 - torch.linspace(first, last, length, dtype=F64)).cumprod(0).flip(0)
    before = torch.cat([kept[1:], torch.ones(1, dtype=F64)])
    a = (before / kept).sqrt()
    return torch.stack([a, (1 - before).sqrt() - a * (1 - kept).sqrt()], 1)


def sampler(length: int, width: int, hidden: int, batch: int = 3, layers: int = 2) -> Chain:
    """A random small denoiser; each step has its embedding of time in the biases."""
    chain = Chain("denoise", length, batch, width, hidden, "silu", layers=layers, noise=False)
    time = torch.linspace(0, 1, length, dtype=F64)[:, None, None]
    phases = torch.linspace(0, 3, hidden, dtype=F64) + torch.arange(layers + 1)[:, None]
    chain.tensors[2] = 0.5 * torch.sin(4 * time + phases)
    chain.tensors[6] = ddim(length)
    return chain


def by_name(chain: Chain, values: list[Tensor]) -> dict[str, Tensor | None]:
    return dict(zip(["input", *NAMES], chain.all(values), strict=True))


# ---- values -------------------------------------------------------------------------------------


def test_what_a_step_is() -> None:
    """By hand, without the reference."""
    z, W_in, b, W, W_out, b_out, coefficients, noise = WHOLE.tensors
    for index in range(5):
        x = torch.nn.functional.silu(z @ W_in.T + b[index, 0])
        for m in range(2):
            x = x + torch.nn.functional.silu(x @ W[m].T + b[index, m + 1])
        a, c = coefficients[index]
        z = a * z + c * (x @ W_out.T + b_out) + noise[index]
    assert_close(WHOLE.run(activation="silu"), z)


@pytest.mark.parametrize("solver", [{}, {"segments": 50}, {"segments": 7, "memory": "recompute"}])
def test_ddim(solver: dict[str, Any]) -> None:
    """Fifty steps of a sampler, one after the other and all at once."""
    chain = sampler(50, 6, 16)
    z, states, info = chain.run(return_states=True, return_info=True, **solver)
    assert_close((z, states), chain.loop(return_states=True), factor=1e4)
    assert bool((info.status == dpcr.Status.CONVERGED).all())
    assert bool((info.sweeps < 20).all()) and info.plan.segments == solver.get("segments", 1)
    ours = gradients(lambda *t: chain.run(*t, **solver), chain.present)
    assert_close(ours, gradients(chain.loop, chain.present), factor=1e5)


@pytest.mark.parametrize("jacobian", ["identity", "zero"])
def test_other_structures_converge_to_the_same(jacobian: str) -> None:
    chain = sampler(12, 3, 5)
    assert_close(chain.run(segments=4, jacobian=jacobian), chain.loop(), factor=1e4)


def test_float32_is_as_accurate_as_the_loop() -> None:
    """Gradients of shared weights are sums of a hundred thousand terms."""
    exact = sampler(200, 8, 16, batch=512, layers=1).to(F32).to(F64)
    single = exact.to(F32)
    for ours, loop, true in zip(
        gradients(single.run, single.present),
        gradients(single.loop, single.present),
        gradients(exact.loop, exact.present),
        strict=True,
    ):
        error, allowed = scale_of(ours.double() - true), scale_of(loop.double() - true)
        assert error <= 8 * allowed + 1e-5 * scale_of(true)


def test_noise_moves_its_own_sample_from_its_step_on() -> None:
    *tensors, noise = WHOLE.tensors
    other = noise.clone()
    other[2, 1] += 1
    before, after = (WHOLE.run(*tensors, n, return_states=True)[1] for n in (noise, other))
    moved = (before != after).any(-1)
    assert moved[2:, 1].all() and not moved[:2].any() and not moved[:, [0, 2]].any()


def test_no_hidden_width() -> None:
    """Without hidden units the network is its last bias."""
    z, *_, bias_out, coefficients, noise = WHOLE.tensors
    parameters = [z.new_zeros(0, 4), z.new_zeros(5, 1, 0), None, z.new_zeros(4, 0), bias_out]
    chain = Chain("denoise", 5, 3, 4, layers=0)
    chain.tensors = [z, *parameters, coefficients, noise]
    expected = z
    for (a, c), n in zip(coefficients, noise, strict=True):
        expected = a * expected + c * bias_out + n
    assert_close(chain.run(), expected)
    assert_close(gradients(chain.run, chain.present), gradients(chain.loop, chain.present))


def test_auto_is_one_segment() -> None:
    assert WHOLE.run(return_info=True)[1].plan.segments == 1


# ---- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("segments", [1, 2, 5])
def test_gradients_of_shared_parameters_are_sums_over_the_steps(segments: int) -> None:
    """Of what each step would get, had it parameters of its own."""
    z, *parameters = WHOLE.tensors
    own = [
        p if stacked else [p.clone().requires_grad_() for _ in range(5)]
        for p, stacked in zip(parameters, _kinds.DENOISE.stacked, strict=True)
    ]
    out, _ = reference.denoise(z, *own, *WHOLE.options, False)
    out.square().sum().backward()
    leaves = [t.clone().requires_grad_() for t in WHOLE.tensors]
    WHOLE.run(*leaves, segments=segments).square().sum().backward()
    for leaf, steps in zip(leaves[1:], own, strict=True):
        if isinstance(steps, list):
            assert_close(leaf.grad, torch.stack([step.grad for step in steps]).sum(0))


@pytest.mark.parametrize("segments", [1, 5])
def test_gradients_of_coefficients_and_noise(segments: int) -> None:
    """<g_l, z_{l-1}>, <g_l, net_l>, and g_l itself."""
    present = [t.clone().requires_grad_() for t in WHOLE.present]
    states = WHOLE.loop(*present, return_states=True)[1].unbind(0)
    z0, *parameters = WHOLE.tensors
    out, adjoints = states[-1], []
    for index in range(5):  # of z_l: by the rest of the chain from it
        z = states[index].detach().requires_grad_()
        end = z
        for later in range(index + 1, 5):
            end, _ = reference.denoise(
                end, *WHOLE.one_step(parameters, later), *WHOLE.options, False
            )
        adjoints.append(torch.autograd.grad(end.square().sum(), z)[0])
        assert_close(end, out)
    g, before = torch.stack(adjoints), torch.stack([z0, *states[:-1]]).detach()
    _, coefficients, noise = parameters[-3:]
    a, c = coefficients[:, 0, None, None], coefficients[:, 1, None, None]
    net = (torch.stack(states).detach() - a * before - noise) / c
    leaves = [t.clone().requires_grad_() for t in WHOLE.present]
    WHOLE.run(*leaves, segments=segments).square().sum().backward()
    assert_close(leaves[-2].grad, torch.stack([(g * before).sum((1, 2)), (g * net).sum((1, 2))], 1))
    assert_close(leaves[-1].grad, g)


@pytest.mark.parametrize("chain", [WHOLE, BARE], ids=["whole", "bare"])
@pytest.mark.parametrize("memory", ["states", "recompute"])
def test_each_gradient_alone(chain: Chain, memory: str) -> None:
    """Has the bits of all of them together."""
    together = gradients(lambda *t: chain.run(*t, memory=memory), chain.present)
    for index, expected in enumerate(together):
        leaves = [t.clone() for t in chain.present]
        leaves[index].requires_grad_()
        (alone,) = gradients(
            lambda t, i=index, rest=leaves: chain.run(*rest[:i], t, *rest[i + 1 :], memory=memory),
            [leaves[index]],
        )
        assert torch.equal(alone, expected)


def test_a_step_without_the_network() -> None:
    """c = 0: the network's parameters get no gradient, c itself does."""
    chain = Chain("denoise", 3, 2, 4, hidden=5)
    chain.tensors[6][:, 1] = 0
    got = by_name(chain, gradients(chain.run, chain.present))
    assert_close(list(got.values()), gradients(chain.loop, chain.present))
    for name in (*SHARED, "bias"):
        assert torch.equal(got[name], torch.zeros_like(got[name]))
    assert got["coefficients"][:, 1].all()


@pytest.mark.parametrize("segments", [1, 40])
def test_threads_do_not_change_bits(segments: int) -> None:
    chain = sampler(40, 8, 24, batch=70).to(F32)

    def everything() -> list[Tensor]:
        chain.solver = {"segments": segments}
        return [chain.run(), *gradients(chain.run, chain.present)]

    one = everything()
    try:
        torch.set_num_threads(2)
        two = everything()
    finally:
        torch.set_num_threads(1)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# ---- frozen steps -------------------------------------------------------------------------------

FROZEN = (True, True, False, True, False)


def frozen_run(chain: Chain, **solver: Any) -> Callable[..., Tensor]:
    def run(*present: Tensor) -> Tensor:
        call = _solve.Call(False, None, False, solver_of(solver), frozen=FROZEN)
        state, *parameters = chain.all(present)
        return _solve.run(_kinds.DENOISE, call, state, tuple(parameters), tuple(chain.options))

    return run


def frozen_loop(chain: Chain) -> Callable[..., Tensor]:
    """What the frozen steps have is detached, step by step."""

    def run(*present: Tensor) -> Tensor:
        z, *parameters = chain.all(present)
        for index, frozen in enumerate(FROZEN):
            step = chain.one_step(parameters, index)
            step = [None if p is None else p.detach() for p in step] if frozen else step
            z, _ = reference.denoise(z, *step, *chain.options, False)
        return z

    return run


@pytest.mark.parametrize("solver", [{}, {"segments": 3}, {"memory": "recompute"}])
@pytest.mark.parametrize("chain", [WHOLE, BARE], ids=["whole", "bare"])
def test_frozen_steps(chain: Chain, solver: dict[str, Any]) -> None:
    """First and second derivatives, and forward mode."""
    results = []
    for function in (frozen_run(chain, **solver), frozen_loop(chain)):
        leaves = [t.clone().requires_grad_() for t in chain.present]
        first = torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        direction = tuple(torch.ones_like(t) for t in chain.present)
        tangent = torch.func.jvp(function, tuple(chain.present), direction)
        results.append([*first, *second, *tangent])
    assert_close(*results)
    whole = gradients(lambda *t: chain.run(*t).square().sum(), chain.present)
    assert scale_of(results[0][1] - whole[1]) > 0  # freezing means something


# ---- transforms ---------------------------------------------------------------------------------


def test_noise_folds_into_the_batch() -> None:
    """One call for all maps, whether the noise is mapped or shared by them."""
    z, *rest, noise = WHOLE.present
    many, noises = torch.stack([z, -z]), torch.stack([noise, 2 * noise], 2)

    def run(z: Tensor, noise: Tensor) -> Tensor:
        return WHOLE.run(z, *rest, noise)

    for dims in ((0, None), (None, 2), (0, 2)):
        tensors = (z if dims[0] is None else many, noise if dims[1] is None else noises)
        each = [
            [t if dim is None else t.select(dim, i) for t, dim in zip(tensors, dims, strict=True)]
            for i in range(2)
        ]
        with Spy() as spy:
            out = vmap(run, dims)(*tensors)
        assert [arguments[0].shape for _, arguments in spy.calls] == [(6, 4)]
        assert_close(out, torch.stack([WHOLE.loop(z, *rest, noise) for z, noise in each]))


def test_gradients_of_mapped_noise_fold_too() -> None:
    z, *rest, noise = WHOLE.present
    noises = torch.stack([noise, 2 * noise])

    def loss(function: Any) -> Any:
        return lambda n: function(z, *rest, n).square().sum()

    with Spy() as spy:
        ours = vmap(grad(loss(WHOLE.run)))(noises)
    assert [name for name, _ in spy.calls] == ["denoise", "denoise_backward"]
    assert_close(ours, torch.stack([grad(loss(WHOLE.loop))(n) for n in noises]))
    with Spy() as spy:  # every map has its own gradient of the coefficients
        both = vmap(grad(lambda n, c: WHOLE.run(z, *rest[:-1], c, n).sum(), (0, 1)), (0, None))
        _, per_map = both(noises, rest[-1])
    assert per_map.shape == (2, 5, 2)
    assert [name for name, _ in spy.calls].count("denoise_backward") == 2


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("chain", [WHOLE, BARE], ids=["whole", "bare"])
def test_compile(chain: Chain, backend: str) -> None:
    torch.compiler.reset()

    def both(*tensors: Tensor) -> Any:
        return chain.run(*tensors, return_states=True)

    compiled = torch.compile(both, fullgraph=True, backend=backend)
    assert_close(gradients(compiled, chain.present), gradients(both, chain.present))


def test_compile_samples_of_two_dimensions() -> None:
    torch.compiler.reset()
    z, *rest, noise = WHOLE.present
    pair = (torch.stack([z, -z]), torch.stack([noise, noise], 1))
    compiled = torch.compile(
        lambda z, n: WHOLE.run(z, *rest, n), fullgraph=True, backend="aot_eager"
    )
    assert_close(compiled(*pair), torch.stack([WHOLE.run(), WHOLE.run(-z, *rest, noise)]))


@pytest.mark.parametrize("frozen", [(), FROZEN])
def test_opcheck(frozen: tuple[bool, ...]) -> None:
    """Without what may be missing; the whole is in test_operators.py."""
    solver = (2, "dense", "adaptive", 1e-12, 0.0, -1, True, list(frozen))
    leaves = [None if t is None else t.clone().requires_grad_() for t in BARE.tensors]
    opcheck(ops.denoise.default, (*leaves, None, *BARE.options, *solver, "states"))
    kept = ops.denoise(*BARE.tensors, None, *BARE.options, *solver, "states")[1]
    z0, *parameters = BARE.tensors
    needs = [t is not None for t in BARE.tensors]
    rest = (*parameters, *BARE.options, *solver, "states", needs)
    opcheck(ops.denoise_backward.default, (torch.ones_like(z0), None, z0, kept, *rest))


def test_flops() -> None:
    """Of the loop: what PyTorch counts, a walk of ours reports, and counters see."""

    def counted(function: Any) -> int:
        leaves = [t.clone().requires_grad_() for t in WHOLE.present]
        with FlopCounterMode(display=False) as counter:
            function(*leaves).sum().backward()
        return counter.get_total_flops()

    assert counted(WHOLE.run) == counted(WHOLE.loop)
    products = 2 * (2 * 4 * 7 + 2 * 7 * 7)
    assert WHOLE.run(return_info=True)[1].flops.tolist() == [5 * products] * 3
    half = WHOLE.to(torch.bfloat16)
    assert half.run(return_info=True)[1].flops.tolist() == [5 * products] * 3


# ---- bad arguments ------------------------------------------------------------------------------


def refused(change: dict[str, Any]) -> Callable[[], Any]:
    given = dict(zip(["input", *NAMES], WHOLE.tensors, strict=True))
    return lambda: dpcr.denoise_chain(**{**given, **change})


z, W_in, b, W, W_out, b_out, coefficients, noise = WHOLE.tensors
BAD = [
    ({"weight_in": None}, TypeError, "weight_in must be a tensor, got NoneType"),
    ({"bias": None}, TypeError, "bias must be a tensor, got NoneType"),
    ({"weight_out": 1.0}, TypeError, "weight_out must be a tensor, got float"),
    ({"coefficients": None}, TypeError, "coefficients must be a tensor, got NoneType"),
    ({"noise": 0.5}, TypeError, "noise must be a tensor, got float"),
    ({"weight_in": W_in[:, :3]}, ValueError, r"weight_in .* \(h, w\) = \(7, 4\), got \(7, 3\)"),
    ({"bias": b[:, :, :6]}, ValueError, r"bias .* \(L, N, h\) = \(5, 3, 7\), got \(5, 3, 6\)"),
    ({"bias": b[:, :2]}, ValueError, r"bias .* \(L, M \+ 1, h\) .* M = 2 .* got \(5, 2, 7\)"),
    ({"bias": b[:, 0]}, ValueError, r"bias must have shape \(L, N, h\)"),
    ({"weight_hidden": None}, ValueError, r"bias .* M = 0 of weight_hidden, got \(5, 3, 7\)"),
    ({"weight_hidden": W[:, :3]}, ValueError, r"weight_hidden .* \(M, h, h\)"),
    ({"weight_out": W_out.T}, ValueError, r"weight_out .* \(w, h\) = \(4, 7\), got \(7, 4\)"),
    ({"bias_out": b_out[:3]}, ValueError, r"bias_out .* \(w\) = \(4\), got \(3,\)"),
    ({"coefficients": coefficients[:4]}, ValueError, r"coefficients .* \(5, 2\), got \(4, 2\)"),
    ({"coefficients": coefficients[:, :1]}, ValueError, r"coefficients .* \(L, 2\) = \(5, 2\)"),
    ({"noise": noise[:, :1]}, ValueError, r"noise .* \(5, 3, 4\), got \(5, 1, 4\)"),
    ({"noise": noise[:4]}, ValueError, r"noise .* \(5, 3, 4\), got \(4, 3, 4\)"),
    ({"noise": noise[0]}, ValueError, r"noise must have shape .* got \(3, 4\)"),
    ({"input": z[0]}, ValueError, r"noise .* \(L, \.\.\., w\) = \(L, 4\), got \(5, 3, 4\)"),
    ({"input": z[None]}, ValueError, r"noise .* \(L, 1, 3, 4\), got \(5, 3, 4\)"),
    ({"coefficients": coefficients.float()}, TypeError, "coefficients must have the dtype"),
    ({"noise": noise.to("meta")}, ValueError, "noise must be on the device of input"),
    ({"segments": 6}, ValueError, r"segments must be in 1\.\.L = 1\.\.5, got 6"),
    ({"activation": "swish"}, ValueError, "activation must be one of"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        refused(change)()


RAW = [
    ({"weight_in": W_in[:, :3]}, "weight_in must have shape"),
    ({"bias": b[:, :2]}, "bias must have shape|weight_hidden must have shape"),
    ({"bias": b[:, :0]}, "bias must have shape"),
    ({"weight_hidden": None}, "weight_hidden"),
    ({"weight_out": W_out.T}, "weight_out must have shape"),
    ({"bias_out": b_out[:3]}, "bias_out must have shape"),
    ({"coefficients": coefficients[:, :1]}, "coefficients must have shape"),
    ({"noise": noise[:, :1]}, "noise must have shape"),
    ({"noise": noise.float()}, "noise must have the dtype"),
]


@pytest.mark.parametrize("meta", [False, True])
@pytest.mark.parametrize(("change", "message"), RAW)
def test_bad_arguments_of_the_operator(change: dict[str, Any], message: str, meta: bool) -> None:
    given = {**dict(zip(["z0", *NAMES], WHOLE.tensors, strict=True)), **change, "guess": None}
    rest = ("silu", [], 1, "dense", "adaptive", 1e-6, 0.0, -1, True, [], "nothing")
    if meta:
        given = {k: v if v is None else v.to("meta") for k, v in given.items()}
    with pytest.raises((ValueError, TypeError), match=message):
        ops.denoise(*given.values(), *rest)
