# SPDX-License-Identifier: Apache-2.0
"""Time against the number of segments, from which the planner's constants are taken.

Run by `gpu.py --tune SECONDS`: the same verification and clocks as the benchmark, with deeppcr
alone.  `gpu.py --best FILE.json` says of such a record which number of segments was the fastest:
what the rows of `CUDA_CHAINS` and `CUDA_BACK` in torch_deeppcr/_planner.py are.
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
AS_GOOD = 1.05
"""Times the least time: what noise does not tell from it."""


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


def best(text: str) -> str:
    """A table of a record: the fastest number of segments of each size and pass, what it gains over
    one, and all that gain nearly as much."""
    sizes: dict[tuple[Any, ...], dict[int, float]] = {}
    keys = ("kind", "pass", "width", "batch", "length")
    for row in json.loads(text)["rows"]:
        sizes.setdefault(tuple(row[key] for key in keys), {})[row["segments"]] = row["seconds"]
    lines = [f"{'kind':8}{'pass':10}{'w':>4}{'B':>5}{'L':>7}{'us':>9}{'S':>7}{'gain':>7}  as good"]
    for (kind, run, width, batch, length), seconds in sorted(sizes.items()):
        fastest = min(seconds, key=seconds.__getitem__)
        least = seconds[fastest]
        gain = f"{seconds[1] / least:.2f}" if 1 in seconds else "-"
        near = [str(S) for S in sorted(seconds) if seconds[S] <= AS_GOOD * least]
        size = f"{kind:8}{run:10}{width:4}{batch:5}{length:7}"
        lines.append(f"{size}{1e6 * least:9.4g}{fastest:7}{gain:>7}  {', '.join(near)}")
    return "\n".join(lines)


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
