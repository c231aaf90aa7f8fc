# SPDX-License-Identifier: Apache-2.0
"""How much faster a stacked chain is than PyTorch's loop: one thread, fp32, in one process.

    python benchmarks/chain_speed.py [--help]

For every chain and every (width, batch) the contenders are first held to the loop in fp64, output
and all gradients; then they are timed in turns, round after round, so that a busy machine is busy
for all.  Passes: "forward" in inference mode; "forward+backward" with the gradients of the input
and of all parameters, left in .grad as an optimiser wants them.  Writes a Markdown table and JSON,
named after the processor.  Exit status 1 if a result is wrong; slow is no error, but it is marked.
"""

from __future__ import annotations

import argparse
import math
import sys
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from speed_report import BASELINE, CLAIMS, OURS, Cell, write
from torch import Tensor, nn

import torch_deeppcr as dpcr

GROUP = 16
SCALE = 1 / 32
"""Of the residual branches: 1/sqrt(length) for the length of the claims."""
SLACK = 10.0
"""How many times eager fp32's own error against fp64 a contender may have,"""
HOPELESS = 1e-3
"""and the most in any case: where eager is no better, nothing is verified."""
BLOCK_SECONDS = 4e-3
"""A timed block takes at least so long, or is one call."""


# ---- two chains: as deeppcr has them, and one layer for the loops -------------------------------


