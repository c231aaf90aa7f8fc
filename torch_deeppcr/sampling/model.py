# SPDX-License-Identifier: Apache-2.0
"""Calls of the user's denoiser on rows of several steps at once.

Row step * B + sample of a call is one sample in one step.  Arguments that a model takes besides the
latents and the timestep follow the batch (leading size B: each row gets its sample's) or are shared
by all rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Arguments = dict[str, Any]


def follow(value: Any, rows: Tensor, batch: int) -> Any:
    """The value for these rows: tensors (B, ...), also in dicts, lists and tuples, by sample."""
    if isinstance(value, Tensor):
        if value.dim() == 0 or value.shape[0] != batch:
            return value
        return value.index_select(0, rows.to(value.device) % batch)
    if isinstance(value, dict):
        return {key: follow(item, rows, batch) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(follow(item, rows, batch) for item in value)
    return value


def output_of(out: Any) -> Tensor:
    """The tensor that a model returned: itself, the first of a tuple, or ``.sample``."""
    if isinstance(out, (tuple, list)) and out:
        out = out[0]
    elif not isinstance(out, Tensor) and hasattr(out, "sample"):
        out = out.sample
    if not isinstance(out, Tensor):
        raise TypeError(
            "model must return a tensor, a tuple that starts with one, or an object with .sample, "
            f"got {type(out).__name__}"
        )
    return out


def modules_of(model: Any) -> list[nn.Module]:
    """The modules whose state the call depends on: of a module, a bound method, or none."""
    owner = model if isinstance(model, nn.Module) else getattr(model, "__self__", None)
    return list(owner.modules()) if isinstance(owner, nn.Module) else []


def refuse_state(model: Any) -> None:
    """Raises ValueError where calls depend on each other, or on the other rows of their batch."""
    for module in modules_of(model):
        kind = type(module).__name__
        if getattr(module, "is_cache_enabled", False):
            raise ValueError(
                f"model: {kind} has a cache from step to step enabled, which is not possible where "
                "steps run in parallel; call disable_cache() first"
            )
        hooks = getattr(getattr(module, "_diffusers_hook", None), "hooks", None) or {}
        stateful = [name for name, hook in hooks.items() if getattr(hook, "_is_stateful", False)]
        if stateful:
            raise ValueError(
                f"model: {kind} has the hook {stateful[0]!r}, which keeps state from step to step; "
                "remove it first"
            )
        if not module.training:
            continue
        normalises = isinstance(module, nn.modules.batchnorm._BatchNorm)
        drops = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
        if normalises or drops:
            raise ValueError(
                f"model: a {kind} is in training mode, so that a row's result depends on "
                f"{'the other rows' if normalises else 'chance'}; call model.eval() first"
            )


class ModelCalls:
    """The model with its arguments: ``(x (R, ...), timesteps (R,), rows (R,)) -> out (R, ...)``.

    Counts what it cost: ``calls`` of the model one after the other, and ``rows`` in them.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        latents: Tensor,
        arguments: Arguments,
        shared: Arguments,
        negative: Arguments | None,
        guidance_scale: float,
        max_rows: int | None,
    ) -> None:
        self.model = model
        self.arguments, self.shared = arguments, shared
        self.negative, self.guidance_scale = negative, guidance_scale
        self.max_rows = max_rows
        self.batch, self.dtype = latents.shape[0], latents.dtype
        self.shape = latents.shape[1:]
        self.calls = self.rows = 0
        self.observe: Callable[[Tensor], object] | None = None  # gets what the model returned

    @property
    def guided(self) -> bool:
        return self.negative is not None

    def __call__(self, x: Tensor, timesteps: Tensor, rows: Tensor) -> Tensor:
        pieces: list[Tensor] = []
        at, copies = 0, 2 if self.guided else 1
        while at < len(x):
            chunk = len(x) if self.max_rows is None else max(1, self.max_rows // copies)
            part = slice(at, at + chunk)
            try:
                pieces.append(self._evaluate(x[part], timesteps[part], rows[part]))
            except torch.OutOfMemoryError:
                if len(x[part]) == 1:
                    raise
                self.max_rows = len(x[part]) * copies // 2
                continue
            at += chunk
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _evaluate(self, x: Tensor, timesteps: Tensor, rows: Tensor) -> Tensor:
        x = x.to(self.dtype)
        arguments = follow(self.arguments, rows, self.batch)
        if self.negative is None:
            return self._run(x, timesteps, arguments)
        unconditional = follow(self.arguments | self.negative, rows, self.batch)
        both = {
            key: _joined(key, unconditional[key], arguments[key], self.arguments[key], self.batch)
            for key in arguments
        }
        out = self._run(torch.cat((x, x)), torch.cat((timesteps, timesteps)), both)
        without, with_ = out.chunk(2)
        return without + self.guidance_scale * (with_ - without)

    def _run(self, x: Tensor, timesteps: Tensor, arguments: Arguments) -> Tensor:
        self.calls += 1
        self.rows += len(x)
        out = output_of(self.model(x, timesteps, **arguments, **self.shared))
        if self.observe is not None:
            self.observe(out)
        if out.shape != x.shape:
            hint = ""
            if out.dim() > 1 and out.shape[1] == 2 * x.shape[1]:
                hint = "; a model that predicts variances, too, is not supported"
            raise ValueError(
                f"model must return a tensor of the shape of its input, {tuple(x.shape)}, got "
                f"{tuple(out.shape)}{hint}"
            )
        return out


def _joined(name: str, negative: Any, positive: Any, given: Any, batch: int) -> Any:
    """Arguments of both halves of the rows; ``given`` is what the user did, and tells what follows
    the batch.  The rest is shared by the halves, and is the positive one's."""
    if isinstance(given, Tensor):
        if given.dim() == 0 or given.shape[0] != batch:
            return positive
        if not isinstance(negative, Tensor) or negative.shape != positive.shape:
            raise ValueError(
                f"negative_kwargs[{name!r}] must be a tensor of the shape of its counterpart in "
                "model_kwargs"
            )
        return torch.cat((negative, positive))
    if isinstance(given, dict):
        return {
            key: _joined(name, negative[key], positive[key], item, batch)
            for key, item in given.items()
        }
    if isinstance(given, (list, tuple)):
        parts = zip(negative, positive, given, strict=True)
        return type(given)(_joined(name, *part, batch) for part in parts)
    return positive
