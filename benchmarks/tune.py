# SPDX-License-Identifier: Apache-2.0
"""Time against the number of segments, from which the planner's constants are taken.

Run by `gpu.py --tune`: the same verification and clocks as the benchmark, with deeppcr alone.
"""

from __future__ import annotations

import json
import statistics
from typing import Any

import contenders
from contenders import Contender
from contenders.deeppcr import fixed
from problems import BACKWARD, FORWARD, Problem
from record import Record

KINDS = ("normal", "mlp", "prenorm")
WIDTHS = (4, 16, 8, 32, 64, 2)
BATCHES = (1, 16, 64, 256)
LENGTHS = (1024, 256, 4096)
SEGMENTS = (4, 8, 16, 32, 64, 128, 256, 512)
"""Besides 1 and L."""
ROUNDS = 5


def grid(kind: str) -> list[Problem]:
    return [
        Problem(kind, length, width, batch, run)
        for length in LENGTHS
        for batch in BATCHES
        for width in WIDTHS
        for run in (FORWARD, BACKWARD)
    ]


def contestants() -> list[Contender]:
    known = {each.name: each for each in contenders.everyone()}
    return [known["deeppcr S=1"], *map(fixed, SEGMENTS), known["deeppcr S=L"]]


def rows(record: Record) -> list[dict[str, Any]]:
    """One for each time: size, pass, segments, seconds (on the device where it has a clock of its
    own), sweeps of the forward pass."""
    found = []
    for cell in record.cells:
        for name, entry in cell.entries.items():
            if not entry.seconds:
                continue
            text = name.removeprefix("deeppcr S=")
            row = {
                "kind": cell.kind,
                "length": cell.length,
                "width": cell.width,
                "batch": cell.batch,
                "pass": cell.run,
                "segments": cell.length if text == "L" else int(text),
                "seconds": statistics.median(entry.device or entry.seconds),
                "by": entry.device_by or "wall",
                "wall": statistics.median(entry.seconds),
                "error": entry.error,
            }
            notes = ("sweeps", "tangent sweeps", "not converged", "why", "not replayed")
            row |= {note: entry.notes[note] for note in notes if note in entry.notes}
            found.append(row)
    return found


def to_json(record: Record) -> str:
    absent = [
        {"pass": c.run, "length": c.length, "width": c.width, "batch": c.batch, **reasons}
        for c in record.cells
        if (reasons := {**c.absent, **c.failed})
    ]
    facts = {
        "setting": record.setting,
        "limits": record.limits,
        "rows": rows(record),
        "absent": absent,
        "faults": record.faults(),
        "unreached": record.unreached,
    }
    return json.dumps(facts, indent=1, allow_nan=False) + "\n"
