# SPDX-License-Identifier: Apache-2.0
"""A record as a Markdown page: what was expected, ratios, then every cell, then who did not run."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from limits import is_chain, share
from problems import FORWARD, KINDS, TRAIN
from record import BASELINE, OURS, Cell, Record

PAPER = "deeppcr S=L"
PEERS = ("JAX DEER", "JAX associative_scan")
"""The same method by others: on chains, on recurrences."""


@dataclass(frozen=True)
class Claim:
    """`ours` is at least `least` times faster than `rival` on one problem."""

    kind: str
    size: tuple[int, int, int]
    run: str
    ours: str
    rival: str
    least: float

    def line(self, record: Record) -> str | None:
        length, width, batch = self.size
        where = f"{KINDS[self.kind].title}, L={length}, w={width}, B={batch}, {self.run}"
        says = f"{self.ours} at least {self.least:g} times faster than {self.rival}: {where}"
        for cell in record.cells:
            size = (cell.length, cell.width, cell.batch)
            if (cell.kind, size, cell.run) == (self.kind, self.size, self.run):
                ratio = cell.ratio(self.rival, self.ours)
                if ratio is not None:
                    return f"{'pass' if ratio >= self.least else '**FAIL**'}: {says}: {ratio:.3g}"
        return None


@dataclass(frozen=True)
class Share:
    """deeppcr reaches `least` of what the device can do."""

    kind: str
    size: tuple[int, int, int]
    least: float

    def line(self, record: Record) -> str | None:
        length, width, batch = self.size
        where = f"{KINDS[self.kind].title}, L={length}, w={width}, B={batch}, {FORWARD}"
        for cell in record.cells:
            size = (cell.length, cell.width, cell.batch)
            if (cell.kind, size, cell.run) == (self.kind, self.size, FORWARD):
                found = share(cell, OURS, record.limits)
                if found is not None:
                    verdict = "pass" if found >= self.least else "**FAIL**"
                    return (
                        f"{verdict}: at least {self.least:.0%} of the limit: {where}: {found:.0%}"
                    )
        return None


@dataclass(frozen=True)
class Everywhere:
    """deeppcr is faster than `rival` in every chain's cell: by `least` of the pass; by `near` where
    the rival itself is near the device's limits; where it takes less than `short` seconds, a call's
    way through PyTorch decides, and nothing is promised."""

    rival: str
    least: dict[str, float]
    widest: int = 2**31
    near: float = 1.1
    short: float = 75e-6

    def line(self, record: Record) -> str | None:
        reached, short, missed = 0, 0, []
        for cell in record.cells:
            ratio = cell.ratio(self.rival, OURS)
            if ratio is None or not is_chain(cell) or cell.run not in self.least:
                continue
            if cell.width > self.widest:
                continue
            least = self.least[cell.run]
            if (share(cell, self.rival, record.limits) or 0) > 0.7:
                least = min(least, self.near)
            if ratio >= least:
                reached += 1
            elif cell.entries[self.rival].median < self.short:
                short += 1
            else:
                missed.append(f"{', '.join(size_of(cell))}: {ratio:.2f} of {least:g}")
        if not reached + short + len(missed):
            return None
        wanted = ", ".join(f"{run} {times:g}" for run, times in self.least.items())
        return (
            f"{'**FAIL**' if missed else 'pass'}: faster than {self.rival} ({wanted} times; "
            f"{self.near:g} where it is near the limits): {reached} cells, "
            f"{short} more under {1e6 * self.short:.0f} us are left out"
            + "".join(f"; missed: {what}" for what in missed)
        )


@dataclass(frozen=True)
class BestPlan:
    """deeppcr's own plan takes at most `most` times, or `spare` seconds more than, the fastest of
    all its plans that were measured."""

    most: float
    spare: float

    def line(self, record: Record) -> str | None:
        reached, missed = 0, []
        for cell in record.cells:
            plans = {name: cell.entries[name].median for name in cell.timed if name in record.ours}
            if len(plans) < 2 or OURS not in plans:
                continue
            best = min(plans, key=lambda name: plans[name])
            if plans[OURS] <= max(self.most * plans[best], plans[best] + self.spare):
                reached += 1
            else:
                times = plans[OURS] / plans[best]
                missed.append(f"{', '.join(size_of(cell))}: {times:.2f} times {best}")
        if not reached + len(missed):
            return None
        return (
            f"{'**FAIL**' if missed else 'pass'}: deeppcr's own plan takes at most "
            f"{self.most:g} times, or {1e6 * self.spare:.0f} us more than, the fastest of its "
            f"plans: {reached} cells" + "".join(f"; missed: {what}" for what in missed)
        )


CLAIMS = (
    *(
        Claim(kind, (1024, 16, 1), run, OURS, BASELINE, least)
        for kind in ("mlp", "residual")
        for run, least in ((FORWARD, 100.0), (TRAIN, 60.0))
    ),
    Claim("mlp", (1024, 4, 1), FORWARD, PAPER, BASELINE, 10.0),
    Claim("mlp", (1024, 4, 1), TRAIN, PAPER, BASELINE, 10.0),
    Claim("dense", (1024, 4, 1), FORWARD, PAPER, "JAX associative_scan", 3.0),
    Claim("dense", (1024, 16, 1), FORWARD, PAPER, "JAX associative_scan", 3.0),
    Share("mlp", (1024, 64, 256), 0.75),
    Share("mlp", (1024, 64, 1), 0.9),
    Share("mlp", (1024, 256, 1), 0.9),
    Everywhere("16 compiled", {FORWARD: 3.0, TRAIN: 3.0}, widest=16, near=3.0),
    Everywhere("JAX scan", {FORWARD: 1.3, TRAIN: 2.0}),
    BestPlan(1.15, 5e-6),
)


def claims(record: Record) -> list[str]:
    """What was expected of the problems that were measured."""
    return [line for claim in CLAIMS if (line := claim.line(record))]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float | None) -> str:
    """Three digits; bold where a ratio says that we are the slower one."""
    if value is None:
        return "-"
    text = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return f"**{text}**" if value < 1 else text


def size_of(cell: Cell) -> list[str]:
    return [KINDS[cell.kind].title, *map(str, (cell.length, cell.width, cell.batch)), cell.run]


SIZE = ["problem", "L", "w", "B", "pass"]


def ratios(record: Record) -> str:
    """One row for each cell: our own plan, then the paper's method."""
    head = [
        *SIZE,
        "eager / ours",
        "JAX scan / ours",
        "best other / ours",
        "verdict",
        "of the limit",
    ]
    head += ["eager / S=L", "DEER or scan / S=L", "sweeps of S=L"]
    rows = []
    for cell in record.cells:
        rival = cell.best_rival(record.ours)
        peer = next((cell.ratio(peer, PAPER) for peer in PEERS if peer in cell.timed), None)
        part = share(cell, OURS, record.limits)
        sweeps = cell.entries[PAPER].notes.get("sweeps") if PAPER in cell.entries else None
        rows.append(
            [
                *size_of(cell),
                number(cell.ratio(BASELINE, OURS)),
                number(cell.ratio("JAX scan", OURS)),
                number(cell.ratio(rival, OURS)) if rival else "-",
                cell.verdict(OURS, record.ours),
                "-" if part is None else f"{part:.0%}",
                number(cell.ratio(BASELINE, PAPER)),
                number(peer),
                "-" if sweeps is None else f"{sweeps:g}",
            ]
        )
    return table(head, rows)


