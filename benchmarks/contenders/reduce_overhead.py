# SPDX-License-Identifier: Apache-2.0
"""torch.compile(mode="reduce-overhead"): compiled kernels in CUDA graphs, 16 layers reused.

Takes part on a GPU only.  It has not been run yet: no GPU was at hand when it was written.
"""

import torch
from problems import KINDS, Problem
from torch import Tensor

from . import Contender, Run
from ._torch import run_function
from .groups import grouped


class ReduceOverhead(Contender):
    name = "reduce-overhead"
    title = 'PyTorch, torch.compile(mode="reduce-overhead"): 16 layers compiled and reused'
    compiles = True

    def cannot(self, problem: Problem) -> str:
        if problem.device == "cpu":
            return "needs a GPU"
        return "" if problem.is_chain else "chains only"

    def prepare(self, problem: Problem) -> Run:
        loop = KINDS[problem.kind].loop
        group = torch.compile(loop, mode="reduce-overhead", fullgraph=True, dynamic=False)
        chain = grouped(group)

        def whole(*leaves: Tensor) -> Tensor:
            # Outputs of the pass before this one may be overwritten from here on.
            torch.compiler.cudagraph_mark_step_begin()
            return chain(*leaves)

        return run_function(problem, whole)


CONTENDERS = (ReduceOverhead(),)
