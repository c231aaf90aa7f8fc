# SPDX-License-Identifier: Apache-2.0
"""A record of gpu.py as a Markdown page: ratios, what loses, what was achieved, every cell."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Sequence

from limits import flop, is_chain, least_bytes
from page import SIZE, details, missing, number, size_of, table
from problems import KINDS
from record import OURS, Cell, Entry, Record

ONE, ALL_STEPS = "deeppcr S=1", "deeppcr S=L"
SLACK = 1.1
"""A plan that takes more than so many times the best one's time has missed it."""


def fixed(cell: Cell) -> list[str]:
    """The timed contenders with a given number of segments, neither 1 nor L."""
    return [name for name in cell.timed if re.fullmatch(r"deeppcr S=\d+", name) and name != ONE]


def best_fixed(cell: Cell) -> str | None:
    return min(fixed(cell), key=lambda name: cell.entries[name].median, default=None)


def rivals(record: Record) -> list[str]:
    """Those that were timed anywhere."""
    timed = {name for cell in record.cells for name in cell.timed}
    return [name for name in record.contenders if name in timed and name not in record.ours]


def on_one_clock(record: Record) -> Record:
    """Times on the device, where there are any; wall time else."""
    return record.on_device() if has_device_times(record) else record


def has_device_times(record: Record) -> bool:
    return any(entry.device for cell in record.cells for entry in cell.entries.values())


# ---- tables -------------------------------------------------------------------------------------


def ratios(record: Record) -> str:
    """One row for each cell: the time of each of the others over that of our own plan."""
    others = rivals(record)
    head = [*SIZE, *(f"{name} / ours" for name in others), "S=1 / ours"]
    head += ["best S / ours", "best S", "S=L / ours", "ours: S, sweeps", "verdict"]
    rows = []
    for cell in record.cells:
        best = best_fixed(cell)
        rows.append(
            [
                *size_of(cell),
                *(number(cell.ratio(name, OURS)) for name in others),
                number(cell.ratio(ONE, OURS)),
                number(cell.ratio(best, OURS)) if best else "-",
                best.rpartition("=")[2] if best else "-",
                number(cell.ratio(ALL_STEPS, OURS)),
                plan(cell.entries.get(OURS)),
                cell.verdict(OURS, record.ours),
            ]
        )
    return table(head, rows)


def plan(entry: Entry | None) -> str:
    if entry is None or "sweeps" not in entry.notes:
        return "-"
    return f"{entry.notes['segments']}, {entry.notes['sweeps']:g}"


def where(cell: Cell) -> str:
    size = f"L={cell.length}, w={cell.width}, B={cell.batch}"
    return f"{KINDS[cell.kind].title}, {size}, {cell.run}"


def losses(record: Record, clock: str) -> list[str]:
    """Cells where somebody else, or another number of segments, is faster than our own plan."""
    found = []
    for cell in record.cells:
        if OURS not in cell.timed:
            continue
        rival = cell.best_rival(record.ours)
        ratio = cell.ratio(rival, OURS) if rival else None
        if ratio is not None and ratio < 1:
            found.append(f"{where(cell)}, {clock}: {rival} is {1 / ratio:.3g} times faster")
        own = [name for name in cell.timed if name in record.ours]
        best = min(own, key=lambda name: cell.entries[name].median)
        ratio = cell.ratio(OURS, best)
        if ratio is not None and ratio > SLACK:
            says = f"the plan is {ratio:.3g} times slower than {best}"
            found.append(f"{where(cell)}, {clock}: {says}")
    return found


def achieved(record: Record) -> str:
    """The fastest of ours against what the device can do."""
    copy, matmul = (record.limits.get(name) for name in ("copy", "matmul"))
    head = [*SIZE, "fastest of ours", "us", "ns a step", "GB/s", "% of copy"]
    head += ["TFLOP/s", "% of matmul", "sweeps"]
    rows = []
    for cell in record.cells:
        own = [name for name in cell.timed if name in record.ours]
        if not own:
            continue
        name = min(own, key=lambda each: cell.entries[each].median)
        seconds = cell.entries[name].median
        bandwidth, rate = least_bytes(cell) / seconds, flop(cell) / seconds
        sweeps = cell.entries[name].notes.get("sweeps")
        rows.append(
            [
                *size_of(cell),
                name,
                f"{1e6 * seconds:.3g}",
                f"{1e9 * seconds / cell.length:.3g}",
                f"{1e-9 * bandwidth:.3g}",
                f"{100 * bandwidth / copy:.2g}" if copy else "-",
                f"{1e-12 * rate:.3g}",
                f"{100 * rate / matmul:.2g}" if matmul else "-",
                "-" if sweeps is None else f"{sweeps:g}",
            ]
        )
    return table(head, rows)


def segments(record: Record) -> str:
    """Time of every number of segments, and its sweeps."""
    names = [name for name in record.ours if any(name in cell.timed for cell in record.cells)]
    head = [*SIZE, *(name.removeprefix("deeppcr ").replace("deeppcr", "auto") for name in names)]
    rows = []
    for cell in record.cells:
        texts = []
        for name in names:
            if name not in cell.timed:
                texts.append("-")
                continue
            entry = cell.entries[name]
            sweeps = entry.notes.get("sweeps")
            text = f"{1e6 * entry.median:.3g}"
            texts.append(text if sweeps is None else f"{text} ({sweeps:g})")
        rows.append([*size_of(cell), *texts])
    return table(head, rows)


