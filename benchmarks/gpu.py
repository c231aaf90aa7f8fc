# SPDX-License-Identifier: Apache-2.0
"""Chains and recurrences on a GPU: one operator against launches, graphs and compilers.

    python benchmarks/gpu.py [--out FOLDER] [--seconds N] [--full]     the grid
    python benchmarks/gpu.py --tune N [--out FOLDER]                   times against segments
    python benchmarks/gpu.py --best FILE.json                          the fastest of such a record
    python benchmarks/gpu.py --render FILE.json                        the page of a record anew

Every contender is first held to the plain loop in fp64, output and gradients, then timed in turns:
wall time, Python included, and time on the device, for deeppcr by replays of a CUDA graph, for the
others by events.  The cells that say most come first; when the time is up the rest is listed as
not reached.  The record is written after every cell, so that nothing is lost if the run is killed.
Exit status 1 if a result is wrong, a contender fails or the run was cut short by an error; slow is
no error.  `--device cpu` runs the same Python without the device's clock.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import contenders
import gpu_grid
import gpu_page
import limits
import plots
import torch
import torch._functorch.config
import tune
from bench import DeviceLost, Suite, require_device, told, verified
from contenders import Contender, Run
from contenders._torch import captured
from contenders.deeppcr import fixed
from gpu_grid import size_of
from problems import FORWARD, TRAIN, Problem, error, parse_size
from record import OURS, Cell, Record, setting, slug
from timing import EventTimer, Timer, WallTimer, peak_memory, turns

RIVALS = (
    "eager",
    "stacked loop",
    "CUDA graph",
    "16 compiled",
    "reduce-overhead",
    "reduce-overhead, whole",
    "torch associative_scan",
)
OWN = (OURS, "deeppcr S=1", "deeppcr S=L")
FIXED = (8, 16, 32, 64, 128, 256)
REPLAYS = 8
"""Calls in one graph: launching the graph of a single short call would be what is timed."""
HEAVY = 2**27
"""Bytes of leaves from which contenders are prepared one by one, one call in a graph."""


# ---- what is run --------------------------------------------------------------------------------


def everyone() -> list[Contender]:
    """The rivals, then ours by their number of segments; what cannot be imported is listed too."""
    known = {each.name: each for each in contenders.everyone()}
    others = [c for c in known.values() if c.name not in (*RIVALS, *OWN)]
    missing = [c for c in others if isinstance(c, contenders.Missing)]
    auto, one, all_steps = (known[name] for name in OWN)
    rivals = [known[name] for name in RIVALS if name in known]
    return [*rivals, *missing, auto, one, *map(fixed, FIXED), all_steps]


# ---- one cell -----------------------------------------------------------------------------------


def replayed(
    contender: Contender, problem: Problem, run: Run, truth: list[torch.Tensor], allowed: float
) -> tuple[Callable[[], object], int] | str:
    """Replays of a graph of so many calls, verified; or why there are none.

    First a call that must not wait for the device: a failed capture can spoil what comes after it.
    """
    calls = 1 if is_heavy(problem) else REPLAYS
    try:
        torch.cuda.set_sync_debug_mode("error")
        try:
            run.call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = captured(lambda: contender.prepare(problem), calls)
        distance = error(graph.results(), truth)
    except Exception as reason:
        require_device(problem, f"{contender.name}, capture: {told(reason)}")
        return told(reason)
    if not distance <= allowed:
        return f"the replayed result is WRONG: {distance:.1e}, not <= {allowed:.1e}"
    return graph.call, calls


def is_heavy(problem: Problem) -> bool:
    return sum(leaf.nbytes for leaf in problem.leaves) > HEAVY


def measure(
    cell: Cell,
    problem: Problem,
    truth: list[torch.Tensor],
    contestants: Sequence[Contender],
    suite: Suite,
) -> None:
    """Fills the cell."""
    device = problem.device
    with nullcontext() if problem.trains else torch.inference_mode():
        timers: dict[str, Timer] = {}
        walls: dict[str, WallTimer] = {}
        calls: dict[str, tuple[Callable[[], object], int]] = {}
        for contender, run in verified(cell, problem, contestants, suite, truth):
            name = contender.name
            calls[name] = (run.call, 1)
            timers[name] = walls[name] = WallTimer(run.call, device)
            if contender.ours and device != "cpu":
                entry = cell.entries[name]
                graph = replayed(contender, problem, run, truth, entry.allowed)
                if isinstance(graph, str):
                    entry.notes["not replayed"] = graph
                    if "WRONG" in graph:
                        cell.failed[f"{name}, in a CUDA graph"] = graph
                else:
                    calls[f"{name}, replayed"] = graph
                    timers[f"{name}, replayed"] = EventTimer(graph[0])
        measured = turns(timers, suite.rounds, suite.budget)
        for name, entry in cell.entries.items():
            if name not in measured:
                continue
            entry.seconds = measured[name]
            if f"{name}, replayed" in measured:
                count = calls[f"{name}, replayed"][1]
                entry.device = [s / count for s in measured[f"{name}, replayed"]]
                entry.device_by = "graph"
            elif device != "cpu":
                entry.device = walls[name].on_device[-len(entry.seconds) :]
                entry.device_by = "events"
            entry.memory = peak_memory(calls[name][0], device)


def measure_group(
    record: Record,
    group: Sequence[Problem],
    contestants: Sequence[Contender],
    suite: Suite,
    is_over: Callable[[], bool],
) -> Iterator[Cell]:
    """The passes of one size: the same numbers, one truth, one compilation."""
    torch.compiler.reset()
    first = group[0]
    widest = first.in_pass(TRAIN if any(p.trains for p in group) else FORWARD)
    right, plain = (widest.plain(dtype) for dtype in (torch.float64, torch.float32))
    eps = torch.finfo(torch.float32).eps
    for problem in (first.in_pass(p.run) for p in group):
        if is_over():
            record.unreached.append(str(problem))
            continue
        truth = problem.part(right)
        own = error(problem.part(plain), truth)
        cell = Cell(*size_of(problem), problem.run, min(max(own, eps), 1e9))
        record.cells.append(cell)
        some = [[each] for each in contestants] if is_heavy(problem) else [contestants]
        for contestants_now in some:
            try:
                measure(cell, problem, truth, contestants_now, suite)
            except DeviceLost:
                raise
            except Exception as reason:
                # The cells to come may still say something.
                cell.failed["the timing"] = told(reason)
                require_device(problem, told(reason))
        yield cell


def run_all(
    record: Record,
    contestants: Sequence[Contender],
    suite: Suite,
    is_over: Callable[[], bool],
    after_cell: Callable[[Cell], None],
) -> None:
    """Every problem of the suite, until the time is over; the record says what was not reached."""
    lost = False
    for _, each in itertools.groupby(suite.problems, size_of):
        group = list(each)
        if lost or is_over():
            record.unreached += map(str, group)
            continue
        begun = len(record.cells)
        try:
            for cell in measure_group(record, group, contestants, suite, is_over):
                after_cell(cell)
            gc.collect()
            if group[0].device != "cpu":
                torch.cuda.empty_cache()
        except Exception as reason:
            # The truth may not fit the device's memory; that is nobody's fault.
            lost = isinstance(reason, DeviceLost)
            if not isinstance(reason, torch.OutOfMemoryError):
                record.errors.append(f"{group[0]}: {told(reason)}")
            reached = [cell.run for cell in record.cells[begun:]]
            rest = (p for p in group if p.run not in reached)
            record.unreached += [f"{p} ({told(reason)})" for p in rest]


# ---- the program --------------------------------------------------------------------------------


def parse_problem(text: str) -> list[Problem]:
    """KIND,LENGTH,WIDTH,BATCH: all passes."""
    kind, length, width, batch = parse_size(text)
    runs = gpu_grid.passes(kind, length, batch, full=True)
    return [Problem(kind, length, width, batch, run) for run in runs]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--seconds", type=float, default=420.0, help="stop after the cell then running [420]")
    add("--tune", type=float, metavar="SECONDS", help="times against the number of segments")
    add("--kind", choices=tune.KINDS, default="normal", help="of --tune [%(default)s]")
    add("--render", type=Path, metavar="JSON", help="write the page of a record anew")
    add("--best", type=Path, metavar="JSON", help="of a record of --tune: the fastest segments")
    add("--full", action="store_true", help="all passes and kinds at all sizes")
    add("--problem", type=parse_problem, nargs="+", metavar="KIND,L,W,B", help="these instead")
    add("--compiled", choices=["some", "all", "none"], default="some", help="at which sizes")
    add("--contender", nargs="+", metavar="NAME", help="these only")
    add("--without", nargs="+", default=[], metavar="NAME", help="all but these")
    add("--rounds", type=int, default=7, help="timed blocks of each [7]")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    results = Path(__file__).resolve().parent / "results"
    add("--out", type=Path, default=results, metavar="FOLDER", help="[benchmarks/results]")
    given = parser.parse_args(arguments)
    if given.rounds < 1:
        parser.error("--rounds must be at least 1")
    everybody = [*everyone(), *tune.contestants()]
    unknown = {*(given.contender or ()), *given.without} - {each.name for each in everybody}
    if unknown:
        parser.error(f"no contender is called {sorted(unknown)}")
    return given


def chosen(given: argparse.Namespace) -> Suite:
    if given.problem:
        problems = [p for each in given.problem for p in each]
    else:
        problems = gpu_grid.grid(given.full) if given.tune is None else tune.grid(given.kind)
    problems = [Problem(*size_of(p), p.run, given.device) for p in problems]
    compiled = {
        "all": problems,
        "some": [p for p in problems if gpu_grid.compiled_at(p, given.full)],
        "none": [],
    }[given.compiled]
    return Suite(
        tuple(problems),
        frozenset(compiled),
        rounds=given.rounds if given.tune is None else min(given.rounds, tune.ROUNDS),
        budget=0.3,
        gflop=2000.0 if given.full else 200.0,
    )


def render(record: Record, page_path: Path) -> None:
    """Page and picture."""
    picture = plots.against_length(record, page_path.with_suffix(".png"))
    page_path.write_text(gpu_page.page(record, picture), encoding="utf-8")


def report(record: Record, written: Path) -> int:
    print("\n".join(["", *gpu_page.summary(record)]))
    faults = record.faults()
    print("\n".join(["", *faults, f"written: {written}"]))
    return 1 if faults else 0


def main(arguments: list[str] | None = None) -> int:
    start = time.perf_counter()
    given = parse(arguments)
    if given.best:
        print(tune.best(given.best.read_text(encoding="utf-8")))
        return 0
    if given.render:
        record = Record.from_json(given.render.read_text(encoding="utf-8"))
        page_path = given.render.with_suffix(".md")
        render(record, page_path)
        return report(record, page_path)
    if given.device == "cpu":
        torch.set_num_threads(1)
    # Compiled backward passes must be runnable twice: one pass here is backward alone.
    torch._functorch.config.donated_buffer = False
    tunes = given.tune is not None
    contestants = [
        c
        for c in (tune.contestants() if tunes else everyone())
        if c.name not in given.without and (not given.contender or c.name in given.contender)
    ]
    facts = ("title", "ours", "compiles", "always_right")
    known = {c.name: {fact: getattr(c, fact) for fact in facts} for c in contestants}
    record = Record(setting(given.device), known, limits=limits.measured(given.device))
    seconds = given.tune if tunes else given.seconds

    day = time.strftime("%Y-%m-%d", time.gmtime())
    given.out.mkdir(parents=True, exist_ok=True)
    stem = f"{slug(record.setting['device'])}-{day}"
    path = given.out / (f"tune-{stem}.json" if tunes else f"{stem}.json")

    def write() -> None:
        record.setting["seconds"] = round(time.perf_counter() - start)
        text = tune.to_json(record) if tunes else record.to_json()
        path.write_text(text, encoding="utf-8")

    def after_cell(cell: Cell) -> None:
        write()
        print(gpu_page.line(record, cell), flush=True)

    def is_over() -> bool:
        return time.perf_counter() - start > seconds

    run_all(record, contestants, chosen(given), is_over, after_cell)
    write()
    if tunes:
        print("\n".join([*record.faults(), f"written: {path}"]))
        return 1 if record.faults() else 0
    render(record, path.with_suffix(".md"))
    return report(record, path.with_suffix(".md"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as fresh:
        # Compile times are those of a first time.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = fresh
        sys.exit(main())
