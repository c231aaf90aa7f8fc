# SPDX-License-Identifier: Apache-2.0
"""torch.compile(mode="reduce-overhead"): compiled kernels in CUDA graphs, the whole chain or 16
layers reused.

Takes part on a GPU only.  It has not been run yet: no GPU was at hand when it was written.
"""

import torch
from problems import BACKWARD, KINDS, Problem
from torch import Tensor

from . import Contender, Run
from ._torch import run_function
from .groups import grouped

LONGEST = 64
"""Longer chains take minutes to compile as a whole."""


class ReduceOverhead(Contender):
    compiles = True

    def __init__(self, name: str, title: str, whole: bool) -> None:
        self.name = name
        self.title = f'PyTorch, torch.compile(mode="reduce-overhead"): {title}'
        self.whole = whole

    def cannot(self, problem: Problem) -> str:
        if problem.device == "cpu":
            return "needs a GPU"
        if not problem.is_chain:
            return "chains only"
        if problem.run == BACKWARD:
            return "its graphs do not run one backward pass twice"
        if self.whole and problem.length > LONGEST:
            return f"more than {LONGEST} layers take minutes to compile"
        return ""

    def prepare(self, problem: Problem) -> Run:
        loop = KINDS[problem.kind].loop
        compiled = torch.compile(loop, mode="reduce-overhead", fullgraph=True, dynamic=False)
        chain = compiled if self.whole else grouped(compiled)

        def whole(*leaves: Tensor) -> Tensor:
            # Outputs of the pass before this one may be overwritten from here on.
            torch.compiler.cudagraph_mark_step_begin()
            return chain(*leaves)

        return run_function(problem, whole)


CONTENDERS = (
    ReduceOverhead("reduce-overhead", "16 layers compiled and reused", whole=False),
    ReduceOverhead("reduce-overhead, whole", "the whole chain unrolled", whole=True),
)