def limits(record: Record) -> str:
    units = {
        "copy": ("GB/s, a big copy, read and written", 1e-9),
        "matmul": ("TFLOP/s, a big matrix product in float32", 1e-12),
        "launch": ("us, wall time of one small kernel among many", 1e6),
        "kernel": ("us, one small kernel of a chain of them in a CUDA graph", 1e6),
    }
    found = (
        f"- {record.limits[name] * factor:.3g} {text}"
        for name, (text, factor) in units.items()
        if name in record.limits
    )
    return "\n".join(found)


def not_replayed(record: Record) -> list[str]:
    """Contenders of ours whose calls no CUDA graph holds, by reason."""
    count: dict[tuple[str, str], int] = {}
    for cell in record.cells:
        for name, entry in cell.entries.items():
            if "not replayed" in entry.notes:
                key = name, entry.notes["not replayed"]
                count[key] = count.get(key, 0) + 1
    return [f"{name}, {n} cells: {reason}" for (name, reason), n in sorted(count.items())]


# ---- the page, and what is printed --------------------------------------------------------------


def bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def summary(record: Record) -> list[str]:
    """Wins and losses in numbers, and geometric means of the ratios."""
    clocks = {"wall time": record}
    if has_device_times(record):
        clocks["device time"] = record.on_device()
    lines = []
    for clock, timed in clocks.items():
        for name in [*rivals(timed), ONE]:
            found = [r for c in timed.cells if (r := c.ratio(name, OURS)) is not None]
            if found:
                mean, least, most = statistics.geometric_mean(found), min(found), max(found)
                lost = sum(ratio < 1 for ratio in found)
                lines.append(
                    f"{clock}, {name} / ours: {mean:.3g} in the geometric mean, "
                    f"{least:.3g} to {most:.3g}, below 1 in {lost} of {len(found)} cells"
                )
    return lines


def line(record: Record, cell: Cell) -> str:
    """One cell, as soon as it is there."""
    if any(entry.device for entry in cell.entries.values()):
        cell = Record({}, {}, [cell]).on_device().cells[0]
    times = (
        f"{name.replace('deeppcr', 'ours')} {1e6 * cell.entries[name].median:.3g}"
        for name in cell.timed
    )
    faults = "; ".join(f"{name} FAILED: {why}" for name, why in cell.failed.items())
    wrong = [name for name in cell.entries if not cell.is_right(name)]
    faults += f" WRONG: {', '.join(wrong)}" if wrong else ""
    return f"{where(cell)}: us: {', '.join(times)}: {cell.verdict(OURS, record.ours)} {faults}"


def page(record: Record, picture: str | None) -> str:
    setting = ", ".join(f"{name} {value}" for name, value in record.setting.items())
    who = [f"`{name}`: {facts['title']}." for name, facts in record.contenders.items()]
    apart = has_device_times(record)
    device = record.on_device()
    lost = [*losses(record, "wall time"), *(losses(device, "device time") if apart else [])]
    cells: Sequence[Cell] = record.cells
    chains = [cell for cell in cells if is_chain(cell)]
    clock = "on the device" if apart else "wall time"
    parts = [
        "# Chains and recurrences on a GPU" if apart else "# Chains and recurrences",
        setting,
        "Written by `python benchmarks/gpu.py`. Every contender was first held to the plain loop "
        "in float64, output and gradients, whatever the pass has; then all were timed in turns. "
        "Ratios are times of the other over times of deeppcr with its own plan: below 1, in bold, "
        "deeppcr is the slower one. Wall time is that of a row of calls from Python until the "
        "device is idle; calls may overlap with the device's work. Time on the device is that of "
        "replayed CUDA graphs for deeppcr (of several calls, so that launching the graph does not "
        "count) and of events around the same row of calls for the others: where they wait for "
        "Python, that is in it. `backward` is backward alone, `training step` is forward, backward "
        "and SGD.",
        "## Ratios, time on the device" if apart else "",
        ratios(device) if apart else "",
        "## Ratios, wall time with Python",
        ratios(record),
        f"![Time against the number of steps]({picture})" if picture else "",
        "## Where it loses",
        bullets(lost) or "Nowhere in the cells above.",
        "## In short",
        bullets(summary(record)),
        "## Limits of the device",
        limits(record),
        f"The fastest of ours in every cell ({clock}). Bytes are those of the weights, read once "
        "in a forward pass; flop are those of the loop's matrix products. What fits the L2 cache "
        "is there from the call before, for everybody.",
        achieved(on_one_clock(record)),
        "## Segments",
        f"Microseconds ({clock}), in parentheses the sweeps of the forward pass.",
        segments(on_one_clock(record)) if chains else "",
        "## Contenders",
        bullets(who),
        "## Cell by cell",
        "Error: relative, against float64, the largest over output and gradients, layer by layer; "
        "up to 10 times that of the plain loop in float32 is right for deeppcr, up to 100 times "
        "for the others, and ten times as much with normal weights, whose gradients have lost "
        "digits to whoever computes them. MiB: memory that one call takes.",
        "\n\n".join(details(cell) for cell in cells),
        "## Who did not run",
        missing(record),
        "## Not in a CUDA graph" if not_replayed(record) else "",
        bullets(not_replayed(record)),
        "## Not reached" if record.unreached else "",
        bullets(record.unreached),
        "## Faults" if record.faults() else "",
        bullets(record.faults()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
