# SPDX-License-Identifier: Apache-2.0
"""DDIM and DDPM as tables of L steps: x_l = a_l x_{l-1} + c_l model(x_{l-1}, t_l) + n_l noise_l.

The forward process is DDPM's (Ho et al. 2020, arXiv 2006.11239): x_t = sqrt(bar_t) x + sqrt(1 -
bar_t) noise, 1000 times t with beta from 1e-4 to 0.02.  The model predicts the noise, so that the
clean data is (x_t - sqrt(1 - bar_t) out) / sqrt(bar_t), and both samplers are linear in x and out.
`dpcr.sample` also takes diffusers' schedulers; these tables make the first part independent of it.
"""

from __future__ import annotations

import torch
from torch import Tensor

import torch_deeppcr as dpcr

TIMES = 1000


def bars() -> Tensor:
    """bar_t (1000), float64: the share of the data in the variance of x_t."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, TIMES, dtype=torch.float64), 0)


def times(length: int) -> Tensor:
    """(L) the times of the steps, falling to 0."""
    return torch.linspace(TIMES - 1, 0, length, dtype=torch.float64).round().long()


def ddim(length: int) -> dpcr.Schedule:
    """Song et al. 2021, arXiv 2010.02502, equation 12 with sigma = 0."""
    t, bar, after = _bars(length)
    alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
    a = after.sqrt() / alpha
    return dpcr.Schedule(t, a, (1 - after).sqrt() - a * sigma, level=sigma, name="DDIM")


def ddpm(length: int) -> dpcr.Schedule:
    """Ho et al. 2020, equations 7 and 11, for the beta of a step that may span several times."""
    t, bar, after = _bars(length)
    ratio, sigma = bar / after, (1 - bar).sqrt()
    a = ratio.rsqrt()
    noise = ((1 - after) / (1 - bar) * (1 - ratio)).sqrt()
    return dpcr.Schedule(t, a, -a * (1 - ratio) / sigma, noise=noise, level=sigma, name="DDPM")


SAMPLERS = {"DDIM": ddim, "DDPM": ddpm}


def draw_noise(schedule: dpcr.Schedule, latents: Tensor, generator: torch.Generator) -> Tensor:
    """(L, B, ...), a draw for each step that has noise, in the order of the loop; zeros elsewhere.

    Step by step, because one large draw would be other numbers.
    """
    assert schedule.draws is not None
    return torch.stack(
        [
            torch.randn(latents.shape, generator=generator) if wanted else torch.zeros_like(latents)
            for wanted in schedule.draws.tolist()
        ]
    )


def _bars(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Times (L), bar at each of them and at the one that follows, 1 after the last."""
    t = times(length)
    bar = bars()[t]
    return t, bar, torch.cat((bar[1:], bar.new_ones(1)))
