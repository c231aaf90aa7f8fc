# SPDX-License-Identifier: Apache-2.0
"""What one contender came to."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from contenders import Contender
from training import History


@dataclass(eq=False)
class Result:
    contender: Contender
    last_step: int
    history: History = field(default_factory=History)
    failure: str | None = None

    @property
    def steps(self) -> int:
        return len(self.history.losses)

    def milliseconds(self) -> float:
        """Median time of a step."""
        return 1e3 * statistics.median(self.history.seconds)

    def quartiles(self) -> tuple[float, float]:
        """Of the time of a step, in milliseconds."""
        if self.steps < 2:
            return self.milliseconds(), self.milliseconds()
        low, _, high = statistics.quantiles(self.history.seconds, n=4, method="inclusive")
        return 1e3 * low, 1e3 * high

    def accuracy(self, step: int | None = None) -> float | None:
        """Percent of the test images, at the end or after a given step; None: not measured."""
        measured = self.history.accuracy
        step = max(measured, default=0) if step is None else step
        return 100 * measured[step] if step in measured else None
