# SPDX-License-Identifier: Apache-2.0
"""What was measured of one chain at one size, and the table and JSON of many: ratios first."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import statistics
import subprocess
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

BASELINE = "eager"
OURS = "deeppcr"

CLAIMS = {("forward", 1024, 16, 1): 30.0, ("forward+backward", 1024, 16, 1): 15.0}
"""(pass, length, width, batch) -> how many times faster than the baseline, at least."""


@dataclass(frozen=True)
class Cell:
    """One pass of one chain at one size: seconds per call of every round, and the errors."""

    kind: str
    length: int
    width: int
    batch: int
    run: str
    seconds: dict[str, list[float]]
    error: dict[str, float]
    """Relative, against fp64: the same for both passes."""
    allowed: float

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    @property
    def ratio(self) -> float:
        """The baseline's time over ours."""
        return self.median(BASELINE) / self.median(OURS)

    @property
    def best_rival(self) -> str:
        return min((name for name in self.seconds if name != OURS), key=self.median)

    @property
    def right(self) -> bool:
        """Every contender is; a NaN is not."""
        return all(error <= self.allowed for error in self.error.values())

    @property
    def verdict(self) -> str:
        if not self.right:
            return "WRONG"
        if self.median(OURS) >= self.median(self.best_rival):
            return f"loses to {self.best_rival}"
        least = CLAIMS.get((self.run, self.length, self.width, self.batch))
        if least is None:
            return "wins"
        return f"{'claim holds' if self.ratio >= least else 'CLAIM FAILS'} (>= {least:g} x)"

    def time(self, name: str) -> str:
        """Median and quartiles in milliseconds."""
        if name not in self.seconds:
            return "-"
        values = [1e3 * s for s in self.seconds[name]]
        if len(values) == 1:
            return f"{values[0]:.3g}"
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return f"{middle:.3g} ({low:.3g} to {high:.3g})"

    def line(self) -> str:
        size = f"{self.kind}, w={self.width}, B={self.batch}, {self.run}"
        return f"{size}: {self.ratio:.3g} x eager, {self.verdict}"


def table(cells: list[Cell]) -> str:
    names = list(dict.fromkeys(name for cell in cells for name in cell.seconds))
    names.remove(OURS)
    head = ["chain", "w", "B", "pass", f"x {BASELINE}", "x best other", "verdict"]
    head += [f"{name}, ms" for name in (OURS, *names)] + [f"error ({BASELINE}'s)"]
    rows = [head, ["---"] * len(head)]
    for cell in cells:
        rival = cell.median(cell.best_rival) / cell.median(OURS)
        rows.append(
            [
                cell.kind,
                str(cell.width),
                str(cell.batch),
                cell.run,
                f"{cell.ratio:.3g}",
                f"{rival:.3g}",
                cell.verdict,
                *(cell.time(name) for name in (OURS, *names)),
                f"{cell.error[OURS]:.1e} ({cell.error[BASELINE]:.1e})",
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def write(cells: list[Cell], folder: Path) -> str:
    """Write chain_speed-PROCESSOR.json and .md; return the Markdown."""
    lengths = ", ".join(dict.fromkeys(str(cell.length) for cell in cells))
    setting = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch-deeppcr": version("torch-deeppcr"),
        "commit": commit(),
    }
    page = "\n".join(
        [
            f"# Chains of {lengths} layers, stacked parameters, fp32, one thread",
            "",
            ", ".join(f"{name} {value}" for name, value in setting.items()),
            "",
            "Times: median (quartiles) of the rounds, contenders in turns. `eager` is an "
            "nn.Sequential of modules, `stacked loop` the same over stacked parameters, "
            "`16 compiled` that loop in groups of 16 layers compiled once. Errors: relative, "
            "against fp64, the largest over output and gradients, layer by layer.",
            "",
            table(cells),
            "",
        ]
    )
    folder.mkdir(parents=True, exist_ok=True)
    name = "chain_speed-" + re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")
    numbers = {**setting, "cells": [dataclasses.asdict(cell) for cell in cells]}
    (folder / f"{name}.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(page, encoding="utf-8")
    return page


def processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def commit() -> str:
    """Of the sources that this file lies in, with "+" if they differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
