# SPDX-License-Identifier: Apache-2.0
"""How fast chains and recurrences run, against everybody else: float32, in one process.

    python benchmarks/bench.py [--quick | --full | --grid] [--help]

For every problem all contenders (benchmarks/contenders/) are first held to the plain loop in fp64;
then they are timed in turns, round after round, so that a busy machine is busy for all.  On the CPU
the process stays on one core, so nobody has more than one thread.  Writes JSON, a Markdown page and
a picture, named after the device.  Exit status 1 if a result is wrong or a contender fails; slow is
no error, but it is marked.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import contenders
import limits
import plots
import torch
from contenders import Contender, Run
from page import claims, page
from problems import FORWARD, KINDS, PASSES, Problem, error, parse_size
from record import OURS, Cell, Entry, Record, file_stem, setting
from timing import in_turns, peak_memory

OUR_SLACK, SLACK = 10.0, 100.0
"""How many times the fp32 loop's own error against fp64 deeppcr and the others may have (JAX has a
tanh of 10 times less accuracy, which is no reason to leave it out),"""
HOPELESS = 1e-3
"""and the most in any case: where the loop is no better, nobody may be worse than the loop;"""
FLIPPED = 4.0
"""times its error for gradients through kinks, of which a rounding near 0 loses some;"""
A_FLIP = 0.05
"""so much, relative, is right for others there, who sum in another order than the loop."""


# ---- what is run --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Suite:
    problems: tuple[Problem, ...]
    compiled: frozenset[Problem]
    """Where contenders that take seconds to minutes to compile take part."""
    rounds: int
    budget: float
    """Seconds for all rounds of a contender, but for a minimum of rounds."""
    gflop: float
    """A contender whose sweep costs more than this is left out."""


def chains(kind: str, length: int, sizes: str, runs: Sequence[str] = PASSES) -> list[Problem]:
    """sizes: pairs width,batch, as "4,1 16,32"."""
    pairs = [map(int, pair.split(",")) for pair in sizes.split()]
    return [Problem(kind, length, w, b, run) for w, b in pairs for run in runs]


def quick() -> Suite:
    compiled = [
        *chains("mlp", 1024, "16,1"),
        *chains("mlp", 64, "16,1", [FORWARD]),
        *chains("dense", 1024, "4,1", [FORWARD]),
    ]
    problems = [
        *chains("mlp", 1024, "4,1 16,1 64,1 16,32 16,256"),
        *chains("residual", 1024, "16,1 16,32"),
        *chains("prenorm", 1024, "4,1"),
        *chains("layers", 256, "256,1"),
        *chains("mlp", 64, "16,1", [FORWARD]),
        *chains("dense", 1024, "4,1 16,1 16,32", [FORWARD]),
        *chains("diagonal", 1024, "16,1 64,32", [FORWARD]),
    ]
    return Suite(tuple(problems), frozenset(compiled), rounds=7, budget=0.3, gflop=0.3)


def full() -> Suite:
    compiled = [
        *(p for kind in ("mlp", "residual", "prenorm") for p in chains(kind, 1024, "16,1")),
        *chains("mlp", 128, "16,1"),
        *chains("residual", 128, "16,1"),
        *chains("dense", 1024, "4,1 16,1"),
        *chains("diagonal", 1024, "16,1"),
    ]
    sizes = "4,1 16,1 64,1 4,32 16,32 16,256 64,256"
    problems = [
        *(p for kind in ("mlp", "residual", "prenorm") for p in chains(kind, 1024, sizes)),
        *chains("mlp", 128, "16,1"),
        *chains("residual", 128, "16,1"),
        *chains("mlp", 16384, "4,1 16,1", [FORWARD]),  # nothing is left of its first gradients
        *chains("residual", 16384, "4,1"),
        *chains("layers", 256, "256,1 256,256"),
        *chains("dense", 1024, "4,1 16,1 4,32 16,32"),
        *chains("dense", 16384, "4,1"),
        *chains("diagonal", 1024, "16,1 64,32"),
        *chains("diagonal", 16384, "16,1"),
    ]
    return Suite(tuple(problems), frozenset(compiled), rounds=15, budget=3.0, gflop=4.0)


#: Elements of weights and states for which a machine of 24 GiB has room: autograd of the plain loop
#: in float64 takes twenty times as much.
LARGEST = 150 * 10**6
GRID = ("deeppcr", "eager", "JAX scan")


def fits(problem: Problem) -> bool:
    matrices, norms = KINDS[problem.kind].matrices, 4
    weights = problem.width**2 * matrices + norms * problem.width
    return problem.length * (weights + problem.batch * problem.width) <= LARGEST


def grid() -> Suite:
    """Every length, width and batch."""
    sizes = [f"{w},{b}" for w in (4, 16, 64, 256) for b in (1, 32, 256)]
    problems = [
        problem
        for kind in ("mlp", "relu", "prenorm")
        for length in (64, 1024, 8192)
        for problem in chains(kind, length, " ".join(sizes))
        if fits(problem)
    ]
    return Suite(tuple(problems), frozenset(), rounds=5, budget=0.5, gflop=math.inf)


# ---- one problem --------------------------------------------------------------------------------


def why_not(contender: Contender, problem: Problem, suite: Suite) -> str:
    reason = contender.cannot(problem)
    if reason:
        return reason
    if contender.compiles and problem not in suite.compiled:
        return "takes long to compile: only at a few sizes"
    if contender.gflop(problem) > suite.gflop:
        return f"a sweep takes more than {suite.gflop:g} GFLOP, too long here"
    return ""


class DeviceLost(RuntimeError):
    """Nothing more can be run: an error that a GPU does not recover from in this process."""


def told(reason: Exception) -> str:
    """An error in one line."""
    first, *_ = [*str(reason).strip().splitlines(), ""]
    return f"{type(reason).__name__}: {first}"


def require_device(problem: Problem, reason: str) -> None:
    """DeviceLost if the device does not answer any more, after an error of that reason."""
    if problem.device != "cpu":
        try:
            torch.cuda.synchronize()
        except Exception:
            raise DeviceLost(f"the device is lost: {problem}: {reason}") from None


def tried(
    contender: Contender, problem: Problem, truth: list[torch.Tensor], own: float
) -> tuple[Run, Entry] | str:
    """Prepared, run once and held to the truth; or the error that it ended with."""
    start = time.perf_counter()
    try:
        run = contender.prepare(problem)
        run.call()
        if problem.device != "cpu":
            torch.cuda.synchronize()
        first_call = time.perf_counter() - start
        distance = error(run.results(), truth)
        notes = run.notes()
    except Exception as reason:
        # Whatever it is, the others go on, and the record says who failed and how.
        return told(reason)
    allowed = min((OUR_SLACK if contender.ours else SLACK) * own, HOPELESS)
    allowed *= KINDS[problem.kind].slack
    if KINDS[problem.kind].kinks and problem.trains:
        allowed = max(allowed, FLIPPED * own if contender.ours else A_FLIP)
    allowed = max(allowed, own if contender.ours else OUR_SLACK * own)
    known = distance if math.isfinite(distance) else None
    return run, Entry(known, allowed, first_call, notes=notes)


def verified(
    cell: Cell,
    problem: Problem,
    everyone: Sequence[Contender],
    suite: Suite,
    truth: list[torch.Tensor],
) -> Iterator[tuple[Contender, Run]]:
    """Those that are right; the cell says who is not, who failed, and who is absent."""
    for contender in everyone:
        name = contender.name
        reason = why_not(contender, problem, suite)
        if reason:
            cell.absent[name] = reason
            continue
        outcome = tried(contender, problem, truth, cell.own)
        if isinstance(outcome, str):
            cell.failed[name] = outcome
            require_device(problem, f"{name}: {outcome}")
            continue
        run, cell.entries[name] = outcome
        if cell.is_right(name):
            yield contender, run


def measure(problem: Problem, everyone: Sequence[Contender], suite: Suite) -> Cell:
    truth = problem.plain(torch.float64)
    own = max(error(problem.plain(torch.float32), truth), torch.finfo(torch.float32).eps)
    cell = Cell(problem.kind, problem.length, problem.width, problem.batch, problem.run, own)
    calls = {}
    torch.compiler.reset()  # no contender shall meet the graphs of another problem
    with nullcontext() if problem.trains else torch.inference_mode():
        for contender, run in verified(cell, problem, everyone, suite, truth):
            calls[contender.name] = run.call
        measured = in_turns(calls, problem.device, suite.rounds, suite.budget)
        for name, seconds in measured.items():
            cell.entries[name].seconds = seconds
            cell.entries[name].memory = peak_memory(calls[name], problem.device)
    return cell


# ---- the program --------------------------------------------------------------------------------


def parse_problem(text: str) -> list[Problem]:
    """KIND,LENGTH,WIDTH,BATCH: both passes."""
    size = parse_size(text)
    return [Problem(*size, run) for run in PASSES]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="about two minutes [default]")
    size.add_argument("--full", action="store_true", help="all sizes and compilers, half an hour")
    size.add_argument("--grid", action="store_true", help="all chains, against eager and JAX")
    size.add_argument("--render", type=Path, metavar="JSON", help="write the page of a record anew")
    add("--problem", type=parse_problem, nargs="+", metavar="KIND,L,W,B", help="these instead")
    add("--compiled", choices=["some", "all", "none"], default="some", help="at which sizes")
    add("--contender", nargs="+", metavar="NAME", help="these only")
    add("--rounds", type=int, help="timed blocks of each")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="[%(default)s]")
    results = Path(__file__).resolve().parent / "results"
    add("--out", type=Path, default=results, metavar="FOLDER", help="[benchmarks/results]")
    given = parser.parse_args(arguments)
    if given.rounds is not None and given.rounds < 1:
        parser.error("--rounds must be at least 1")
    names = [each.name for each in contenders.everyone()]
    unknown = set(given.contender or ()) - set(names)
    if unknown:
        parser.error(f"--contender: {sorted(unknown)} unknown, there are {names}")
    return given


def chosen(given: argparse.Namespace) -> Suite:
    suite = grid() if given.grid else full() if given.full else quick()
    if given.problem:
        suite = replace(suite, problems=tuple(p for both in given.problem for p in both))
    if given.compiled != "some":
        everywhere = frozenset(suite.problems) if given.compiled == "all" else frozenset()
        suite = replace(suite, compiled=everywhere)
    if given.rounds:
        suite = replace(suite, rounds=given.rounds)
    on_device = tuple(replace(p, device=given.device) for p in suite.problems)
    compiled = frozenset(replace(p, device=given.device) for p in suite.compiled)
    return replace(suite, problems=on_device, compiled=compiled)


def write_json(record: Record, folder: Path, what: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = (folder / file_stem(what, record.setting["device"])).with_suffix(".json")
    path.write_text(record.to_json(), encoding="utf-8")
    return path


def write(record: Record, folder: Path, what: str) -> Path:
    """JSON, page and picture; returns the path of the page."""
    path = write_json(record, folder, what)
    picture = plots.times(record, path.with_suffix(".png"))
    path.with_suffix(".md").write_text(page(record, picture), encoding="utf-8")
    return path.with_suffix(".md")


def report(record: Record, written: Path) -> int:
    print("\n" + "\n".join(claims(record)))
    faults = record.faults()
    print("\n".join(["", *faults, f"page: {written}"]))
    return 1 if faults else 0


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    if given.render:
        record = Record.from_json(given.render.read_text(encoding="utf-8"))
        what = given.render.name.partition("-")[0]
        return report(record, write(record, given.render.parent, what))
    if given.device == "cpu":
        torch.set_num_threads(1)
    suite = chosen(given)
    wanted = given.contender or (GRID if given.grid else ())
    everyone = [c for c in contenders.everyone() if not wanted or c.name in wanted]
    facts = ("title", "ours", "compiles", "always_right")
    known = {c.name: {fact: getattr(c, fact) for fact in facts} for c in everyone}
    record = Record(setting(given.device), known, limits=limits.measured(given.device))
    what = "grid" if given.grid else "bench"
    start = time.perf_counter()
    for problem in suite.problems:
        cell = measure(problem, everyone, suite)
        record.cells.append(cell)
        write_json(record, given.out, what)  # nothing that was measured is lost with the process
        ratio = cell.ratio("eager", OURS)
        says = "" if ratio is None else f"{ratio:.3g} x eager, "
        print(f"{problem}: {says}{cell.verdict(OURS, record.ours)}", flush=True)
        gc.collect()
    record.setting["seconds"] = round(time.perf_counter() - start)
    return report(record, write(record, given.out, what))


if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity") and not torch.cuda.is_available():
        # One core for the process and whoever it starts: compilers and JAX too.
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as fresh:
        # Compile times are those of a first time.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = fresh
        sys.exit(main())
