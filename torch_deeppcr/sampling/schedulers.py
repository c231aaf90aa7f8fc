# SPDX-License-Identifier: Apache-2.0
"""diffusers' schedulers, read as a `Schedule`.

Nothing of diffusers is imported: a scheduler is recognised by its class, its exact one, because a
subclass may do anything; and read by its public arrays.  What a scheduler *does* is what counts,
peculiarities included (DDIM's fixed stride where its timesteps have another; a last step that goes
to ``final_alpha_cumprod``).  So the coefficients are computed as the scheduler does it, in float32:
where it subtracts numbers close to 1, its rounding is a part of the sampler.  The tests hold every
step to ``scheduler.step``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .schedule import Corrector, Schedule, clamp

_UNSUPPORTED = {
    "PNDMScheduler": "it remembers four model outputs",
    "LMSDiscreteScheduler": "it remembers several model outputs",
    "DEISMultistepScheduler": "it remembers several model outputs",
    "UniPCMultistepScheduler": "it corrects earlier states",
    "DPMSolverSinglestepScheduler": "its steps depend on each other inside of it",
    "DPMSolverSDEScheduler": "it draws noise from a Brownian tree",
    "LCMScheduler": "few-step samplers have nothing to run in parallel",
    "TCDScheduler": "few-step samplers have nothing to run in parallel",
}


def read(scheduler: Any, options: dict[str, Any]) -> Schedule:
    """The steps that the scheduler makes from its begin index on, after ``set_timesteps``.

    options: keyword arguments of its ``step``, such as ``eta``.

    Raises:
        NotImplementedError: a scheduler, configuration or option that is not of the form of a
            `Schedule`; with the reason.
        ValueError: ``set_timesteps`` has not been called.
    """
    if isinstance(scheduler, Schedule):
        _no_options(scheduler.name, options)
        return scheduler
    cls = type(scheduler)
    reader = _READERS.get(cls.__name__) if cls.__module__.startswith("diffusers.") else None
    if reader is None:
        known = ", ".join(sorted(_READERS))
        reason = _UNSUPPORTED.get(cls.__name__, "its steps are not known")
        raise NotImplementedError(
            f"scheduler: {cls.__name__} cannot run in parallel: {reason}; supported are {known} "
            "(exactly these classes) and torch_deeppcr.Schedule"
        )
    if scheduler.num_inference_steps is None and not getattr(scheduler, "custom_timesteps", False):
        raise ValueError(
            "scheduler: set_timesteps has not been called; call it, or pass num_inference_steps"
        )
    schedule = reader(scheduler, options)
    begin = (getattr(scheduler, "begin_index", None) or 0) // getattr(scheduler, "order", 1)
    return schedule.part(begin) if begin else schedule


def _no_options(name: str, options: dict[str, Any], **defaults: Any) -> None:
    """Refuses options of ``step`` that are not at the only value that is supported."""
    for option, value in options.items():
        if option not in defaults:
            raise NotImplementedError(f"{option}: is not supported with {name}")
        if value is not None and value != defaults[option]:
            raise NotImplementedError(
                f"{option} must be {defaults[option]} with {name}, got {value!r}"
            )


def _refuse(scheduler: Any, reason: str, refused: Tensor) -> None:
    if bool(refused.any()):
        raise NotImplementedError(
            f"scheduler: {type(scheduler).__name__} {reason} is not supported"
        )


# ---- variance preserving: DDIM, DDPM -------------------------------------------------------------


def _prediction(config: Any, alpha: Tensor, sigma: Tensor, scheduler: Any) -> tuple[Tensor, Tensor]:
    """Weights of x and of the output in the prediction of x0, for x = alpha x0 + sigma n."""
    kind, zero = config.prediction_type, torch.zeros_like(alpha)
    if kind == "epsilon":
        _refuse(scheduler, "with prediction_type='epsilon' from pure noise", alpha == 0)
        return 1 / alpha, -sigma / alpha
    if kind in ("sample", "original_sample"):
        return zero, zero + 1
    if kind == "v_prediction":
        return alpha, -sigma
    raise NotImplementedError(f"scheduler: prediction_type {kind!r} is not supported")


def _clip(scheduler: Any) -> Callable[[Tensor], Tensor] | None:
    config = scheduler.config
    if getattr(config, "thresholding", False):
        return scheduler._threshold_sample
    if getattr(config, "clip_sample", False):
        return clamp(config.clip_sample_range)
    return None


def _ddim(scheduler: Any, options: dict[str, Any]) -> Schedule:
    options = dict(options)
    eta, clipped = options.pop("eta", 0.0), options.pop("use_clipped_model_output", None)
    _no_options("DDIMScheduler", options, variance_noise=None)
    config = scheduler.config
    t = scheduler.timesteps.cpu()
    before = t - config.num_train_timesteps // scheduler.num_inference_steps
    bars, final = scheduler.alphas_cumprod.cpu(), scheduler.final_alpha_cumprod.cpu()
    bar = bars[t]
    bar_next = torch.where(before >= 0, bars[before.clamp(min=0)], final)
    alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
    deviation = eta * ((1 - bar_next) / (1 - bar) * (1 - bar / bar_next)).sqrt()
    direction = (1 - bar_next - deviation**2).sqrt()
    x0_sample, x0_model = _prediction(config, alpha, sigma, scheduler)
    x0, zero = bar_next.sqrt(), torch.zeros_like(bar)
    if clipped or config.prediction_type == "sample":
        _refuse(scheduler, "that predicts noise where there is none", sigma == 0)
    if clipped:
        sample, model, x0 = direction / sigma, zero, x0 - direction * alpha / sigma
    elif config.prediction_type == "epsilon":
        sample, model = zero, direction
    elif config.prediction_type == "sample":
        sample, model = direction / sigma, -direction * alpha / sigma
    else:
        sample, model = direction * sigma, direction * alpha
    return Schedule(
        scheduler.timesteps,
        sample,
        model,
        noise=deviation if eta > 0 else 0.0,
        x0_sample=x0_sample,
        x0_model=x0_model,
        x0=x0,
        level=sigma,
        clip=_clip(scheduler),
        draws=torch.full(t.shape, eta > 0),
        name="DDIMScheduler",
    )


def _ddpm(scheduler: Any, options: dict[str, Any]) -> Schedule:
    _no_options("DDPMScheduler", options)
    config = scheduler.config
    kind = scheduler.variance_type
    if kind in ("learned", "learned_range"):
        raise NotImplementedError(
            f"scheduler: DDPMScheduler with variance_type={kind!r} is not supported: the noise "
            "of a step would depend on the model"
        )
    t = scheduler.timesteps.cpu()
    bars = scheduler.alphas_cumprod.cpu()
    bar = bars[t]
    bar_next = torch.cat((bars[t[1:]], bar.new_ones(1)))
    alpha, sigma = bar.sqrt(), (1 - bar).sqrt()
    x0_sample, x0_model = _prediction(config, alpha, sigma, scheduler)
    ratio = bar / bar_next
    variance = ((1 - bar_next) / (1 - bar) * (1 - ratio)).clamp(min=1e-20)
    if kind == "fixed_small_log":
        deviation = (0.5 * variance.log()).exp()
    elif kind == "fixed_large":
        deviation = (1 - ratio).sqrt()
    elif kind == "fixed_small":
        deviation = variance.sqrt()
    else:
        raise NotImplementedError(
            f"scheduler: DDPMScheduler with variance_type={kind!r} is not supported"
        )
    return Schedule(
        scheduler.timesteps,
        ratio.sqrt() * (1 - bar_next) / (1 - bar),
        0.0,
        noise=torch.where(t > 0, deviation, 0.0),
        x0_sample=x0_sample,
        x0_model=x0_model,
        x0=bar_next.sqrt() * (1 - ratio) / (1 - bar),
        level=sigma,
        clip=_clip(scheduler),
        draws=t > 0,
        name="DDPMScheduler",
    )


# ---- in units of sigma: Euler, Euler ancestral, Heun, flow matching ------------------------------


def _denoised(scheduler: Any, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of x and of the output in the prediction of clean data, for x = x0 + sigma n."""
    kind, one = scheduler.config.prediction_type, torch.ones_like(sigma)
    if kind == "epsilon":
        return one, -sigma
    if kind == "v_prediction":
        return 1 / (sigma**2 + 1), -sigma / (sigma**2 + 1).sqrt()
    if kind in ("sample", "original_sample"):
        return 0 * one, one
    raise NotImplementedError(f"scheduler: prediction_type {kind!r} is not supported")


