# SPDX-License-Identifier: Apache-2.0
"""What was measured of a chain, and what is expected of all of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from sweep_chains import CHAINS, Chain

from torch_deeppcr import Status

MOST_SWEEPS, MOST_TANGENTS, MOST_ERROR = 1.4, 0.5, 10.0


@dataclass
class Cell:
    """One chain, width, S and rule: a number for every seed and sample."""

    chain: str
    width: int
    segments: int
    rule: str
    sweeps: list[int] = field(default_factory=list)
    tangents: list[float] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    """Values of dpcr.Status."""
    error: list[float | None] = field(default_factory=list)
    """Of the output against float64, in units of the float32 loop's own; None: not a number."""
    as_one_segment: list[bool] = field(default_factory=list)
    """Whether the output is bit-equal to that of one segment."""

    @property
    def converged(self) -> bool:
        return not any(self.status)

    def worst(self, as_one_segment: bool) -> float:
        """The largest error of the samples that are, or are not, as with one segment; 0 if none."""
        pairs = zip(self.error, self.as_one_segment, strict=True)
        errors = [math.inf if e is None else e for e, same in pairs if same == as_one_segment]
        return max(errors, default=0.0)

    def middle(self, numbers: Sequence[float]) -> float:
        return statistics.median_high(numbers)

    def text(self) -> str:
        if not self.converged:
            return "-"
        tangents = f" ({self.middle(self.tangents):.1f})" if self.rule == "adaptive" else ""
        return f"{self.middle(self.sweeps)}{tangents}"


# ---- the checks: a row is a chain at one width --------------------------------------------------

CHAOTIC = {chain.title for chain in CHAINS if chain.chaotic}
"""Whether such a chain converges, and how far off anybody's result is, is a matter of luck."""


@dataclass
class Check:
    text: str
    passed: bool

    def line(self) -> str:
        return f"{'pass' if self.passed else '**FAIL**'}: {self.text}"


def checks(rows: Sequence[Sequence[Cell]]) -> list[Check]:
    return [
        sweeps_check(rows),
        convergence_check(rows),
        *tangent_checks(rows),
        error_check(rows),
        one_segment_check(rows),
        finish_check(rows),
    ]


def both(row: Sequence[Cell]) -> Iterator[tuple[Cell, Cell]]:
    """(always, adaptive) for every S at which both converged."""
    by_place = {(cell.segments, cell.rule): cell for cell in row}
    for segments in dict.fromkeys(cell.segments for cell in row if cell.rule == "always"):
        pair = by_place[segments, "always"], by_place[segments, "adaptive"]
        if all(cell.converged for cell in pair):
            yield pair


def sweeps_check(rows: Sequence[Sequence[Cell]]) -> Check:
    pairs = [pair for row in rows for pair in both(row)]
    ratios = [(y.middle(y.sweeps) / x.middle(x.sweeps), y) for x, y in pairs]
    steady = [(ratio, cell) for ratio, cell in ratios if cell.chain not in CHAOTIC]
    above = [f"{name(cell)} {ratio:.2f}" for ratio, cell in steady if ratio > MOST_SWEEPS]
    text = (
        f"adaptive refresh needs at most {MOST_SWEEPS} times the sweeps of always in each of "
        f"{len(steady)} places where both converge: at most {highest(steady):.2f} (on chaotic "
        f"chains {highest(r for r in ratios if r not in steady):.2f})"
    )
    return Check(text + listed(above), bool(steady) and not above)


def highest(measured: Iterable[tuple[float, Cell]]) -> float:
    return max((number for number, _ in measured), default=math.nan)


def convergence_check(rows: Sequence[Sequence[Cell]]) -> Check:
    always = {(c.chain, c.width, c.segments) for row in rows for c in row if converges(c, "always")}
    failing = [
        name(cell)
        for row in rows
        for cell in row
        if cell.rule == "adaptive"
        and not cell.converged
        and cell.chain not in CHAOTIC
        and (cell.chain, cell.width, cell.segments) in always
    ]
    text = "adaptive converges wherever always does, chaotic chains apart"
    return Check(text + listed(failing), not failing)


def converges(cell: Cell, rule: str) -> bool:
    return cell.rule == rule and cell.converged


def tangent_checks(rows: Sequence[Sequence[Cell]]) -> Iterator[Check]:
    """Over all S of a row: in a single place the counts are too small to be halved."""
    chains = {chain.title: chain for chain in CHAINS}
    groups: dict[str, Callable[[Chain], bool]] = {
        "contracting": lambda chain: chain.contracts,
        "pre-norm residual": lambda chain: chain.norm is not None,
    }
    for group, belongs in groups.items():
        shares = []
        for row in rows:
            if belongs(chains[row[0].chain]):
                pairs = list(both(row))
                always = sum(x.middle(x.tangents) for x, _ in pairs)
                adaptive = sum(y.middle(y.tangents) for _, y in pairs)
                if always:
                    shares.append((adaptive / always, row[0]))
        above = [
            f"{cell.chain} w={cell.width} {share:.2f}"
            for share, cell in shares
            if share > MOST_TANGENTS
        ]
        text = (
            f"adaptive refresh needs at most {MOST_TANGENTS} times the tangent sweeps of always "
            f"on each {group} chain, all S together: at most {highest(shares):.2f}"
        )
        yield Check(text + listed(above), bool(shares) and not above)


def error_check(rows: Sequence[Sequence[Cell]]) -> Check:
    worst = [(cell.worst(as_one_segment=False), cell) for row in rows for cell in row]
    above = [f"{name(cell)} {error:.3g}" for error, cell in worst if error > MOST_ERROR]
    text = (
        "errors of all results that are not bit-equal to those of one segment are at most "
        f"{MOST_ERROR:g} times the float32 loop's own: at most {highest(worst):.3g}"
    )
    return Check(text + listed(above), not above)


def one_segment_check(rows: Sequence[Sequence[Cell]]) -> Check:
    """Its roundings are others than the loop's, and a chaotic chain makes much of them."""
    worst = [(cell.worst(as_one_segment=True), cell) for row in rows for cell in row]
    steady = [(error, cell) for error, cell in worst if cell.chain not in CHAOTIC]
    above = [f"{name(cell)} {error:.3g}" for error, cell in steady if error > MOST_ERROR]
    chaotic = highest(each for each in worst if each not in steady)
    text = (
        f"errors of one segment are at most {MOST_ERROR:g} times the float32 loop's own: at most "
        f"{highest(steady):.3g} (on chaotic chains {chaotic:.3g})"
    )
    return Check(text + listed(above), not above)


def finish_check(rows: Sequence[Sequence[Cell]]) -> Check:
    wrong = [
        name(cell)
        for row in rows
        for cell in row
        for status, same in zip(cell.status, cell.as_one_segment, strict=True)
        if status != Status.CONVERGED and not same
    ]
    return Check("what did not converge is bit-equal to one segment" + listed(wrong), not wrong)


def name(cell: Cell) -> str:
    return f"{cell.chain} w={cell.width} S={cell.segments} {cell.rule}"


def listed(above: Sequence[str]) -> str:
    return "; not: " + ", ".join(above) if above else ""
