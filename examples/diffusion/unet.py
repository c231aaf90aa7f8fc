# SPDX-License-Identifier: Apache-2.0
"""The second part: diffusers' UNet2DModel in an untouched DDIMPipeline, with and without
`dpcr.parallel_sampling` around the call."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import training
from data import PIXELS, SIDE
from measure import differences
from options import Options
from quality import Judge
from torch import Tensor, nn

import torch_deeppcr as dpcr

BATCH = 32
"""Of the training: convolutions cost more than the denoisers of the first part."""
PLANS: dict[str, dict[str, str]] = {
    "the pipeline": {},
    "parallel_sampling, auto": {"plan": "auto"},
    "parallel_sampling, diagonal": {"plan": "parallel", "jacobian": "diagonal"},
    "parallel_sampling, scalar": {"plan": "parallel", "jacobian": "scalar"},
    "parallel_sampling, identity": {"plan": "parallel", "jacobian": "identity"},
}


@dataclass
class Row:
    """One plan: seconds and sweeps of one image, the other numbers of the batch."""

    title: str
    seconds: float
    batch_seconds: float
    images: Tensor  # (B, 64) in [-1, 1]
    one_sweeps: int
    sweeps: int
    calls: int
    rows: int
    why: str
    largest: float = 0.0
    rms: float = 0.0
    distance: float = 0.0


@dataclass
class UNetResult:
    missing: str = ""
    """Why there is no second part."""
    rows: list[Row] = field(default_factory=list)
    calls: dict[int, float] = field(default_factory=dict)
    """Seconds of a call of the network, by its rows."""
    trained: training.Trained | None = None
    others: list[float] = field(default_factory=list)
    """Frechet distances of the pipeline with other noise."""

    @property
    def spread(self) -> float:
        all_of_them = [*self.others, self.rows[0].distance]
        return max(all_of_them) - min(all_of_them)


class Count:
    """What a network really evaluates, by its first layer: `dpcr.parallel_sampling` answers some
    calls of the network from what it has found."""

    def __init__(self, first_layer: nn.Module) -> None:
        self.calls = self.rows = 0
        first_layer.register_forward_pre_hook(self.add)

    def add(self, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.calls += 1
        self.rows += len(given[0])

    def take(self) -> tuple[int, int]:
        """Calls and rows since the last time."""
        counted, self.calls, self.rows = (self.calls, self.rows), 0, 0
        return counted


class Plain(nn.Module):
    """The network as the training calls it."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.unet(x, t).sample


def second_part(
    options: Options, images: Tensor, judge: Judge, tell: Callable[[str], object]
) -> UNetResult:
    if not options.unet:
        return UNetResult("--no-unet")
    try:
        from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
    except ImportError:
        return UNetResult("diffusers is not installed: pip install diffusers")
    torch.manual_seed(options.seed)
    unet = UNet2DModel(
        sample_size=SIDE,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    result = UNetResult(trained=prepare(Plain(unet), options, images, tell))
    pipe = DDIMPipeline(unet, DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    count = Count(unet.conv_in)
    for title, plan in PLANS.items():
        tell(f"UNet: {title}")
        result.rows.append(row(title, plan, pipe, options, count))
    judged(result, pipe, options, judge)
    for rows in (
        1,
        options.unet_steps,
        options.unet_batch,
        options.unet_steps * options.unet_batch,
    ):
        result.calls[rows] = seconds_of_call(unet, rows)
    return result


def prepare(
    model: Plain, options: Options, images: Tensor, tell: Callable[[str], object]
) -> training.Trained:
    shaped = images.view(-1, 1, SIDE, SIDE)
    kept = {"images": len(images), "train": options.unet_train, "seed": options.seed}
    return training.trained(
        model, shaped, kept, options.out / "unet.pt", tell, name="UNet", batch=BATCH
    )


def row(title: str, plan: dict[str, str], pipe: Any, options: Options, count: Count) -> Row:
    """Of one image the second call is timed, the first may be slow."""
    seed = options.seed + 1
    call(pipe, plan, 1, seed, options)
    _, seconds, one = call(pipe, plan, 1, seed, options)
    count.take()
    images, batch_seconds, many = call(pipe, plan, options.unet_batch, seed, options)
    sweeps = [0 if info is None else info.sweeps for info in (one, many)]
    why = "" if many is None else many.plan.why
    return Row(title, seconds, batch_seconds, images, *sweeps, *count.take(), why)


def call(
    pipe: Any, plan: dict[str, str], batch: int, seed: int, options: Options
) -> tuple[Tensor, float, dpcr.sampling.SampleInfo | None]:
    """Images (B, 64) in [-1, 1], seconds, and the report."""
    around = dpcr.parallel_sampling(pipe, **plan) if plan else contextlib.nullcontext()
    with around as replay:
        begin = time.perf_counter()
        images = pipe(
            batch_size=batch,
            generator=torch.Generator().manual_seed(seed),
            num_inference_steps=options.unet_steps,
            output_type="np",
        ).images
        seconds = time.perf_counter() - begin
    pixels = torch.from_numpy(images).reshape(batch, PIXELS) * 2 - 1
    return pixels, seconds, replay.info if replay is not None else None


def judged(result: UNetResult, pipe: Any, options: Options, judge: Judge) -> None:
    for each in result.rows:
        each.distance = judge.distance(each.images)
        each.largest, each.rms = differences(each.images, result.rows[0].images)
    for other in range(2, 5):
        images, _, _ = call(pipe, {}, options.unet_batch, options.seed + other, options)
        result.others.append(judge.distance(images))


@torch.no_grad()
def seconds_of_call(unet: nn.Module, rows: int) -> float:
    """The shortest of three calls."""
    x, t = torch.randn(rows, 1, SIDE, SIDE), torch.full((rows,), 500)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        unet(x, t)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
