# SPDX-License-Identifier: Apache-2.0
"""The end of the contest: a table, the promises that it was to keep, a picture and all numbers."""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import statistics
from importlib.metadata import version

import torch
from comparison import Comparison, Promise, finished, promises
from contenders import Auto, Paper, Reordered, Shallow
from options import Options
from picture import draw, draw_sweeps
from probe import Stop
from result import Result

import torch_deeppcr as dpcr

HEAD = (
    "contender",
    "blocks",
    "steps",
    "ms per step (quartiles)",
    "ratio",
    "test accuracy",
    "compile",
    "peak memory",
    "loss gap",
)


def write_report(
    results: list[Result], stops: dict[int, Stop], options: Options, seconds: float
) -> bool:
    """Print and write everything.  True if all ran and no promise about these options is broken."""
    made = promises(results, options, seconds)
    text = "\n".join([*table(results, options), "", *notes(results, options), "", *map(str, made)])
    if not options.is_default():
        text += "\n(The promises are made for the default options; these are others.)"
    comparison = Comparison.of(results, options)
    draw(comparison, options.out / "losses.png")
    files = ["table.md", "losses.png", "results.json"]
    paper = comparison.results.get(Paper.name)
    if paper is not None and paper.history.solves:
        draw_sweeps(paper.history, stops, options, options.out / "sweeps.png")
        files.insert(2, "sweeps.png")
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    write_numbers(results, stops, options, made, seconds)
    print(f"\n{text}\n\n{options.out} has {', '.join(files[:-1])} and {files[-1]}")
    counted = made if options.is_default() else [finished(results)]
    return all(promise.kept for promise in counted)


def table(results: list[Result], options: Options) -> list[str]:
    """Lines of a Markdown table that can be read as it is."""
    comparison = Comparison.of(results, options)
    rows = [HEAD, *(row(result, comparison) for result in results)]
    widths = [max(len(r[i]) for r in rows) for i in range(len(HEAD))]
    lines = [
        "| " + " | ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) + " |"
        for r in rows
    ]
    rule = [f":{'-' * (widths[0] - 1)}", *(f"{'-' * (w - 1)}:" for w in widths[1:])]
    return [lines[0], "| " + " | ".join(rule) + " |", *lines[1:]]


def row(result: Result, comparison: Comparison) -> tuple[str, ...]:
    contender = result.contender
    blocks = str(contender.depth(comparison.options))
    if result.steps == 0:
        return (contender.title, blocks, "0", *["-"] * (len(HEAD) - 3))
    low, high = result.quartiles()
    ratio, gap, accuracy = comparison.speed_up(result), comparison.gap(result), result.accuracy()
    compiling = result.history.first_pass - result.milliseconds() / 1e3
    return (
        contender.title,
        blocks,
        str(result.steps),
        f"{result.milliseconds():.3g} ({low:.3g} to {high:.3g})",
        "-" if ratio is None else f"{ratio:.3g} x",
        "-" if accuracy is None else f"{accuracy:.1f} %",
        f"{compiling:.1f} s" if contender.compiles else "-",
        f"{result.history.peak_bytes / 2**20:.0f} MiB",
        "-" if gap is None else f"{gap:.1e}",
    )


def notes(results: list[Result], options: Options) -> list[str]:
    """What a reader needs to judge the table."""
    comparison = Comparison.of(results, options)
    lines = [f"Not trained: {r.contender.title}: {r.failure}" for r in results if r.failure]
    shallow = comparison.results.get(Shallow.name)
    if shallow is not None and shallow.accuracy() is not None:
        lines.append(
            f"Depth is the subject here, not the accuracy: 2 blocks of this width reach "
            f"{shallow.accuracy():.1f} % on these images too."
        )
    if not dpcr.native_available():
        lines.append("deeppcr's native library is not there: its rows are PyTorch's loop too.")
    lines.append(
        f"Times: {machine(options)}, {options.threads} thread(s); median step (forward, backward, "
        "optimiser), the contenders taking turns. Ratio: PyTorch's loop / this one. Memory: of the "
        "process, above what it had with PyTorch and the data loaded; a compiler in it counts."
    )
    auto, paper = (comparison.results.get(c.name) for c in (Auto, Paper))
    if auto is not None and auto.history.plan:
        lines.append(f"{auto.contender.title}, planned {auto.history.plan}.")
    if paper is not None and paper.history.solves:
        lines.append(sweeps_and_work(paper, options))
    yardstick = comparison.results.get(Reordered.name)
    if yardstick is not None:
        lines.append(
            f"Loss gap: mean |loss - PyTorch's loss| over the first {yardstick.steps} steps, "
            "those of the reordered run (or as far as the contender went)."
        )
    return lines


def sweeps_and_work(paper: Result, options: Options) -> str:
    """What the paper's method did, and what it would take with cyclic reduction as published."""
    solves = paper.history.solves
    sweeps, tangent, flops = (
        statistics.fmean(solve[name] for solve in solves)
        for name in ("sweeps", "tangent_sweeps", "flops")
    )
    loop = 4 * options.width * options.hidden_width * options.depth * options.batch
    published = flops + tangent * options.batch * more_products(options) * 2 * options.width**3
    most = max(solve["most_sweeps"] for solve in solves)
    return (
        f"The paper's method ({paper.history.plan}): {solves[-1]['levels']:.0f} levels of cyclic "
        f"reduction, {sweeps:.3g} sweeps a step (median of the samples; {most:.0f} at most), "
        f"{tangent:.3g} of them with tangents. A forward pass counts {gigaflop(flops)}, "
        f"{flops / loop:.3g} times the loop's {gigaflop(loop)}; with S log2 S products in the "
        f"cyclic reduction, as published, instead of our S it would be {gigaflop(published)}. "
        "Backward is about one sweep with tangents more."
    )


def more_products(options: Options) -> int:
    """In a cyclic reduction of S blocks: the S - 2^k of each level k = 0, 1, .. less our S - 1."""
    S, levels = options.depth, math.ceil(math.log2(options.depth))
    return S * levels - (2**levels - 1) - (S - 1)


def gigaflop(flops: float) -> str:
    return f"{flops / 1e9:.3g} GFLOP"


def machine(options: Options) -> str:
    if options.device != "cpu":
        return torch.cuda.get_device_name(options.device)
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def write_numbers(
    results: list[Result],
    stops: dict[int, Stop],
    options: Options,
    made: list[Promise],
    seconds: float,
) -> None:
    """results.json: everything that the table and the picture are made of."""
    numbers = {
        "options": options.trained_by(),
        "machine": machine(options),
        "versions": {"torch": torch.__version__, "torch-deeppcr": version("torch-deeppcr")},
        "native": dpcr.native_available(),
        "seconds": seconds,
        "sweeps_along_the_training": stops,
        "promises": [dataclasses.asdict(promise) for promise in made],
        "contenders": {
            r.contender.name: {
                "title": r.contender.title,
                "blocks": r.contender.depth(options),
                "failure": r.failure,
                **dataclasses.asdict(r.history),
            }
            for r in results
        },
    }
    path = options.out / "results.json"
    path.write_text(json.dumps(numbers, indent=1), encoding="utf-8")
