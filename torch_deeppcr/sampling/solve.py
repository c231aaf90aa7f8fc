# SPDX-License-Identifier: Apache-2.0
"""Newton's method on a window of a denoising chain  x_l = f_l(x_{l-1}),  l = 1..L.

One sweep, for the W steps that are in the window:

    evaluate    e_l = f_l(x_{l-1}) for all of them, in one call of the model
    linearise   A_l ~ df_l/dx, where it is due
    update      d_l = A_l d_{l-1} + e_l - x_l,   x_l = e_l + A_l d_{l-1}        (`newton_update`)
    slide       the leading steps whose |d_l| is within tolerance are final and leave the window

Whatever A is, the first step of the window has an exact input, so a sweep finishes one step at
least; A decides how many more.  identity is ParaDiGMS (Shih et al. 2023, arXiv 2305.16317), scalar
the linear part of the scheduler (ParaTAA, Tang et al. 2024, 2402.09970, without its acceleration),
diagonal a quasi-Newton method, dense Newton's (DeepPCR, Danieli et al. 2023, 2309.16318).

diagonal: v . (J v) for one random v of signs; dense: all columns of J.  Both are differences of f,
evaluated as further rows of the same call: every model has them, compiled or not, and A only
decides about the number of sweeps.  A step's A is computed once it has been in the window for a
sweep (the first goes with the identity), and again after a sweep that left more than a quarter of
the error, where its input has moved by more than a tenth since.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .._update import newton_update
from . import noise as noises
from .model import ModelCalls
from .schedule import Schedule

JACOBIANS = ("zero", "identity", "scalar", "diagonal", "dense")
_COMPUTED = ("diagonal", "dense")
#: A sweep that leaves more of the error asks for new slopes, of the steps whose input has moved by
#: more than this share of itself: the numbers of ``csrc/ops/newton.h``.
_SLOW, _FAR = 0.25, 0.1


@dataclass
class Chain:
    """The chain of one call of `sample`: its step maps, its noise, and what they have cost."""

    schedule: Schedule
    denoiser: ModelCalls
    generator: noises.Generators
    dtype: torch.dtype  # of the states
    device: torch.device
    out_dtype: torch.dtype = torch.float32  # of the model's output; known after the first step
    drawn: int = 0  # steps whose noise has been drawn
    noise: dict[int, Tensor] = field(default_factory=dict)  # (B, n) of the steps that are not final

    def __len__(self) -> int:
        return len(self.schedule)

    def steps(self, which: Tensor, states: Tensor) -> Tensor:
        """f_l without noise, (K,) and (K, B, m) -> (K, B, m)."""
        return self.schedule.step(which, states, self._evaluate, self.denoiser.shape)

    def _evaluate(self, x: Tensor, timesteps: Tensor, rows: Tensor) -> Tensor:
        out = self.denoiser(x, timesteps, rows)
        self.out_dtype = out.dtype
        return out

    def add_noise(self, first: int, ends: Tensor) -> Tensor:
        """ends (K, B, m) of the steps from ``first`` on, with their noise."""
        last = first + len(ends)
        assert self.schedule.draws is not None
        for step in range(self.drawn, last):
            if self.schedule.draws[step]:
                self.noise[step] = self._draw(ends)
        self.drawn = max(self.drawn, last)
        drawn = [step for step in range(first, last) if step in self.noise]
        if not drawn:
            return ends
        which = torch.tensor(drawn)
        scaled = torch.stack([self.noise[step] for step in drawn]).to(ends)
        scaled = self.schedule.column("noise", which, ends) * scaled
        if self.schedule.parts == 2:
            scaled = torch.nn.functional.pad(scaled, (0, scaled.shape[-1]))
        return ends.index_add(0, (which - first).to(ends.device), scaled)

    def _draw(self, like: Tensor) -> Tensor:
        dtype = self.dtype if self.schedule.noise_like_state else self.out_dtype
        shape = (like.shape[1], *self.denoiser.shape)
        return noises.draw(shape, self.generator, dtype, self.device).flatten(1)

    def forget(self, first: int) -> None:
        """Noise of the steps before ``first`` is not needed any more."""
        for step in [step for step in self.noise if step < first]:
            del self.noise[step]

    def walk(self, step: int, state: Tensor) -> Tensor:
        """One step of the loop, (B, m) -> (B, m)."""
        self.forget(step)
        return self.add_noise(step, self.steps(torch.tensor([step]), state.unsqueeze(0)))[0]

    def clock(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass(frozen=True)
class Rules:
    """How a window is solved."""

    jacobian: str
    refresh: str  # "adaptive" or "always"
    window: int
    tolerance: float  # of a step's state, relative to the level of its noise
    max_sweeps: int


class Window:
    """The steps first..first+W-1 of a chain, and how far they are."""

    def __init__(
        self, chain: Chain, rules: Rules, first: int, states: Tensor, warm_start: Tensor | None
    ) -> None:
        """states: (K+1, B, m), the input of step ``first``, which is final, and guesses after it.
        warm_start: guesses (L, B, m) of all steps, or None."""
        self.chain, self.rules, self.first = chain, rules, first
        self.warm_start = warm_start
        self.states = states
        self.slopes = states.new_empty(0)
        self.computed = torch.zeros(0, dtype=torch.bool)  # whose slopes are more than a guess
        self.moved = torch.zeros(0, dtype=torch.float64)  # inputs, since their slopes were computed
        self.seen = torch.zeros(0, dtype=torch.bool)  # in the window for a sweep at least
        self.due = False  # the last sweep gained little
        self.worst = float("inf")
        self.sweeps = 0
        self.probes = torch.Generator(states.device).manual_seed(0)
        self._extend()

    # ---- the window ------------------------------------------------------------------------------

    def _extend(self) -> None:
        """Takes in the steps that there is room for."""
        last = min(len(self.chain), self.first + self.rules.window)
        at = self.first + len(self.states) - 1  # states reach x_at
        if last > at:
            if self.warm_start is not None:
                more = self.warm_start[at:last]
            else:
                more = self.states[-1:].expand(last - at, -1, -1)
            self.states = torch.cat((self.states, more))
        self.states = self.states[: last - self.first + 1]
        known, size = len(self.computed), last - self.first
        if self._structure() not in ("zero", "identity") and size > known:
            guess = self._guessed_slopes(torch.arange(self.first + known, last))
            self.slopes = guess if known == 0 else torch.cat((self.slopes, guess))
        self.computed = _grown(self.computed, size, False)
        self.seen = _grown(self.seen, size, False)
        self.moved = _grown(self.moved, size, 0.0)

    def _slide(self, count: int) -> None:
        self.first += count
        self.states = self.states[count:]
        self.slopes = self.slopes[count:]
        self.computed, self.seen = self.computed[count:], self.seen[count:]
        self.moved = self.moved[count:]
        self.chain.forget(self.first)
        self._extend()

    def _guessed_slopes(self, which: Tensor) -> Tensor:
        """I, or the scheduler's own: (K,1,1), or in the shape of what will be computed."""
        steps, batch, size = len(which), *self.states.shape[1:]
        if self.rules.jacobian != "scalar":
            parts = torch.ones(steps, 1, self.chain.schedule.parts).to(self.states)
            parts[..., 1:] = 0
        else:
            parts = self.chain.schedule.slopes(which, self.states)
        if parts.shape[-1] == 1 and self.rules.jacobian not in _COMPUTED:
            return parts
        rows = parts.repeat_interleave(size // parts.shape[-1], dim=-1)
        if self.rules.jacobian == "dense":
            return torch.diag_embed(rows).expand(steps, batch, size, size)
        return rows.expand(steps, batch, size) if self.rules.jacobian == "diagonal" else rows

    # ---- one sweep -------------------------------------------------------------------------------

    def sweep(self) -> tuple[Tensor, Tensor]:
        """Returns the states (K, B, m) and errors (K, B) of the K >= 1 steps that are final now."""
        due = self._due()
        ends = self._evaluate(due)
        self.moved[due] = 0
        self.computed[due] = True
        which = torch.arange(self.first, self.first + len(ends))
        levels = self.chain.schedule.levels(which) * self.rules.tolerance
        rounding = self._rounding()
        structure = self._structure()
        slopes = None if structure in ("zero", "identity") else self.slopes
        before = self.states
        self.states, error, converged = newton_update(
            before, ends, slopes, structure, levels.to(ends.device), rounding
        )
        self.sweeps += 1
        self.moved += _moved(before[:-1], self.states[:-1])
        self.seen[:] = True
        count = max(1, min(int(converged.min()) if converged.numel() else len(ends), len(ends)))
        self._judge(error, ends, levels, rounding)
        final, residual = self.states[1 : count + 1], error[:count]
        self._slide(count)
        return final, residual

    def _structure(self) -> str:
        """Of the slopes: where a state has two parts, a number for each of them is a diagonal."""
        if self.chain.schedule.parts == 2 and self.rules.jacobian in ("identity", "scalar"):
            return "diagonal"
        return self.rules.jacobian

    def _rounding(self) -> float:
        """What is not worth a sweep: the rounding of a state, and of the model's output."""
        own = 8 * torch.finfo(self.states.dtype).eps
        return max(own, torch.finfo(self.chain.out_dtype).eps / 4)

    def _due(self) -> Tensor:
        """Indices in the window of the steps whose slopes are computed in this sweep."""
        if self.rules.jacobian not in _COMPUTED:
            return torch.zeros(0, dtype=torch.int64)
        if self.rules.refresh == "always":
            due = torch.ones_like(self.computed)
        else:
            most = float(self.moved.max()) if len(self.moved) else 0.0
            due = self.seen & ~self.computed
            if self.due:
                due = due | (self.computed & (self.moved > _FAR * min(most, 1.0)))
        due[:1] = False  # its input is exact: A_1 is never used
        return due.nonzero()[:, 0]

    def _evaluate(self, due: Tensor) -> Tensor:
        """e (W, B, m), and the slopes of the steps that are due, from one call of the model."""
        which = torch.arange(self.first, self.first + len(self.states) - 1)
        inputs = self.states[:-1]
        if not len(due):
            return self.chain.add_noise(self.first, self.chain.steps(which, inputs))
        rows = due.to(inputs.device)
        directions = self._directions(inputs[rows])  # (D, K, B, m)
        size = torch.finfo(self.chain.out_dtype).eps ** 0.5
        h = inputs[rows].abs().amax(-1, keepdim=True).clamp(min=1e-6) * size
        shifted = (inputs[rows] + h * directions).flatten(0, 1)
        both = torch.cat((inputs, shifted))
        count = len(directions)
        ends = self.chain.steps(torch.cat((which, which[due].repeat(count))), both)
        ends, others = ends.split([len(inputs), len(shifted)])
        columns = (others.view(count, len(due), *inputs.shape[1:]) - ends[rows]) / h
        self.slopes = self.slopes.index_copy(0, rows, self._slopes(columns, directions, rows))
        return self.chain.add_noise(self.first, ends)

    def _directions(self, inputs: Tensor) -> Tensor:
        """(D, K, B, m): random signs in the latents, or all unit vectors."""
        steps, batch, size = inputs.shape
        if self.rules.jacobian == "dense":
            unit = torch.eye(size, dtype=inputs.dtype, device=inputs.device)
            return unit.view(size, 1, 1, size).expand(size, steps, batch, size)
        latents = size // self.chain.schedule.parts
        signs = torch.randint(
            0, 2, (1, steps, 1, latents), generator=self.probes, device=inputs.device
        )
        probes = torch.zeros(1, steps, batch, size, dtype=inputs.dtype, device=inputs.device)
        probes[..., :latents] = 2 * signs - 1
        return probes

    def _slopes(self, columns: Tensor, directions: Tensor, rows: Tensor) -> Tensor:
        if self.rules.jacobian == "dense":
            slopes = columns.permute(1, 2, 3, 0)
        else:
            slopes = (columns * directions)[0]
        return torch.where(slopes.isfinite(), slopes, self.slopes[rows])

    def _judge(self, error: Tensor, ends: Tensor, levels: Tensor, rounding: float) -> None:
        """Did this sweep gain enough?  By the worst step's error in units of what is allowed."""
        allowed = levels.to(ends).view(-1, 1) + rounding * ends.abs().amax(-1)
        worst = float((error / allowed.clamp(min=1e-30)).max()) if error.numel() else 0.0
        self.due = not worst <= _SLOW * self.worst
        self.worst = worst


def _grown(flags: Tensor, size: int, value: float) -> Tensor:
    more = flags.new_full((max(0, size - len(flags)),), value)
    return torch.cat((flags, more))[:size]


def _moved(before: Tensor, after: Tensor) -> Tensor:
    """How far the states (K, B, m) have gone, relative to themselves: the worst sample of each."""
    if not before.numel():
        return torch.zeros(len(before), dtype=torch.float64)
    far = (after - before).abs().amax(-1) / after.abs().amax(-1).clamp(min=1e-30)
    return far.nan_to_num(nan=1e30, posinf=1e30).amax(-1).double().cpu()
