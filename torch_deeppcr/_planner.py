# SPDX-License-Identifier: Apache-2.0
"""Chooses the number of segments: on the CPU from a cost model and the sweeps seen, on CUDA devices
from a table, because to see the sweeps there is to wait for them.

The cost model of a chain on the CPU:

Time is counted in steps of one sample, so that it does not depend much on the machine.  n vectors
that go through a step together take ``1 + n / LANES``; TILE samples at most do, the b samples of a
tile and, as columns, their b w tangents:

    S = 1    L (1 + b / LANES) / min(threads, tiles)
    S > 1    work / min(threads, tiles S) + START a sweep,    work =
                 sweeps (L + 2 S) (1 + b / LANES)                   states; substitution
               + tangent sweeps (L + S) b w / LANES                 tangents; cyclic reduction

With gradients the way back is added: 2 L states with one segment; with more the tangents once and
2 L states (or, without a dense P, 2 L states a sweep).  The number of sweeps is not known before it
was tried, so it is assumed to be small (without a dense P, what wide residual chains take); a plan
that then loses was tried once, at a cost bounded by ``max_sweeps``.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

#: Samples that go through a step together: one tile, one task.
TILE = 32
#: Measured: 32 samples take 2 (w = 4) to 6 (w = 16, 32) times as long as one; passes of 6 sweeps as
#: long as predicted, within a factor of 3.
LANES = 8
#: A sweep starts and joins the threads a few times: about 10 us.
START = 100
#: A parallel plan is taken where the model says that it is this much faster.
MARGIN = 1.25
_ASSUMED_SWEEPS = 4
#: Of Picard's iteration, which takes S sweeps at most.  Measured at w = 256, L = 256 (pre-norm
#: residual blocks, blocks of 4 layers with LayerNorm): 10 to 16 at S = 16, 13 to 20 at S = 64,
#: forward and backward, for every batch.
_ASSUMED_PICARD = 15
#: Fewer threads cannot win, not even in training: S > 1 is at least (4 L + 2 L) / threads, S = 1 at
#: most L + 2 L.
FEWEST_THREADS = math.ceil(MARGIN * (_ASSUMED_SWEEPS + 2) / 3)


#: Where the operator takes the place of modules that could be called one by one.  Measured on one
#: thread, w from 16 to 384, B of 1, 32, 256: the shortest chain, in inference and in training;
SHORTEST = (4, 6)
#: the work of a step, B w h, from which PyTorch's matrix products are as fast;
WORK = (2**24, 2**23)
#: with stacked Parameters and in inference; the largest measured, w = 768 and B = 256, still gains
#: 1.25 times;
STACKED_WORK = 2**27
#: on CUDA, not measured: about where a step takes as long as its launches do; and the largest
#: weight that one multiprocessor, which a sample has to itself, reads as fast.
CUDA_WORK = (2**22, 2**22)
CUDA_WIDEST = 2**18
#: elements of a vector, w or h: operators refuse more.
CUDA_WIDEST_VECTOR = 4096
#: elements of a weight: the most that are worth stacking anew in every call (w = 64 gains 1.2 to
#: 3.5 times, w = 128 loses up to 2.6 times),
WIDEST_PACKED = 2**13
#: and the most whose gradients are worth being stacked, fresh memory in every step (L = 64: w = 256
#: gains 1.2 to 2.5 times, w = 512 1.1 to 1.4, w = 1024 loses up to 1.3).
WIDEST_STACKED = 2**16


class Problem(NamedTuple):
    """What the choice depends on."""

    length: int
    batch: int
    width: int
    dtype: torch.dtype
    refresh: str | None  # "adaptive", "always"; None: no products of Jacobians
    threads: int
    gradients: bool

    @property
    def chain(self) -> tuple[Any, ...]:
        """What the sweeps depend on."""
        return self[:5]


class Sweeps(NamedTuple):
    total: float  # mean over the samples; infinite where one did not converge
    tangent: float  # a part of the segments counts as that part
    seen: bool


class Choice(NamedTuple):
    segments: int
    max_sweeps: int | None
    why: str  # empty: as asked for
    back: int = 0  # segments of the backward pass; 0: the same


def cost(problem: Problem, segments: int, sweeps: Sweeps) -> float:
    """Predicted time, in steps."""
    L, w = problem.length, problem.width
    tiles, samples = -(-problem.batch // TILE), min(problem.batch, TILE)
    step = 1 + samples / LANES
    back = 2 * L * step if problem.gradients else 0.0
    if segments == 1:
        return (L * step + back) / max(min(problem.threads, tiles), 1)
    tangents = (L + segments) * samples * w / LANES
    work = sweeps.total * (L + 2 * segments) * step + sweeps.tangent * tangents
    starts = sweeps.total
    if problem.gradients:
        work += tangents + back if problem.refresh else sweeps.total * back
        starts += 1 if problem.refresh else sweeps.total
    return work / max(min(problem.threads, tiles * segments), 1) + starts * START


class CudaRow(NamedTuple):
    """Up to a width: so many segments (of at least SHORTEST_SEGMENT steps) for chains that are long
    enough; more samples than that fill the device by themselves, with one segment."""

    width: int
    length: int
    segments: int
    batch: int


#: Made by hand from what `python benchmarks/gpu.py --best RECORD` says of a record of `python
#: benchmarks/gpu.py --tune SECONDS`: benchmarks/results/tune-nvidia-h200-2026-11-26.json, an H200,
#: L = 1024, one and sixteen samples, Linear and tanh.  For another GPU: the same two commands.
#: A sweep costs 15 to 50 us besides its steps, and their number is not known before; one segment
#: takes 160 us (w = 2, 4), 200, 240 and 390 us (w = 8, 16, 32).  So a short forward pass is one
#: segment, though an easy one of w <= 4 would gain 1.3 times; longer ones are extrapolated.
CUDA_CHAINS = (
    CudaRow(4, 2048, 128, 128),
    CudaRow(8, 4096, 64, 16),
    CudaRow(16, 8192, 64, 16),
)
#: The backward pass is linear: two sweeps, whatever the chain.  Gains at w = 2, 4, 8, 16: 5, 2.7,
#: 2.3 and 1.7 times.
CUDA_BACK = (
    CudaRow(4, 256, 256, 128),
    CudaRow(8, 256, 128, 16),
    CudaRow(16, 512, 32, 16),
)
#: The linear recurrence, which takes one pass (not measured yet): dense blocks, by width;
CUDA_DENSE = (CudaRow(4, 64, 1024, 1024), CudaRow(8, 64, 256, 128), CudaRow(16, 64, 128, 64))
#: others, whose elements are independent: batch stands for B w.
CUDA_ELEMENTWISE = (CudaRow(2**62, 64, 1024, 2**14),)
SHORTEST_SEGMENT = 4
#: Sweeps at most, then the chain is walked: none of those measured needed more than 14, and so many
#: cost about one walk of the shortest chain that the table cuts.
CUDA_SWEEPS = 16


def cuda_segments(table: tuple[CudaRow, ...], length: int, batch: int, width: int) -> int:
    for row in table:
        if width <= row.width:
            few = batch > row.batch or length < row.length
            return 1 if few else min(row.segments, length // SHORTEST_SEGMENT)
    return 1


def cuda_choice(length: int, batch: int, width: int, measured: bool = True) -> Choice:
    """For a chain.  The sentence has no sizes of the input: `torch.compile` keeps those open.

    measured: the kind of steps is one that the table is for, and P the product of Jacobians; what
    steps with shared weights, or other structures, gain has not been measured.
    """
    segments = cuda_segments(CUDA_CHAINS, length, batch, width) if measured else 1
    back = cuda_segments(CUDA_BACK, length, batch, width) if measured else 1
    if segments == 1:
        why = "segments=1: CUDA, a chain that one pass is done with before a few sweeps would be"
        return Choice(1, None, why, back)
    why = f"segments={segments}, at most {CUDA_SWEEPS} sweeps: CUDA, a long chain of narrow states"
    return Choice(segments, CUDA_SWEEPS, why, back)


def cuda_recurrence(length: int, batch: int, width: int, blocks: str) -> int:
    if blocks == "dense":
        return cuda_segments(CUDA_DENSE, length, batch, width)
    return cuda_segments(CUDA_ELEMENTWISE, length, batch * width, width)


def native_pays(
    length: int, elements: int, batch: int, gradients: bool, stacked: bool, cuda: bool = False
) -> bool:
    """Whether the operator takes the place of modules that could be called one by one.

    elements: of one weight, w h.  stacked: whether there are stacked Parameters, whose rows the
    modules can only use as views: training then costs the loop more than it costs the operator.
    """
    if length < SHORTEST[gradients]:
        return False
    if cuda:
        return elements <= CUDA_WIDEST and batch * elements < CUDA_WORK[gradients]
    if stacked:
        return gradients or batch * elements <= STACKED_WORK
    return elements <= WIDEST_PACKED and batch * elements < WORK[gradients]


class Planner:
    """The memory of one module: the sweeps seen, by shape of the problem and number of segments."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Any, ...], dict[int, Sweeps]] = {}
        self._choices: dict[Problem, Choice] = {}
        #: What `_solve` needs of calls like earlier ones that one segment is best for.
        self.ready: dict[Any, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "ready": {}}  # it holds operators, which are not for files

    def choose(self, problem: Problem) -> Choice:
        choice = self._choices.get(problem)
        if choice is None:
            choice = self._choices[problem] = self._decide(problem)
        return choice

    def learn(self, problem: Problem, segments: int, info: torch.Tensor) -> None:
        """Remembers a report (6,B)."""
        total, tangent, verdict = info[:3].mean(1).ceil().tolist()  # whole: small changes are none
        sweeps = Sweeps(total if verdict == 0 else math.inf, tangent, True)
        seen = self._seen.setdefault(problem.chain, {})
        if seen.get(segments) != sweeps:
            seen[segments] = sweeps
            self._choices.clear()
            self.ready.clear()

    def expected(self, problem: Problem, segments: int) -> Sweeps:
        """The sweeps seen; else at least those of fewer segments, and few."""
        seen = self._seen.get(problem.chain, {})
        if segments in seen:
            return seen[segments]
        fewer = [sweeps for count, sweeps in seen.items() if count < segments]
        total = max((sweeps.total for sweeps in fewer), default=0.0)
        tangent = max((sweeps.tangent for sweeps in fewer), default=0.0)
        assumed = {None: 0, "adaptive": 1, "always": _ASSUMED_SWEEPS - 1}[problem.refresh]
        few = _ASSUMED_SWEEPS if problem.refresh else min(segments, _ASSUMED_PICARD)
        return Sweeps(max(total, few), max(tangent, assumed), False)

    def _decide(self, problem: Problem) -> Choice:
        sequential = cost(problem, 1, Sweeps(1, 0, True))
        powers = [2**k for k in range(1, max(problem.length, 1).bit_length())]
        if not powers or problem.batch == 0 or problem.width == 0:
            return Choice(1, None, "segments=1: there is nothing to run in parallel")
        options = [(cost(problem, S, self.expected(problem, S)), S) for S in powers]
        best, segments = min(options)
        sweeps = self.expected(problem, segments)
        why = (
            f"{problem.threads} threads, {'training' if problem.gradients else 'inference'}: "
            f"segments={segments} with {sweeps.total:.3g} sweeps, {sweeps.tangent:.3g} with "
            f"tangents ({'seen' if sweeps.seen else 'assumed'}), is predicted to take "
            f"{best / sequential:.3g} times the time of one segment"
        )
        if not best * MARGIN <= sequential:
            return Choice(1, None, f"segments=1: {why}, the best of all numbers")
        # As many sweeps as cost one pass of one segment, had every sweep tangents; and, where that
        # is fewer, two more than expected: a failed attempt wastes a few passes, once.
        forward = problem._replace(gradients=False)
        sweep = cost(forward, segments, Sweeps(1, float(problem.refresh is not None), True))
        limit = max(math.ceil(sweeps.total) + 2, int(cost(forward, 1, sweeps) / sweep))
        return Choice(segments, limit, f"segments={segments}, at most {limit} sweeps: {why}")
