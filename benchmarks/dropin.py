# SPDX-License-Identifier: Apache-2.0
"""What `parallelize` gives a model of PyTorch modules, and what it costs: float32, one thread.

    python benchmarks/dropin.py [--quick | --full] [--help]

- A stack of 1024 Linear and Tanh (w = 16): forward, forward and backward, and training steps with
  several optimisers, through both faces, beside PyTorch's modules and `MLPChain`.
- 256 blocks of a deep network of reinforcement learning (4 times Linear, LayerNorm, SiLU; a skip;
  w = 256): the loop, what is planned unasked, and segments with the identity in place of Jacobians.
- How long `parallelize` and `torch.compile` take.

Everybody's output and gradients are compared with the modules' own first, then they are timed in
turns.  Writes JSON and a Markdown page.  Exit status 1 if a result is wrong; slow is no error.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from page import table
from problems import Block
from record import file_stem, setting
from timing import in_turns
from torch import nn

import torch_deeppcr as dpcr

LENGTH, WIDTH = 1024, 16
BLOCKS, WIDE = 256, 256
TOLERANCE = 1e-8
"""Relative to the largest value, in float64."""
OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "SGD": lambda parameters: torch.optim.SGD(parameters, 1e-3),
    "AdamW(fused=True)": lambda parameters: torch.optim.AdamW(parameters, 1e-3, fused=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 1e-3),
}

Seconds = dict[str, float]


# ---- the models ---------------------------------------------------------------------------------


def layers(length: int, orthogonal: bool = True) -> nn.Sequential:
    """orthogonal: so that no gradient underflows on the way through a thousand layers."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(module for _ in range(length) for module in (nn.Linear(WIDTH, WIDTH), nn.Tanh()))
    )
    for linear in net[::2] if orthogonal else ():
        nn.init.orthogonal_(linear.weight), nn.init.zeros_(linear.bias)
    return net


def describe(block: Block) -> dpcr.steps.Step:
    linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
    norms = [module for module in block.modules() if isinstance(module, nn.LayerNorm)]
    return dpcr.steps.layers(list(zip(linears, norms, strict=True)), "silu")


def faces(plain: nn.Sequential) -> dict[str, nn.Module]:
    return {
        "modules": plain,
        "per layer": dpcr.parallelize(copy.deepcopy(plain)),
        "stacked": dpcr.parallelize(copy.deepcopy(plain), stack=True),
        "MLPChain": dpcr.nn.MLPChain.from_sequential(plain),
    }


def wide_contenders(plain: nn.Sequential) -> dict[str, nn.Module]:
    def stacked(**options: Any) -> nn.Module:
        return dpcr.parallelize(copy.deepcopy(plain), stack=True, **options)

    return {
        "modules": plain,
        "as planned": stacked(),
        "segments=1": stacked(segments=1),
        "segments=16": stacked(segments=16),
    }


# ---- verify, then time --------------------------------------------------------------------------


def passed(net: nn.Module, input: torch.Tensor) -> list[torch.Tensor]:
    leaf = input.clone().requires_grad_()
    output = net(leaf)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), leaf)]


def wrong(nets: dict[str, nn.Module], input: torch.Tensor) -> list[str]:
    """In float64, and one after another: these are all large."""
    found, truth = [], None
    for name, net in nets.items():
        results = passed(copy.deepcopy(net).double(), input.double())
        truth = truth or results
        for result, expected in zip(results, truth, strict=True):
            distance = float((result - expected).abs().max() / expected.abs().max())
            if not distance <= TOLERANCE:
                found.append(f"{name} is wrong by {distance:.1e}")
    return found


def forward(net: nn.Module, input: torch.Tensor) -> Callable[[], object]:
    def call() -> None:
        with torch.no_grad():
            net(input)

    return call


def backward(net: nn.Module, input: torch.Tensor, optimizer: Any = None) -> Callable[[], object]:
    parameters = list(net.parameters())
    chosen = optimizer(parameters) if optimizer else None

    def call() -> None:
        for parameter in parameters:
            parameter.grad = None
        net(input).square().mean().backward()
        if chosen:
            chosen.step()

    return call


def timed(calls: dict[str, Callable[[], object]], rounds: int) -> Seconds:
    return {name: median(times) for name, times in in_turns(calls, "cpu", rounds, 5.0).items()}


def measure_faces(rounds: int) -> tuple[dict[str, Seconds], list[str]]:
    input = torch.randn(1, WIDTH)
    nets = faces(layers(LENGTH))
    errors = wrong(nets, input)
    times = {
        "forward": timed({n: forward(net, input) for n, net in nets.items()}, rounds),
        "forward + backward": timed({n: backward(net, input) for n, net in nets.items()}, rounds),
    }
    for title, optimizer in OPTIMIZERS.items():
        nets = faces(layers(LENGTH))
        calls = {n: backward(net, input, optimizer) for n, net in nets.items()}
        times[f"training step, {title}"] = timed(calls, rounds)
    return times, errors


