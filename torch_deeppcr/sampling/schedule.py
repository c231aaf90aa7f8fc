# SPDX-License-Identifier: Apache-2.0
"""A sampler as a table: the L one-step maps of a denoising loop, as coefficients.

Every scheduler that `sample` takes is of one form.  Step l gets x = x_{l-1} and computes

    out = model(input_scale x, timestep)
    x0  = clip(x0_sample x + x0_model out)                              prediction of clean data
    x_l = sample x + model out + x0 x0 + history x0_before + noise n

with a number for each step in every coefficient, x0_before the prediction of the step before
(DPM-Solver++ 2M; 0 elsewhere) and n the step's standard normal noise.  Heun's method evaluates the
model again, at the point x_l so predicted, which a `Corrector` then corrects.

Sources: DDPM (Ho et al. 2020, arXiv 2006.11239), DDIM (Song et al. 2021, 2010.02502), Euler and
Heun (Karras et al. 2022, 2206.00364), DPM-Solver++ (Lu et al. 2022, 2211.01095).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

Coefficients = Tensor | Sequence[float] | float
#: (input (R, ...), timesteps (R,), rows (R,)) -> out (R, ...), of rows step * B + sample.
Evaluate = Callable[[Tensor, Tensor, Tensor], Tensor]
_PER_STEP = "input_scale x0_sample x0_model sample model x0 history noise level".split()


def clamp(limit: float) -> Callable[[Tensor], Tensor]:
    """Predictions of clean data are clipped to [-limit, limit]."""
    return lambda x0: x0.clamp(-limit, limit)


@dataclass(frozen=True)
class Corrector:
    """The second evaluation of Heun's method, at the state x' that the first predicts.

        out' = model(input_scale x', timestep),   x0' = clip(x0_sample x' + x0_model out')
        x_l  = sample x + x0_before x0 + predicted x' + x0 x0'

    in the steps that are ``active``; in the others x_l is x'.  Tensors (L,).
    """

    timesteps: Tensor
    input_scale: Tensor
    x0_sample: Tensor
    x0_model: Tensor
    sample: Tensor
    x0_before: Tensor
    predicted: Tensor
    x0: Tensor
    active: Tensor


class LinearChain(NamedTuple):
    """A schedule for `torch_deeppcr.denoise_chain`.  Its state after step l is x_l times the scale
    of the network's input in the step that follows, 1 after the last."""

    coefficients: Tensor  # (L, 2)
    noise: Tensor | None  # (L, B, w), scaled
    scale_in: float  # of x_0
    scale_out: Tensor  # (L, 1, 1) of x_1..x_L


