# SPDX-License-Identifier: Apache-2.0
"""`sample` of a `torch_deeppcr.nn.Denoiser`: its whole loop is one native operator."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from .._chain import native
from .._planner import CUDA_WIDEST_VECTOR, native_pays
from .._switch import sequential_wanted
from ..nn import Denoiser
from .job import Job
from .noise import draw
from .solve import Chain


def takes(chain: Chain, latents: Tensor) -> bool:
    """Whether the operator computes this chain: a network and a schedule of its form, and a device
    and dtype with kernels that are as fast as its modules."""
    calls = chain.denoiser
    plain = not (calls.guided or calls.arguments or calls.shared) and len(chain.schedule) > 0
    model = calls.model
    if type(model) is not Denoiser or not plain or sequential_wanted():
        return False
    fits = model.bias_out.dtype == latents.dtype and model.bias_out.device == latents.device
    return chain.schedule.is_linear and fits and native(latents) and _pays(chain, model, latents)


def _pays(chain: Chain, model: Denoiser, latents: Tensor) -> bool:
    """On the CPU always.  On CUDA, where a sample has one multiprocessor to itself, within the
    limits that `parallelize` has there; not measured."""
    if not latents.is_cuda:
        return True
    widest, length, batch = max(model.width, model.hidden), len(chain.schedule), latents.shape[0]
    pays = native_pays(length, model.hidden * widest, batch, False, True, cuda=True)
    return pays and widest <= CUDA_WIDEST_VECTOR


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
