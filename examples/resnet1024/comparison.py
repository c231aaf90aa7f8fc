# SPDX-License-Identifier: Apache-2.0
"""The loss curves against PyTorch's, and the promises that the demo makes about them.

Gap of two curves: the mean of |difference of the losses| over their common steps.  Two runs of
PyTorch that differ in nothing but the order of summation have a gap too; it is the yardstick for
everybody else's.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from contenders import DeepPCR, PyTorch, Reordered
from options import Options
from result import Result

GAP_FACTOR = 3.0
ACCURACY_POINTS = 1.0
LEAST_ACCURACY = 90.0
MOST_SECONDS = 300


def gap(a: Result, b: Result, steps: int) -> float:
    """Mean distance of two loss curves over the first `steps` training steps."""
    pairs = zip(a.history.losses[:steps], b.history.losses[:steps], strict=True)
    return statistics.fmean(abs(x - y) for x, y in pairs)


@dataclass(frozen=True)
class Comparison:
    """The results by name, of those that trained at all."""

    results: dict[str, Result]
    options: Options

    @staticmethod
    def of(results: list[Result], options: Options) -> Comparison:
        return Comparison({r.contender.name: r for r in results if r.steps}, options)

    @property
    def reference(self) -> Result | None:
        return self.results.get(PyTorch.name)

    @property
    def yardstick(self) -> Result | None:
        return self.results.get(Reordered.name)

    def same_network(self, result: Result) -> bool:
        return result.contender.depth(self.options) == self.options.depth

    def rivals(self) -> list[Result]:
        """Those that train PyTorch's network in another way."""
        aside = (self.reference, self.yardstick)
        return [r for r in self.results.values() if r not in aside and self.same_network(r)]

    def speed_up(self, result: Result) -> float | None:
        if self.reference is None or not self.same_network(result):
            return None
        return self.reference.milliseconds() / result.milliseconds()

    def common_steps(self, result: Result) -> int:
        """Where this result, PyTorch and the yardstick all have a loss."""
        others = (self.reference, self.yardstick)
        return min(r.steps for r in (result, *others) if r is not None)

    def gap(self, result: Result) -> float | None:
        if self.reference in (None, result) or not self.same_network(result):
            return None
        return gap(result, self.reference, self.common_steps(result))


@dataclass(frozen=True)
class Promise:
    kept: bool
    sentence: str

    def __str__(self) -> str:
        return f"{'PASS' if self.kept else 'FAIL'}  {self.sentence}"


def promises(results: list[Result], options: Options, seconds: float) -> list[Promise]:
    """What is promised of the default run, as far as the contenders that took part tell."""
    comparison = Comparison.of(results, options)
    made = [finished(results)]
    for rival in comparison.rivals():
        made += [same_curve(comparison, rival), same_accuracy(comparison, rival)]
        if rival.contender.name == DeepPCR.name:
            made.append(accurate(rival))
    made.append(in_time(seconds))
    return [promise for promise in made if promise is not None]


def finished(results: list[Result]) -> Promise:
    """An optional contender may fail: its row in the table says why."""
    failed = [r for r in results if r.failure is not None and not r.contender.optional]
    reasons = "; ".join(f"{r.contender.title}: {r.failure}" for r in failed)
    return Promise(not failed, f"every contender ran{f' ({reasons})' if failed else ''}")


def same_curve(comparison: Comparison, rival: Result) -> Promise | None:
    if comparison.reference is None or comparison.yardstick is None:
        return None
    steps = comparison.common_steps(rival)
    its = gap(rival, comparison.reference, steps)
    allowed = GAP_FACTOR * gap(comparison.yardstick, comparison.reference, steps)
    return Promise(
        its <= allowed,
        f"{rival.contender.title}: loss gap to PyTorch {its:.1e} over {steps} steps, "
        f"at most {GAP_FACTOR:g} times that of another order of summation, {allowed:.1e}",
    )


def same_accuracy(comparison: Comparison, rival: Result) -> Promise | None:
    if comparison.reference is None:
        return None
    step = min(rival.steps, comparison.reference.steps)
    its, pytorch = rival.accuracy(step), comparison.reference.accuracy(step)
    if its is None or pytorch is None:
        return None
    return Promise(
        abs(its - pytorch) <= ACCURACY_POINTS,
        f"{rival.contender.title}: accuracy {its:.1f} % after {step} steps, "
        f"within {ACCURACY_POINTS:g} point of PyTorch's {pytorch:.1f} %",
    )


def accurate(rival: Result) -> Promise:
    its = rival.accuracy()
    return Promise(
        its is not None and its >= LEAST_ACCURACY,
        f"{rival.contender.title}: accuracy {its or 0:.1f} % at the end, "
        f"at least {LEAST_ACCURACY:g} %",
    )


def in_time(seconds: float) -> Promise:
    took = f"{int(seconds) // 60}:{int(seconds) % 60:02}"
    return Promise(seconds <= MOST_SECONDS, f"the whole took {took}, at most 5:00 minutes")
