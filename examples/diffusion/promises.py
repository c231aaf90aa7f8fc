# SPDX-License-Identifier: Apache-2.0
"""What the example promises of its default run; README.md lists it.

Differences and quality are promised of the first part whatever its sizes, the rest is about the
default ones.
"""

from __future__ import annotations

from dataclasses import dataclass

from measure import ChainResult, Result
from methods import AUTO, DIAGONAL, PAPER
from unet import UNetResult

MOST_TRAINING_SECONDS = 180
LEAST_RATIO = 30
MOST_DENSE, MOST_DIAGONAL = 6, 12
MOST_DIFFERENCE = 1e-4


@dataclass(frozen=True)
class Promise:
    kept: bool
    sentence: str
    always: bool = False
    """Whether it is about other than the default sizes, too."""

    def __str__(self) -> str:
        return f"{'PASS' if self.kept else 'FAIL'}  {self.sentence}"


def promises(chains: list[ChainResult], unet: UNetResult, training_seconds: float) -> list[Promise]:
    made = [ran(chains)]
    for each in chains:
        made += [same_samples(each), same_quality(each)]
    if unet.rows:
        made.append(same_images(unet))
    made.append(
        Promise(
            training_seconds <= MOST_TRAINING_SECONDS,
            f"training took {training_seconds:.0f} s, at most {MOST_TRAINING_SECONDS}",
        )
    )
    for each in chains:
        made += fast(each)
    return made


def ran(chains: list[ChainResult]) -> Promise:
    """What needs a compiler may fail: its row in the table says why."""
    reasons = [
        f"{each.chain.name}: {result.method.title}: {result.failure}"
        for each in chains
        for result in each.results.values()
        if result.failure is not None and not result.method.compiles
    ]
    why = f" ({'; '.join(reasons)})" if reasons else ""
    return Promise(not reasons, f"every method ran{why}", always=True)


def same_samples(each: ChainResult) -> Promise:
    worst = max(done(each), key=lambda result: result.largest)
    return Promise(
        worst.largest <= MOST_DIFFERENCE,
        f"{each.chain.name}: samples differ from the loop's by {worst.largest:.1e} of the largest "
        f"number at most ({worst.method.title}), allowed {MOST_DIFFERENCE:.0e}",
        True,
    )


def same_quality(each: ChainResult) -> Promise:
    """`others` are loops, too: two right answers of which nobody can say which is better."""
    own = each.results["loop"].distance
    assert own is not None
    far = max(abs(r.distance - own) for r in done(each) if r.distance is not None)
    return Promise(
        far <= each.spread,
        f"{each.chain.name}: Frechet distances differ from the loop's by {far:.1e} at most, those "
        f"of loops with other noise by {each.spread:.1e}",
        True,
    )


def same_images(unet: UNetResult) -> Promise:
    worst = max(unet.rows, key=lambda row: row.largest)
    return Promise(
        worst.largest <= MOST_DIFFERENCE,
        f"UNet: images differ from the pipeline's by {worst.largest:.1e} at most ({worst.title}), "
        f"allowed {MOST_DIFFERENCE:.0e}",
    )


def fast(each: ChainResult) -> list[Promise]:
    """Of the latent model its ratio, and DeepPCR's sweeps where nothing is random; of pixels those
    with a diagonal."""
    made, chain = [], each.chain
    auto, paper, diagonal = (each.results.get(m.name) for m in (AUTO, PAPER, DIAGONAL))
    if chain.space.name == "latent" and auto is not None and auto.ratios:
        made.append(
            Promise(
                auto.ratio >= LEAST_RATIO,
                f"{chain.name}: {auto.method.title} is {auto.ratio:.3g} times as fast as the loop, "
                f"at least {LEAST_RATIO}",
            )
        )
    if chain.sampler == "DDIM" and chain.space.name == "latent":
        made += sweeps(each, paper, MOST_DENSE)
    if chain.sampler == "DDIM" and chain.space.name == "pixels":
        made += sweeps(each, diagonal, MOST_DIAGONAL)
    return made


def sweeps(each: ChainResult, result: Result | None, most: int) -> list[Promise]:
    if result is None or result.one is None:
        return []
    taken = result.one.sweeps
    return [
        Promise(
            taken is not None and taken <= most and result.one.converged,
            f"{each.chain.name}: {result.method.title} took {taken} sweeps, at most {most}",
        )
    ]


def done(each: ChainResult) -> list[Result]:
    return [result for result in each.results.values() if result.one is not None]
