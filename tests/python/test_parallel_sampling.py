# SPDX-License-Identifier: Apache-2.0
"""`parallel_sampling`: pipelines of diffusers, untouched, give the same images in fewer calls."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import torch_deeppcr as dpcr

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers, about themselves

STEPS = 25


def unet(channels: int = 1, **config: Any) -> Any:
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=channels, out_channels=channels, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), **config,
    ).eval()  # fmt: skip


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def plain_pipe(kind: str = "DDIM", **config: Any) -> Any:
    scheduler = getattr(diffusers, f"{kind}Scheduler")(**config)
    return quiet(getattr(diffusers, f"{kind}Pipeline")(unet(), scheduler))


def stable_diffusion(scheduler: str = "DDIM", **config: Any) -> Any:
    """Stable Diffusion's pipeline with small random networks; prompts are given as embeddings."""
    torch.manual_seed(0)
    network = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, cross_attention_dim=12,
        attention_head_dim=4, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    pipe = diffusers.StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=None, tokenizer=None, unet=network.eval(),
        scheduler=getattr(diffusers, f"{scheduler}Scheduler")(**config), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return quiet(pipe)


def prompts() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(4)
    positive, negative = torch.randn(2, 1, 5, 12, generator=generator)
    return {"prompt_embeds": positive, "negative_prompt_embeds": negative}


@contextlib.contextmanager
def counted(network: Any) -> Iterator[list[int]]:
    """Rows of every real call of the network."""
    rows: list[int] = []
    original = network.forward

    def forward(sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(sample))
        return original(sample, timestep, *args, **kwargs)

    network.forward = functools.wraps(original)(forward)
    try:
        yield rows
    finally:
        del network.forward


def both(
    pipe: Any, call: Callable[[torch.Generator], Any], network: Any, **options: Any
) -> tuple[Any, Any, Any]:
    """Images of the pipeline and of the parallel one, and how that went."""
    theirs, ours = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    wanted = call(theirs)
    with counted(network) as rows, dpcr.parallel_sampling(pipe, **options) as replay:
        found = call(ours)
    assert torch.equal(ours.get_state(), theirs.get_state())
    assert len(rows) == replay.info.calls + 1  # the first step
    return wanted, found, replay.info


PLAIN: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("DDIM", {"clip_sample": False}, {}),
    ("DDIM", {"clip_sample": False}, {"eta": 0.5}),
    ("DDIM", {}, {"use_clipped_model_output": True}),
    ("DDPM", {}, {}),
]


@pytest.mark.parametrize("jacobian", ["identity", "diagonal"])
@pytest.mark.parametrize(("kind", "config", "arguments"), PLAIN)
def test_pipelines_without_prompts(
    kind: str, config: dict[str, Any], arguments: dict[str, Any], jacobian: str
) -> None:
    pipe = plain_pipe(kind, **config)

    def call(generator: torch.Generator) -> Any:
        return pipe(
            2, generator=generator, num_inference_steps=STEPS, output_type="np", **arguments
        ).images

    wanted, found, info = both(pipe, call, pipe.unet, plan="parallel", jacobian=jacobian)
    assert wanted.shape == (2, 8, 8, 1)
    assert np.abs(wanted - found).max() < 1e-4
    assert info.calls < STEPS and info.plan.jacobian == jacobian


SCHEDULERS: list[tuple[str, dict[str, Any]]] = [
    ("DDIM", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDPM", {"clip_sample": False}),
    ("EulerDiscrete", {}),
    ("EulerAncestralDiscrete", {}),
    ("DPMSolverMultistep", {}),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++"}),
]


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize(("scheduler", "config"), SCHEDULERS)
def test_stable_diffusion(scheduler: str, config: dict[str, Any], guidance: float) -> None:
    pipe = stable_diffusion(scheduler, **config)

    def call(generator: torch.Generator) -> Any:
        return pipe(
            **prompts(), generator=generator, num_inference_steps=STEPS, output_type="np",
            guidance_scale=guidance, height=16, width=16, num_images_per_prompt=2,
        ).images  # fmt: skip

    wanted, found, info = both(pipe, call, pipe.unet, plan="parallel")
    assert wanted.shape == (2, 16, 16, 3) and wanted.std() > 0.01
    assert np.abs(wanted - found).max() < 1e-4
    assert info.converged and info.sweeps < STEPS
    copies = 2 if guidance > 1 else 1
    assert info.rows % (2 * copies) == 0


def test_a_transformer_with_packed_latents_and_scaled_times() -> None:
    """How Flux and Stable Diffusion 3 call theirs: keyword arguments, timesteps / 1000."""

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = torch.nn.Linear(4, 4)

        def forward(
            self, hidden_states: Tensor, timestep: Tensor, prompt: Tensor, return_dict: bool = True
        ) -> tuple[Tensor]:
            assert timestep.shape == hidden_states.shape[:1] and not return_dict
            assert float(timestep.max()) <= 1
            out = torch.tanh(self.mix(hidden_states)) * timestep.view(-1, 1, 1)
            return (out + prompt.unsqueeze(1) - 0.5 * hidden_states,)

    class Pipe:
        def __init__(self) -> None:
            torch.manual_seed(0)
            self.transformer = Network()
            self.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)

        @torch.no_grad()
        def __call__(self, latents: Tensor, prompt: Tensor) -> Tensor:
            self.scheduler.set_timesteps(STEPS)
            for t in self.scheduler.timesteps:
                time = t.expand(len(latents)) / 1000
                out = self.transformer(
                    hidden_states=latents, timestep=time, prompt=prompt, return_dict=False
                )[0]
                latents = self.scheduler.step(out, t, latents, return_dict=False)[0]
            return latents

    pipe, latents, prompt = Pipe(), torch.randn(2, 6, 4), torch.randn(2, 4)
    wanted = pipe(latents, prompt)
    with dpcr.parallel_sampling(pipe, plan="parallel") as replay:
        found = pipe(latents, prompt)
    assert float((found - wanted).abs().max()) < 1e-4 and replay.info.sweeps < 20


