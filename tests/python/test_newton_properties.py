# SPDX-License-Identifier: Apache-2.0
"""Random chains through Newton over segments: as accurate as PyTorch's loop, and honest about it.

What accuracy a chain allows is taken from the chain: the error of PyTorch's own loop in the same
dtype, and the change of the exact result when every state and every cotangent is disturbed by a few
roundings (one loop may be lucky, and Newton's tolerance is a few roundings of each start of a
segment).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from cases import KINDS, NORMED, NORMS, WIDE, Chain, gradients, scale_of
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from torch import Tensor

import torch_deeppcr as dpcr

F32, F64 = torch.float32, torch.float64
SETTINGS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def chains(draw: st.DrawFn) -> Chain:
    kind = draw(st.sampled_from(KINDS))
    length = draw(st.integers(1, 70))
    norm = draw(st.sampled_from(NORMS)) if kind in NORMED else None
    solver: dict[str, Any] = {
        "segments": draw(st.integers(1, length)),
        "jacobian": draw(
            st.sampled_from(["dense", "dense", "diagonal", "scalar", "identity", "zero"])
        ),
        "refresh": draw(st.sampled_from(["adaptive", "always"])),
        "memory": draw(st.sampled_from(["states", "recompute"])),
        "max_sweeps": draw(st.sampled_from([None, None, None, 1, 3, 100])),
    }
    chain = Chain(
        kind,
        length,
        batch=draw(st.integers(1, 6)),
        # RMSNorm makes 1 or -1 of one number, LayerNorm of two: gradients would be rounding.
        width=draw(st.integers({None: 1, "rms_norm": 2, "layer_norm": 3}[norm], 6)),
        hidden=draw(st.sampled_from([1, 3, 8])) if kind in WIDE else 0,
        activation=draw(st.sampled_from(["identity", "relu", "tanh", "silu", "gelu", "elu"])),
        norm=norm,
        bias=draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 0.25, -0.5, 0.03])),
        gain=draw(st.sampled_from([0.3, 0.7, 1.0, 1.2, 1.6, 2.5])),
        seed=draw(st.integers(0, 2**16)),
        layers=draw(st.integers(0 if kind == "denoise" else 1, 3)),
        skip=draw(st.booleans()),
        noise=draw(st.booleans()),
        solver=solver,
        norm_eps=1e-5,
    )
    return chain.to(draw(st.sampled_from([F32, F64])))


def disturbed(chain: Chain, size: float, seed: int) -> Callable[..., Any]:
    """The loop, each state and each cotangent multiplied by 1 + a number of at most ``size``."""

    def run(*present: Tensor) -> tuple[Tensor, Tensor]:
        z, *parameters = chain.all(present)
        generator = torch.Generator().manual_seed(seed)
        states = []
        for index in range(chain.length):
            z, _ = chain.reference(z, *chain.one_step(parameters, index), *chain.options, False)
            noise = torch.rand(z.shape, generator=generator, dtype=z.dtype) * 2 - 1
            z = z * (1 + size * noise)
            if z.requires_grad:
                z.register_hook(lambda g, noise=noise: g * (1 - size * noise))
            states.append(z)
        return z, torch.stack(states)

    return run


def deviations(function: Callable[[Any], Any], chain: Chain) -> tuple[list[float], list[float]]:
    """Errors of every tensor that ``function`` makes of the product, and what the chain allows.

    function: of a runner, tensors -> (z, states), and the tensors.
    """
    exact_chain = chain.to(F64)

    def both(run: Any) -> Any:
        return lambda *t: run(*t, return_states=True)

    exact = function(both(exact_chain.loop), exact_chain.present)
    ours = function(both(chain.run), chain.present)
    others = [function(both(chain.loop), chain.present)]
    number = torch.finfo(chain.dtype)
    for seed in range(3):
        others.append(function(disturbed(exact_chain, 16 * number.eps, seed), exact_chain.present))

    def error(values: list[Tensor]) -> list[float]:
        pairs = zip(values, exact, strict=True)
        return [scale_of((v.double() - e).nan_to_num(0, 0, 0)) for v, e in pairs]

    loops = [max(errors) for errors in zip(*map(error, others), strict=True)]
    allowed = [
        10 * loop + 64 * number.eps * scale_of(e) + 1e3 * number.tiny
        for loop, e in zip(loops, exact, strict=True)
    ]
    return error(ours), allowed


@SETTINGS
@given(chains())
def test_states_are_as_accurate_as_the_loop(chain: Chain) -> None:
    """And the status never says converged, or finished, of a result that is not right."""
    info = chain.run(return_info=True)[1]
    assert (info.status != dpcr.Status.UNCONVERGED).all()
    event(f"{chain.solver['jacobian']}: {sorted(set(info.status.tolist()))}")
    errors, allowed = deviations(lambda run, tensors: list(run(*tensors)), chain)
    for error, most in zip(errors, allowed, strict=True):
        assert error <= most


@SETTINGS
@given(chains())
def test_gradients_are_as_accurate_as_the_loops(chain: Chain) -> None:
    errors, allowed = deviations(gradients, chain)
    for error, most in zip(errors, allowed, strict=True):
        assert error <= most


@SETTINGS
@given(chains(), st.data())
def test_what_did_not_converge_says_so(chain: Chain, data: st.DataObject) -> None:
    """Left as it is, a sample that claims to have converged is right."""
    assume(chain.activation != "gelu")  # its kernel is as exact as PyTorch's, but not relatively
    chain.solver["on_unconverged"] = "ignore"
    if data.draw(st.booleans()):
        chain.solver["rtol"] = 1e-3
    z, states, info = chain.run(return_states=True, return_info=True)
    converged = info.status == dpcr.Status.CONVERGED
    assert ((info.status == dpcr.Status.UNCONVERGED) == ~converged).all()
    exact = chain.to(F64)
    true = exact.loop(return_states=True)[1]
    scale = true.abs().amax(-1)
    number = torch.finfo(chain.dtype)
    rtol = max(chain.solver.get("rtol", 0.0), 32 * number.eps)
    allowed = torch.full_like(scale, 1e3 * number.tiny)
    for run in (chain.loop, lambda **o: chain.run(segments=1, **o)):
        walk = run(return_states=True)[1].double()
        allowed = allowed.maximum((walk - true).abs().amax(-1))
    for seed in range(3):
        noisy = disturbed(exact, rtol, seed)(*exact.present)[1]
        allowed = allowed.maximum((noisy - true).abs().amax(-1))
    error = (states.double() - true).abs().amax(-1)
    assert (error <= 10 * allowed + rtol * scale)[:, converged].all()
    assert torch.equal(z, states[-1])


@SETTINGS
@given(chains(), st.data())
def test_mates_change_nothing(chain: Chain, data: st.DataObject) -> None:
    """A sample's bits are the same whatever the other samples are."""
    batch = chain.batch
    sample = data.draw(st.integers(0, batch - 1))

    def results() -> tuple[Tensor, ...]:
        z, states, info = chain.run(return_states=True, return_info=True)
        tensors = [t.clone().requires_grad_() for t in chain.present]
        gradient = torch.autograd.grad(chain.run(*tensors).square().sum(), tensors[0])[0]
        columns = (z, states.movedim(1, 0), gradient, *info[:4])
        return tuple(column[sample] for column in columns)

    alone = results()
    mates = data.draw(st.sampled_from([float("nan"), float("inf"), 1e30, 0.0, None]))
    others = torch.randn_like(chain.tensors[0]) * 100 if mates is None else mates
    own = chain.tensors[0][sample].clone()
    chain.tensors[0] = torch.zeros_like(chain.tensors[0]) + others
    chain.tensors[0][sample] = own
    for before, after in zip(alone, results(), strict=True):
        assert torch.equal(before.nan_to_num(7.0), after.nan_to_num(7.0))


@SETTINGS
@given(chains(), st.integers(0, 12))
def test_too_few_sweeps_give_the_walk(chain: Chain, limit: int) -> None:
    """Samples that did not converge are bit-equal to one segment, and so is the exact prefix."""
    walk_z, walk = chain.run(return_states=True, segments=1)
    z, states, info = chain.run(return_states=True, return_info=True, max_sweeps=limit)
    finished = info.status == dpcr.Status.SEQUENTIAL
    assert torch.equal(z[finished].nan_to_num(7.0), walk_z[finished].nan_to_num(7.0))
    assert torch.equal(states[:, finished].nan_to_num(7.0), walk[:, finished].nan_to_num(7.0))
    assert (info.sweeps <= max(limit, 1)).all()
