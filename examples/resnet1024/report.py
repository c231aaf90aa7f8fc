# SPDX-License-Identifier: Apache-2.0
"""The end of the contest: a table, the promises that it was to keep, a picture and all numbers."""

from __future__ import annotations

import dataclasses
import json
import platform
from importlib.metadata import version

import torch
from comparison import Comparison, Promise, finished, promises
from contenders import Reordered, Shallow
from options import Options
from picture import draw
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


def write_report(results: list[Result], options: Options, seconds: float) -> bool:
    """Print and write everything.  True if all ran and no promise about these options is broken."""
    made = promises(results, options, seconds)
    text = "\n".join([*table(results, options), "", *notes(results, options), "", *map(str, made)])
    if not options.is_default():
        text += "\n(The promises are made for the default options; these are others.)"
    draw(Comparison.of(results, options), options.out / "losses.png")
    (options.out / "table.md").write_text(text + "\n", encoding="utf-8")
    write_numbers(results, options, made, seconds)
    print(f"\n{text}\n\n{options.out} has table.md, losses.png and results.json")
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
    yardstick = comparison.results.get(Reordered.name)
    if yardstick is not None:
        lines.append(
            f"Loss gap: mean |loss - PyTorch's loss| over the first {yardstick.steps} steps, "
            "those of the reordered run (or as far as the contender went)."
        )
    return lines


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
    results: list[Result], options: Options, made: list[Promise], seconds: float
) -> None:
    """results.json: everything that the table and the picture are made of."""
    numbers = {
        "options": options.trained_by(),
        "machine": machine(options),
        "versions": {"torch": torch.__version__, "torch-deeppcr": version("torch-deeppcr")},
        "native": dpcr.native_available(),
        "seconds": seconds,
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
