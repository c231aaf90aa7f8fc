# SPDX-License-Identifier: Apache-2.0
"""What a call costs besides its kernel: two steps of four elements, one sample, one thread.

    python benchmarks/calls.py [--help]

Their kernels take a tenth of a microsecond.  Beside them stand calls of PyTorch's own and what
PyTorch asks of any operator in Python: an autograd.Function that computes nothing and returns the
gradients of as many Parameters.  All are timed in turns.  Writes JSON and a Markdown page.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from page import table
from record import file_stem, setting
from timing import in_turns
from torch import Tensor, nn

import torch_deeppcr as dpcr

STEPS, WIDTH, ROUNDS = 2, 4, 40
Calls = dict[str, Callable[[], object]]


class Nothing(torch.autograd.Function):
    """(z, weight, bias) -> something like z, and something like the Parameters for gradients."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(z, weight, bias)
        return torch.empty_like(z)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        _, weight, bias = ctx.saved_tensors
        return None, torch.empty_like(weight), torch.empty_like(bias)


def nothing(chain: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda z: Nothing.apply(z, chain.weight, chain.bias)


def in_inference(call: Callable[..., object], *inputs: Any) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode():
            call(*inputs)

    return run


def training(call: Callable[[Tensor], Tensor], z: Tensor, parameters: list[Tensor]) -> Any:
    gradient = torch.ones_like(z)

    def run() -> None:
        for parameter in parameters:
            parameter.grad = None
        call(z).backward(gradient)

    return run


def calls() -> dict[str, Calls]:
    """Kind of call -> who is called -> the call."""
    torch.manual_seed(0)
    chain, linear, z = (
        dpcr.nn.MLPChain(WIDTH, STEPS),
        nn.Linear(WIDTH, WIDTH),
        torch.randn(1, WIDTH),
    )
    weight, bias = chain.weight.detach(), chain.bias.detach()
    operator, newton = torch.ops.deeppcr.mlp.default, (None,) * 6
    raw = (z, weight, bias, None, "tanh", None, 1, *newton, None, "nothing")
    right = torch.randn(STEPS, 1, WIDTH)
    blocks = torch.randn(STEPS, 1, WIDTH, WIDTH)
    return {
        "inference": {
            "MLPChain": in_inference(chain, z),
            "mlp_chain": in_inference(dpcr.mlp_chain, z, weight, bias),
            "linear_recurrence": in_inference(dpcr.linear_recurrence, blocks, right),
            "torch.ops.deeppcr.mlp": in_inference(operator, *raw),
            "nn.Linear": in_inference(linear, z),
            "nothing": in_inference(lambda: None),
        },
        "forward, recorded": {
            "MLPChain": lambda: chain(z),
            "nn.Linear": lambda: linear(z),
            "an empty autograd.Function": lambda: nothing(chain)(z),
        },
        "forward and backward": {
            "MLPChain": training(chain, z, list(chain.parameters())),
            "nn.Linear": training(linear, z, list(linear.parameters())),
            "an empty autograd.Function": training(nothing(chain), z, list(chain.parameters())),
        },
    }


def page(record: dict[str, Any]) -> str:
    rows = [
        [kind, who, f"{1e6 * seconds:.1f}"]
        for kind, times in record["seconds"].items()
        for who, seconds in times.items()
    ]
    return f"""# What a call costs

`python benchmarks/calls.py`, {record["setting"]["device"]}, one thread, float32, load before
{record["setting"]["load before"]}; medians of {ROUNDS} rounds.  Chains of {STEPS} steps of {WIDTH}
elements, one sample: the kernels take about 0.1 us.  "nothing" is entering and leaving
`torch.inference_mode()`, which every row of its kind does.

{table(["call", "of", "us"], rows)}
"""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(__file__).resolve().parent / "results"
    parser.add_argument("--out", type=Path, default=default, help="folder for the results")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    seconds = {
        kind: {who: median(s) for who, s in in_turns(group, "cpu", ROUNDS, 5.0).items()}
        for kind, group in calls().items()
    }
    record = {"setting": setting("cpu"), "seconds": seconds}
    text = page(record)
    print(text)
    given.out.mkdir(parents=True, exist_ok=True)
    stem = given.out / file_stem("calls", record["setting"]["device"])
    stem.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")
    stem.with_suffix(".md").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