def _sigmas(scheduler: Any) -> Tensor:
    return torch.as_tensor(scheduler.sigmas).float().cpu()


def _euler(scheduler: Any, options: dict[str, Any]) -> Schedule:
    if options.get("s_churn"):
        raise NotImplementedError("s_churn must be 0: it adds noise before the model is called")
    churn = {"s_churn", "s_tmin", "s_tmax", "s_noise"}
    _no_options("EulerDiscreteScheduler", {k: v for k, v in options.items() if k not in churn})
    sigmas = _sigmas(scheduler)
    sigma, dt = sigmas[:-1], sigmas[1:] - sigmas[:-1]
    return _sigma_schedule(scheduler, sigma, dt)


def _euler_ancestral(scheduler: Any, options: dict[str, Any]) -> Schedule:
    _no_options("EulerAncestralDiscreteScheduler", options)
    sigmas = _sigmas(scheduler)
    sigma, to = sigmas[:-1], sigmas[1:]
    up = (to**2 * (sigma**2 - to**2) / sigma**2).sqrt()
    down = (to**2 - up**2).sqrt()
    return _sigma_schedule(scheduler, sigma, down - sigma, noise=up)


def _sigma_schedule(
    scheduler: Any, sigma: Tensor, dt: Tensor, noise: Tensor | None = None
) -> Schedule:
    x0_sample, x0_model = _denoised(scheduler, sigma)
    return Schedule(
        scheduler.timesteps,
        1 + dt / sigma,
        0.0,
        noise=0.0 if noise is None else noise,
        x0_sample=x0_sample,
        x0_model=x0_model,
        x0=-dt / sigma,
        input_scale=1 / (sigma**2 + 1).sqrt(),
        level=sigma,
        draws=torch.full(sigma.shape, noise is not None),
        name=type(scheduler).__name__,
    )


