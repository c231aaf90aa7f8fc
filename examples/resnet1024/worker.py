# SPDX-License-Identifier: Apache-2.0
"""A contender in a process of its own, which trains when it is told to.

A process each, so that peak memory is that contender's alone.  They take turns, a part of the
training at a time, so that whatever else the machine does falls on all of them alike; who is not
on turn waits on its pipe and takes no CPU time.

What goes through the pipe: down, a number (train up to this step), or None (stop: save and leave);
up, ("progress", step, loss) now and then, ("turn", history) at the end of a turn with the
checkpoint written, ("failed", sentence), or ("mistake", sentence) if it is the user's.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from contenders import CONTENDERS
from data import Data
from memory import PeakMemory
from options import Options
from training import CheckpointError, Training, optimiser

PROGRESS_SECONDS = 0.1


@dataclass(frozen=True)
class Task:
    """What a worker is told when it starts."""

    name: str
    options: Options
    data: Data
    evaluate_at: frozenset[int]
    """The steps after which test accuracy is measured."""
    scratch: str
    """An empty folder for compilers."""

    @property
    def checkpoint(self) -> Path:
        return self.options.out / "checkpoints" / f"{self.name}.pt"


class Worker:
    """The parent's side."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, task), daemon=True)
        self.answers = False
        """Whether it looks into the pipe soon: not while it imports, builds or compiles."""
        # Ctrl-C reaches the whole group of processes; the parent alone decides what it means.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.process.start()
        signal.signal(signal.SIGINT, handler)
        theirs.close()

    def train(self, target: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # receive() tells why
            self.pipe.send(target)

    def receive(self) -> tuple:
        try:
            message = self.pipe.recv()
        except EOFError:
            self.process.join()
            return ("failed", f"its process ended with exit code {self.process.exitcode}")
        self.answers = True
        return message

    def leave(self, patience: float = 60.0) -> None:
        """End the process; in the middle of a turn it saves first."""
        if self.answers:
            with contextlib.suppress(BrokenPipeError):
                self.pipe.send(None)
            self.process.join(patience)
        self.process.terminate()
        self.process.join()


def serve(pipe: Connection, task: Task) -> None:
    """The child's side, from start to end."""
    torch.set_num_threads(task.options.threads)
    # Compile times shall be those of a first run.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = task.scratch
    try:
        work(pipe, task)
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    except CheckpointError as error:
        pipe.send(("mistake", str(error)))
    except Exception as error:
        sentence = str(error).strip().split("\n")[0]
        pipe.send(("failed", f"{type(error).__name__}: {sentence}"))


def work(pipe: Connection, task: Task) -> None:
    rehearse(task.options)
    memory = PeakMemory(task.options.device)
    training = Training(CONTENDERS[task.name], task.options, task.data)
    if task.options.resume and task.checkpoint.exists():
        training.load(task.checkpoint)
    before = training.history.peak_bytes
    warm = False
    while (target := pipe.recv()) is not None:
        if training.step < target and not warm:
            training.first_pass()
            warm = True
        train_until(target, training, pipe, task.evaluate_at)
        training.history.peak_bytes = max(before, memory.peak())
        training.save(task.checkpoint)
        pipe.send(("turn", training.history))


def rehearse(options: Options) -> None:
    """One step of a tiny network: what PyTorch loads at first use is nobody's memory."""
    net = torch.nn.Linear(2, 2, device=options.device)
    tiny = torch.ones(1, 2, device=options.device)
    torch.nn.functional.cross_entropy(net(tiny), tiny.argmax(1)).backward()
    optimiser(net, options).step()


def train_until(
    target: int, training: Training, pipe: Connection, evaluate_at: frozenset[int]
) -> None:
    """Train up to a step, or until the parent says something, which can only be: stop."""
    told = time.monotonic()
    while training.step < target and not pipe.poll():
        training.train_step()
        if training.step in evaluate_at:
            training.evaluate()
        if time.monotonic() - told > PROGRESS_SECONDS:
            told = time.monotonic()
            pipe.send(("progress", training.step, training.history.losses[-1]))
