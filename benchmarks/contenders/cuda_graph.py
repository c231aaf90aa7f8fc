# SPDX-License-Identifier: Apache-2.0
"""The eager loop recorded once in a CUDA graph and replayed: no launch cost left.

Takes part on a GPU only.  It has not been run yet: no GPU was at hand when it was written.
"""

from problems import KINDS, Problem

from . import Contender, Run
from ._torch import captured, run_function


class CudaGraph(Contender):
    name = "CUDA graph"
    title = "PyTorch: the loop over stacked parameters, recorded in a CUDA graph"

    def cannot(self, problem: Problem) -> str:
        return "" if problem.device != "cpu" else "needs a GPU"

    def prepare(self, problem: Problem) -> Run:
        return captured(lambda: run_function(problem, KINDS[problem.kind].loop))


CONTENDERS = (CudaGraph(),)
