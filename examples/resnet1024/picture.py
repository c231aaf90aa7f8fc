# SPDX-License-Identifier: Apache-2.0
"""Two PNGs: the loss curves by step, by time and as their distance from PyTorch's; the sweeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from comparison import Comparison
from contenders import CONTENDERS, PyTorch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from options import Options
from probe import Stop
from training import History

# Okabe and Ito's colours, which the colour-blind can tell apart.  PyTorch's curve is a broad band
# below the others: where they agree, it shows on both sides of them.
COLOURS = ("#9ecae9", "#e69f00", "#009e73", "#0b3c6f", "#cc79a7", "#d55e00", "#56b4e9", "#000000")
STYLE = {name: {"color": c, "lw": 1.4} for name, c in zip(CONTENDERS, COLOURS, strict=False)}
STYLE[PyTorch.name] |= {"lw": 6.0, "solid_capstyle": "round"}

SWEEPS = {
    "most_sweeps": {"label": "sweeps, maximum of the samples", "color": "#d55e00", "lw": 1.4},
    "sweeps": {"label": "sweeps, median", "color": "#0b3c6f", "lw": 2.0},
    "tangent_sweeps": {
        "label": "of them with tangents, mean",
        "color": "#009e73",
        "lw": 1.4,
        "ls": ":",
    },
}
SOLVES = {
    "cold": {"label": "the paper's method", "color": "#0b3c6f"},
    "warm": {"label": "warm start from the stop before", "color": "#e69f00"},
    "adaptive": {"label": "adaptive refresh", "color": "#cc79a7"},
}

WINDOW = 10
"""Steps that a point of a curve is the mean of: single minibatches scatter."""


def draw(comparison: Comparison, path: Path) -> None:
    options = comparison.options
    figure = Figure(figsize=(14, 4.6), dpi=130, layout="constrained")
    by_step, by_time, apart = figure.subplots(1, 3)
    reference = comparison.reference
    longest = max((result.steps for result in comparison.results.values()), default=0)
    labelled: list[float] = []
    for name, result in comparison.results.items():
        look = {"label": result.contender.title, **STYLE[name]}
        loss = smooth(result.history.losses)
        by_step.plot(np.arange(1, len(loss) + 1), loss, **look)
        seconds = np.cumsum(result.history.seconds)
        by_time.plot(seconds, loss, **look)
        if result.steps == longest and all(abs(np.log(seconds[-1] / t)) > 0.5 for t in labelled):
            labelled.append(seconds[-1])
            end = (seconds[-1], loss[-1])
            offset = {"xytext": (0, -15), "textcoords": "offset points", "ha": "center"}
            by_time.annotate(f"{seconds[-1]:.3g} s", end, **offset, fontsize=9, color="0.3")
        if reference not in (None, result) and comparison.same_network(result):
            distance = smooth(differences(result.history.losses, reference.history.losses))
            distance[distance == 0] = np.nan  # nowhere on a logarithmic axis
            apart.plot(np.arange(1, len(distance) + 1), distance, **look)
    dress(by_step, "The same training", "training step", "training loss")
    dress(by_time, "The time it takes", "seconds, in training steps alone", "training loss")
    by_time.set_xscale("log")
    by_time.margins(x=0.08, y=0.1)
    dress(apart, "Distance from PyTorch's curve", "training step", "|loss - PyTorch's loss|")
    if apart.has_data():
        apart.set_yscale("log")
        apart.set_ylim(1e-9, max(1e-5, 10 * apart.get_ylim()[1]))  # 1e-7: a rounding of the loss
        apart.legend(frameon=False, fontsize=8)
    by_step.legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"Residual network of {options.depth} blocks, width {options.width}, batch {options.batch} "
        f"(curves: mean of {WINDOW} steps)",
        fontsize=12,
    )
    figure.savefig(path)


def draw_sweeps(history: History, stops: dict[int, Stop], options: Options, path: Path) -> None:
    """Of the paper's method: in the steps that it trained, and along the whole training."""
    figure = Figure(figsize=(13, 4.4), dpi=130, layout="constrained")
    trained, along = figure.subplots(1, 2, sharey=True)
    step = np.arange(1, len(history.solves) + 1)
    for name, look in SWEEPS.items():
        values = [solve[name] for solve in history.solves]
        trained.plot(step, values, **look, drawstyle="steps-mid")
    dress(trained, "Each training step of the paper's method", "training step", "sweeps, forward")
    for name, look in SOLVES.items():
        found = {at: stop[name] for at, stop in stops.items() if name in stop}
        total, tangent = (
            [solve[kind] for solve in found.values()] for kind in ("mean_sweeps", "tangent_sweeps")
        )
        along.plot(list(found), total, **look, marker=".")
        along.plot(list(found), tangent, color=look["color"], ls=":", marker=".")
    title = "The same test images along the whole training: mean (dotted: with tangents)"
    dress(along, title, "training steps done", "")
    for axes in (trained, along):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False, fontsize=8, loc="lower left")  # one sweep at least has tangents
    figure.suptitle(
        f"Sweeps of Newton's method over {options.depth} blocks, every block a segment", fontsize=12
    )
    figure.savefig(path)


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def differences(a: list[float], b: list[float]) -> np.ndarray:
    """Absolute, over the common steps."""
    steps = min(len(a), len(b))
    return np.abs(np.subtract(a[:steps], b[:steps]))


def smooth(values: list[float] | np.ndarray) -> np.ndarray:
    """Mean over the last WINDOW values, fewer at the start: as long as `values`."""
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    end = np.arange(1, len(total))
    start = np.maximum(end - WINDOW, 0)
    return (total[end] - total[start]) / (end - start)
