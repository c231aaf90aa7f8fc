# SPDX-License-Identifier: Apache-2.0
"""The denoising loop in PyTorch: as everybody writes it, and as fast as it gets."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

import torch_deeppcr as dpcr

GROUP = 10
"""Steps of the compiled function, which the loop calls again and again."""


@torch.no_grad()
def everyday(
    model: nn.Module, schedule: dpcr.Schedule, latents: Tensor, noise: Tensor | None
) -> Tensor:
    """x_1..x_L (L, B, w).  A call of the model a step, which embeds the step's time."""
    coefficients, scales = table(schedule)
    states, x = [], latents
    for step, t in enumerate(schedule.timesteps):
        a, c = coefficients[step]
        x = a * x + c * model(x, t)
        if noise is not None and scales[step]:
            x = x + scales[step] * noise[step]
        states.append(x)
    return torch.stack(states)


def table(schedule: dpcr.Schedule) -> tuple[list[list[float]], list[float]]:
    """(a, c) of each step, and the factor of its noise."""
    columns = (schedule.sample, schedule.model, schedule.noise)
    a, c, n = (torch.as_tensor(column, dtype=torch.float64) for column in columns)
    return torch.stack((a, c), -1).tolist(), n.expand(len(schedule)).tolist()


@functools.cache
def compiled_group() -> Callable[..., Tensor]:
    """One for all chains, so that each network is compiled once."""
    return torch.compile(group, fullgraph=True, dynamic=False)


class Best:
    """The biases of all steps from one call, and a group of steps as one function for the compiler.

    Where there is no noise it adds zeros, which costs nothing in compiled steps and saves a graph.
    """

    def __init__(self, model: dpcr.nn.Denoiser, compiled: bool) -> None:
        self.model = model
        self.group = compiled_group() if compiled else group

    @torch.no_grad()
    def __call__(self, schedule: dpcr.Schedule, latents: Tensor, noise: Tensor | None) -> Tensor:
        """x_L (B, w)"""
        net, (coefficients, scales) = self.model, table(schedule)
        bias = net.time_bias(schedule.timesteps)
        factors = torch.tensor(coefficients)
        if noise is None:
            noise = latents.new_zeros(1).expand(len(schedule), *latents.shape)
        else:
            noise = noise * torch.tensor(scales).view(-1, 1, 1)
        weights = (net.weight_in, net.weight_hidden, net.weight_out, net.bias_out)
        x = latents
        for begin in range(0, len(schedule), GROUP):
            part = slice(begin, begin + GROUP)
            x = self.group(x, bias[part], factors[part], noise[part].contiguous(), *weights)
        return x


def group(
    x: Tensor,
    bias: Tensor,
    factors: Tensor,
    noise: Tensor,
    weight_in: Tensor,
    weight_hidden: Tensor,
    weight_out: Tensor,
    bias_out: Tensor,
) -> Tensor:
    """The steps of bias (G, M + 1, h); `dpcr.nn.Denoiser` with SiLU, written out."""
    silu = nn.functional.silu
    for step in range(len(bias)):
        u = silu(torch.addmm(bias[step, 0], x, weight_in.T))
        for m, weight in enumerate(weight_hidden.unbind(), 1):
            u = u + silu(torch.addmm(bias[step, m], u, weight.T))
        out = torch.addmm(bias_out, u, weight_out.T)
        x = factors[step, 0] * x + factors[step, 1] * out + noise[step]
    return x
