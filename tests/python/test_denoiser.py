# SPDX-License-Identifier: Apache-2.0
"""`nn.Denoiser`: the network, and its denoising loop as one operator."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from denoisers import loop, start
from torch import Tensor

import torch_deeppcr as dpcr
from torch_deeppcr.sampling import schedulers

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SCHEDULERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("DDIM", {"clip_sample": False}, {}),
    ("DDIM", {"clip_sample": False, "prediction_type": "v_prediction"}, {"eta": 0.5}),
    ("DDPM", {"clip_sample": False}, {}),
    ("EulerDiscrete", {}, {}),
    ("EulerAncestralDiscrete", {}, {}),
    ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}, {}),
]


def network(width: int = 6, layers: int = 2, **options: Any) -> dpcr.nn.Denoiser:
    torch.manual_seed(0)
    return dpcr.nn.Denoiser(width, 16, layers, **options)


def make(name: str, config: dict[str, Any], steps: int = 25) -> Any:
    scheduler = getattr(diffusers, f"{name}Scheduler")(**config)
    scheduler.set_timesteps(steps)
    return scheduler


def drawn(schedule: dpcr.Schedule, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    if not schedule.has_noise:
        return None
    generator = torch.Generator().manual_seed(9)
    steps = [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(len(schedule))]
    return torch.stack(steps)


def close(actual: Tensor, wanted: Tensor, tolerance: float = 2e-5) -> None:
    far = float((actual - wanted).abs().max())
    assert far <= tolerance * max(1.0, float(wanted.abs().max())), far


def test_the_network() -> None:
    net = network(layers=1, activation="tanh")
    x, t = torch.randn(3, 2, 3), torch.tensor([0.0, 10.0, 999.0])
    half = 32
    angles = t[:, None] * torch.exp(-math.log(1e4) * torch.arange(half) / half)
    bias = net.time(torch.cat((angles.sin(), angles.cos()), -1)).view(3, 2, 16)
    a = torch.tanh(x.flatten(1) @ net.weight_in.T + bias[:, 0])
    a = a + torch.tanh(a @ net.weight_hidden[0].T + bias[:, 1])
    out = (a @ net.weight_out.T + net.bias_out).view_as(x)
    torch.testing.assert_close(net(x, t), out)
    torch.testing.assert_close(net(x, 10), net(x, torch.full((3,), 10.0)))
    assert set(net.state_dict()) == {
        "weight_in", "weight_hidden", "weight_out", "bias_out",
        "time.0.weight", "time.0.bias", "time.2.weight", "time.2.bias",
    }  # fmt: skip
    assert "width=6, hidden=16, layers=1" in repr(net)
    torch.testing.assert_close(copy.deepcopy(net)(x, t), out)


@pytest.mark.parametrize("segments", [1, 5, 25])
@pytest.mark.parametrize(("name", "config", "options"), SCHEDULERS)
def test_its_loop_is_the_schedulers(
    name: str, config: dict[str, Any], options: dict[str, Any], segments: int
) -> None:
    net, scheduler = network(), make(name, config)
    latents = start(scheduler, shape=(6,))
    schedule = schedulers.read(make(name, config), options)
    noise = drawn(schedule, (2, 6), torch.float32)
    with torch.no_grad():
        wanted = torch.stack(
            loop(net, scheduler, latents, torch.Generator().manual_seed(9), **options)
        )
        found, states, info = net.denoise(
            latents, schedule, noise, return_states=True, return_info=True, segments=segments
        )
    close(states, wanted)
    close(found, wanted[-1])
    torch.testing.assert_close(states[-1], found)
    assert (info.sweeps == 1).all() if segments == 1 else (info.sweeps > 1).all()


@pytest.mark.parametrize("segments", [1, 6])
def test_gradients_of_latents_parameters_and_noise(segments: int) -> None:
    net = network().double()
    schedule = schedulers.read(make("DDPM", {"clip_sample": False}, 12), {})
    noise = drawn(schedule, (2, 6), torch.float64)
    assert noise is not None
    latents = torch.randn(2, 6, dtype=torch.float64)

    def walked(x: Tensor, noise: Tensor) -> Tensor:
        for step, t in enumerate(schedule.timesteps):
            which = torch.tensor([step])
            x = schedule.step(which, x[None], lambda x, t, rows: net(x, t), x.shape[1:])[0]
            x = x + schedule.column("noise", which, x)[0] * noise[step]
            del t
        return x

    def native(x: Tensor, noise: Tensor) -> Tensor:
        out = net.denoise(x, schedule, noise, segments=segments)
        assert isinstance(out, Tensor)
        return out

    results = []
    for run in (walked, native):
        leaves = [latents.clone().requires_grad_(), noise.clone().requires_grad_()]
        net.zero_grad()
        out = run(*leaves)
        out.square().sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
        results[-1] += [p.grad.clone() for p in net.parameters() if p.grad is not None]
    assert len(results[0]) == len(results[1]) == 3 + len(list(net.parameters()))
    for wanted, found in zip(*results, strict=True):
        assert wanted is not None and found is not None
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "config", "options"), SCHEDULERS)
def test_sample_takes_the_operator(
    name: str, config: dict[str, Any], options: dict[str, Any]
) -> None:
    net, latents = network(), start(make(name, config), shape=(2, 3))
    theirs, ours = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    with torch.no_grad():
        wanted = torch.stack(loop(net, make(name, config), latents, theirs, **options))
    steps: list[int] = []
    found, info = dpcr.sample(
        net, make(name, config), latents, None, ours, return_info=True, return_trajectory=True,
        callback=lambda step, t, x: steps.append(step), **options,
    )  # fmt: skip
    close(found, wanted[-1])
    close(info.trajectory, wanted)
    assert torch.equal(ours.get_state(), theirs.get_state())
    assert "native" in info.plan.why and info.sweeps == 0 and info.converged
    assert info.calls == 25 and info.rows == 50 and steps == list(range(25))


def test_sample_takes_sweeps_or_the_loop_where_it_is_told_to_or_must() -> None:
    net = network()
    config = {"clip_sample": False}
    latents = start(make("DDIM", config), shape=(6,))
    wanted = dpcr.sample(net, make("DDIM", config), latents)
    for plan, word in (("parallel", "as asked for"), ("sequential", "as asked for")):
        found, info = dpcr.sample(net, make("DDIM", config), latents, plan=plan, return_info=True)
        assert word in info.plan.why
        close(found, wanted, 1e-4)
    with dpcr.sequential():
        found, info = dpcr.sample(net, make("DDIM", config), latents, return_info=True)
    assert "native" not in info.plan.why
    close(found, wanted, 1e-4)
    _, info = dpcr.sample(net, make("DDIM", {}), latents, return_info=True)  # clipped
    assert "native" not in info.plan.why


def test_a_warm_start_saves_sweeps() -> None:
    net = network()
    schedule = schedulers.read(make("EulerDiscrete", {}, 100), {})
    latents = 14 * torch.randn(2, 6)
    _, states, cold = net.denoise(
        latents, schedule, return_states=True, return_info=True, segments=100
    )
    _, warm = net.denoise(latents, schedule, warm_start=states, return_info=True, segments=100)
    assert (warm.sweeps < cold.sweeps).all()


def test_edges_and_mistakes() -> None:
    net = network()
    schedule = dpcr.Schedule(torch.arange(5), 0.9, 0.1)
    assert net.denoise(torch.zeros(0, 6), schedule).shape == (0, 6)
    none = dpcr.Schedule(torch.zeros(0), [], [])
    latents = torch.randn(2, 6)
    assert torch.equal(net.denoise(latents, none), latents)
    assert network(layers=0).denoise(latents, schedule).shape == (2, 6)
    with pytest.raises(ValueError, match="latents must have 6 numbers in each sample"):
        net.denoise(torch.zeros(2, 5), schedule)
    with pytest.raises(ValueError, match="noise must be None with table"):
        net.denoise(latents, schedule, torch.zeros(5, 2, 6))
    noisy = dpcr.Schedule(torch.arange(5), 0.9, 0.1, noise=0.1)
    with pytest.raises(ValueError, match="noise must be given with table"):
        net.denoise(latents, noisy)
    with pytest.raises(ValueError, match=r"noise must have shape \(L, B, ...\)"):
        net.denoise(latents, noisy, torch.zeros(4, 2, 6))
    clipped = schedulers.read(make("DDIM", {}), {})
    with pytest.raises(NotImplementedError, match="no chain of linear steps"):
        net.denoise(latents, clipped)
    with pytest.raises(ValueError, match="features must be an even number"):
        network(features=7)
    with pytest.raises(TypeError, match="hidden must be an int"):
        dpcr.nn.Denoiser(4, 2.5)  # type: ignore[arg-type]