def measure_wide(batches: list[int], rounds: int) -> tuple[dict[str, Seconds], list[str]]:
    dpcr.register_block(Block, describe)
    torch.manual_seed(0)
    nets = wide_contenders(nn.Sequential(*(Block(WIDE) for _ in range(BLOCKS))))
    times, errors = {}, []
    for batch in batches:
        input = torch.randn(batch, WIDE)
        errors += wrong(nets, input)
        for title, make in (("forward", forward), ("forward + backward", backward)):
            calls = {name: make(net, input) for name, net in nets.items()}
            times[f"B = {batch}, {title}"] = timed(calls, rounds)
    return times, errors


def sweeps() -> str:
    """Of segments=16, forward, for one sample."""
    chain = dpcr.nn.LayersChain(WIDE, BLOCKS, 4, norm="layer_norm", segments=16)
    _, info = chain(torch.randn(1, WIDE), return_info=True)
    return f"{int(info.sweeps)}"


def measure_setup() -> dict[str, float]:
    """Seconds, once each; without PyTorch's caches on disk."""
    found = {}
    for stack in (False, True):
        net = layers(10_000, orthogonal=False)
        begin = time.perf_counter()
        dpcr.parallelize(net, stack=stack)
        found[f"parallelize, 10,000 layers, stack={stack}"] = time.perf_counter() - begin
    for length in (64, 1024, 10_000):
        torch._dynamo.reset()
        net = dpcr.parallelize(layers(length, orthogonal=False), stack=True)
        begin = time.perf_counter()
        torch.compile(net, fullgraph=True)(torch.randn(1, WIDTH)).square().mean().backward()
        title = f"torch.compile, forward and backward, {length:,} layers, stacked"
        found[title] = time.perf_counter() - begin
    return found


# ---- the page -----------------------------------------------------------------------------------


def ratios(times: dict[str, Seconds]) -> str:
    head = ["", *next(iter(times.values()))]
    rows = [
        [title, *(f"{1e3 * s:.3g} ms ({row['modules'] / s:.3g} x)" for s in row.values())]
        for title, row in times.items()
    ]
    return table(head, rows)


def overhead(times: dict[str, Seconds]) -> float:
    """Of the per-layer face over the stacked one, in microseconds for each Parameter."""
    row = times["forward + backward"]
    return 1e6 * (row["per layer"] - row["stacked"]) / (2 * LENGTH)


def page(record: dict[str, Any]) -> str:
    setup = table(["", "seconds"], [[title, f"{s:.2g}"] for title, s in record["setup"].items()])
    device, face_rows = record["setting"]["device"], ratios(record["faces"])
    return f"""# parallelize: what it gives and what it costs

`python benchmarks/dropin.py{record["options"]}`, {device}, one thread, float32, load before
{record["setting"]["load before"]}. Medians; in brackets the time of PyTorch's modules over it.
In float64 all outputs and input gradients agree with those of the modules within {TOLERANCE:g}.

## {LENGTH} x (Linear, Tanh), w = {WIDTH}, one sample

{face_rows}

The per-layer face costs {overhead(record["faces"]):.2g} us more for each Parameter than the
stacked one (forward and backward, no optimiser), most of it PyTorch's: autograd hands every
Parameter its gradient. Optimisers cost the same per Parameter, whoever computed the gradients.

## {BLOCKS} blocks of 4 x (Linear, LayerNorm, SiLU) and a skip, w = {WIDE}

{ratios(record["wide"])}

All with `stack=True`, which leaves wider layers than these to their loop, unless they are frozen.
`segments=16` has the identity in place of Jacobians ("auto" at this width); forward takes
{record["sweeps"]} sweeps.

## Once

{setup}
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="the default: about a minute")
    size.add_argument("--full", action="store_true", help="more rounds, and B = 256")
    default = Path(__file__).resolve().parent / "results"
    parser.add_argument("--out", type=Path, default=default, help="folder for the results")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    torch.set_num_threads(1)
    rounds = 15 if given.full else 5
    face_times, errors = measure_faces(rounds)
    wide_times, more = measure_wide([1, 256] if given.full else [1], rounds)
    record = {
        "options": " --full" if given.full else "",
        "setting": setting("cpu"),
        "faces": face_times,
        "wide": wide_times,
        "sweeps": sweeps(),
        "setup": measure_setup(),
        "errors": errors + more,
    }
    text = page(record)
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    stem = given.out / file_stem("dropin", record["setting"]["device"])
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    for error in record["errors"]:
        print("WRONG", error, file=sys.stderr)
    return 1 if record["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
