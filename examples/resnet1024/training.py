# SPDX-License-Identifier: Apache-2.0
"""One contender's training: steps, accuracy, and a checkpoint from which it goes on bit for bit."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from contenders import Contender
from data import Data, order
from options import Options
from torch import nn
from watched import summary


class CheckpointError(Exception):
    """A checkpoint does not fit; the message is one sentence for the user."""


@dataclass
class History:
    """What a contender has to show.  Plain numbers and lists, for checkpoints and for JSON."""

    losses: list[float] = field(default_factory=list)
    """Of every training step, on its minibatch, before the update."""
    seconds: list[float] = field(default_factory=list)
    """Of every training step: forward, backward and optimiser."""
    accuracy: dict[int, float] = field(default_factory=dict)
    """After so many steps: the share of the test images that are recognised."""
    first_pass: float = 0.0
    """Seconds of the first forward and backward, compilation included."""
    peak_bytes: int = 0
    """The most memory above what was there before the network was built."""
    solves: list[dict[str, float]] = field(default_factory=list)
    """Of every training step, if the chain reports its solves: their `summary`."""
    plan: str = ""
    """Why the chain was last solved as it was."""


class Training:
    """The network of one contender on its way.

    The state is: parameters, optimiser, PyTorch's random numbers, history; the position in the
    data and in the learning rate schedule is the number of steps done.
    """

    def __init__(self, contender: Contender, options: Options, data: Data) -> None:
        self.contender, self.options = contender, options
        self.data = data.to(options.device)
        self.total = options.total_steps(len(data.train_y))
        self.net = contender.build(options, data.features, data.classes).to(options.device)
        self.optimiser = optimiser(self.net, options)
        self.history = History()
        self.restart_data()

    @property
    def step(self) -> int:
        return len(self.history.losses)

    def restart_data(self) -> None:
        images = len(self.data.train_y)
        self.order = order(self.options.seed, images, self.options.batch, self.step)

    def first_pass(self) -> None:
        """Forward and backward once, so that compiling is not timed as a step."""
        start = time.perf_counter()
        index = next(order(self.options.seed, len(self.data.train_y), self.options.batch))
        self.loss(index).backward()
        self.synchronise()
        self.history.first_pass = time.perf_counter() - start
        self.optimiser.zero_grad()

    def loss(self, index: torch.Tensor) -> torch.Tensor:
        images, labels = self.data.minibatch(index)
        return nn.functional.cross_entropy(self.net(images), labels)

    def train_step(self) -> None:
        index = self.contender.minibatch(next(self.order), self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.options.lr, self.step, self.total)
        with self.contender.training():
            start = time.perf_counter()
            loss = self.loss(index)
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            self.synchronise()
            seconds = time.perf_counter() - start
        self.history.losses.append(loss.item())
        self.history.seconds.append(seconds)
        info = getattr(self.net.chain, "info", None)
        if info is not None:
            self.history.solves.append(summary(info))
            self.history.plan = info.why

    def evaluate(self) -> None:
        """Test accuracy after the steps done so far."""
        data, right = self.data, 0
        with torch.no_grad(), self.contender.evaluation():
            batches = zip(data.test_x.split(1000), data.test_y.split(1000), strict=True)
            for images, labels in batches:
                right += (self.net(data.normalise(images)).argmax(1) == labels).sum().item()
        self.history.accuracy[self.step] = right / len(data.test_y)

    def synchronise(self) -> None:
        if self.options.device != "cpu":
            torch.cuda.synchronize(self.options.device)

    # ---- checkpoints ----------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Atomic: at any moment `path` holds a whole checkpoint or none."""
        partial = path.with_suffix(".partial")
        torch.save(
            {
                "options": self.options.trained_by(),
                "net": self.net.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "random": torch.get_rng_state(),
                "history": dataclasses.asdict(self.history),
            },
            partial,
        )
        os.replace(partial, path)

    def load(self, path: Path) -> None:
        """CheckpointError: the file is damaged, or is of a training with other options."""
        state = read_checkpoint(path, self.options)
        try:
            self.net.load_state_dict(state["net"])
            self.optimiser.load_state_dict(state["optimiser"])
            torch.set_rng_state(state["random"])
            self.history = History(**state["history"])
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"--resume: {path} is damaged ({error})") from None
        self.restart_data()


def read_checkpoint(path: Path, options: Options) -> dict:
    """The contents of a checkpoint of a training with these options, or CheckpointError."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        saved = state["options"]
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise CheckpointError(
            f"--resume: {path} is no checkpoint of this demo ({reason})"
        ) from None
    for name, value in options.trained_by().items():
        if name not in saved or saved[name] != value:
            raise CheckpointError(
                f"--resume: {path} was trained with --{name.replace('_', '-')} "
                f"{saved.get(name)}, not {value}"
            )
    return state


def optimiser(net: nn.Module, options: Options) -> torch.optim.Optimizer:
    """Fused: PyTorch's fastest, for thousands of small parameters and for a few large ones."""
    if options.optimiser == "sgd":
        return torch.optim.SGD(net.parameters(), lr=options.lr, momentum=0.9, fused=True)
    return torch.optim.AdamW(net.parameters(), lr=options.lr, fused=True)


def learning_rate(highest: float, step: int, total: int) -> float:
    """Linear warm-up over a tenth of the training, then half a cosine down to 0."""
    warm_up = max(1, total // 10)
    if step < warm_up:
        return highest * (step + 1) / warm_up
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, total - warm_up)))
