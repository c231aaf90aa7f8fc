# SPDX-License-Identifier: Apache-2.0
"""One chain from its start to its end: two steps by the loop, then sweeps for as long as they pay.

The first two steps show what a call of the model takes, in what dtype it answers and whether it
changes its buffers; the first sweep computes the second of them again, which shows whether a row
depends on the others.  With ``plan="auto"`` sweeps go on only while

    (sweeps that are still expected) * (seconds of the last) < (steps left) * (seconds of a step)

so that a chain that does not pay costs one sweep more than the loop, the first time: that is
remembered.  (With a batch that keeps the machine busy one sweep is as much as the whole loop.)
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .model import modules_of
from .plan import SampleInfo, SamplePlan
from .solve import Chain, Rules, Window

Callback = Callable[[int, Tensor, Tensor], object]
#: Sweeps that are expected of a window where none have been seen; examples/diffusion has what was.
_EXPECTED = {"zero": 1000, "identity": 20, "scalar": 40, "diagonal": 12, "dense": 6}
#: model -> {kind of chain: sweeps that it took; 0: they did not pay}
_seen: weakref.WeakKeyDictionary[Any, dict[Any, int]] = weakref.WeakKeyDictionary()


class Job:
    """States are (B, m): the latents, flat, and what a multistep sampler remembers."""

    def __init__(
        self,
        chain: Chain,
        plan: SamplePlan,
        callback: Callback | None = None,
        preview: Callable[[int, Tensor], object] | None = None,
        advance: Callable[[int], object] = lambda steps: None,
        keep: bool = False,
    ) -> None:
        self.chain, self.plan = chain, plan
        self.callback, self.preview, self.advance = callback, preview, advance
        self.states: list[Tensor] | None = [] if keep else None  # of the steps that are final
        self.residual: list[Tensor] = []
        self.walked = self.sweeps = 0
        self.step_seconds = self.sweep_seconds = 0.0
        self.cut = False  # max_sweeps, or a state that is not finite, ended the sweeps

    def run(self, state: Tensor, first: int, guess: Tensor | None, finish: bool = True) -> Tensor:
        """From the input of step ``first`` to x_L; not ``finish``: as far as sweeps bring it."""
        length = len(self.chain)
        if self.plan.parallel and length - first > 2:
            state, first = self._sweep(state, first, guess)
        return self._walk(state, first, length) if finish else state

    def latents(self, state: Tensor) -> Tensor:
        denoiser = self.chain.denoiser
        x = state.chunk(self.chain.schedule.parts, dim=-1)[0]
        return x.reshape(-1, *denoiser.shape).to(denoiser.dtype)

    def finalise(self, step: int, state: Tensor, error: Tensor | None) -> None:
        if error is None:
            error = state.new_zeros(state.shape[0])
            self.walked += 1
        self.residual.append(error)
        if self.states is not None:
            self.states.append(state)
        if self.callback is not None:
            self.callback(step, self.chain.schedule.timesteps[step], self.latents(state))
        self.advance(1)

    def walked_all(self, states: Tensor) -> None:
        """All steps at once, by somebody else: states (L, B, ...)."""
        if self.callback is not None or self.states is not None:
            for step, state in enumerate(states.reshape(*states.shape[:2], -1)):
                self.finalise(step, state, None)
            return
        self.walked = len(states)
        self.residual = list(states.new_zeros(states.shape[:2]))
        self.advance(len(states))

    def _walk(self, state: Tensor, first: int, last: int) -> Tensor:
        for step in range(first, last):
            state = self.chain.walk(step, state)
            self.finalise(step, state, None)
        return state

    # ---- sweeps ----------------------------------------------------------------------------------

    def _sweep(self, state: Tensor, first: int, guess: Tensor | None) -> tuple[Tensor, int]:
        """Returns the last state that is final, and the step that it is the input of."""
        chain, plan = self.chain, self.plan
        versions = _versions(chain.denoiser.model)
        before = self._walk(state, first, first + 1)
        if _versions(chain.denoiser.model) != versions:
            raise ValueError(
                "model: a call changes its buffers, so that later calls depend on earlier ones; "
                "steps cannot run in parallel"
            )
        begin = chain.clock()  # now, because the first call of a model may compile it
        known = self._walk(before, first + 1, first + 2)
        self.step_seconds = chain.clock() - begin
        left = len(chain) - first - 2
        if not plan.why and self._known_sweeps() == 0:
            self._leave("an earlier call found that sweeps do not pay here")
            return known, first + 2
        if not plan.why and self._expected() >= left:
            self._leave(f"about {self._expected()} sweeps are expected for {left} steps")
            return known, first + 2
        rules = Rules(plan.jacobian, plan.refresh, plan.window, plan.tolerance, plan.max_sweeps)
        window = Window(chain, rules, first + 1, torch.stack((before, known)), guess)
        self._sweep_on(window, known)
        self.sweeps = window.sweeps
        if window.first < first + 2:  # not one sweep: the loop has been there
            return known, first + 2
        return window.states[0], window.first

    def _sweep_on(self, window: Window, known: Tensor) -> None:
        chain = self.chain
        while window.first < len(chain) and window.sweeps < self.plan.max_sweeps:
            begin, step = chain.clock(), window.first
            states, errors = window.sweep()
            seconds = chain.clock() - begin
            skip = window.sweeps == 1  # its first step is known
            if skip:
                self._compare(states[0], known)
            for i in range(int(skip), len(states)):
                self.finalise(step + i, states[i], errors[i])
            if self.preview is not None:
                self.preview(window.sweeps, self.latents(window.states[-1]))
            if not states[-1].isfinite().all():
                break
            if not self._go_on(window, seconds):
                return
        self.cut = window.first < len(chain)
        if not self.cut:
            self._remember(window.sweeps)

    def _compare(self, state: Tensor, known: Tensor) -> None:
        close = torch.finfo(self.chain.out_dtype).eps ** 0.5 * 10
        finite = known.isfinite()
        far, size = (state - known).abs()[finite], known[finite].abs()
        if far.numel() and not float(far.max()) <= close * max(float(size.max()), 1e-6):
            raise ValueError(
                "model: the same row gives another result in a call with other rows (it differs by "
                f"{float(far.max()):.1e}): rows must not depend on each other, nor calls on "
                "earlier ones"
            )

    # ---- does it pay? ----------------------------------------------------------------------------

    def _key(self) -> Any:
        schedule, plan, calls = self.chain.schedule, self.plan, self.chain.denoiser
        size = (len(schedule), calls.batch, calls.shape)
        return (schedule.name, size, plan.jacobian, plan.window, plan.tolerance)

    def _remember(self, sweeps: int) -> None:
        with contextlib.suppress(TypeError):  # not every callable can be a weak key
            _seen.setdefault(_owner(self.chain.denoiser.model), {})[self._key()] = sweeps

    def _known_sweeps(self) -> int | None:
        with contextlib.suppress(TypeError):
            return _seen.get(_owner(self.chain.denoiser.model), {}).get(self._key())
        return None

    def _expected(self) -> int:
        length, window = len(self.chain), max(1, self.plan.window)
        guess = min(length, _EXPECTED[self.plan.jacobian] * -(-length // window))
        return self._known_sweeps() or guess

    def _go_on(self, window: Window, seconds: float) -> bool:
        self.sweep_seconds += seconds
        left = len(self.chain) - window.first
        more = max(1, self._expected() - window.sweeps)
        if self.plan.why or left == 0 or more * seconds < left * self.step_seconds:
            return True
        self._remember(0)
        self._leave(
            f"{more} more sweeps of {seconds * 1e3:.3g} ms for {left} steps would not beat the "
            f"loop, {self.step_seconds * 1e3:.3g} ms a step"
        )
        return False

    def _leave(self, why: str) -> None:
        self.plan = replace(self.plan, parallel=False, why=why)

    # ---- the report ------------------------------------------------------------------------------

    def info(self) -> SampleInfo:
        plan, denoiser = self.plan, self.chain.denoiser
        if not plan.why:
            plan = replace(
                plan,
                why=f"{self.sweeps} sweeps took {self.sweep_seconds * 1e3:.3g} ms, the loop takes "
                f"{self.step_seconds * 1e3:.3g} ms a step",
            )
        residual = torch.stack(self.residual) if self.residual else torch.zeros(0, denoiser.batch)
        trajectory = None
        if self.states is not None:
            shape = (0, denoiser.batch, *denoiser.shape)
            kept = [self.latents(state) for state in self.states]
            trajectory = torch.stack(kept) if kept else residual.new_zeros(shape)
        return SampleInfo(
            self.sweeps,
            denoiser.calls,
            denoiser.rows,
            residual,
            not self.cut,
            self.walked,
            plan,
            trajectory,
        )


def _owner(model: Any) -> Any:
    """The module that is called, whatever calls it; else the callable itself."""
    modules = modules_of(model)
    return modules[0] if modules else model


def _versions(model: Any) -> list[tuple[int, int]]:
    """Of the buffers: what they are, and how often they have been written."""
    buffers = (b for module in modules_of(model)[:1] for b in module.buffers())
    return [(id(buffer), 0 if buffer.is_inference() else buffer._version) for buffer in buffers]
