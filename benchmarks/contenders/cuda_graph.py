# SPDX-License-Identifier: Apache-2.0
"""The eager loop recorded once in a CUDA graph and replayed: no launch cost left.

Takes part on a GPU only.  It has not been run yet: no GPU was at hand when it was written.
"""

import torch
from problems import KINDS, Problem
from torch import Tensor

from . import Contender, Run


class CudaGraph(Contender):
    name = "CUDA graph"
    title = "PyTorch: the loop over stacked parameters, recorded in a CUDA graph"

    def cannot(self, problem: Problem) -> str:
        return "" if problem.device != "cpu" else "needs a GPU"

    def prepare(self, problem: Problem) -> Run:
        loop = KINDS[problem.kind].loop
        leaves = [leaf.clone().requires_grad_(problem.trains) for leaf in problem.leaves]

        def whole() -> list[Tensor]:
            with torch.set_grad_enabled(problem.trains):
                output = loop(*leaves)
            if not problem.trains:
                return [output]
            return [output.detach(), *torch.autograd.grad(output, leaves, problem.gradient)]

        # As torch.cuda.graph asks for: warm up on a side stream, then record.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                whole()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            recorded = whole()

        def results() -> list[Tensor]:
            graph.replay()
            return [t.clone() for t in recorded]

        return Run(graph.replay, results)


CONTENDERS = (CudaGraph(),)
