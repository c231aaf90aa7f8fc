# SPDX-License-Identifier: Apache-2.0
"""Trains a `dpcr.nn.Denoiser` to predict noise: AdamW, a cosine of learning rates, an average of
the weights; and keeps it in a file."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from data import Space
from schedules import TIMES, bars
from torch import Tensor, nn

import torch_deeppcr as dpcr

BATCH = 256
LR = 3e-3
AVERAGED = 0.999
"""The average that samples are drawn with keeps this share of itself in a training step."""


@dataclass
class Trained:
    model: nn.Module
    seconds: float
    loss: float  # mean of the last tenth of the steps
    loaded: bool = False


def build(space: Space, sizes: dict[str, int], seed: int) -> dpcr.nn.Denoiser:
    torch.manual_seed(seed)
    return dpcr.nn.Denoiser(space.width, **sizes)


def train(
    model: nn.Module,
    data: Tensor,
    steps: int,
    seed: int,
    batch: int = BATCH,
    lr: float = LR,
    tell: Callable[[int, float], object] = lambda step, loss: None,
) -> Trained:
    """model(x (R, ...), t (R)) learns the noise in x; data (N, ...).  In place, and averaged."""
    begin = time.perf_counter()
    average, shares = copy.deepcopy(model), bars().float()
    parameters = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=lr, weight_decay=1e-4, fused=True)
    random = torch.Generator().manual_seed(seed)
    losses: list[float] = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = lr * rate(step, steps)
        loss = noise_loss(model, minibatch(data, batch, random), shares, random)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        kept = min(AVERAGED, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), parameters, 1 - kept)
        losses.append(loss.item())
        tell(step + 1, losses[-1])
    last = losses[-max(1, steps // 10) :]
    model.load_state_dict(average.state_dict())
    return Trained(model.eval(), time.perf_counter() - begin, sum(last) / len(last))


def minibatch(data: Tensor, size: int, random: torch.Generator) -> Tensor:
    return data[torch.randint(len(data), (size,), generator=random)]


def noise_loss(model: nn.Module, clean: Tensor, shares: Tensor, random: torch.Generator) -> Tensor:
    """At random times; clean (R, ...), shares are all bar_t."""
    t = torch.randint(TIMES, clean.shape[:1], generator=random)
    noise = torch.randn(clean.shape, generator=random)
    bar = shares[t].view(-1, *[1] * (clean.dim() - 1))
    out = model(bar.sqrt() * clean + (1 - bar).sqrt() * noise, t)
    return nn.functional.mse_loss(out, noise)


def rate(step: int, steps: int) -> float:
    """Up over the first twentieth, then half a cosine down."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def save(trained: Trained, options: dict[str, Any], path: Path) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    state = {"options": options, "model": trained.model.state_dict()}
    torch.save({**state, "seconds": trained.seconds, "loss": trained.loss}, partial)
    os.replace(partial, path)


def load(model: nn.Module, options: dict[str, Any], path: Path) -> Trained | None:
    """What was saved with these options; None if nothing was, or with others."""
    if not path.exists():
        return None
    try:
        saved = torch.load(path, weights_only=True)
        if saved["options"] != options:
            return None
        model.load_state_dict(saved["model"])
        return Trained(model.eval(), saved["seconds"], saved["loss"], loaded=True)
    except Exception:  # a damaged file is as good as none
        return None


def trained(
    model: nn.Module,
    data: Tensor,
    options: dict[str, Any],
    path: Path,
    tell: Callable[[str], object],
    *,
    name: str,
    batch: int = BATCH,
) -> Trained:
    """The model as `options` say ("train", "seed"): from the file, or trained and saved there."""
    kept = load(model, {**options, "batch": batch, "lr": LR}, path)
    if kept is not None:
        tell(f"{name}: trained before, {path}")
        return kept
    steps, every = options["train"], max(1, options["train"] // 4)

    def progress(step: int, loss: float) -> None:
        if step % every == 0 or step == steps:
            tell(f"{name}: training step {step} of {steps}, loss {loss:.3f}")

    made = train(model, data, steps, options["seed"], batch, tell=progress)
    save(made, {**options, "batch": batch, "lr": LR}, path)
    return made
