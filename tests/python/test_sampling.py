# SPDX-License-Identifier: Apache-2.0
"""`sample`: what the loop gives, in fewer calls, whatever the options."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from denoisers import Denoiser, loop, start
from torch import Tensor, nn

import torch_deeppcr as dpcr

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

DDIM = {"clip_sample": False}
SCHEDULERS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("DDIM", DDIM, {}),
    ("DDIM", {}, {"eta": 0.8}),
    ("DDPM", {}, {}),
    ("EulerDiscrete", {}, {}),
    ("EulerAncestralDiscrete", {}, {}),
    ("HeunDiscrete", {}, {}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}, {}),
    ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}, {}),
    ("DPMSolverMultistep", {}, {}),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}, {}),
]
JACOBIANS = ("identity", "scalar", "diagonal", "dense")


def make(name: str = "DDIM", config: dict[str, Any] | None = None, steps: int = 40) -> Any:
    scheduler = getattr(diffusers, f"{name}Scheduler")(**(DDIM if config is None else config))
    scheduler.set_timesteps(steps)
    return scheduler


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@torch.no_grad()
def expected(
    model: Any, scheduler: Any, latents: Tensor, generator: Any = None, **options: Any
) -> Tensor:
    states = loop(model, scheduler, latents, generator, **options)
    return torch.stack(states)


def close(actual: Tensor, wanted: Tensor, tolerance: float = 1e-4) -> None:
    far = float((actual - wanted).abs().max())
    assert far <= tolerance * max(1.0, float(wanted.abs().max())), far


@pytest.mark.parametrize("jacobian", JACOBIANS)
@pytest.mark.parametrize(("name", "config", "options"), SCHEDULERS)
def test_the_loops_result(
    name: str, config: dict[str, Any], options: dict[str, Any], jacobian: str
) -> None:
    scheduler, model = make(name, config), Denoiser()
    latents, theirs, ours = start(scheduler), seeded(), seeded()
    wanted = expected(model, scheduler, latents, theirs, **options)
    scheduler = make(name, config)
    found, info = dpcr.sample(
        model, scheduler, latents, None, ours, plan="parallel", jacobian=jacobian,
        return_info=True, return_trajectory=True, **options,
    )  # fmt: skip
    assert info.trajectory is not None
    close(info.trajectory, wanted)
    assert torch.equal(info.trajectory[-1], found)
    assert torch.equal(ours.get_state(), theirs.get_state())
    assert info.converged and info.sequential_steps == 2 and info.plan.parallel
    assert info.sweeps < len(wanted) * (0.5 if jacobian == "dense" else 0.95), info.sweeps
    assert info.residual.shape == (len(wanted), 2)


def test_better_slopes_save_sweeps() -> None:
    model, scheduler = Denoiser(), make("DDPM", {"clip_sample": False}, 100)
    latents = start(scheduler)
    sweeps = {}
    for jacobian in (*JACOBIANS, "zero"):
        _, info = dpcr.sample(
            model, scheduler, latents, None, seeded(), plan="parallel", jacobian=jacobian,
            return_info=True,
        )  # fmt: skip
        sweeps[jacobian] = info.sweeps
    assert sweeps["dense"] < sweeps["diagonal"] < sweeps["identity"] < sweeps["zero"], sweeps


def test_refresh_always_costs_rows_and_adaptive_fewer() -> None:
    model, scheduler = Denoiser(), make("DDPM", {}, 60)
    latents, rows = start(scheduler), {}
    for refresh in ("adaptive", "always"):
        _, info = dpcr.sample(
            model, scheduler, latents, None, seeded(), plan="parallel", refresh=refresh,
            return_info=True,
        )  # fmt: skip
        rows[refresh] = info.rows
    assert rows["adaptive"] < rows["always"]


@pytest.mark.parametrize("window", [1, 2, 7, 1000])
def test_windows(window: int) -> None:
    model, scheduler, latents = Denoiser(), make("DDPM", {}), start(make())
    wanted = expected(model, make("DDPM", {}), latents, seeded())
    model.calls = 0
    found, info = dpcr.sample(
        model, scheduler, latents, None, seeded(), plan="parallel", window=window, return_info=True
    )
    close(found, wanted[-1])
    assert info.plan.window == min(window, 40)
    assert info.calls == model.calls == info.sweeps + 2
    if window == 1:  # the loop, but for its first step
        assert info.sweeps == 39


def test_rows_of_a_call_are_capped() -> None:
    scheduler, latents, most = make(), start(make()), []

    class Counting(Denoiser):
        def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
            most.append(len(x))
            return super().forward(x, t, shift)

    model = Counting()
    free, before = dpcr.sample(model, scheduler, latents, plan="parallel", return_info=True)
    assert max(most) > 9
    most.clear()
    found, info = dpcr.sample(
        model, scheduler, latents, plan="parallel", max_rows=9, return_info=True
    )
    assert max(most) == 9
    assert info.calls > before.calls and info.rows == before.rows == sum(most)
    close(found, free, 1e-6)


def test_memory_that_runs_out_halves_the_rows() -> None:
    class Small(Denoiser):
        def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
            if len(x) > 10:
                raise torch.OutOfMemoryError("too many rows")
            return super().forward(x, t, shift)

    scheduler, latents = make(), start(make())
    found = dpcr.sample(Small(), scheduler, latents, plan="parallel")
    close(found, expected(Denoiser(), make(), latents)[-1])


def test_guidance_and_arguments_that_follow_the_batch() -> None:
    model, latents = Denoiser(), start(make())
    with_, without = torch.randn(2, 2, 3), torch.zeros(2, 2, 3)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        u = model(x, t, without)
        return u + 2.5 * (model(x, t, with_) - u)

    wanted = expected(guided, make(), latents)[-1]

    def nested(x: Tensor, t: Tensor, conditions: dict[str, list[Tensor]], table: Tensor) -> Tensor:
        assert table.shape == (2, 5)  # shared, although its size is that of the batch
        assert conditions["names"][0].shape == (7,)  # not of the batch's size
        return model(x, t, conditions["shift"][0])

    found, info = dpcr.sample(
        nested,
        make(),
        latents,
        model_kwargs={"conditions": {"shift": [with_], "names": [torch.zeros(7)]}},
        negative_kwargs={"conditions": {"shift": [without], "names": [torch.zeros(7)]}},
        shared_kwargs={"table": torch.zeros(2, 5)},
        guidance_scale=2.5,
        plan="parallel",
        return_info=True,
    )
    close(found, wanted)
    assert info.rows % 4 == 0


def test_generators_for_each_sample() -> None:
    model, latents = Denoiser(), start(make("DDPM", {}))
    both = dpcr.sample(
        model, make("DDPM", {}), latents, None, [seeded(1), seeded(2)], plan="parallel"
    )
    one = dpcr.sample(model, make("DDPM", {}), latents[1:], None, seeded(2), plan="parallel")
    close(both[1:], one)


def test_no_generator_is_the_default_one() -> None:
    model, latents = Denoiser(), start(make("DDPM", {}))
    torch.manual_seed(11)
    wanted = expected(model, make("DDPM", {}), latents)[-1]
    after = torch.get_rng_state()
    torch.manual_seed(11)
    close(dpcr.sample(model, make("DDPM", {}), latents, plan="parallel"), wanted)
    assert torch.equal(torch.get_rng_state(), after)


def test_half_precision_models_have_float32_states() -> None:
    class Half(Denoiser):
        def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
            assert x.dtype == torch.bfloat16
            return super().forward(x.float(), t, shift).bfloat16()

    latents = start(make())
    wanted = expected(Denoiser(), make(), latents)[-1]
    found, info = dpcr.sample(Half(), make(), latents.bfloat16(), plan="parallel", return_info=True)
    assert found.dtype == torch.bfloat16
    close(found.float(), wanted, 3e-2)
    assert info.sweeps < 30


def test_autocast_is_the_models_business() -> None:
    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.mix = nn.Linear(3, 3)
            self.seen: set[torch.dtype] = set()

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            out = torch.tanh(self.mix(x)) + 0.5 * x
            self.seen.add(self.mix(x).dtype)
            return out

    model, latents = Layers(), start(make())
    wanted = expected(model, make(), latents)[-1]
    model.seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        found = dpcr.sample(model, make(), latents, plan="parallel")
    assert model.seen == {torch.bfloat16} and found.dtype == torch.float32
    close(found, wanted, 3e-2)


def test_compiled_models() -> None:
    latents, model = start(make()), Denoiser()
    compiled = torch.compile(model, backend="eager", dynamic=True)
    found, info = dpcr.sample(compiled, make(), latents, plan="parallel", return_info=True)
    close(found, expected(model, make(), latents)[-1])
    assert info.sweeps < 30


def test_float64() -> None:
    latents = start(make()).double()
    found = dpcr.sample(Denoiser().double(), make(), latents, plan="parallel", tolerance=1e-10)
    assert found.dtype == torch.float64
    wanted = dpcr.sample(Denoiser().double(), make(), latents, plan="sequential")
    close(found, wanted, 1e-8)
    close(found, expected(Denoiser().double(), make(), latents)[-1], 1e-6)  # float32 inside


def test_tolerance_decides_the_error() -> None:
    latents = start(make(steps=100))
    wanted = expected(Denoiser(), make(steps=100), latents)[-1]
    sweeps, far = [], []
    for tolerance in (1e-1, 1e-5):
        found, info = dpcr.sample(
            Denoiser(), make(steps=100), latents, plan="parallel", tolerance=tolerance,
            return_info=True,
        )  # fmt: skip
        sweeps.append(info.sweeps)
        far.append(float((found - wanted).abs().max()))
    assert sweeps[0] < sweeps[1] and far[1] < far[0] and far[0] < 0.1


def test_a_warm_start_saves_sweeps() -> None:
    latents, model = start(make()), Denoiser()
    _, cold = dpcr.sample(
        model, make(), latents, plan="parallel", return_info=True, return_trajectory=True
    )
    near = latents + 1e-3
    found, warm = dpcr.sample(
        model, make(), near, plan="parallel", warm_start=cold.trajectory, return_info=True
    )
    assert warm.sweeps < cold.sweeps
    close(found, expected(model, make(), near)[-1])


def test_callbacks_in_order_and_previews() -> None:
    latents, steps, sweeps = start(make()), [], []
    states: list[Tensor] = []

    def callback(step: int, timestep: Tensor, x: Tensor) -> None:
        steps.append((step, int(timestep)))
        states.append(x)

    found, info = dpcr.sample(
        Denoiser(), make(), latents, plan="parallel", callback=callback,
        preview=lambda sweep, x: sweeps.append((sweep, x.shape)), return_info=True,
    )  # fmt: skip
    assert steps == list(enumerate(make().timesteps.tolist()))
    assert torch.equal(states[-1], found)
    assert sweeps == [(k + 1, latents.shape) for k in range(info.sweeps)]


def test_progress_counts_steps(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    dpcr.sample(Denoiser(), make(), start(make()), plan="parallel", progress=True)
    assert "40/40" in capsys.readouterr().err


def test_after_max_sweeps_the_loop_goes_on() -> None:
    latents, model = start(make()), Denoiser()
    found, info = dpcr.sample(
        model, make(), latents, plan="parallel", max_sweeps=3, return_info=True,
        return_trajectory=True,
    )  # fmt: skip
    wanted = expected(model, make(), latents)
    assert info.sweeps == 3 and info.sequential_steps > 20 and not info.converged
    assert info.trajectory is not None
    close(info.trajectory, wanted)
    close(found, wanted[-1])


# ---- the plan ------------------------------------------------------------------------------------


def test_auto_takes_the_loop_where_rows_are_not_free() -> None:
    class Slow(Denoiser):
        def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
            rows = [super(Slow, self).forward(x[i : i + 1], t[i : i + 1]) for i in range(len(x))]
            return torch.cat(rows)

    latents = start(make(steps=60))
    found, info = dpcr.sample(Slow(), make(steps=60), latents, return_info=True)
    assert not info.plan.parallel and "would not beat the loop" in info.plan.why
    assert info.converged  # the loop's result, by choice
    assert info.sweeps <= 2 and info.sequential_steps > 40
    close(found, expected(Denoiser(), make(steps=60), latents)[-1])


def test_auto_remembers_that_sweeps_did_not_pay() -> None:
    class Slow(Denoiser):
        def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
            rows = [super(Slow, self).forward(x[i : i + 1], t[i : i + 1]) for i in range(len(x))]
            return torch.cat(rows)

    model, latents = Slow(), start(make(steps=60))
    dpcr.sample(model.forward, make(steps=60), latents)
    _, info = dpcr.sample(model, make(steps=60), latents, return_info=True)
    assert info.sweeps == 0 and "an earlier call found" in info.plan.why
    _, other = dpcr.sample(model, make(steps=60), latents[:1], return_info=True)
    assert "an earlier call" not in other.plan.why


def test_auto_takes_sweeps_where_they_pay_and_the_plan_can_be_pinned() -> None:
    class Latent(Denoiser):  # a call costs the same whatever its rows
        def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
            torch.randn(300, 300) @ torch.randn(300, 300)
            return super().forward(x, t, shift)

    latents, model = start(make(steps=200)), Latent()
    wanted = expected(model, make(steps=200), latents)[-1]
    found, info = dpcr.sample(model, make(steps=200), latents, return_info=True)
    assert info.plan.parallel and "sweeps took" in info.plan.why
    close(found, wanted)
    found, again = dpcr.sample(
        model, make(steps=200), latents, plan=info.plan, jacobian="zero", return_info=True
    )
    assert again.sweeps == info.sweeps and again.plan.jacobian == info.plan.jacobian
    close(found, wanted)


def test_the_loop_when_asked_for_and_for_few_steps() -> None:
    latents, model = start(make()), Denoiser()
    found, info = dpcr.sample(model, make(), latents, plan="sequential", return_info=True)
    close(found, expected(model, make(), latents)[-1], 2e-6)
    assert info.calls == info.sequential_steps == 40 and info.converged and info.sweeps == 0
    _, info = dpcr.sample(model, make(steps=5), latents, return_info=True)
    assert not info.plan.parallel and "5 steps are too few" in info.plan.why


def test_what_is_remembered_goes_with_the_model() -> None:
    from torch_deeppcr.sampling import job

    model = Denoiser()
    dpcr.sample(model, make(), start(make()), plan="parallel")
    gc.collect()
    assert model in job._seen
    count = len(job._seen)
    del model
    gc.collect()
    assert len(job._seen) == count - 1


def test_edges() -> None:
    model = Denoiser()
    empty = dpcr.sample(model, make(), torch.zeros(0, 2, 3))
    assert empty.shape == (0, 2, 3)
    none = dpcr.Schedule(torch.zeros(0), [], [])
    latents = torch.randn(2, 2, 3)
    assert torch.equal(dpcr.sample(model, none, latents), latents)
    single = dpcr.Schedule(torch.ones(1), 0.5, 0.1)
    out = dpcr.sample(model, single, latents, plan="parallel")
    close(out, 0.5 * latents + 0.1 * model(latents, torch.ones(2)).detach(), 1e-6)
    flat = torch.randn(4)  # a batch of numbers
    table = dpcr.Schedule(torch.arange(20), 0.9, 0.1)
    found = dpcr.sample(lambda x, t: torch.sin(x), table, flat, plan="parallel")
    x = flat
    for _ in range(20):
        x = 0.9 * x + 0.1 * torch.sin(x)
    close(found, x)


def test_no_gradients_and_no_change_of_the_scheduler() -> None:
    scheduler, latents = make(steps=20), start(make()).requires_grad_()
    before = scheduler.timesteps.clone()
    found = dpcr.sample(Denoiser(), scheduler, latents, 50, plan="parallel")
    assert not found.requires_grad
    assert torch.equal(scheduler.timesteps, before) and scheduler.num_inference_steps == 20


# ---- bad input -----------------------------------------------------------------------------------


def bad(error: type[Exception], message: str, *, model: Any = None, **arguments: Any) -> None:
    given: dict[str, Any] = {"scheduler": make(), "latents": start(make())} | arguments
    with pytest.raises(error, match=message):
        dpcr.sample(model or Denoiser(), **given)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (TypeError, "latents must be a tensor", {"latents": [1.0]}),
        (TypeError, "latents must be float32", {"latents": torch.zeros(2, 3, dtype=torch.int64)}),
        (ValueError, r"latents must have shape \(B, ...\)", {"latents": torch.tensor(1.0)}),
        (TypeError, "model must be callable", {"model": "unet"}),
        (NotImplementedError, "object cannot run in parallel", {"scheduler": object()}),
        (ValueError, "plan must be one of", {"plan": "fast"}),
        (ValueError, "jacobian must be one of", {"jacobian": "full"}),
        (ValueError, "refresh must be one of", {"refresh": "never"}),
        (ValueError, "window must be at least 1", {"window": 0}),
        (TypeError, "max_rows must be an int", {"max_rows": 2.5}),
        (ValueError, "tolerance must be greater than 0", {"tolerance": 0.0}),
        (ValueError, "num_inference_steps must be at least 1", {"num_inference_steps": 0}),
        (TypeError, "num_inference_steps must be an int", {"num_inference_steps": 9.5}),
        (ValueError, "warm_start must have shape", {"warm_start": torch.zeros(3, 2, 2, 3)}),
        (TypeError, "generator must be a torch.Generator", {"generator": 3}),
        (
            ValueError,
            "generator must have one for each of 2 samples",
            {"generator": [seeded()] * 3},
        ),
        (TypeError, "model_kwargs must be a dict", {"model_kwargs": [1]}),
        (ValueError, "guidance_scale needs negative_kwargs", {"guidance_scale": 3.0}),
        (ValueError, "negative_kwargs has 'prompt'", {"negative_kwargs": {"prompt": None}}),
        (TypeError, "progress must be True or False", {"progress": 1}),
        (NotImplementedError, "strength: is not supported", {"strength": 1}),
    ],
)
def test_arguments(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    bad(error, message, **arguments)


def test_unconditional_arguments_of_another_shape() -> None:
    bad(
        ValueError,
        r"negative_kwargs\['shift'\] must be a tensor of the shape",
        model_kwargs={"shift": torch.zeros(2, 2, 3)},
        negative_kwargs={"shift": torch.zeros(2, 6)},
    )


def test_dense_slopes_of_large_latents() -> None:
    bad(ValueError, 'jacobian="dense" is for states of up to', latents=torch.zeros(1, 4, 32, 32),
        jacobian="dense")  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Dropout(0.1), "Dropout is in training mode"),
        (nn.BatchNorm1d(2), "BatchNorm1d is in tra"),
    ],
)
def test_models_in_training_mode(layer: nn.Module, message: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.layer(x)

    bad(ValueError, message, model=Net().train())
    dpcr.sample(Net().eval(), make(), start(make()), plan="parallel")


def test_models_with_step_caches() -> None:
    class Cached(Denoiser):
        is_cache_enabled = True

    bad(ValueError, "Cached has a cache from step to step", model=Cached())


def test_diffusers_own_hooks() -> None:
    """Those with state are refused, whatever their names; others are not."""
    from diffusers import hooks

    def transformer() -> Any:
        return diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8,
            axes_dims_rope=(4, 4, 8),
        ).eval()  # fmt: skip

    cached = transformer()
    hooks.apply_first_block_cache(cached, hooks.FirstBlockCacheConfig(threshold=0.1))
    bad(ValueError, "has the hook 'fbc_leader_block_hook', which keeps state", model=cached)
    repeated = transformer()
    every = hooks.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 1
    )
    hooks.apply_pyramid_attention_broadcast(repeated, every)
    bad(ValueError, "has the hook 'pyramid_attention_broadcast'", model=repeated)
    cast = Denoiser()
    hooks.apply_layerwise_casting(cast, torch.float8_e4m3fn, torch.float32, skip_modules_pattern=())
    dpcr.sample(cast, make(), start(make()), plan="parallel")


def test_models_that_change_from_call_to_call() -> None:
    class Counting(Denoiser):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
            self.count += 1
            return super().forward(x, t, shift)

    bad(ValueError, "a call changes its buffers", model=Counting(), plan="parallel")

    class Hidden(Denoiser):
        def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
            return super().forward(x, t, shift) + 0.1 * self.calls

    bad(ValueError, "another result in a call with other rows", model=Hidden(), plan="parallel")


def test_models_that_mix_rows() -> None:
    bad(
        ValueError,
        "rows must not depend on each other",
        model=lambda x, t: x - x.mean(0),
        plan="parallel",
    )


def test_outputs_of_another_shape() -> None:
    bad(ValueError, "must return a tensor of the shape of its input", model=lambda x, t: x[:, :1])
    bad(ValueError, "predicts variances", model=lambda x, t: torch.cat((x, x), 1))
    bad(TypeError, "model must return a tensor, a tuple", model=lambda x, t: None)


def test_tuples_and_objects_with_a_sample() -> None:
    latents, model = start(make()), Denoiser()
    wanted = dpcr.sample(model, make(), latents, plan="parallel")
    assert torch.equal(
        dpcr.sample(lambda x, t: (model(x, t), 1), make(), latents, plan="parallel"), wanted
    )

    class Out:
        def __init__(self, sample: Tensor) -> None:
            self.sample = sample

    assert torch.equal(
        dpcr.sample(lambda x, t: Out(model(x, t)), make(), latents, plan="parallel"), wanted
    )


def test_a_model_that_returns_nan_is_treated_as_the_loop_does() -> None:
    class Breaking(Denoiser):
        def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
            out = super().forward(x, t, shift)
            hot = (torch.as_tensor(t).reshape(-1, 1, 1) < 500) & (x[:, :1, :1] > 0)
            return torch.where(hot, torch.nan, out)

    model, latents = Breaking(), torch.randn(6, 2, 3, generator=seeded())
    wanted = expected(model, make(), latents)[-1]
    assert wanted.isnan().any() and not wanted.isnan().all()
    found, info = dpcr.sample(model, make(), latents, plan="parallel", return_info=True)
    assert torch.equal(found.isnan(), wanted.isnan())
    close(found.nan_to_num(), wanted.nan_to_num())
    assert info.sweeps < 30 and not info.converged


def test_an_exception_of_the_model_is_the_callers() -> None:
    def broken(x: Tensor, t: Tensor) -> Tensor:
        raise KeyError("mine")

    bad(KeyError, "mine", model=broken)
