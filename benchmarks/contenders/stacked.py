# SPDX-License-Identifier: Apache-2.0
"""The least that eager PyTorch can do for a chain: functions on stacked parameters, no modules."""

from problems import KINDS, Problem

from . import Contender, Run
from ._torch import run_function


class Stacked(Contender):
    name = "stacked loop"
    title = "PyTorch, eager: a loop of functions over stacked parameters, no modules"

    def cannot(self, problem: Problem) -> str:
        return "" if problem.is_chain else "for a recurrence that is the contender eager"

    def prepare(self, problem: Problem) -> Run:
        return run_function(problem, KINDS[problem.kind].loop)


CONTENDERS = (Stacked(),)