def test_guided_arguments_in_dicts_follow_their_half() -> None:
    """SDXL's ``added_cond_kwargs``: doubled as the latents are, in a dict, beside shared ones."""

    class Network(torch.nn.Module):
        def forward(self, sample: Tensor, timestep: Tensor, extra: dict[str, Any]) -> Tensor:
            assert extra["table"].shape == (7,) and len(extra["text"][0]) == len(sample)
            return torch.tanh(sample) + extra["text"][0]

    class Pipe:
        def __init__(self) -> None:
            self.unet = Network()
            self.scheduler = diffusers.DDIMScheduler(clip_sample=False)

        @torch.no_grad()
        def __call__(self, latents: Tensor, text: Tensor) -> Tensor:
            self.scheduler.set_timesteps(STEPS)
            both = torch.cat((torch.zeros_like(text), text))
            for t in self.scheduler.timesteps:
                extra = {"text": [both], "table": torch.arange(7)}
                u, c = self.unet(torch.cat((latents, latents)), t, extra).chunk(2)
                latents = self.scheduler.step(u + 3.0 * (c - u), t, latents).prev_sample
            return latents

    pipe, latents, text = Pipe(), torch.randn(2, 4), 0.3 * torch.randn(2, 4)
    wanted = pipe(latents, text)
    with dpcr.parallel_sampling(pipe, plan="parallel") as replay:
        found = pipe(latents, text)
    assert float((found - wanted).abs().max()) < 1e-4
    assert replay.info.sweeps < STEPS - 2 and replay.info.rows % 4 == 0


def test_image_to_image_begins_late() -> None:
    pipe = stable_diffusion(clip_sample=False)
    late = quiet(diffusers.StableDiffusionImg2ImgPipeline(**pipe.components))
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))

    def call(generator: torch.Generator) -> Any:
        return late(
            **prompts(), image=image, strength=0.6, generator=generator, output_type="np",
            num_inference_steps=STEPS, guidance_scale=3.0,
        ).images  # fmt: skip

    wanted, found, info = both(late, call, late.unet, plan="parallel")
    assert np.abs(wanted - found).max() < 1e-4
    assert len(info.residual) == int(STEPS * 0.6) - 1


def test_a_callback_may_replace_latents() -> None:
    pipe = stable_diffusion(clip_sample=False)
    changed = []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 12:
            changed.append(step)
            return {"latents": tensors["latents"] * 1.1}
        return {}

    def call(generator: torch.Generator) -> Any:
        return pipe(
            **prompts(), generator=generator, num_inference_steps=STEPS, output_type="np",
            callback_on_step_end=callback, height=16, width=16,
        ).images  # fmt: skip

    wanted = call(torch.Generator().manual_seed(7))
    with (
        counted(pipe.unet) as rows,
        dpcr.parallel_sampling(pipe, plan="parallel") as replay,
    ):
        found = call(torch.Generator().manual_seed(7))
    assert changed == [12, 12]
    assert np.abs(wanted - found).max() < 1e-4
    assert len(rows) == replay.info.calls + 1 + STEPS - 13  # the rest on the real network


def test_a_callback_may_change_the_guidance() -> None:
    pipe = stable_diffusion(clip_sample=False)

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 10:
            pipe._guidance_scale = 1.5
        return {}

    def call() -> Any:
        return pipe(
            **prompts(), generator=torch.Generator().manual_seed(7), num_inference_steps=STEPS,
            callback_on_step_end=callback, height=16, width=16, output_type="np",
        ).images  # fmt: skip

    wanted = call()
    with dpcr.parallel_sampling(pipe, plan="parallel"):
        found = call()
    assert np.abs(wanted - found).max() < 1e-3


