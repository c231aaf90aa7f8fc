# SPDX-License-Identifier: Apache-2.0
"""`sample` of a `torch_deeppcr.nn.Denoiser`: its whole loop is one native operator."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .._chain import native
from .._switch import sequential_wanted
from ..nn import Denoiser
from .job import Job
from .noise import draw
from .solve import Chain


def takes(chain: Chain, latents: Tensor) -> bool:
    """Whether the operator computes this chain: a network and a schedule of its form, and a device
    and dtype with kernels."""
    calls = chain.denoiser
    plain = not (calls.guided or calls.arguments or calls.shared) and len(chain.schedule) > 0
    model = calls.model
    if type(model) is not Denoiser or not plain or sequential_wanted():
        return False
    fits = model.bias_out.dtype == latents.dtype and model.bias_out.device == latents.device
    has_kernel = latents.device.type == "cpu" and native(latents)
    return chain.schedule.is_linear and fits and has_kernel


def run(job: Job, latents: Tensor) -> Tensor:
    """The fused pass: every network evaluation of the loop, in one call of the library."""
    chain, schedule = job.chain, job.chain.schedule
    assert isinstance(chain.denoiser.model, Denoiser)
    noise = _noise(chain, latents)
    result, states = chain.denoiser.model.denoise(
        latents, schedule, noise, return_states=True, segments=1
    )
    chain.denoiser.calls, chain.denoiser.rows = len(schedule), len(schedule) * latents.shape[0]
    job.plan = replace(
        job.plan, parallel=False, why="the network is native: one fused pass over all steps"
    )
    job.walked_all(states)
    return result


def _noise(chain: Chain, latents: Tensor) -> Tensor | None:
    draws = chain.schedule.draws
    assert draws is not None
    if not draws.any():
        return None
    drawn = [
        draw(tuple(latents.shape), chain.generator, latents.dtype, latents.device)
        if wanted
        else torch.zeros_like(latents)
        for wanted in draws.tolist()
    ]
    return torch.stack(drawn) if bool(chain.schedule.has_noise) else None
