# SPDX-License-Identifier: Apache-2.0
"""A bar per contender with loss and test accuracy; without a terminal, a line per turn."""

from __future__ import annotations

import sys
from types import TracebackType

from result import Result
from tqdm import tqdm


class Progress:
    def __init__(self, results: list[Result]) -> None:
        self.terminal = sys.stderr.isatty()
        wide = max(len(r.contender.title) for r in results)
        self.bars = {
            r.contender.name: tqdm(
                desc=r.contender.title.ljust(wide),
                total=r.last_step,
                unit="step",
                position=position,
                disable=not self.terminal,
                bar_format="{desc} {n_fmt:>5}/{total_fmt} |{bar:20}|{postfix}",
            )
            for position, r in enumerate(results)
        }

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for bar in self.bars.values():
            bar.close()

    def starts(self, result: Result) -> None:
        if result.contender.compiles and not result.history.losses:
            self.show(result, "compiling", 0)

    def moves(self, result: Result, step: int, loss: float) -> None:
        self.show(result, f"loss {loss:.4f}{accuracy(result)}", step)

    def rests(self, result: Result) -> None:
        loss = result.history.losses[-1]
        line = f"loss {loss:.4f}{accuracy(result)}, {result.milliseconds():.3g} ms/step"
        self.show(result, line, len(result.history.losses))
        self.line(result, f"step {len(result.history.losses)} of {result.last_step}, {line}")

    def fails(self, result: Result) -> None:
        self.show(result, "failed", len(result.history.losses))
        self.line(result, f"failed: {result.failure}")

    def show(self, result: Result, text: str, step: int) -> None:
        bar = self.bars[result.contender.name]
        bar.n = step
        bar.set_postfix_str(text)

    def line(self, result: Result, text: str) -> None:
        if not self.terminal:
            print(f"{result.contender.title}: {text}", file=sys.stderr, flush=True)


def accuracy(result: Result) -> str:
    history = result.history.accuracy
    return f", test {100 * history[max(history)]:.1f} %" if history else ""
