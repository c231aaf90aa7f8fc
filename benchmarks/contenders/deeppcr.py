# SPDX-License-Identifier: Apache-2.0
"""deeppcr itself: the plan that it takes unasked, the sequential pass, and the paper's method."""

from collections.abc import Callable
from typing import Any

import torch
from problems import KINDS, Problem
from torch import Tensor

import torch_deeppcr as dpcr
from torch_deeppcr._plan import WIDEST_DENSE

from . import Contender, Run, newton_gflop
from ._torch import run_function, run_module


class DeepPCR(Contender):
    ours = True

    def __init__(
        self,
        name: str,
        title: str,
        segments: Callable[[int], int | str],
        memory: str = "states",
    ) -> None:
        self.name = name
        self.title = title
        self.segments = segments
        self.memory = memory

    def cannot(self, problem: Problem) -> str:
        if self.memory == "recompute" and not (problem.is_chain and problem.trains):
            return "a forward pass of a chain keeps no states, nor does a recurrence"
        return "" if self.segments(problem.length) else "too short to be cut so"

    def gflop(self, problem: Problem) -> float:
        segments = self.segments(problem.length)
        if segments in (1, "auto") or problem.kind == "diagonal":
            return 0.0
        if KINDS[problem.kind].skip and problem.width > WIDEST_DENSE:
            # Without Jacobians a sweep is cheap, and there are many: all of them count.
            parameters = sum(leaf.numel() for leaf in problem.leaves[1:])
            return 2e-9 * problem.batch * parameters * min(int(segments), 15)
        return newton_gflop(problem, int(segments))

    def prepare(self, problem: Problem) -> Run:
        segments = self.segments(problem.length)
        if problem.is_chain:
            return self.with_notes(problem, segments)

        def solve(blocks: Tensor, b: Tensor) -> Tensor:
            return dpcr.linear_recurrence(blocks, b, blocks=problem.kind, segments=segments)

        return run_function(problem, solve)

    def with_notes(self, problem: Problem, segments: int | str) -> Run:
        chain = problem.loaded(segments=segments, memory=self.memory)
        run = run_module(problem, chain)

        def notes() -> dict[str, Any]:
            with torch.set_grad_enabled(problem.trains):
                _, info = chain(problem.leaves[0], return_info=True)
            return {
                "segments": info.plan.segments,
                "sweeps": float(info.sweeps.double().median()),
                "tangent sweeps": float(info.tangent_sweeps.double().median()),
                "not converged": int((info.status != 0).sum()),
                "why": info.why,
            }

        run.notes = notes
        return run


def fixed(segments: int) -> DeepPCR:
    """Takes part where the chain has more steps."""
    return DeepPCR(
        f"deeppcr S={segments}",
        f"deeppcr, Newton over {segments} segments",
        lambda length: segments if segments < length else 0,
    )


CONTENDERS = (
    DeepPCR("deeppcr", 'deeppcr, its own plan (segments="auto")', lambda length: "auto"),
    DeepPCR("deeppcr S=1", "deeppcr, the fused sequential pass (segments=1)", lambda length: 1),
    DeepPCR(
        "deeppcr recompute",
        'deeppcr with memory="recompute": about sqrt(L) states are kept',
        lambda length: 1,
        "recompute",
    ),
    DeepPCR(
        "deeppcr S=L/32",
        "deeppcr, Newton over segments of 32 steps",
        lambda length: length // 32,
    ),
    DeepPCR("deeppcr S=L", "deeppcr, the paper's method (segments=L)", lambda length: length),
)
