# SPDX-License-Identifier: Apache-2.0
"""What everybody writes: nn.Sequential of layers, and for a recurrence the loop over its steps."""

from collections.abc import Iterator
from itertools import chain

from problems import KINDS, Problem
from torch import nn

from . import Contender, Run
from ._torch import run_function, run_module


def in_order(layer: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of one step in the order of the stacked chain: linear1, linear2, norm; or
    sublayer by sublayer: linear, norm."""
    named = dict(layer.named_parameters())
    for name in sorted(named, key=lambda n: (n.rpartition(".")[0], n.endswith("bias"))):
        yield named[name]


class Eager(Contender):
    name = "eager"
    title = "PyTorch, eager: nn.Sequential of modules; for a recurrence the loop over its steps"

    def prepare(self, problem: Problem) -> Run:
        if problem.is_chain:
            layers = KINDS[problem.kind].modules(problem.loaded())
            return run_module(problem, layers, chain.from_iterable(map(in_order, layers)))
        return run_function(problem, KINDS[problem.kind].loop)


CONTENDERS = (Eager(),)
