# SPDX-License-Identifier: Apache-2.0
"""`sample`: a denoising loop in parallel over its steps, or as the loop where that is faster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from . import native, noise, schedulers
from .job import Callback, Job
from .model import Arguments, ModelCalls, refuse_state
from .plan import PlanOptions, SampleInfo, SamplePlan
from .schedule import Schedule
from .solve import Chain


@torch.no_grad()
def sample(
    model: Callable[..., Any],
    scheduler: Any,
    latents: Tensor,
    num_inference_steps: int | None = None,
    generator: torch.Generator | list[torch.Generator] | None = None,
    *,
    model_kwargs: Arguments | None = None,
    shared_kwargs: Arguments | None = None,
    negative_kwargs: Arguments | None = None,
    guidance_scale: float = 1.0,
    plan: str | SamplePlan = "auto",
    jacobian: str = "auto",
    refresh: str = "adaptive",
    window: int | None = None,
    max_rows: int | None = None,
    tolerance: float = 1e-4,
    max_sweeps: int | None = None,
    warm_start: Tensor | None = None,
    callback: Callback | None = None,
    preview: Callable[[int, Tensor], object] | None = None,
    progress: bool = False,
    return_info: bool = False,
    return_trajectory: bool = False,
    **step_options: Any,
) -> Tensor | tuple[Tensor, SampleInfo]:
    """The samples of a denoising loop, its L steps in parallel: a few sweeps in place of L calls.

        latents = scheduler.init_noise_sigma * torch.randn(4, 3, 32, 32, generator=generator)
        images = dpcr.sample(unet, scheduler, latents, 1000, generator)

    computes what this loop does, to within ``tolerance``, and leaves the generator as it does:

        scheduler.set_timesteps(1000)
        for t in scheduler.timesteps:
            out = model(scheduler.scale_model_input(latents, t), t, **model_kwargs)
            latents = scheduler.step(out, t, latents, generator=generator).prev_sample

    Args:
        model: called as ``model(x (R, ...), timesteps (R,), **model_kwargs, **shared_kwargs)`` with
            R = steps * B rows, step by step; returns a tensor like x, a tuple that starts with one,
            or an object with ``.sample``.  A row's result must depend on its own inputs alone.
        scheduler: one of diffusers' DDIM, DDPM, EulerDiscrete, EulerAncestralDiscrete,
            HeunDiscrete, FlowMatchEulerDiscrete or DPMSolverMultistep (2M) schedulers, which is not
            changed; or a `Schedule`.
        latents: x_0 (B, ...), already scaled by ``init_noise_sigma``.  States are float32 whatever
            the dtype of a half-precision model, float64 where latents are.
        num_inference_steps: L; None means that ``set_timesteps`` has been called.
        generator: of the noise, or one for each sample, as in diffusers.
        model_kwargs: arguments of the model; tensors with a leading size of B, also inside of
            dicts, lists and tuples, are repeated for each step.
        shared_kwargs: arguments that are the same for all rows, whatever their shape.
        negative_kwargs: classifier-free guidance: the unconditional counterparts of (some)
            model_kwargs.  Each row is evaluated with both, and what counts as the model's output is
            out_without + guidance_scale (out_with - out_without).
        plan: "auto" measures a call of the model for B rows and for a sweep, and takes the loop
            where ``sweeps * t(rows of a sweep) < L * t(B)`` fails; "parallel"; "sequential", the
            loop; or the `SamplePlan` of an earlier call, whose options are then taken.
        jacobian: what stands for the derivative of a step in the sweeps: "diagonal", estimated from
            one more row for each step (default); "dense", from n more rows, for latents of a few
            numbers; "scalar", the scheduler's own coefficient; "identity", ParaDiGMS's choice;
            "zero".  It decides how many sweeps there are, not what comes out.
        refresh: when that is computed: "adaptive", where a sweep gained little, or "always".
        window: steps that are iterated at the same time; None is all, as far as memory allows.
        max_rows: rows of one call of the model at most; None is no limit.  Where a GPU runs out of
            memory, it is halved.
        tolerance: a step's state is final when its estimated error, largest element, is at most
            this times the noise level of the state that it starts from (or is rounding).
        max_sweeps: after which the loop makes the rest; None is no limit, since every sweep
            finishes a step.
        warm_start: a guess of all states (L, B, ...), such as the trajectory of a similar call.
        callback: ``callback(step, timestep, latents)`` when a step is final, in order.
        preview: ``preview(sweep, latents)`` after every sweep, with the current guess of the last
            state in the window.
        progress: show a bar (tqdm) that counts final steps.
        return_info: also return a `SampleInfo`; return_trajectory: with all states in it.
        **step_options: of ``scheduler.step``, such as ``eta=1.0``.

    Returns:
        x_L, like latents, without gradients.

    On a CPU with few cores a network of more than a few layers is as fast row by row: there the
    loop wins, and "auto" takes it.

    Raises:
        NotImplementedError: a scheduler, configuration or step option that has no one-step map; the
            message says why.
        TypeError, ValueError: an argument of the wrong type or shape; a model that is in training
            mode, has a step cache, changes its buffers, or mixes rows.

    Method: see the head of ``torch_deeppcr/sampling/solve.py``.
    """
    latents = _checks.real_tensor("latents", latents)
    if latents.dim() < 1:
        raise ValueError("latents must have shape (B, ...), got a tensor without dimensions")
    if not callable(model):
        raise TypeError(f"model must be callable, got {type(model).__name__}")
    options = PlanOptions(plan, jacobian, refresh, window, max_rows, tolerance, max_sweeps)
    schedule = _schedule(scheduler, num_inference_steps, latents.device, step_options)
    resolved = options.resolve(schedule, latents)
    refuse_state(model)
    if negative_kwargs is None and guidance_scale != 1.0:
        raise ValueError("guidance_scale needs negative_kwargs, the unconditional arguments")
    positive = _arguments("model_kwargs", model_kwargs)
    negative = None if negative_kwargs is None else _arguments("negative_kwargs", negative_kwargs)
    unknown = [name for name in negative or () if name not in positive]
    if unknown:
        raise ValueError(f"negative_kwargs has {unknown[0]!r}, which model_kwargs lacks")
    denoiser = ModelCalls(
        model,
        latents,
        positive,
        _arguments("shared_kwargs", shared_kwargs),
        negative,
        _checks.finite("guidance_scale", guidance_scale),
        resolved.max_rows,
    )
    dtype = latents.dtype if latents.dtype == torch.float64 else torch.float32
    generators = noise.check(generator, latents.shape[0])
    chain = Chain(schedule, denoiser, generators, dtype, latents.device, latents.dtype)
    guess = _guess(warm_start, schedule, latents, dtype)
    with _progress(progress, len(schedule)) as advance:
        job = Job(chain, resolved, callback, preview, advance, return_trajectory)
        result = latents.clone()
        if not resolved.why and native.takes(chain, latents):
            result = native.run(job, latents)
        elif len(schedule) and latents.numel():
            state = latents.to(dtype).reshape(latents.shape[0], -1)
            if schedule.parts == 2:
                state = torch.cat((state, torch.zeros_like(state)), -1)
            result = job.latents(job.run(state, 0, guess))
    return (result, job.info()) if return_info else result


# ---- arguments -----------------------------------------------------------------------------------


def _schedule(
    scheduler: Any, steps: int | None, device: torch.device, options: dict[str, Any]
) -> Schedule:
    if steps is not None:
        steps = _checks.size("num_inference_steps", steps)
        if isinstance(scheduler, Schedule):
            if steps != len(scheduler):
                raise ValueError(
                    f"num_inference_steps must be that of the schedule, {len(scheduler)}, "
                    f"got {steps}"
                )
        else:
            if steps == 0:
                raise ValueError("num_inference_steps must be at least 1, got 0")
            if not hasattr(scheduler, "from_config"):
                schedulers.read(scheduler, options)  # which says why not
            scheduler = type(scheduler).from_config(scheduler.config)
            scheduler.set_timesteps(steps, device=device)
    return schedulers.read(scheduler, options)


def _arguments(name: str, value: object) -> Arguments:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a dict of keyword arguments, got {type(value).__name__}")
    return value


def _guess(
    warm_start: Tensor | None, schedule: Schedule, latents: Tensor, dtype: torch.dtype
) -> Tensor | None:
    """(L, B, m)"""
    if warm_start is None:
        return None
    guess = _checks.real_tensor("warm_start", warm_start)
    expected = (len(schedule), *latents.shape)
    if guess.shape != expected:
        raise ValueError(
            f"warm_start must have shape (L, B, ...) = {expected}, got {tuple(guess.shape)}"
        )
    states = guess.to(latents.device, dtype).flatten(2) if guess.dim() > 2 else guess.unsqueeze(-1)
    states = states.to(latents.device, dtype)
    return torch.cat((states,) * schedule.parts, -1)


@contextlib.contextmanager
def _progress(wanted: bool, total: int) -> Iterator[Callable[[int], object]]:
    if not _checks.flag("progress", wanted):
        yield lambda steps: None
        return
    try:
        from tqdm.auto import tqdm  # type: ignore[import-untyped,unused-ignore]
    except ImportError as error:
        raise ImportError("progress=True needs tqdm: pip install tqdm") from error
    with tqdm(total=total, desc="steps") as bar:
        yield bar.update