def mlp_layer(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(F.linear(z, weight, bias))


def residual_layer(z: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return z + SCALE * F.linear(F.silu(F.linear(z, w1, b1)), w2, b2)


def mlp_chain(width: int, length: int) -> nn.Module:
    """Orthogonal weights: with random ones no gradient is left at the first layers to verify."""
    chain = dpcr.nn.MLPChain(width, length, activation="tanh")
    for linear in chain.layers():
        nn.init.orthogonal_(linear.weight)
        nn.init.normal_(linear.bias, std=0.01)
    return chain


def residual_chain(width: int, length: int) -> nn.Module:
    """SiLU: a ReLU near 0 falls to either side by rounding, which is no error of anybody's."""
    return dpcr.nn.ResidualChain(width, length, activation="silu", scale=SCALE)


CHAINS = {
    "MLP (Linear, tanh)": (mlp_chain, mlp_layer),
    "residual (SiLU)": (residual_chain, residual_layer),
}


# ---- contenders: modules with the parameters of a chain -----------------------------------------


class Loop(nn.Module):
    """A loop over stacked parameters, without modules: the least that eager PyTorch can do."""

    def __init__(self, chain: nn.Module, layer: Callable[..., Tensor]) -> None:
        super().__init__()
        self.stacked = nn.ParameterList(p.detach().clone() for p in chain.parameters())
        self.layer = layer

    def steps(self, z: Tensor, *stacked: Tensor) -> Tensor:
        for parameters in zip(*(p.unbind() for p in stacked), strict=True):
            z = self.layer(z, *parameters)
        return z

    def forward(self, z: Tensor) -> Tensor:
        return self.steps(z, *self.stacked)


class CompiledGroups(Loop):
    """The same loop in groups of 16 layers that are compiled once and reused."""

    def __init__(self, chain: nn.Module, layer: Callable[..., Tensor]) -> None:
        super().__init__(chain, layer)
        # The C++ wrapper is faster than the default one in Python.
        options = {"cpp_wrapper": True, "compile_threads": 1}
        self.group = torch.compile(self.steps, fullgraph=True, dynamic=False, options=options)

    def forward(self, z: Tensor) -> Tensor:
        for stacked in zip(*(p.split(GROUP) for p in self.stacked), strict=True):
            z = self.group(z, *stacked)
        return z


def contenders(kind: str, width: int, length: int, compiled: bool) -> dict[str, nn.Module]:
    """All with the same parameters, by name; the baseline first."""
    make, layer = CHAINS[kind]
    torch.manual_seed(0)
    chain = make(width, length)
    modules = {BASELINE: chain.to_sequential(), "stacked loop": Loop(chain, layer)}
    if compiled:
        modules["16 compiled"] = CompiledGroups(chain, layer)
    return {**modules, OURS: chain}


# ---- right first --------------------------------------------------------------------------------


@dataclass
class Problem:
    """A contender with its input z (B,w) and the gradient g (B,w) of its output."""

    module: nn.Module
    z: Tensor
    g: Tensor

    def __post_init__(self) -> None:
        self.z = self.z.clone().requires_grad_()
        self.leaves = [self.z, *self.module.parameters()]

    def forward(self) -> Tensor:
        return self.module(self.z)

    def train(self) -> Tensor:
        for leaf in self.leaves:
            leaf.grad = None
        output = self.module(self.z)
        output.backward(self.g)
        return output

    def results(self, length: int) -> list[Tensor]:
        """Output, inference output, and gradients of z and of every parameter, stacked, in fp64."""
        with torch.inference_mode():
            inference = self.forward()
        output = self.train().detach()
        gradients = [parameter.grad for parameter in self.leaves[1:]]
        if len(gradients) >= length:  # a module per layer
            kinds = len(gradients) // length
            gradients = [torch.stack(gradients[kind::kinds]) for kind in range(kinds)]
        return [t.double() for t in (output, inference.clone(), self.z.grad, *gradients)]


def errors(problems: dict[str, Problem], kind: str, length: int) -> dict[str, float]:
    """The largest relative error of each against fp64, over output and gradients of all layers."""
    ours = problems[OURS]
    exact = Loop(ours.module, CHAINS[kind][1]).double()
    truth = Problem(exact, ours.z.detach().double(), ours.g.double()).results(length)
    return {
        name: max(map(relative_error, problem.results(length), truth))
        for name, problem in problems.items()
    }


def relative_error(result: Tensor, truth: Tensor) -> float:
    """Norm-wise, for each layer or sample (the first axis); the worst one, and NaN is worse."""
    distance, size = (t.flatten(1).norm(dim=1) for t in (result - truth, truth))
    return (distance / size).nan_to_num(nan=math.inf).max().item()


# ---- then fast ----------------------------------------------------------------------------------


def time_in_turns(calls: dict[str, Callable[[], Tensor]], rounds: int) -> dict[str, list[float]]:
    """Seconds per call: one number for each round and contender."""
    timers = {name: timeit.Timer(call) for name, call in calls.items()}
    for timer in timers.values():
        timer.timeit(2)  # warm up
    numbers = {n: max(1, round(BLOCK_SECONDS / t.timeit(1))) for n, t in timers.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, timer in timers.items():
            seconds[name].append(timer.timeit(numbers[name]) / numbers[name])
    return seconds


def measure(kind: str, width: int, batch: int, arguments: argparse.Namespace) -> list[Cell]:
    """Both passes of one chain at one size."""
    length = arguments.length
    claimed = any(key[1:] == (length, width, batch) for key in CLAIMS)
    compiled = arguments.compiled == "all" or (arguments.compiled == "claim" and claimed)
    modules = contenders(kind, width, length, compiled)
    z, g = torch.randn(2, batch, width).unbind()
    problems = {name: Problem(module, z, g) for name, module in modules.items()}
    wrong = errors(problems, kind, length)
    allowed = min(SLACK * max(wrong[BASELINE], torch.finfo(torch.float32).eps), HOPELESS)
    cells = []
    for name in ("forward", "forward+backward"):
        if name == "forward":
            with torch.inference_mode():
                calls = {n: p.forward for n, p in problems.items()}
                seconds = time_in_turns(calls, arguments.rounds)
        else:
            seconds = time_in_turns({n: p.train for n, p in problems.items()}, arguments.rounds)
        cells.append(Cell(kind, length, width, batch, name, seconds, wrong, allowed))
        print(cells[-1].line(), flush=True)
    return cells


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, not {text!r}")
    return int(text)


def size(text: str) -> tuple[int, int]:
    width, comma, batch = text.partition(",")
    if not comma:
        raise argparse.ArgumentTypeError(f"must be WIDTH,BATCH, as 16,1, not {text!r}")
    return positive(width), positive(batch)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    sizes = [(16, 1), (4, 1), (64, 1), (16, 32), (16, 256), (64, 256)]
    listed = " ".join(f"{w},{b}" for w, b in sizes)
    add("--length", type=positive, default=1024, help="layers [%(default)s]")
    add("--size", type=size, nargs="+", default=sizes, metavar="W,B", help=f"[{listed}]")
    add("--rounds", type=positive, default=9, help="timed blocks of each [%(default)s]")
    add(
        "--compiled",
        choices=["claim", "all", "none"],
        default="claim",
        help="sizes at which 16 compiled layers take part: that of the claim [default], all "
        "(minutes to compile), none",
    )
    results = Path(__file__).resolve().parent / "results"
    add("--out", type=Path, default=results, metavar="FOLDER", help="[benchmarks/results]")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    torch.set_num_threads(1)
    cells = []
    for kind in CHAINS:
        for width, batch in given.size:
            cells += measure(kind, width, batch, given)
    print("\n" + write(cells, given.out))
    return 0 if all(cell.right for cell in cells) else 1


if __name__ == "__main__":
    sys.exit(main())
