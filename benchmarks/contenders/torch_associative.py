# SPDX-License-Identifier: Apache-2.0
"""PyTorch's prototype operator associative_scan over affine maps, compiled."""

from problems import Problem
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan

from . import Contender, Run
from ._torch import compiled, run_function

Map = tuple[Tensor, Tensor]


def after_dense(first: Map, second: Map) -> Map:
    """The map x -> A x + b of the first, then the second."""
    (A1, b1), (A2, b2) = first, second
    return A2 @ A1, (A2 @ b1.unsqueeze(-1)).squeeze(-1) + b2


def after_diagonal(first: Map, second: Map) -> Map:
    (A1, b1), (A2, b2) = first, second
    return A2 * A1, A2 * b1 + b2


class AssociativeScan(Contender):
    name = "torch associative_scan"
    title = "PyTorch, torch.compile: its prototype operator associative_scan"
    compiles = True

    def cannot(self, problem: Problem) -> str:
        return "recurrences only" if problem.is_chain else ""

    def prepare(self, problem: Problem) -> Run:
        after = after_dense if problem.kind == "dense" else after_diagonal
        # "pointwise" is the fast mode: on a GPU, and without matrix products.
        pointwise = problem.device != "cpu" and problem.kind == "diagonal"
        mode = "pointwise" if pointwise else "generic"

        def solve(blocks: Tensor, b: Tensor) -> Tensor:
            return associative_scan(after, (blocks, b), dim=0, combine_mode=mode)[1]

        return run_function(problem, compiled(solve, problem))


CONTENDERS = (AssociativeScan(),)
