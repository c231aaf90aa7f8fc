# SPDX-License-Identifier: Apache-2.0
"""The end of a run: tables, notes, promises, and all numbers as JSON."""

from __future__ import annotations

import dataclasses
import json
import platform
from importlib.metadata import version
from typing import Any

import torch
from curves import Curves
from measure import ChainResult, Result
from methods import Outcome
from options import Options
from promises import Promise
from quality import Judge
from training import Trained
from unet import Row, UNetResult

import torch_deeppcr as dpcr

HEAD = (
    "method",
    "ratio",
    "ms",
    "ratio in a batch",
    "sweeps (in a batch)",
    "serial calls",
    "rows",
    "largest difference",
    "RMS difference",
    "Frechet",
)


def text(
    chains: list[ChainResult],
    unet: UNetResult,
    trained: dict[str, Trained],
    judge: Judge,
    options: Options,
    made: list[Promise],
) -> str:
    """All of it as Markdown that can be read as it is."""
    lines: list[str] = []
    for each in chains:
        rows = [HEAD, *(row(result) for result in each.results.values())]
        lines += [f"### {each.chain.name}, L = {each.chain.length}", "", *table(rows), ""]
        lines += [*failures(each), other_noise(each.others), ""]
    lines += [*second(unet, options), "", *notes(trained, judge, options), ""]
    lines += [f"- {promise}" for promise in made]
    if not options.is_default():
        lines += ["", "(Times, sweeps and the UNet's images are promised of the default run only.)"]
    return "\n".join(lines)


def table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join([r[0].ljust(widths[0]), *map(str.rjust, r[1:], widths[1:])]) + " |"
        for r in rows
    ]
    rule = [f":{'-' * (widths[0] - 1)}", *(f"{'-' * (w - 1)}:" for w in widths[1:])]
    return [lines[0], "| " + " | ".join(rule) + " |", *lines[1:]]


def row(result: Result) -> tuple[str, ...]:
    title, one, many = result.method.title, result.one, result.many
    if one is None or not result.ratios:
        return (title, *["-"] * (len(HEAD) - 1))
    return (
        title,
        ratio(result.ratio),
        f"{result.milliseconds:.3g}",
        "-" if result.batch_ratio is None else ratio(result.batch_ratio),
        sweeps(one) if many is None or one.sweeps is None else f"{sweeps(one)} ({sweeps(many)})",
        str(one.calls),
        str(one.rows),
        f"{result.largest:.1e}",
        f"{result.rms:.1e}",
        "-" if result.distance is None else f"{result.distance:.4f}",
    )


def ratio(value: float) -> str:
    """Bold where it loses."""
    shown = f"{value:.3g} x"
    return f"**{shown}**" if value < 0.95 else shown


def sweeps(outcome: Outcome) -> str:
    if outcome.sweeps is None:
        return "-"
    return str(outcome.sweeps) + ("" if outcome.converged else ", then the loop")


def failures(each: ChainResult) -> list[str]:
    failed = [r for r in each.results.values() if r.failure is not None]
    return [f"Did not run: {r.method.title}: {r.failure}\n" for r in failed]


def other_noise(distances: list[float]) -> str:
    return f"The loop with other noise: Frechet {', '.join(f'{d:.3f}' for d in distances)}."


# ---- the second part ----------------------------------------------------------------------------


def second(unet: UNetResult, options: Options) -> list[str]:
    head = f"### UNet2DModel in a DDIMPipeline, L = {options.unet_steps}"
    if unet.missing:
        return [head, "", f"Skipped: {unet.missing}."]
    return [
        head,
        "",
        *table([HEAD, *(unet_row(each, unet.rows[0]) for each in unet.rows)]),
        "",
        other_noise(unet.others),
        "",
        *(break_even(unet, options.unet_steps, batch) for batch in (1, options.unet_batch)),
    ]


def unet_row(each: Row, first: Row) -> tuple[str, ...]:
    swept = f"{each.one_sweeps} ({each.sweeps})"
    return (
        each.title,
        ratio(first.seconds / each.seconds),
        f"{each.seconds * 1e3:.3g}",
        ratio(first.batch_seconds / each.batch_seconds),
        swept if each.one_sweeps or each.sweeps else "-",
        str(each.calls),
        str(each.rows),
        f"{each.largest:.1e}",
        f"{each.rms:.1e}",
        f"{each.distance:.4f}",
    )