def _heun(scheduler: Any, options: dict[str, Any]) -> Schedule:
    _no_options("HeunDiscreteScheduler", options)
    sigmas = _sigmas(scheduler)  # s_0, s_1, s_1, ..., s_{L-1}, s_{L-1}, 0: two calls of step each
    first = torch.arange(0, len(sigmas) - 1, 2)
    sigma, following = sigmas[first], sigmas[first + 1]
    dt = following - sigma
    active = following > 0
    safe = torch.where(active, following, 1.0)
    x0_sample, x0_model = _denoised(scheduler, sigma)
    again_sample, again_model = _denoised(scheduler, safe)
    times = scheduler.timesteps.cpu()
    half, half_next = dt / sigma / 2, dt / safe / 2
    corrector = Corrector(
        timesteps=times[(first + 1).clamp(max=len(times) - 1)],
        input_scale=1 / (safe**2 + 1).sqrt(),
        x0_sample=again_sample,
        x0_model=again_model,
        sample=1 + half,
        x0_before=-half,
        predicted=half_next,
        x0=-half_next,
        active=active,
    )
    return Schedule(
        times[first],
        1 + dt / sigma,
        0.0,
        x0_sample=x0_sample,
        x0_model=x0_model,
        x0=-dt / sigma,
        input_scale=1 / (sigma**2 + 1).sqrt(),
        level=sigma,
        clip=_clip(scheduler),
        corrector=corrector,
        name="HeunDiscreteScheduler",
    )


def _flow_match(scheduler: Any, options: dict[str, Any]) -> Schedule:
    churn = {"s_churn", "s_tmin", "s_tmax", "s_noise"}  # which it does not read
    _no_options(
        "FlowMatchEulerDiscreteScheduler",
        {k: v for k, v in options.items() if k not in churn},
        per_token_timesteps=None,
    )
    sigmas = _sigmas(scheduler)
    sigma, following = sigmas[:-1], sigmas[1:]
    if not scheduler.config.stochastic_sampling:
        return Schedule(
            scheduler.timesteps,
            1.0,
            following - sigma,
            level=torch.maximum(sigma, following),
            name="FlowMatchEulerDiscreteScheduler",
        )
    return Schedule(
        scheduler.timesteps,
        1 - following,
        -(1 - following) * sigma,
        noise=following,
        level=torch.maximum(sigma, following),
        draws=torch.ones(len(sigma), dtype=torch.bool),
        noise_like_state=True,
        name="FlowMatchEulerDiscreteScheduler",
    )


