# SPDX-License-Identifier: Apache-2.0
"""Contenders in PyTorch: a function of leaves, its pass, its result."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from problems import Problem
from torch import Tensor, nn

from . import Run

COMPILER = {
    "cpp_wrapper": True,  # faster than the default wrapper in Python
    "compile_threads": 1,  # no pool of processes
}


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, fullgraph=True, dynamic=False, options=COMPILER)


def run_function(problem: Problem, function: Callable[..., Tensor]) -> Run:
    """function(*leaves) -> output.  Gradients are left in .grad, as an optimiser wants them."""
    return _run(problem, function, [leaf.clone() for leaf in problem.leaves])


def run_module(
    problem: Problem, module: nn.Module, parameters: Iterable[nn.Parameter] | None = None
) -> Run:
    """A module with the parameters of a chain, stacked or layer by layer in that order."""
    mine = module.parameters() if parameters is None else parameters
    return _run(problem, lambda z, *_: module(z), [problem.leaves[0].clone(), *mine])


def _run(problem: Problem, function: Callable[..., Tensor], leaves: list[Tensor]) -> Run:
    for leaf in leaves:
        leaf.requires_grad_(problem.trains)

    def forward() -> Tensor:
        return function(*leaves)

    def train() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        output = function(*leaves)
        output.backward(problem.gradient)
        return output

    def results() -> list[Tensor]:
        if not problem.trains:
            return [forward().clone()]
        output = train().detach().clone()
        return [output, *stacked((leaf.grad for leaf in leaves), problem)]

    return Run(train if problem.trains else forward, results)


def stacked(gradients: Iterable[Tensor | None], problem: Problem) -> list[Tensor]:
    """One gradient for each leaf of the problem, also where every layer (or sublayer) has its own
    parameters."""
    first, *others = (torch.zeros(()) if g is None else g for g in gradients)
    kinds = len(problem.leaves) - 1
    if len(others) > kinds:
        stacks = (torch.stack(others[kind::kinds]) for kind in range(kinds))
        others = [g.view_as(leaf) for g, leaf in zip(stacks, problem.leaves[1:], strict=True)]
    return [first, *others]
