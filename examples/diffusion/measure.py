# SPDX-License-Identifier: Apache-2.0
"""Runs all methods on one chain: first every result against the loop's, then the times.

Times are of one sample, in rounds in which every method has its turn, so that a busy machine is
busy for all; the ratio is the median of the rounds' ratios.  Samples of the batch are made once.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from methods import LOOP, METHODS, Chain, Draw, Method, Outcome
from options import Options
from quality import Judge
from schedules import draw_noise
from torch import Tensor

OTHER_SEEDS = 3
SLOW = 1.0
"""Seconds from which a method is timed in the first round only."""
SHORT = 0.02
"""Seconds that a timing lasts at least."""


@dataclass
class Result:
    """What one method did with one chain."""

    method: Method
    failure: str | None = None
    one: Outcome | None = None  # of one sample
    many: Outcome | None = None  # of the batch, or None
    seconds: list[float] = field(default_factory=list)  # of one sample, a number for each round
    ratios: list[float] = field(default_factory=list)  # the loop's over these
    batch_seconds: float | None = None
    batch_ratio: float | None = None
    largest: float = 0.0  # difference to the loop over the loop's largest number
    rms: float = 0.0  # the same of root mean squares
    distance: float | None = None  # Frechet, of the batch

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def milliseconds(self) -> float:
        return statistics.median(self.seconds) * 1e3


@dataclass
class ChainResult:
    chain: Chain
    results: dict[str, Result]
    others: list[float]
    """Frechet distances of the loop with other noise."""

    @property
    def spread(self) -> float:
        """How far loops are apart that differ in their noise alone."""
        own = self.results[LOOP.name].distance
        all_of_them = [*self.others, *([] if own is None else [own])]
        return max(all_of_them) - min(all_of_them)


def draw(chain: Chain, batch: int, seed: int) -> Draw:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, chain.space.width, generator=generator)
    state = generator.get_state()
    noise = draw_noise(chain.schedule, latents, generator) if chain.schedule.has_noise else None
    return Draw(latents, noise, state)


@torch.no_grad()
def measure(
    chain: Chain, options: Options, judge: Judge, tell: Callable[[str], object]
) -> ChainResult:
    one, many = (draw(chain, batch, options.seed + 1) for batch in (1, options.batch))
    results = {}
    for method in METHODS.values():
        if method.compiles and not options.compiler:
            continue
        tell(f"{chain.name}: {method.title}")
        results[method.name] = verify(method, chain, one, many, results.get(LOOP.name))
    tell(f"{chain.name}: other noise, and the times")
    others = []
    for other in range(1, OTHER_SEEDS + 1):
        samples = LOOP.sample(chain, draw(chain, options.batch, options.seed + 1 + other)).samples
        others.append(judge.distance(chain.space.decode(samples)))
    loop_seconds = results[LOOP.name].batch_seconds
    for result in results.values():
        if result.many is not None:
            result.batch_ratio = loop_seconds / result.batch_seconds
            result.distance = judge.distance(chain.space.decode(result.many.samples))
    run_rounds(chain, one, [r for r in results.values() if r.failure is None], options.rounds)
    return ChainResult(chain, results, others)


def verify(method: Method, chain: Chain, one: Draw, many: Draw, loop: Result | None) -> Result:
    """The method's samples, and how far they are from the loop's."""
    result = Result(method)
    try:
        result.one = method.sample(chain, one)
        if method.takes(chain, len(many.latents)):
            begin = time.perf_counter()
            result.many = method.sample(chain, many)
            result.batch_seconds = time.perf_counter() - begin
    except Exception as error:  # its row says why, and a promise is broken
        sentence = (str(error).strip() or "no message").split("\n")[0]
        result.failure = f"{type(error).__name__}: {sentence}"
    if loop is not None:
        pairs = [(result.one, loop.one), (result.many, loop.many)]
        far = [differences(a.samples, b.samples) for a, b in pairs if a and b]
        if far:
            result.largest, result.rms = (max(values) for values in zip(*far, strict=True))
    return result


def differences(samples: Tensor, truth: Tensor) -> tuple[float, float]:
    """Largest and root mean square, relative to the truth's; infinite where something is not a
    number."""
    off = (samples - truth).double()
    if not off.isfinite().all():
        return float("inf"), float("inf")
    truth = truth.double()
    largest = off.abs().max() / truth.abs().max()
    return float(largest), float((off.square().mean() / truth.square().mean()).sqrt())


def run_rounds(chain: Chain, one: Draw, results: list[Result], rounds: int) -> None:
    for turn in range(rounds):
        for result in results:
            if turn == 0 or result.seconds[0] < SLOW:
                result.seconds.append(timed(result.method, chain, one))
    loop = next(r for r in results if r.method is LOOP)
    for result in results:
        result.ratios = [a / b for a, b in zip(loop.seconds, result.seconds, strict=False)]


def timed(method: Method, chain: Chain, one: Draw) -> float:
    """Seconds of a call; of several, where it is short."""
    calls, begin = 0, time.perf_counter()
    while True:
        method.sample(chain, one)
        calls += 1
        seconds = time.perf_counter() - begin
        if seconds >= SHORT:
            return seconds / calls