# ---- DPM-Solver++ 2M -----------------------------------------------------------------------------


def _dpm_solver(scheduler: Any, options: dict[str, Any]) -> Schedule:
    _no_options("DPMSolverMultistepScheduler", options, variance_noise=None)
    config = scheduler.config
    if config.algorithm_type not in ("dpmsolver++", "sde-dpmsolver++") or config.solver_order > 2:
        raise NotImplementedError(
            "scheduler: DPMSolverMultistepScheduler is supported with algorithm_type 'dpmsolver++' "
            "or 'sde-dpmsolver++' and solver_order 1 or 2, got "
            f"{config.algorithm_type!r} and {config.solver_order}"
        )
    if config.variance_type is not None:
        raise NotImplementedError("scheduler: DPMSolverMultistepScheduler with variance_type")
    sigmas = _sigmas(scheduler)
    flow = config.use_flow_sigmas
    alphas = 1 - sigmas if flow else 1 / (sigmas**2 + 1).sqrt()
    noises = sigmas if flow else sigmas * alphas
    alpha, sigma = alphas[:-1], noises[:-1]
    if config.prediction_type == "flow_prediction":
        x0_sample, x0_model = torch.ones_like(sigma), -sigmas[:-1]
    else:
        x0_sample, x0_model = _prediction(config, alpha, sigma, scheduler)
    sample, x0, history, noise = _dpm_weights(scheduler, alphas, noises)
    return Schedule(
        scheduler.timesteps,
        sample,
        0.0,
        noise=noise,
        x0_sample=x0_sample,
        x0_model=x0_model,
        x0=x0,
        history=history,
        level=sigma,
        clip=_clip(scheduler),
        draws=torch.full(sigma.shape, config.algorithm_type.startswith("sde")),
        name="DPMSolverMultistepScheduler",
    )


def _dpm_weights(
    scheduler: Any, alphas: Tensor, noises: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights of x, of both predictions of clean data and of the noise."""
    config, length = scheduler.config, len(alphas) - 1
    stochastic = config.algorithm_type.startswith("sde")
    logs = alphas.log() - noises.log()  # half the log-SNR; infinite at the end
    h = logs[1:] - logs[:-1]
    ratio, fall = noises[1:] / noises[:-1], 1 - (-h).exp()
    if stochastic:
        fall = 1 - (-2.0 * h).exp()
        sample, gain, noise = ratio * (-h).exp(), alphas[1:] * fall, noises[1:] * fall.sqrt()
        heun = alphas[1:] * (1 - fall / (2 * h))
    else:
        sample, gain, noise = ratio, alphas[1:] * fall, torch.zeros_like(h)
        heun = alphas[1:] * (1 - fall / h)
    second = gain / 2 if config.solver_type == "midpoint" else heun
    r = torch.cat((h.new_ones(1), h[:-1] / h[1:]))
    slope = second / r
    lower = torch.zeros(length, dtype=torch.bool)
    lower[0] = True
    lower[-1] = (
        config.euler_at_final
        or (config.lower_order_final and length < 15)
        or config.final_sigmas_type == "zero"
    ) or length == 1
    slope = torch.where(lower, 0.0, slope) if config.solver_order > 1 else torch.zeros_like(h)
    return sample, gain + slope, -slope, noise


_READERS: dict[str, Callable[[Any, dict[str, Any]], Schedule]] = {
    "DDIMScheduler": _ddim,
    "DDPMScheduler": _ddpm,
    "EulerDiscreteScheduler": _euler,
    "EulerAncestralDiscreteScheduler": _euler_ancestral,
    "HeunDiscreteScheduler": _heun,
    "FlowMatchEulerDiscreteScheduler": _flow_match,
    "DPMSolverMultistepScheduler": _dpm_solver,
}
