# SPDX-License-Identifier: Apache-2.0
"""The pictures of the pages.  Without matplotlib there are none, and no page speaks of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from problems import BACKWARD, FORWARD, KINDS, PASSES
from record import BASELINE, Cell, Record

try:
    from matplotlib.figure import Figure
except ImportError:
    Figure = None

INK, GRID = "#222222", "#dddddd"
COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#b8a800"]
MARKS = "osD^vPX*<>"


def save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110, bbox_inches="tight", facecolor="white", metadata={"Software": ""})


def tidy(axes: Any) -> None:
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def times(record: Record, path: Path) -> str | None:
    """How many times faster than eager every contender is: a panel a pass, a row a problem."""
    panels = [(run, [c for c in record.cells if c.run == run]) for run in PASSES]
    panels = [(run, [c for c in cells if BASELINE in c.timed]) for run, cells in panels]
    panels = [(run, cells) for run, cells in panels if cells]
    if Figure is None or not panels:
        return None
    rows = max(len(cells) for _, cells in panels)
    figure = Figure(figsize=(6.2 * len(panels), 1.6 + 0.36 * rows))
    names = [n for n in record.contenders if any(n in c.timed for c in record.cells)]
    for place, (run, cells) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        draw_times(axes, record, names, cells)
        axes.set_title(run, color=INK, fontsize=11)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncol=5, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.75 / figure.get_figheight()))
    save(figure, path)
    return path.name


def draw_times(axes: Any, record: Record, names: Sequence[str], cells: Sequence[Cell]) -> None:
    rivals = [name for name in names if name not in record.ours]
    for name in names:
        ours = name in record.ours
        place = (record.ours if ours else rivals).index(name)
        points = [(c.ratio(BASELINE, name), row) for row, c in enumerate(cells) if name in c.timed]
        axes.plot(
            [ratio for ratio, _ in points],
            [row for _, row in points],
            linestyle="none",
            marker=MARKS[place % len(MARKS)],
            color=COLOURS[5 if ours else place % 5],
            markerfacecolor=None if not ours or place == 0 else "white",
            markersize=8 if ours else 6,
            label=name,
            zorder=3 if ours else 2,
        )
    labels = [f"{KINDS[c.kind].title}\nL={c.length}, w={c.width}, B={c.batch}" for c in cells]
    axes.set_yticks(range(len(cells)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.axvline(1, color=INK, linewidth=0.8)
    axes.set_xlabel("times faster than eager PyTorch", color=INK, fontsize=9)
    tidy(axes)


def convergence(curves: Sequence[dict[str, Any]], path: Path) -> str | None:
    """Error of the worst state against sweep, one curve a chain, and the solver's estimate."""
    if Figure is None:
        return None
    figure = Figure(figsize=(8, 4.6))
    axes = figure.add_subplot()
    for place, curve in enumerate(curves):
        colour = COLOURS[place % len(COLOURS)]
        for key, line in (("error", "-"), ("estimate", "--")):
            points = [(p["sweeps"], p[key]) for p in curve["points"] if p[key]]
            axes.plot(
                [x for x, _ in points],
                [y for _, y in points],
                line,
                color=colour,
                marker=MARKS[place] if key == "error" else None,
                markersize=4.5,
                linewidth=1.4 if key == "error" else 0.9,
                label=f"{curve['title']}, w = {curve['width']}" if key == "error" else None,
            )
        axes.axhline(curve["loop"], color=colour, linewidth=0.8, linestyle=":")
    axes.set_yscale("log")
    axes.set_ylim(top=1e3)
    axes.set_xlabel("sweeps", color=INK)
    axes.set_ylabel("relative error of the worst state", color=INK)
    axes.legend(frameon=False, fontsize=8)
    tidy(axes)
    save(figure, path)
    return path.name


LINES = {
    "eager": (COLOURS[6], "-", "x"),
    "CUDA graph": (COLOURS[3], "-", "D"),
    "deeppcr S=1": (COLOURS[0], "-", "o"),
    "deeppcr S=L": (COLOURS[1], "-", "s"),
    "deeppcr": (COLOURS[5], "--", "^"),
}
"""Contender -> colour, line and mark of the next picture."""


def against_length(record: Record, path: Path) -> str | None:
    """Time of one sample against the number of steps, both logarithmic: a row a pass, a panel a
    width, a curve a contender.  Time on the device where it was measured, else wall time."""
    cells = [cell for cell in record.cells if cell.batch == 1 and KINDS[cell.kind].step is not None]
    kinds = [cell.kind for cell in cells]
    if Figure is None or not kinds:
        return None
    kind = max(dict.fromkeys(kinds), key=kinds.count)
    cells = [cell for cell in cells if cell.kind == kind]
    widths = sorted({cell.width for cell in cells})
    runs = [run for run in (FORWARD, BACKWARD) if any(cell.run == run for cell in cells)]
    if not runs:
        return None
    apart = any(entry.device for cell in cells for entry in cell.entries.values())
    clock = "on the device" if apart else "wall time"
    figure = Figure(figsize=(2.6 * len(widths) + 1, 2.7 * len(runs) + 0.8))
    panels = figure.subplots(len(runs), len(widths), squeeze=False, sharex=True, sharey=True)
    for row, run in zip(panels, runs, strict=True):
        for axes, width in zip(row, widths, strict=True):
            draw_against_length(axes, [c for c in cells if (c.run, c.width) == (run, width)])
            axes.set_title(f"w = {width}, {run}", color=INK, fontsize=9)
            tidy(axes)
        row[0].set_ylabel(f"microseconds, {clock}", color=INK, fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("steps L", color=INK, fontsize=9)
    named = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        named.update(zip(labels, handles, strict=True))
    figure.legend(named.values(), named, loc="upper center", ncol=5, frameon=False, fontsize=8)
    height = figure.get_figheight()
    figure.text(0.5, 1 - 0.4 / height, f"{KINDS[kind].title}, B = 1", ha="center", fontsize=9)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.45 / height))
    save(figure, path)
    return path.name


def draw_against_length(axes: Any, cells: Sequence[Cell]) -> None:
    for name, (colour, line, mark) in LINES.items():
        points = []
        for cell in sorted(cells, key=lambda each: each.length):
            entry = cell.entries.get(name)
            if entry is not None and entry.seconds:
                points.append((cell.length, 1e6 * median(entry.device or entry.seconds)))
        if points:
            lengths, micros = zip(*points, strict=True)
            style = {"color": colour, "linestyle": line, "marker": mark, "markersize": 4.5}
            axes.plot(lengths, micros, linewidth=1.3, label=name, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