def test_several_calls_and_a_loop_that_was_left() -> None:
    pipe = plain_pipe(clip_sample=False)

    def call(steps: int = STEPS) -> Any:
        generator = torch.Generator().manual_seed(7)
        return pipe(1, generator=generator, num_inference_steps=steps, output_type="np").images

    wanted, shorter = call(), call(20)
    with dpcr.parallel_sampling(pipe, plan="parallel") as replay:
        with pytest.raises(RuntimeError, match="has not been called"):
            replay.info  # noqa: B018
        assert np.abs(call() - wanted).max() < 1e-4
        assert np.abs(call(20) - shorter).max() < 1e-4
        assert len(replay.infos) == 2
        step, calls = pipe.scheduler.step, [0]

        def interrupted(*args: Any, **kwargs: Any) -> Any:
            calls[0] += 1
            if calls[0] == 5:
                raise KeyboardInterrupt
            return step(*args, **kwargs)

        pipe.scheduler.step = interrupted
        with pytest.raises(KeyboardInterrupt):
            call()
        pipe.scheduler.step = step
        assert np.abs(call() - wanted).max() < 1e-4


def test_nothing_is_left_behind() -> None:
    pipe = plain_pipe(clip_sample=False)
    before = (dict(vars(pipe.unet)), dict(vars(pipe.scheduler)))
    with pytest.raises(KeyboardInterrupt), dpcr.parallel_sampling(pipe):
        assert "forward" in vars(pipe.unet) and "step" in vars(pipe.scheduler)
        raise KeyboardInterrupt
    assert (dict(vars(pipe.unet)), dict(vars(pipe.scheduler))) == before


def test_auto_leaves_the_loop_alone_where_it_would_not_pay() -> None:
    pipe = plain_pipe(clip_sample=False)

    def call(steps: int) -> Any:
        generator = torch.Generator().manual_seed(7)
        return pipe(8, generator=generator, num_inference_steps=steps, output_type="np").images

    wanted = call(5), call(STEPS)
    with dpcr.parallel_sampling(pipe) as replay:
        found = call(5), call(STEPS)
    assert "5 steps are too few" in replay.infos[0].plan.why
    for a, b in zip(wanted, found, strict=True):
        assert np.abs(a - b).max() < 1e-4


# ---- what is refused -----------------------------------------------------------------------------


def refused(message: str, pipe: Any, call: Callable[[], Any]) -> None:
    with (
        pytest.raises(NotImplementedError, match=message),
        dpcr.parallel_sampling(pipe, plan="parallel"),
    ):
        call()


def test_guidance_of_another_form() -> None:
    pipe = stable_diffusion(clip_sample=False)
    refused(
        "guidance_rescale",
        pipe,
        lambda: pipe(
            **prompts(), num_inference_steps=10, guidance_rescale=0.7, height=16, width=16
        ),
    )


def test_schedulers_and_options_that_have_no_table() -> None:
    pipe = stable_diffusion("PNDM")
    refused(
        "PNDMScheduler cannot run in parallel",
        pipe,
        lambda: pipe(**prompts(), num_inference_steps=10, height=16, width=16),
    )
    pipe = stable_diffusion("HeunDiscrete")
    refused(
        "steps twice",
        pipe,
        lambda: pipe(**prompts(), num_inference_steps=10, height=16, width=16),
    )


class _Loop:
    """A pipeline's loop, to be varied."""

    def __init__(self, calls: Callable[..., Tensor]) -> None:
        self.unet = unet()
        self.scheduler = diffusers.DDIMScheduler(clip_sample=False)
        self.calls = calls

    @torch.no_grad()
    def __call__(self) -> Tensor:
        self.scheduler.set_timesteps(10)
        x = torch.randn(1, 1, 8, 8)
        for i, t in enumerate(self.scheduler.timesteps):
            x = self.scheduler.step(self.calls(self, x, t, i), t, x).prev_sample
        return x


def _arguments_change(pipe: Any, x: Tensor, t: Tensor, i: int) -> Tensor:
    return pipe.unet(x, t, class_labels=None, return_dict=i % 2 == 0)[0]


def _twice(pipe: Any, x: Tensor, t: Tensor, i: int) -> Tensor:
    return pipe.unet(x, t).sample + pipe.unet(-x, t).sample


def _other_input(pipe: Any, x: Tensor, t: Tensor, i: int) -> Tensor:
    return pipe.unet(x + 1, t).sample


def _other_output(pipe: Any, x: Tensor, t: Tensor, i: int) -> Tensor:
    return pipe.unet(x, t).sample * 1.2


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        (_arguments_change, "'return_dict' differs from step to step"),
        (_twice, "called more than once in a step"),
        (_other_input, "is not the scaled latents"),
        (_other_output, "does not follow from the denoiser's answer"),
    ],
)
def test_loops_that_are_not_understood(calls: Callable[..., Tensor], message: str) -> None:
    pipe = _Loop(calls)
    refused(message, pipe, pipe)


def test_arguments() -> None:
    pipe = plain_pipe()
    wrong = pytest.raises(ValueError, match="jacobian must be one of")
    with wrong, dpcr.parallel_sampling(pipe, jacobian="full"):
        pass
    none = pytest.raises(NotImplementedError, match="must have one network")
    with none, dpcr.parallel_sampling(object()):
        pass
    pipe.unet = unet(dropout=0.1).train()
    training = pytest.raises(ValueError, match="Dropout is in training mode")
    with training, dpcr.parallel_sampling(pipe, plan="parallel"):
        pipe(1, num_inference_steps=10)