@dataclass(frozen=True, eq=False)
class Schedule:
    """The coefficients of a denoising loop, a number for each of its L steps (see the module's
    head).

    Args:
        timesteps: (L,) what the model is told, in the order of the loop.
        sample, model: weights of the state and of the model's output in the next state.
        noise: weight of the step's noise; steps with 0 draw none, unless ``draws`` says so.
        x0_sample, x0_model, x0: the prediction of clean data, and its weight in the next state;
            only needed where predictions are clipped, or remembered.
        history: weight of the prediction of the step before.
        input_scale: what the state is multiplied by before the model sees it.
        level: the size of the noise in the state that a step starts from, to which tolerances are
            relative; 1 by default.
        clip: what happens to a prediction (R, ...) of clean data, or None.
        draws: bool (L,), the steps that draw noise; those whose ``noise`` is not 0 by default.
        noise_like_state: whether noise is drawn in the dtype of the state, not of the output.

    Coefficients are numbers, sequences or tensors (L,), kept as float64.

    Raises:
        ValueError: a coefficient has another length than ``timesteps``, or is not finite.
    """

    timesteps: Tensor
    sample: Coefficients
    model: Coefficients
    noise: Coefficients = 0.0
    x0_sample: Coefficients = 0.0
    x0_model: Coefficients = 0.0
    x0: Coefficients = 0.0
    history: Coefficients = 0.0
    input_scale: Coefficients = 1.0
    level: Coefficients = 1.0
    clip: Callable[[Tensor], Tensor] | None = None
    draws: Tensor | None = None
    corrector: Corrector | None = None
    noise_like_state: bool = False
    name: str = "table"
    _table: dict[str, Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        timesteps = torch.as_tensor(self.timesteps)
        if timesteps.dim() != 1:
            raise ValueError(f"timesteps must have shape (L,), got {tuple(timesteps.shape)}")
        object.__setattr__(self, "timesteps", timesteps)
        table = {name: self._column(name) for name in _PER_STEP}
        object.__setattr__(self, "_table", table)
        draws = table["noise"] != 0 if self.draws is None else torch.as_tensor(self.draws).bool()
        if draws.shape != timesteps.shape:
            raise ValueError(f"draws must have shape ({len(self)},), got {tuple(draws.shape)}")
        object.__setattr__(self, "draws", draws.cpu())

    def _column(self, name: str) -> Tensor:
        column = torch.as_tensor(getattr(self, name), dtype=torch.float64).cpu()
        if column.dim() == 0:
            column = column.expand(len(self))
        if column.shape != (len(self),):
            raise ValueError(
                f"{name} must be a number or have one for each of the {len(self)} steps, "
                f"got shape {tuple(column.shape)}"
            )
        if not column.isfinite().all():
            step = int((~column.isfinite()).nonzero()[0, 0])
            raise ValueError(f"{name} must be finite, it is {float(column[step])} in step {step}")
        return column

    def __len__(self) -> int:
        return self.timesteps.shape[0]

    @property
    def has_noise(self) -> bool:
        """Whether any noise has a weight; schedulers draw some for nothing."""
        return bool(self._table["noise"].any())

    @property
    def is_linear(self) -> bool:
        """Whether a step is x_l = a x + c model(input_scale x) + noise n."""
        return self.clip is None and self.corrector is None and not self.remembers

    def linear_chain(self, latents: Tensor, noise: Tensor | None) -> LinearChain:
        """The schedule as the coefficients of `torch_deeppcr.denoise_chain`, for a native network.

        latents (B, ...), noise (L, B, ...) or None, standard normal.

        Raises:
            NotImplementedError: steps are not linear in the model's output.
            ValueError: noise is missing, or not wanted, or of another shape.
        """
        if not self.is_linear:
            raise NotImplementedError(
                f"schedule: {self.name} with clipped predictions, memory or two calls a step is no "
                "chain of linear steps; use torch_deeppcr.sample"
            )
        t = self._table
        if self.has_noise != (noise is not None):
            raise ValueError(
                f"noise must be {'given' if self.has_noise else 'None'} with {self.name}"
            )
        if noise is not None and noise.shape != (len(self), *latents.shape):
            raise ValueError(
                f"noise must have shape (L, B, ...) = {(len(self), *latents.shape)}, got "
                f"{tuple(noise.shape)}"
            )
        scale = torch.cat((t["input_scale"], torch.ones(1, dtype=torch.float64)))
        before, after = scale[:-1], scale[1:]
        a = (t["sample"] + t["x0"] * t["x0_sample"]) * after / before
        c = (t["model"] + t["x0"] * t["x0_model"]) * after
        scales = after.to(latents).view(-1, 1, 1)
        if noise is not None:
            noise = noise.to(latents).reshape(len(self), latents.shape[0], -1)
            noise = (t["noise"] * after).to(latents).view(-1, 1, 1) * noise
        return LinearChain(torch.stack((a, c), -1).to(latents), noise, float(scale[0]), scales)

    def part(self, first: int) -> Schedule:
        """Without its first steps, as when a loop begins late (image-to-image)."""
        table: dict[str, Any] = {
            name: column[first:].clone() for name, column in self._table.items()
        }
        if first < len(self):  # nothing to remember yet: this prediction stands for the one before
            table["x0"][0] += table["history"][0]
            table["history"][0] = 0
        corrector = self.corrector
        if corrector is not None:
            corrector = Corrector(*(getattr(corrector, f.name)[first:] for f in fields(corrector)))
        assert self.draws is not None
        timesteps, draws = self.timesteps[first:], self.draws[first:]
        return replace(self, timesteps=timesteps, draws=draws, corrector=corrector, **table)

    @property
    def remembers(self) -> bool:
        """Whether a step needs the prediction of the step before: the state is then (x, x0)."""
        return bool(self._table["history"].any())

    @property
    def parts(self) -> int:
        """Tensors of the size of the latents in a state."""
        return 2 if self.remembers else 1

    def column(self, name: str, which: Tensor, like: Tensor) -> Tensor:
        """Of the steps ``which`` (K,), as (K, 1, 1) of the dtype and device of ``like``."""
        return self._table[name][which].to(like).view(-1, 1, 1)

    def levels(self, which: Tensor) -> Tensor:
        """(K,) float64, on the CPU."""
        return self._table["level"][which].clamp(min=0.1)

    def input_scale_of(self, step: int) -> float:
        return float(self._table["input_scale"][step])

    def prediction(self, step: int, x: Tensor, out: Tensor) -> Tensor | None:
        """x0 (B, ...) of one step, if the next one needs it."""
        if not self.remembers:
            return None
        weights = self._table["x0_sample"][step], self._table["x0_model"][step]
        x0 = float(weights[0]) * x.float() + float(weights[1]) * out.float()
        return x0 if self.clip is None else self.clip(x0)

    def slopes(self, which: Tensor, like: Tensor) -> Tensor:
        """d x_l / d x_{l-1} (K, 1, parts), the model's output held fixed and nothing clipped."""
        t = self._table
        slope = t["sample"] + t["x0"] * t["x0_sample"]
        if self.corrector is not None:
            c = self.corrector
            corrected = c.sample + c.x0_before * t["x0_sample"]
            corrected = corrected + slope * (c.predicted + c.x0 * c.x0_sample)
            slope = torch.where(c.active, corrected, slope)
        parts = [slope, torch.zeros_like(slope)][: self.parts]
        return torch.stack(parts, -1)[which].unsqueeze(1).to(like)

    def step(self, which: Tensor, states: Tensor, evaluate: Evaluate, shape: torch.Size) -> Tensor:
        """f_l(x) without its noise, for the steps ``which`` (K,), each from a state of its own.

        states (K, B, parts * n) -> (K, B, parts * n), latents of ``shape``, n numbers.
        """
        batch = states.shape[1]

        def at(name: str) -> Tensor:
            return self.column(name, which, states)

        def call(x: Tensor, timesteps: Tensor) -> Tensor:
            rows = torch.arange(len(x) * batch, device=x.device)
            times = timesteps.to(x.device).repeat_interleave(batch)
            return evaluate(x.reshape(-1, *shape), times, rows).to(x.dtype).reshape(x.shape)

        x, *before = states.chunk(self.parts, dim=-1)
        out = call(at("input_scale") * x, self.timesteps[which.to(self.timesteps.device)])
        x0 = self._clipped(at("x0_sample") * x + at("x0_model") * out, shape)
        following = at("sample") * x + at("model") * out + at("x0") * x0
        if before:
            following = following + at("history") * before[0]
        if self.corrector is not None:
            following = self._corrected(self.corrector, which, x, x0, following, call, shape)
        return torch.cat((following, x0), -1) if before else following

    def _clipped(self, x0: Tensor, shape: torch.Size) -> Tensor:
        if self.clip is None:
            return x0
        return self.clip(x0.reshape(-1, *shape)).reshape(x0.shape)

    def _corrected(
        self,
        c: Corrector,
        which: Tensor,
        x: Tensor,
        x0: Tensor,
        predicted: Tensor,
        call: Callable[[Tensor, Tensor], Tensor],
        shape: torch.Size,
    ) -> Tensor:
        some = c.active[which].nonzero()[:, 0]
        if not len(some):
            return predicted
        steps, rows = which[some], some.to(x.device)

        def at(column: Tensor) -> Tensor:
            return column[steps].to(x).view(-1, 1, 1)

        guess = predicted[rows]
        out = call(at(c.input_scale) * guess, c.timesteps[steps])
        again = self._clipped(at(c.x0_sample) * guess + at(c.x0_model) * out, shape)
        corrected = at(c.sample) * x[rows] + at(c.x0_before) * x0[rows]
        corrected = corrected + at(c.predicted) * guess + at(c.x0) * again
        return predicted.index_copy(0, rows, corrected)
