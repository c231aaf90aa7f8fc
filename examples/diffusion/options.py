# SPDX-License-Identifier: Apache-2.0
"""The options of the example: one frozen record, its command line, and a sentence for each
mistake."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from schedules import TIMES

#: What `--quick` puts in place of the defaults: seconds instead of minutes, to see that all works.
QUICK = {
    "steps": 40,
    "train": 60,
    "hidden": 16,
    "batch": 16,
    "rounds": 1,
    "unet_steps": 8,
    "unet_batch": 2,
    "unet_train": 2,
}


@dataclass(frozen=True)
class Options:
    """What one run is about."""

    steps: int = 1000
    """L of DDIM and DDPM."""
    train: int = 3500
    """Training steps of each denoiser."""
    hidden: int | None = None
    """Width of the denoisers' layers; None: 64 for the latent one, 128 for the one of pixels."""
    batch: int = 64
    """Samples whose quality is measured, and whose differences; times are of one."""
    rounds: int = 5
    """How often each method is timed."""
    compiler: bool = True
    """Whether PyTorch's compiled loop takes part."""
    unet: bool = True
    """Whether the second part runs."""
    unet_steps: int = 50
    unet_batch: int = 32
    unet_train: int = 800
    seed: int = 0
    threads: int = 1
    out: Path = Path("build/diffusion")

    def sizes(self, width: int) -> dict[str, int]:
        """Of the denoiser of this width."""
        small = width <= 16
        return {"hidden": self.hidden or (64 if small else 128), "layers": 2 if small else 3}

    def is_default(self) -> bool:
        """True if the promises about speed, sweeps and training are about this run."""
        return dataclasses.replace(self, out=Options.out) == Options()

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        return {**dataclasses.asdict(self), "out": str(self.out)}


class OneSentence(argparse.ArgumentParser):
    """A parser that answers a mistake with one sentence and exit status 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def whole(least: int, most: int = 2**31) -> Any:
    def convert(text: str) -> int:
        value = int(text) if text.lstrip("+-").isdigit() else least - 1
        if not least <= value <= most:
            bound = f"from {least} to {most}" if most < 2**31 else f"at least {least}"
            raise argparse.ArgumentTypeError(f"must be a whole number, {bound}, not {text!r}")
        return value

    return convert


def parser() -> OneSentence:
    default = Options()
    p = OneSentence(
        prog="demo.py",
        description="Train small denoisers on digits and sample from them in every way.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )

    def number(name: str, least: int, help: str, most: int = 2**31) -> None:
        value = getattr(default, name.replace("-", "_"))
        p.add_argument(f"--{name}", type=whole(least, most), help=f"{help} [{value}]", metavar="N")

    number("steps", 10, "of DDIM and DDPM", TIMES)
    number("train", 1, "training steps of each denoiser")
    number("hidden", 1, "width of the denoisers' layers")
    number("batch", 2, "samples whose quality and differences are measured")
    number("rounds", 1, "how often each method is timed")
    number("unet-steps", 8, "of DDIM with the UNet", TIMES)
    number("unet-batch", 2, "images of the UNet")
    number("unet-train", 1, "training steps of the UNet")
    number("seed", 0, "of parameters, data order and noise", 2**31 - 1)
    number("threads", 1, "of PyTorch")
    p.add_argument("--no-compiler", dest="compiler", action="store_false", help="no torch.compile")
    p.add_argument("--no-unet", dest="unet", action="store_false", help="the first part only")
    p.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    p.add_argument("--out", type=Path, metavar="FOLDER", help=f"models and results [{default.out}]")
    return p


def parse(arguments: list[str] | None) -> Options:
    """Options from a command line; exits with status 2 and one sentence if it has a mistake."""
    p = parser()
    given = vars(p.parse_args(arguments))
    start = QUICK if given.pop("quick", False) else {}
    options = Options(**{**start, **given})
    if options.out.exists() and not options.out.is_dir():
        p.error(f"--out: {str(options.out)!r} is a file, not a folder")
    return options
