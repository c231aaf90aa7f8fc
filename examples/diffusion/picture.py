# SPDX-License-Identifier: Apache-2.0
"""Two PNGs: the samples of every method from the same noise, and the errors by sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from curves import Curves
from data import SIDE
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

# Okabe and Ito's colours, which the colour-blind can tell apart, and a marker for each.
LOOKS = {
    "dense": {"color": "#0b3c6f", "marker": "o"},
    "diagonal": {"color": "#009e73", "marker": "s"},
    "scalar": {"color": "#d55e00", "marker": "^"},
    "identity": {"color": "#cc79a7", "marker": "D"},
}
SHOWN = 8
"""Samples of each method in the grid."""


@dataclass(frozen=True)
class Block:
    """Samples of one chain: title of the method -> pixels (N, 64) in [-1, 1]."""

    title: str
    rows: dict[str, Tensor]


def draw_grid(blocks: list[Block], path: Path) -> None:
    """A column of images for each chain, a row for each method."""
    titles = list(dict.fromkeys(title for block in blocks for title in block.rows))
    tall = 0.34 * len(titles) + 0.9
    figure = Figure(figsize=(2.9 + 2.75 * len(blocks), tall), dpi=150)
    left, top = 2.9 / figure.get_figwidth(), 1 - 0.5 / tall
    figure.subplots_adjust(left=left, right=0.995, top=top, bottom=0.1 / tall, wspace=0.06)
    for axes, block in zip(np.ravel(figure.subplots(1, len(blocks))), blocks, strict=True):
        axes.imshow(mosaic(block, titles), cmap="gray", vmin=0, vmax=1, aspect="auto")
        axes.set_title(block.title, fontsize=11)
        axes.set_xticks([])
        axes.spines[:].set_visible(False)
        first = axes.get_subplotspec().is_first_col()
        axes.set_yticks(
            [(SIDE + 1) * i + SIDE / 2 for i in range(len(titles))],
            titles if first else [""] * len(titles),
            fontsize=9,
        )
        axes.tick_params(length=0)
        for i, title in enumerate(titles):
            if title not in block.rows:
                where = (SHOWN * (SIDE + 1) / 2, (SIDE + 1) * i + SIDE / 2)
                said = "one sample only: see the table"
                axes.annotate(said, where, ha="center", va="center", color="0.4")
    figure.savefig(path)


def mosaic(block: Block, titles: list[str]) -> np.ndarray:
    """Grey levels in [0, 1]; white where a method has no sample."""
    size = SIDE + 1
    page = np.ones((size * len(titles), size * SHOWN))
    for i, title in enumerate(titles):
        images = block.rows.get(title)
        for j, image in enumerate([] if images is None else images[:SHOWN]):
            shade = (image.reshape(SIDE, SIDE).clamp(-1, 1) + 1) / 2
            page[i * size : i * size + SIDE, j * size : j * size + SIDE] = shade.numpy()
    return page


def draw_curves(found: dict[str, Curves], tolerance: float, path: Path) -> None:
    """A column for each chain; above the operator, below any model."""
    figure = Figure(figsize=(3.6 * len(found), 6.4), dpi=130, layout="constrained")
    grid = figure.subplots(2, len(found), sharey="row", squeeze=False)
    for column, (name, both) in enumerate(found.items()):
        for axes, errors in zip(grid[:, column], both, strict=True):
            for jacobian, values in errors.items():
                show(axes, values, label=jacobian, **LOOKS[jacobian])
            dress(axes)
        grid[0, column].set_title(name, fontsize=11)
        grid[1, column].axhline(tolerance, color="0.5", lw=0.9, ls="--")
        grid[1, column].set_xlabel("sweep")
    grid[1, 0].legend(grid[1, 0].lines[-1:], ["tolerance"], frameon=False, fontsize=9)
    grid[0, 0].set_ylabel("native, S = L\nlargest error of all states")
    grid[1, 0].set_ylabel("dpcr.sample, any model\nlargest error of the samples")
    grid[0, 0].legend(frameon=False, fontsize=9, title="for a step's derivative")
    figure.suptitle("Error against PyTorch's loop after each sweep over all steps", fontsize=12)
    figure.savefig(path)


def show(axes: Axes, errors: list[float], **look: object) -> None:
    """Errors that are not finite, or beyond the axis, at its upper end."""
    shown = np.clip(np.nan_to_num(errors, nan=1e3, posinf=1e3), 1e-8, 1e3)
    axes.plot(np.arange(1, len(shown) + 1), shown, lw=1.5, ms=3.5, **look)


def dress(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.set_ylim(1e-7, 1e3)
    axes.set_xlim(left=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25, lw=0.6)
    axes.spines[["top", "right"]].set_visible(False)
