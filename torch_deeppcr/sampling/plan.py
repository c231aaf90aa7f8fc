# SPDX-License-Identifier: Apache-2.0
"""How a chain is to be sampled (`SamplePlan`), and how it was (`SampleInfo`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from .. import _checks
from .schedule import Schedule
from .solve import JACOBIANS

PLANS = ("auto", "parallel", "sequential")
#: Fewer steps than this have no sweeps to save.
_FEWEST_STEPS = 8
#: Numbers that the states of a window may hold, where it is not given: 1 GiB of float32.
_WINDOW_NUMBERS = 1 << 28
#: Dense slopes are n^2 numbers a sample and step, and n further rows a step.
_WIDEST_DENSE = 1024


@dataclass(frozen=True)
class SamplePlan:
    """How a chain was sampled; ``sample(..., plan=info.plan)`` does it so again.

    parallel: in sweeps; else by the loop.  The other fields are `sample`'s arguments; why is a
    sentence.
    """

    parallel: bool
    jacobian: str
    refresh: str
    window: int
    max_rows: int | None
    tolerance: float
    max_sweeps: int
    why: str


class SampleInfo(NamedTuple):
    """What sampling took.

    sweeps: Newton sweeps over the window.
    calls: of the model, one after the other.
    rows: evaluated in these calls, a row being one sample in one step (guidance has two).
    residual: (L, B), the estimated error of each step's state when it became final, largest
        element; 0 for the steps that the loop made.
    converged: False where sweeps ended before the chain, and the loop made the rest: after
        ``max_sweeps``, or at a state that is not finite.
    sequential_steps: steps that the loop made.
    plan: the `SamplePlan`.
    trajectory: (L, B, ...) all states x_1..x_L, with ``return_trajectory=True``, else None.
    """

    sweeps: int
    calls: int
    rows: int
    residual: Tensor
    converged: bool
    sequential_steps: int
    plan: SamplePlan
    trajectory: Tensor | None


@dataclass(frozen=True)
class PlanOptions:
    """What `sample` and `parallel_sampling` are told about how to run, checked; see `sample`."""

    plan: str | SamplePlan = "auto"
    jacobian: str = "auto"
    refresh: str = "adaptive"
    window: int | None = None
    max_rows: int | None = None
    tolerance: float = 1e-4
    max_sweeps: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.plan, SamplePlan):
            _checks.choice("plan", self.plan, PLANS)
        _checks.choice("jacobian", self.jacobian, ("auto", *JACOBIANS))
        _checks.choice("refresh", self.refresh, ("adaptive", "always"))
        for name in ("window", "max_rows"):
            if getattr(self, name) is not None and _checks.size(name, getattr(self, name)) == 0:
                raise ValueError(f"{name} must be at least 1, got 0")
        _checks.positive("tolerance", self.tolerance)
        if self.max_sweeps is not None:
            _checks.size("max_sweeps", self.max_sweeps)

    def resolve(self, schedule: Schedule, latents: Tensor) -> SamplePlan:
        """The plan with nothing left open; ``why`` is empty where times are to decide."""
        length, batch = len(schedule), max(1, latents.shape[0])
        numbers = max(1, latents[:1].numel() * schedule.parts)
        if isinstance(self.plan, SamplePlan):
            _check_dense(self.plan.jacobian, numbers)
            size = max(1, min(self.plan.window, length))
            return replace(self.plan, window=size, why="as in an earlier plan")
        jacobian = "diagonal" if self.jacobian == "auto" else self.jacobian
        _check_dense(jacobian, numbers)
        most = _WINDOW_NUMBERS // (batch * numbers * (numbers if jacobian == "dense" else 1))
        window = most if self.window is None else self.window
        why = "" if self.plan == "auto" else f'plan="{self.plan}", as asked for'
        parallel = self.plan != "sequential"
        if self.plan == "auto" and length < _FEWEST_STEPS:
            parallel, why = False, f"{length} steps are too few"
        return SamplePlan(
            parallel,
            jacobian,
            self.refresh,
            max(1, min(length, window)),
            self.max_rows,
            float(self.tolerance),
            length if self.max_sweeps is None else self.max_sweeps,
            why,
        )


def _check_dense(jacobian: str, numbers: int) -> None:
    if jacobian == "dense" and numbers > _WIDEST_DENSE:
        raise ValueError(
            f'jacobian="dense" is for states of up to {_WIDEST_DENSE} numbers, got {numbers}; '
            '"diagonal" fits'
        )
