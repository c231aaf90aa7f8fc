# SPDX-License-Identifier: Apache-2.0
"""Train a residual network of 1024 blocks on MNIST: PyTorch's loop, its best loop, deeppcr.

    python examples/resnet1024/train.py [--help]

Same network, same initial parameters, same minibatches: the loss curves must agree, the times need
not. Writes a table, pictures of the loss curves and of Newton's sweeps, and all numbers to --out,
and says which of the promises in README.md hold.  Ctrl-C keeps everything trained so far; --resume
goes on from there to the same losses.

Exit status: 0; 1 if a contender failed or a promise does not hold in the default run; 2 for a
mistake in the options; 130 after Ctrl-C.
"""

# ruff: noqa: E402 - the clock starts before the imports, which are part of the demo's time
from __future__ import annotations

import sys
import tempfile
import time

STARTED = time.monotonic()

import torch
from contenders import CONTENDERS, Paper, chosen
from data import Data, DataError, load
from options import Options, parse
from probe import Stop, probe
from progress import Progress
from report import write_report
from result import Result
from worker import Task, Worker

TURNS = 4


class Mistake(Exception):
    """Of the user's; the message is one sentence."""


def contest(options: Options, data: Data) -> list[Result]:
    """Train all contenders, in turns.  Mistake: a checkpoint does not fit."""
    total = options.total_steps(len(data.train_y))
    results = [Result(c, c.last_step(options, total)) for c in chosen(options)]
    with tempfile.TemporaryDirectory() as scratch, Progress(results) as progress:
        finals = {result.last_step for result in results}
        workers = [
            Worker(Task(r.contender.name, options, data, steps_to_evaluate(r, finals), scratch))
            for r in results
        ]
        try:
            for turn in range(1, TURNS + 1):
                for worker, result in zip(workers, results, strict=True):
                    if result.failure is None:
                        take_turn(worker, result, end_of_turn(result, turn), progress)
        finally:
            for worker in workers:
                worker.leave()
    return results


def end_of_turn(result: Result, turn: int) -> int:
    return -(-result.last_step * turn // TURNS)


def steps_to_evaluate(result: Result, finals: set[int]) -> frozenset[int]:
    """At the ends of its turns, and where others stop: accuracies compare at one step."""
    return frozenset({end_of_turn(result, turn) for turn in range(1, TURNS + 1)} | finals)


def take_turn(worker: Worker, result: Result, target: int, progress: Progress) -> None:
    progress.starts(result)
    worker.train(target)
    while True:
        match worker.receive():
            case ("progress", step, loss):
                progress.moves(result, step, loss)
            case ("turn", history):
                result.history = history
                progress.rests(result)
                return
            case ("mistake", sentence):
                raise Mistake(sentence)
            case ("failed", sentence):
                result.failure = sentence
                progress.fails(result)
                return


def sweeps_along(options: Options, data: Data, results: list[Result]) -> dict[int, Stop]:
    """Nothing if the paper's method does not take part, or failed."""
    if not any(r.contender.name == Paper.name and r.failure is None for r in results):
        return {}
    torch.set_num_threads(options.threads)
    print("Counting the sweeps along the whole training", file=sys.stderr, flush=True)
    return probe(options, data)


def prepare(options: Options) -> Data:
    """The data and the output folder.  Mistake: a sentence why not."""
    try:
        data = load(options)
        folder = options.out / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
    except DataError as error:
        raise Mistake(str(error)) from None
    except OSError as error:
        raise Mistake(f"--out: {options.out} cannot be written ({error.strerror})") from None
    if options.resume and not any(folder.glob("*.pt")):
        raise Mistake(f"--resume: there is no checkpoint in {folder}")
    if not options.resume:
        for old in folder.glob("*.pt"):
            old.unlink()
    return data


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments, list(CONTENDERS))
    try:
        data = prepare(options)
        print(f"{data.name}: {len(data.train_y)} images to train on, {len(data.test_y)} to test")
        results = contest(options, data)
        stops = sweeps_along(options, data, results)
        kept = write_report(results, stops, options, time.monotonic() - STARTED)
    except Mistake as mistake:
        print(f"train.py: {mistake}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nStopped. The checkpoints are in {options.out}; --resume goes on from there.")
        return 130
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