def details(cell: Cell) -> str:
    """Everybody in one cell, the fastest first."""
    head = ["contender", "eager / it", "ms, median (quartiles)", "error", "MiB", "sweeps"]
    head += ["first call, s"]
    apart = any(entry.device for entry in cell.entries.values())
    if apart:
        head.insert(3, "ms on the device")
    order = sorted(cell.entries, key=lambda n: cell.entries[n].median if n in cell.timed else 1e9)
    rows = []
    for name in order:
        entry = cell.entries[name]
        error = "none" if entry.error is None else f"{entry.error:.1e}"
        sweeps = entry.notes.get("sweeps")
        time = "not timed"
        if entry.seconds:
            low, middle, high = (1e3 * s for s in sorted((*entry.quartiles, entry.median)))
            time = f"{middle:.3g} ({low:.3g} to {high:.3g})"
        device = (
            f"{1e3 * statistics.median(entry.device):.3g} ({entry.device_by})"
            if entry.device
            else "-"
        )
        rows.append(
            [
                name,
                number(cell.ratio(BASELINE, name)),
                time,
                *([device] if apart else []),
                error if cell.is_right(name) else f"**WRONG** ({error})",
                "-" if entry.memory is None else f"{entry.memory / 2**20:.1f}",
                "-" if sweeps is None else f"{sweeps:g}",
                f"{entry.first_call:.2g}",
            ]
        )
    title = f"### {KINDS[cell.kind].title}: L = {cell.length}, w = {cell.width}, B = {cell.batch}"
    failed = [f"\n{name} **failed**: {why}" for name, why in cell.failed.items()]
    own = f"Error of the plain loop in float32: {cell.own:.1e}."
    why = cell.entries[OURS].notes.get("why") if OURS in cell.entries else None
    if why:
        own += f" deeppcr's own plan: {why}."
    return "\n".join([f"{title}, {cell.run}", "", table(head, rows), "", own, *failed])


