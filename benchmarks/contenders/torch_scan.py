# SPDX-License-Identifier: Apache-2.0
"""PyTorch's prototype operator scan, compiled: a loop that stays a loop in the graph."""

from problems import KINDS, Problem
from torch import Tensor
from torch._higher_order_ops.scan import scan

from . import Contender, Run
from ._torch import compiled, run_function


class Scan(Contender):
    name = "compiled scan"
    title = "PyTorch, torch.compile: its prototype operator scan"
    compiles = True

    def cannot(self, problem: Problem) -> str:
        return "" if problem.is_chain else "for a recurrence see torch associative_scan"

    def prepare(self, problem: Problem) -> Run:
        step = KINDS[problem.kind].step
        assert step is not None

        def body(z: Tensor, parameters: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
            # The copy: a carry that tanh keeps for its backward is refused as an alias
            # (pytorch/pytorch issue 195977).  The second output is not wanted, but required.
            return step(z, *parameters).clone(), z.new_zeros(())

        def chain(z: Tensor, *stacked: Tensor) -> Tensor:
            return scan(body, z, stacked)[0]

        return run_function(problem, compiled(chain, problem))


CONTENDERS = (Scan(),)
