# SPDX-License-Identifier: Apache-2.0
"""Schedulers read as tables do, step by step, what the scheduler does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from denoisers import Denoiser, loop, start

from torch_deeppcr.sampling import Schedule, noise, schedulers

diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SPACINGS = ("leading", "trailing", "linspace")
PREDICTIONS = ("epsilon", "sample", "v_prediction")


def _cases() -> list[Any]:
    cases: list[Any] = []
    for spacing in SPACINGS:
        for prediction in PREDICTIONS:
            base = {"timestep_spacing": spacing, "prediction_type": prediction}
            cases += [("DDIM", base | {"clip_sample": False}, {"eta": eta}) for eta in (0.0, 0.6)]
            cases.append(("DDIM", base | {"set_alpha_to_one": False, "steps_offset": 1}, {}))
            cases.append(("DDIM", base, {"use_clipped_model_output": True, "eta": 0.3}))
            cases += [
                ("DDPM", base | {"variance_type": kind}, {})
                for kind in ("fixed_small", "fixed_small_log", "fixed_large")
            ]
            cases.append(("DDPM", base | {"clip_sample": False, "steps_offset": 1}, {}))
            cases.append(("EulerDiscrete", base, {}))
            cases.append(("HeunDiscrete", base | {"clip_sample": spacing == "leading"}, {}))
            if prediction != "sample":
                cases.append(("EulerAncestralDiscrete", base, {}))
            for algorithm in ("dpmsolver++", "sde-dpmsolver++"):
                for solver in ("midpoint", "heun"):
                    config = base | {"algorithm_type": algorithm, "solver_type": solver}
                    cases.append(("DPMSolverMultistep", config, {}))
    scaled = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    cases += [
        ("DDIM", {"thresholding": True, "sample_max_value": 1.5}, {}),
        (
            "DDIM",
            {
                "rescale_betas_zero_snr": True,
                "timestep_spacing": "trailing",
                "prediction_type": "v_prediction",
            },
            {},
        ),
        ("DDIM", scaled | {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}, {}),
        ("EulerDiscrete", scaled | {"use_karras_sigmas": True}, {}),
        ("EulerDiscrete", scaled | {"final_sigmas_type": "sigma_min"}, {}),
        ("EulerDiscrete", {"prediction_type": "v_prediction", "timestep_type": "continuous"}, {}),
        ("HeunDiscrete", {"use_karras_sigmas": True}, {}),
        ("DPMSolverMultistep", {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}, {}),
        ("DPMSolverMultistep", {"solver_order": 1}, {}),
        ("DPMSolverMultistep", {"euler_at_final": True, "thresholding": True}, {}),
        ("DPMSolverMultistep", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}, {}),
        ("FlowMatchEulerDiscrete", {}, {}),
        ("FlowMatchEulerDiscrete", {"shift": 3.0}, {}),
        ("FlowMatchEulerDiscrete", {"invert_sigmas": True}, {}),
        ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}, {}),
    ]
    return cases


def _make(name: str, config: dict[str, Any], steps: int) -> Any:
    scheduler = getattr(diffusers, f"{name}Scheduler")(**config)
    scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize("steps", [7, 30])
@pytest.mark.parametrize(("name", "config", "options"), _cases())
def test_every_step_is_the_schedulers(
    name: str, config: dict[str, Any], options: dict[str, Any], steps: int
) -> None:
    model = Denoiser()
    scheduler = _make(name, config, steps)
    latents = start(scheduler)
    schedule = schedulers.read(_make(name, config, steps), options)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        states = loop(model, scheduler, latents, generator, **options)
        ours, mine = torch.Generator().manual_seed(5), []
        assert len(schedule) == len(states)
        remembered = torch.zeros_like(latents).flatten(1)
        for step, (before, after) in enumerate(zip([latents, *states], states, strict=False)):
            state = before.flatten(1)
            if schedule.remembers:
                state = torch.cat((state, remembered), -1)
            found = schedule.step(
                torch.tensor([step]), state[None], lambda x, t, rows: model(x, t), latents.shape[1:]
            )[0]
            x, *rest = found.chunk(schedule.parts, -1)
            remembered = rest[0] if rest else remembered
            if schedule.draws[step]:
                drawn = noise.draw(latents.shape, ours, torch.float32, latents.device).flatten(1)
                x = x + schedule.column("noise", torch.tensor([step]), x)[0] * drawn
            mine.append((x - after.flatten(1)).abs().max() / after.abs().max().clamp(min=1))
        assert float(torch.stack(mine).max()) < 3e-6
    assert torch.equal(ours.get_state(), generator.get_state())


@pytest.mark.parametrize("name", ["EulerDiscrete", "HeunDiscrete", "DPMSolverMultistep"])
def test_a_loop_that_begins_late(name: str) -> None:
    begin = 8
    scheduler = _make(name, {}, 20)
    scheduler.set_begin_index(begin)
    schedule = schedulers.read(scheduler, {})
    skipped = begin // scheduler.order
    assert len(schedule) == 20 - skipped
    whole = schedulers.read(_make(name, {}, 20), {})
    assert torch.equal(schedule.timesteps, whole.timesteps[skipped:])
    model, latents = Denoiser(), start(scheduler)
    with torch.no_grad():
        expected = loop(model, scheduler, latents, begin=begin)
        state = latents.flatten(1)
        if schedule.remembers:
            state = torch.cat((state, torch.full_like(state, 7.0)), -1)  # which nobody reads
        for step in range(len(schedule)):
            state = schedule.step(
                torch.tensor([step]), state[None], lambda x, t, rows: model(x, t), latents.shape[1:]
            )[0]
        x = state.chunk(schedule.parts, -1)[0]
    torch.testing.assert_close(x, expected[-1].flatten(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "config", "options", "message"),
    [
        ("PNDM", {}, {}, "remembers four"),
        ("DDIM", {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}, {},
         "from pure noise"),
        ("DPMSolverMultistep", {"solver_order": 3}, {}, "solver_order 1 or 2"),
        ("DPMSolverMultistep", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
         {}, "dpmsolver\\+\\+"),
        ("DDPM", {"variance_type": "learned_range"}, {}, "learned_range"),
        ("EulerDiscrete", {}, {"s_churn": 0.5}, "s_churn must be 0"),
        ("DDPM", {}, {"eta": 0.5}, "eta: is not supported with DDPMScheduler"),
        ("DDIM", {}, {"variance_noise": torch.zeros(1)}, "variance_noise"),
    ],
)  # fmt: skip
def test_refused_with_the_reason(
    name: str, config: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(NotImplementedError, match=message):
        schedulers.read(_make(name, config, 10), options)


def test_a_subclass_may_do_anything() -> None:
    class Own(diffusers.DDIMScheduler):  # type: ignore[misc]
        pass

    with pytest.raises(NotImplementedError, match="Own cannot run in parallel"):
        schedulers.read(Own(), {})


def test_without_timesteps() -> None:
    with pytest.raises(ValueError, match="set_timesteps has not been called"):
        schedulers.read(diffusers.DDIMScheduler(), {})


def test_a_table_of_your_own() -> None:
    times = torch.arange(4, 0, -1)
    schedule = Schedule(times, 0.9, [0.1, 0.2, 0.3, 0.4], noise=[0, 0, 1, 0])
    assert schedule.draws.tolist() == [False, False, True, False]
    assert schedulers.read(schedule, {}) is schedule
    with pytest.raises(ValueError, match=r"model must be a number or have one for each of the 4"):
        Schedule(times, 0.9, [0.1, 0.2])
    with pytest.raises(ValueError, match=r"sample must be finite, it is nan in step 2"):
        Schedule(times, [1, 1, float("nan"), 1], 0.1)
    with pytest.raises(ValueError, match=r"timesteps must have shape \(L,\)"):
        Schedule(times[None], 0.9, 0.1)
    with pytest.raises(ValueError, match=r"draws must have shape \(4,\)"):
        Schedule(times, 0.9, 0.1, draws=torch.ones(3))
    with pytest.raises(NotImplementedError, match="eta: is not supported with table"):
        schedulers.read(schedule, {"eta": 1.0})