def break_even(unet: UNetResult, length: int, batch: int) -> str:
    """K t(L B) + solve < L t(B), without the solve: how many sweeps may there be?"""
    loop, sweep = length * unet.calls[batch], unet.calls[length * batch]
    most = loop / sweep
    verdict = "less than one sweep" if most < 1 else f"{most:.1f} sweeps at most"
    return (
        f"- Break-even with {batch} image{'s' if batch > 1 else ''}: K t({length * batch}) < "
        f"{length} t({batch}), that is K x {sweep * 1e3:.3g} ms < {length} x "
        f"{unet.calls[batch] * 1e3:.3g} ms: {verdict}, and half of it with a diagonal, which "
        "evaluates two rows a step."
    )


# ---- what a reader needs -------------------------------------------------------------------------


def notes(trained: dict[str, Trained], judge: Judge, options: Options) -> list[str]:
    took = ", ".join(
        f"{name} {each.seconds:.0f} s (loss {each.loss:.3f}{', an earlier run' * each.loaded})"
        for name, each in trained.items()
    )
    lines = [
        f"Training: {took}.",
        f"Times: {machine()}, {options.threads} thread(s); of one sample, the medians of "
        f"{options.rounds} rounds in which all methods have their turn (one round above 1 s). "
        f"Ratio: the loop's time over this one's; of {options.batch} samples (UNet: "
        f"{options.unet_batch} images) measured once.",
        "Serial calls of the network one after the other, and rows (a sample in a step, or a "
        "column of its Jacobian) in all: for one sample (UNet: for the batch).",
        "Differences to the loop, of all samples, relative to the largest number and to the root "
        "mean square of the loop's. Frechet: squared distance to all digits in "
        f"{len(judge.digits[0])} features of a classifier that recognises "
        f"{judge.accuracy * 100:.1f} % of them; two halves of the digits have {judge.floor:.3f}.",
    ]
    if not dpcr.native_available():
        lines.append("The native library is not there: its rows are PyTorch's loop, too.")
    return [part for line in lines for part in (line, "")][:-1]


def machine() -> str:
    return f"one {platform.machine()} machine, shared with other programs"


def numbers(
    chains: list[ChainResult],
    found: dict[str, Curves],
    unet: UNetResult,
    trained: dict[str, Trained],
    options: Options,
    made: list[Promise],
) -> str:
    """results.json: everything that the tables and the picture of the sweeps are made of."""
    content = {
        "options": options.numbers(),
        "versions": {"torch": torch.__version__, "torch-deeppcr": version("torch-deeppcr")},
        "native": dpcr.native_available(),
        "training": {
            name: {"seconds": t.seconds, "loss": t.loss, "loaded": t.loaded}
            for name, t in trained.items()
        },
        "chains": {
            each.chain.name: {
                "other_noise": each.others,
                "methods": {name: plain(result) for name, result in each.results.items()},
            }
            for each in chains
        },
        "errors_by_sweep": {name: both._asdict() for name, both in found.items()},
        "unet": {
            "missing": unet.missing,
            "seconds_of_a_call": unet.calls,
            "other_noise": unet.others,
            "rows": [plain_row(each) for each in unet.rows],
        },
        "promises": [dataclasses.asdict(promise) for promise in made],
    }
    return json.dumps(content, indent=1)


def plain(result: Result) -> dict[str, Any]:
    def outcome(which: Outcome | None) -> dict[str, Any] | None:
        if which is None:
            return None
        names = ("sweeps", "calls", "rows", "converged", "why")
        return {name: getattr(which, name) for name in names}

    values = {f.name: getattr(result, f.name) for f in dataclasses.fields(result)}
    values["method"] = result.method.title
    return {**values, "one": outcome(result.one), "many": outcome(result.many)}


def plain_row(each: Row) -> dict[str, Any]:
    values = {f.name: getattr(each, f.name) for f in dataclasses.fields(each)}
    return {name: value for name, value in values.items() if name != "images"}
