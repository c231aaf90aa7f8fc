# SPDX-License-Identifier: Apache-2.0
"""What gpu.py runs, the cells that say most first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from problems import BACKWARD, FORWARD, KINDS, STEP, TRAIN, Problem

CHAINS = ("normal", "mlp", "prenorm")
RECURRENCES = ("dense", "diagonal")
WIDTHS = (4, 16, 8, 32, 64, 2, 128)
"""The important ones first, as in the next three."""
BATCHES = (1, 16, 256)
LENGTHS = (256, 4096, 16384, 64)
"""Besides 1024."""
BLOCKS = 2**26
"""Elements that the blocks of a recurrence may have, which are each sample's own."""
ALL = (FORWARD, BACKWARD, TRAIN, STEP)


def size_of(problem: Problem) -> tuple[str, int, int, int]:
    return problem.kind, problem.length, problem.width, problem.batch


def sizes(
    kind: str, lengths: Sequence[int], widths: Sequence[int], batches: Sequence[int]
) -> list[tuple[str, int, int, int]]:
    """Without those that nobody can verify, a LayerNorm of two numbers being a step function, and
    recurrences whose blocks would fill the memory."""
    every = itertools.product([kind], lengths, widths, batches)
    found = [size for size in every if size[0] != "prenorm" or size[2] > 2]
    if kind in RECURRENCES:
        power = 2 if kind == "dense" else 1
        found = [(k, L, w, B) for k, L, w, B in found if L * B * w**power <= BLOCKS]
    return sorted(found, key=lambda size: (batches.index(size[3]), lengths.index(size[1])))


def passes(kind: str, length: int, batch: int, full: bool) -> tuple[str, ...]:
    """A recurrence has nothing to be trained."""
    if KINDS[kind].step is None:
        return (FORWARD, BACKWARD, TRAIN)
    return ALL if full or (length in (1024, 64) and batch == 1) else (FORWARD, BACKWARD)


def grid(full: bool) -> list[Problem]:
    narrow, rest = WIDTHS[:2], LENGTHS
    order = [
        *(size for kind in CHAINS for size in sizes(kind, [1024], narrow, [1])),
        ("dense", 1024, 4, 1),
        ("diagonal", 1024, 16, 1),
        ("normal", 64, 16, 1),
        *sizes("normal", [1024], WIDTHS, [1]),
        *sizes("normal", rest, narrow, [1]),
        *sizes("normal", [1024], WIDTHS, BATCHES),
        *(size for kind in CHAINS[1:] for size in sizes(kind, [1024], WIDTHS, [1])),
        *sizes("dense", [16384, 4096], [4], [1, 16]),
        *sizes("diagonal", [16384, 4096], [16], [1, 16]),
        *sizes("dense", [1024], [16, 64], [1, 16]),
        *sizes("diagonal", [1024], [64, 4], [1, 256]),
        *sizes("normal", rest, WIDTHS, BATCHES),
        *sizes("prenorm", rest, narrow, [1]),
        *sizes("prenorm", [1024], WIDTHS, BATCHES),
        *(s for kind in CHAINS[1:] if full for s in sizes(kind, [1024, *rest], WIDTHS, BATCHES)),
        *(s for kind in RECURRENCES if full for s in sizes(kind, [1024, *rest], WIDTHS, BATCHES)),
    ]
    return [
        Problem(kind, length, width, batch, run)
        for kind, length, width, batch in dict.fromkeys(order)
        for run in passes(kind, length, batch, full)
    ]


def compiled_at(problem: Problem, full: bool) -> bool:
    """Where contenders that compile take part: that takes up to half a minute for each."""
    size = (problem.kind, problem.length, problem.width, problem.batch)
    if problem.is_chain:
        kinds = ("normal", "prenorm") if full else ("normal",)
        at = [(1024, 16, 1), (1024, 4, 1), (64, 16, 1)]
        return size in [(kind, *each) for kind in kinds for each in at]
    few = [("dense", 1024, 4, 1), ("diagonal", 1024, 16, 1), ("diagonal", 16384, 16, 1)]
    return size in few and (full or problem.run == FORWARD)
