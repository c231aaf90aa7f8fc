# SPDX-License-Identifier: Apache-2.0
"""How many sweeps Newton's method needs on chains of many kinds, and how right it then is.

    python benchmarks/sweeps.py [--quick | --full] [--help]

Every chain is solved at the default tolerance with several numbers of segments S, by both rules of
refresh, and residual chains also with the identity in place of the Jacobians; outputs are compared
with the loop in float64.  Nothing is timed.  Writes JSON, a Markdown page with the tables, and a
picture of error against sweep.  What is expected of the tables is checked: exit status 1 if a
check fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import plots
import torch
from page import table
from record import file_stem, setting
from sweep_chains import CHAINS, Case, case, finite, history, largest, state_error
from sweep_checks import Cell, checks

WIDTHS = (4, 16)
WIDE = 64
FRACTIONS = (1, 4, 8, 16, 32)
"""S is L divided by these."""
RULES: dict[str, dict[str, str]] = {
    "always": {"refresh": "always"},
    "adaptive": {"refresh": "adaptive"},
    "identity": {"jacobian": "identity"},
    "one segment": {},
}


def add(cell: Cell, given: Case, options: dict[str, Any]) -> None:
    """Solves one case and notes it in its cell."""
    z, info = given.chain.solve(given.z0, given.parameters, segments=cell.segments, **options)
    distance = largest(z.double() - given.exact[-1]) / given.own
    cell.sweeps += info.sweeps.tolist()
    cell.tangents += info.tangent_sweeps.tolist()
    cell.status += info.status.tolist()
    cell.error += map(finite, distance.tolist())
    cell.as_one_segment += (z == given.sequential).all(-1).tolist()


def measure(length: int, seeds: int) -> Iterator[list[Cell]]:
    """Row by row: a chain at one width."""
    for chain in CHAINS:
        for width in (*WIDTHS, *([WIDE] if chain.wide else [])):
            newton = ["always", "adaptive"] if width in WIDTHS else []
            rules = [*newton, *(["identity"] if chain.residual else [])]
            row = [
                Cell(chain.title, width, length // fraction, rule)
                for fraction in FRACTIONS
                for rule in rules
            ]
            row.append(Cell(chain.title, width, 1, "one segment"))
            for seed in range(seeds):
                given = case(chain, length, width, seed)
                for cell in row:
                    add(cell, given, RULES[cell.rule])
            yield row


# ---- the pages ----------------------------------------------------------------------------------


def newton_table(rows: Sequence[Sequence[Cell]]) -> str:
    segments = [cell.segments for cell in rows[0] if cell.rule == "always"]
    head = ["chain", "w", *(f"S={s}" for s in segments), "error / loop's", "S=1"]
    lines = []
    for row in rows:
        cells = {(c.segments, c.rule): c for c in row}
        if (segments[0], "always") not in cells:
            continue
        pairs = [f"{cells[s, 'always'].text()} / {cells[s, 'adaptive'].text()}" for s in segments]
        newton = [cell for cell in row if cell.rule in ("always", "adaptive")]
        errors = [error_of(newton), error_of([cells[1, "one segment"]])]
        lines.append([row[0].chain, str(row[0].width), *pairs, *errors])
    return table(head, lines)


def error_of(cells: Sequence[Cell]) -> str:
    return f"{max(cell.worst(same) for cell in cells for same in (False, True)):.1f}"


def identity_table(rows: Sequence[Sequence[Cell]]) -> str:
    segments = [cell.segments for cell in rows[0] if cell.rule == "always"]
    head = ["chain", "w", *(f"S={s}" for s in segments), "error / loop's"]
    lines = []
    for row in rows:
        cells = {c.segments: c for c in row if c.rule == "identity"}
        if cells:
            sweeps = (cells[s].text() for s in segments)
            errors = error_of(list(cells.values()))
            lines.append([row[0].chain, str(row[0].width), *sweeps, errors])
    return table(head, lines)


def page(record: dict[str, Any], rows: Sequence[Sequence[Cell]], picture: str | None) -> str:
    facts = ", ".join(f"{key} {value}" for key, value in record["setting"].items())
    parts = [
        f"# Sweeps of Newton's method, L = {record['length']}",
        facts,
        "Written by `make bench`. float32, the default tolerance (8 eps), 2 samples and "
        f"{record['seeds']} seeds; a sweep propagates all segments once, the final walk included.",
        "## Expected",
        "\n".join(f"- {check['line']}" for check in record["checks"]),
        '## Newton: `jacobian="dense"`',
        'Medians: sweeps with `refresh="always"` / with `"adaptive"` (of these with tangents, each '
        "by the share of the segments that computed them); "
        '"-": some sample needed more than `max_sweeps` (40, or S) and was finished sequentially. '
        "Last columns: the largest error of an output against float64 in units of the float32 "
        "loop's own, over all of the row, and that of one segment. Chaotic chains amplify "
        "rounding, whoever rounds.",
        newton_table(rows),
        '## Picard: `jacobian="identity"`',
        "The same without any Jacobian, on residual chains.",
        identity_table(rows),
        "## Error against sweep" if picture else "",
        "The error of the worst state after so many sweeps, against float64, relative to that "
        "state; dashed, what the solver itself estimates after the update of that sweep; dotted, "
        "where the float32 loop ends."
        if picture
        else "",
        f"![Error against sweep]({picture})" if picture else "",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


PICTURED = (
    (CHAINS[0], 16, {}),
    (CHAINS[1], 16, {}),
    (CHAINS[5], 16, {}),
    (CHAINS[7], 16, {}),
    (CHAINS[8], 16, {"jacobian": "identity"}),
)
"""Chain, width, options: the curves of the picture, S = L, refresh = always."""


def curves(length: int) -> list[dict[str, Any]]:
    found = []
    for chain, width, options in PICTURED:
        given = case(chain, length, width, seed=0)
        points = history(given, 40, segments=length, refresh="always", **options)
        own = state_error(chain.loop(given.z0, given.parameters), given.exact)
        title = f"{chain.title}{', P = I' if options else ''}"
        found.append({"title": title, "width": width, "points": points, "loop": own})
    return found


# ---- the program --------------------------------------------------------------------------------


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, not {text!r}")
    return int(text)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_option = parser.add_argument
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="three seeds [default]")
    size.add_argument("--full", action="store_true", help="ten seeds")
    add_option("--length", type=positive, default=1024, help="steps, at least 32 [%(default)s]")
    results = Path(__file__).resolve().parent / "results"
    add_option("--out", type=Path, default=results, metavar="FOLDER", help="[benchmarks/results]")
    given = parser.parse_args(arguments)
    if given.length < max(FRACTIONS):
        parser.error(f"--length must be at least {max(FRACTIONS)}")
    return given


@torch.no_grad()
def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    torch.set_num_threads(1)
    seeds = 10 if given.full else 3
    rows = []
    for row in measure(given.length, seeds):
        rows.append(row)
        says = ", ".join(f"S={c.segments} {c.rule} {c.text()}" for c in row)
        print(f"{row[0].chain}, w={row[0].width}: {says}", flush=True)
    outcome = checks(rows)
    record = {
        "setting": setting("cpu"),
        "length": given.length,
        "seeds": seeds,
        "checks": [{**asdict(check), "line": check.line()} for check in outcome],
        "cells": [asdict(cell) for row in rows for cell in row],
        "curves": curves(given.length),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / file_stem("sweeps", record["setting"]["device"])
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    path.with_suffix(".json").write_text(text, encoding="utf-8")
    picture = plots.convergence(record["curves"], path.with_suffix(".png"))
    path.with_suffix(".md").write_text(page(record, rows, picture), encoding="utf-8")
    print("\n" + "\n".join(check.line() for check in outcome))
    print(f"\npage: {path.with_suffix('.md')}")
    return 0 if all(check.passed for check in outcome) else 1


if __name__ == "__main__":
    sys.exit(main())
