# SPDX-License-Identifier: Apache-2.0
"""What a pipeline's first step shows of it, for `replay`: how the denoiser is called and answers.

Everything here is either verified on what was seen or refused with the reason.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


@dataclass
class Call:
    """One call of the denoiser, its arguments by name."""

    names: tuple[str, str]  # of its first two
    x: Tensor
    timestep: Any
    others: dict[str, Any]

    @property
    def time(self) -> float:
        return float(torch.as_tensor(self.timestep).flatten()[0])


def bind(function: Callable[..., Any], args: Any, kwargs: Any) -> Call:
    """The call ``function(*args, **kwargs)`` of a denoiser; refused if it is not that of one."""
    bound = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    extra = bound.pop("kwargs", {})
    names = list(bound)
    time = "timestep" if "timestep" in bound else next(iter(names[1:2]), "")
    if len(names) < 2 or time == names[0] or not isinstance(bound[names[0]], Tensor):
        raise NotImplementedError(
            "pipe: its denoiser is not called with the latents and a timestep, but with "
            f"{', '.join(names) or 'nothing'}"
        )
    others = {**bound, **extra}
    return Call((names[0], time), others.pop(names[0]), others.pop(time), others)


@dataclass
class Shown:
    """What the first step has shown."""

    copies: int  # of the latents in the denoiser's input
    guidance_scale: float
    time_factor: float  # the denoiser's timestep over the scheduler's
    call: Call
    answer: Any  # as the denoiser returned it


class PipelineModel:
    """The pipeline's denoiser as `Denoiser` calls it; its modules are the network's."""

    def __init__(self, module: nn.Module, original: Callable[..., Any], shown: Shown) -> None:
        self.__self__, self.original, self.shown = module, original, shown

    def __call__(self, x: Tensor, timesteps: Tensor, **others: Any) -> Any:
        latents, time = self.shown.call.names
        given = self.shown.call.timestep
        times = timesteps * self.shown.time_factor
        if isinstance(given, Tensor):
            times = times.to(given.dtype)
        return self.original(**{latents: x, time: times}, **others)


def fit_guidance(out: Tensor, combined: Tensor, copies: int) -> float:
    """g of combined = u + g (c - u), for the denoiser's answers (u, c); verified."""
    reason = "guidance_rescale, learned variances, and guidance other than u + g (c - u)"
    if out.shape[1:] != combined.shape[1:]:
        raise NotImplementedError(
            f"pipe: its denoiser returns {tuple(out.shape)}, the scheduler is given "
            f"{tuple(combined.shape)}: {reason} cannot be replayed"
        )
    combined, scale = combined.double(), 1.0
    if copies == 1:
        fitted = out.double()
    else:
        u, c = out.double().chunk(2)
        difference = c - u
        square = float(difference.square().sum())
        scale = float(((combined - u) * difference).sum()) / square if square > 0 else 1.0
        fitted = u + scale * difference
    far = float((fitted - combined).abs().max()) if combined.numel() else 0.0
    size = max(float(out.double().abs().max()) * max(1.0, abs(scale)), 1e-12) if out.numel() else 1
    if far > 4 * rounding_of(out.dtype) * size:
        raise NotImplementedError(
            "pipe: what the scheduler is given does not follow from the denoiser's answer: "
            f"{reason} cannot be replayed"
        )
    return scale


def rounding_of(dtype: torch.dtype) -> float:
    return 16 * torch.finfo(dtype).eps


def close(x: Tensor, expected: Tensor | None) -> bool:
    if expected is None or x.shape != expected.shape:
        return False
    if not x.numel():
        return True
    x, expected = x.double(), expected.double()
    finite = expected.isfinite()
    if not bool((x.isfinite() == finite).all()):
        return False
    size = float(expected[finite].abs().max()) if finite.any() else 0.0
    dtype_eps = 1e-2 if x.dtype != torch.float64 else 1e-5
    return not bool(((x - expected).abs()[finite] > dtype_eps * size).any())


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and bool(torch.equal(a, b)))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a is b or bool(a == b)


class Arguments(NamedTuple):
    """The denoiser's further arguments: of the rows with the prompt, of those without it (the first
    half of the denoiser's rows), and of all rows."""

    positive: dict[str, Any]
    negative: dict[str, Any]
    shared: dict[str, Any]


def sorted_arguments(others: dict[str, Any], batch: int, copies: int) -> Arguments:
    arguments = Arguments({}, {}, {})
    for name, value in others.items():
        if _follows(value, batch * copies):
            arguments.negative[name] = _half(value, batch, copies, 0)
            arguments.positive[name] = _half(value, batch, copies, copies - 1)
        else:
            arguments.shared[name] = value
    return arguments


def _follows(value: Any, rows: int) -> bool:
    if isinstance(value, Tensor):
        return value.dim() > 0 and value.shape[0] == rows
    if isinstance(value, dict):
        return any(_follows(item, rows) for item in value.values())
    if isinstance(value, (list, tuple)):
        return any(_follows(item, rows) for item in value)
    return False


def _half(value: Any, batch: int, copies: int, which: int) -> Any:
    """Rows of one half, of what has them; the rest as it is."""
    if isinstance(value, Tensor):
        follows = _follows(value, batch * copies)
        return value[which * batch : (which + 1) * batch] if follows else value
    if isinstance(value, dict):
        return {key: _half(item, batch, copies, which) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_half(item, batch, copies, which) for item in value)
    return value


def like(answer: Any, out: Tensor) -> Any:
    """``out`` in the form in which the denoiser answered."""
    if isinstance(answer, tuple):
        return (out, *answer[1:])
    return out if isinstance(answer, Tensor) else type(answer)(sample=out)


def with_sample(out: Any, prev: Tensor) -> Any:
    out.prev_sample = prev
    return out
