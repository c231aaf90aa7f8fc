# SPDX-License-Identifier: Apache-2.0
"""torch.compile where the whole chain would take minutes to compile: 16 layers, reused."""

from collections.abc import Callable

from problems import KINDS, Problem
from torch import Tensor

from . import Contender, Run
from ._torch import compiled, run_function

GROUP = 16


def grouped(group: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A chain of as many groups as the leaves hold; group takes z and GROUP stacked parameters."""

    def chain(z: Tensor, *stacked: Tensor) -> Tensor:
        for parameters in zip(*(p.split(GROUP) for p in stacked), strict=True):
            z = group(z, *parameters)
        return z

    return chain


class Groups(Contender):
    name = "16 compiled"
    title = "PyTorch, torch.compile: 16 layers compiled once and reused"
    compiles = True

    def cannot(self, problem: Problem) -> str:
        if not problem.is_chain:
            return "chains only"
        return "" if problem.length > GROUP else "that is the unrolled chain"

    def prepare(self, problem: Problem) -> Run:
        return run_function(problem, grouped(compiled(KINDS[problem.kind].loop, problem)))


CONTENDERS = (Groups(),)
