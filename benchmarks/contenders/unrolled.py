# SPDX-License-Identifier: Apache-2.0
"""torch.compile of the whole chain.  Its compile time grows with the length, about 0.1 s a layer
forward and more backward, so longer chains are refused."""

from problems import KINDS, Problem

from . import Contender, Run
from ._torch import compiled, run_function

LONGEST = 128


class Unrolled(Contender):
    name = "compiled"
    title = "PyTorch, torch.compile: the whole chain unrolled"
    compiles = True

    def cannot(self, problem: Problem) -> str:
        if not problem.is_chain:
            return "chains only"
        if problem.length > LONGEST:
            return f"more than {LONGEST} layers take minutes to compile"
        return ""

    def prepare(self, problem: Problem) -> Run:
        return run_function(problem, compiled(KINDS[problem.kind].loop, problem))


CONTENDERS = (Unrolled(),)