def missing(record: Record) -> str:
    """Contender and reason, with the number of problems that it holds for."""
    count: dict[tuple[str, str], int] = {}
    for cell in record.cells:
        for name, reason in cell.absent.items():
            count[name, reason] = count.get((name, reason), 0) + 1
    rows = [[name, reason, f"{n} of {len(record.cells)}"] for (name, reason), n in count.items()]
    return table(["contender", "does not run because", "problems"], sorted(rows))


def limits_text(record: Record) -> str:
    found = record.limits
    if not {"matmul", "read"} <= set(found):
        return ""
    return f" Here {found['matmul'] / 1e9:.0f} GFLOP/s and {found['read'] / 1e9:.1f} GB/s."


LIMITS = (
    "What holds a cell back where something is missed: chains of few narrow steps are calls, whose "
    "cost `benchmarks/calls.py` measures, beside that of PyTorch's own; one sample from w = 64 on "
    "is memory, many samples from w = 64 on are multiply-adds: how much of the machine's is in the "
    "column `of the limit`. The paper's method at w = 4 is bookkeeping of segments of one step."
)


def page(record: Record, picture: str | None = None) -> str:
    setting = ", ".join(f"{name} {value}" for name, value in record.setting.items())
    faults = record.faults()
    who = [f"- `{name}`: {facts['title']}." for name, facts in record.contenders.items()]
    parts = [
        "# Chains and recurrences: how fast, against whom",
        setting,
        "Written by `benchmarks/bench.py` (`make bench`, `make bench-grid`). Every contender was "
        "first held to the plain loop in float64, output and, in the pass forward+backward, all "
        "gradients; then all were timed in turns. Ratios are times of the other over times of "
        "deeppcr: below 1, in bold, deeppcr is the slower one. Forward passes run in "
        "inference mode.",
        "## Expected",
        "\n".join(f"- {line}" for line in claims(record)),
        LIMITS,
        "## Ratios",
        "`ours` is deeppcr with its own plan, `S=L` the paper's method (one segment for each step, "
        "`refresh` adaptive). The best other is the fastest contender that is not deeppcr. Of the "
        "limit: the larger share of the flop/s of a matrix product and of the bytes/s of a sum, "
        "both measured by PyTorch on this machine; weights in a cache can be read faster."
        + limits_text(record),
        ratios(record),
        f"![Times over eager's]({picture})" if picture else "",
        "## Contenders",
        "\n".join(who),
        "## Cell by cell",
        "Error: relative, against float64, the largest over output and gradients, layer by layer; "
        "up to 10 times the plain loop's is right for deeppcr, up to 100 times for the others, and "
        "at most 1e-3. Where the loop itself is no better, deeppcr may not be worse than the loop. "
        "ReLU's gradients jump where a rounding decides on which side of 0 an element lies: there "
        "4 times the loop's is right, and 0.05 for others, who sum in another order. MiB: memory "
        "that one call takes. First call: preparation and compilation.",
        "\n\n".join(details(cell) for cell in record.cells),
        "## Who did not run",
        missing(record),
        "## Faults" if faults else "",
        "\n".join(f"- {fault}" for fault in faults),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"
