# SPDX-License-Identifier: Apache-2.0
"""What the sampling tests share: small denoisers, and the loop that they are held to."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn


class Denoiser(nn.Module):
    """A smooth function of latents (R, C, n) and time that predicts about as well as a real one:
    it pulls towards a point, and mixes channels."""

    def __init__(self, channels: int = 2, size: int = 3, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        n = channels * size
        self.mix = nn.Parameter(torch.randn(n, n, generator=generator) / n**0.5)
        self.goal = nn.Parameter(torch.randn(n, generator=generator) * 0.5)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
        self.calls += 1
        flat = x.flatten(1)
        time = torch.as_tensor(t, device=x.device).to(x.dtype).reshape(-1, 1) / 1000
        out = 0.7 * (flat - self.goal) + 0.3 * torch.tanh(flat @ self.mix + time)
        if shift is not None:
            out = out + 0.2 * shift.flatten(1)
        return out.reshape(x.shape)


def loop(
    model: Any,
    scheduler: Any,
    latents: Tensor,
    generator: Any = None,
    *,
    kwargs: dict[str, Any] | None = None,
    begin: int = 0,
    **options: Any,
) -> list[Tensor]:
    """x_1, ..., x_L of the scheduler's own loop; both calls of a step of Heun's as one."""
    states, x = [], latents
    takes = inspect.signature(scheduler.step).parameters
    if "generator" in takes:
        options["generator"] = generator
    order = getattr(scheduler, "order", 1)
    timesteps = scheduler.timesteps[begin:]
    for i, t in enumerate(timesteps):
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        out = model(scaled, t.expand(len(x)), **(kwargs or {}))
        x = scheduler.step(out, t, x, **options).prev_sample
        if order == 1 or i % 2 == 1 or i == len(timesteps) - 1:
            states.append(x)
    return states


def start(scheduler: Any, batch: int = 2, shape: tuple[int, ...] = (2, 3), seed: int = 1) -> Tensor:
    sigma = getattr(scheduler, "init_noise_sigma", 1.0)
    return sigma * torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))
