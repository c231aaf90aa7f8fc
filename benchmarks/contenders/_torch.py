# SPDX-License-Identifier: Apache-2.0
"""Contenders in PyTorch: a function of leaves, its pass, its result; a pass in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import torch
from problems import BACKWARD, FORWARD, LEARNING_RATE, STEP, Problem
from torch import Tensor, nn

from . import Run

COMPILER = {
    "cpp_wrapper": True,  # faster than the default wrapper in Python
    "compile_threads": 1,  # no pool of processes
}
"""On the CPU; on a GPU the defaults are."""
WARM_UPS = 3


def compiled(function: Callable[..., Tensor], problem: Problem) -> Callable[..., Tensor]:
    options = COMPILER if problem.device == "cpu" else None
    return torch.compile(function, fullgraph=True, dynamic=False, options=options)


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
    make = {FORWARD: _forward, BACKWARD: _backward}.get(problem.run, _train)
    call, read = make(problem, function, leaves)
    return Run(call, lambda: read(call()), read=read)


Pass = tuple[Callable[[], Any], Callable[[Any], list[Tensor]]]
"""The call, and what makes results of what it returns."""


def _forward(problem: Problem, function: Callable[..., Tensor], leaves: list[Tensor]) -> Pass:
    return lambda: function(*leaves), lambda output: [output.clone()]


def _backward(problem: Problem, function: Callable[..., Tensor], leaves: list[Tensor]) -> Pass:
    output = function(*leaves)

    def backward() -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            output, leaves, problem.gradient, retain_graph=True, allow_unused=True
        )

    return backward, lambda gradients: stacked(gradients, problem)


def _train(problem: Problem, function: Callable[..., Tensor], leaves: list[Tensor]) -> Pass:
    """Forward and backward, and in a training step the optimiser."""
    steps = problem.run == STEP
    optimizer = torch.optim.SGD(leaves[1:], LEARNING_RATE) if steps else None

    def train() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        output = function(*leaves)
        output.backward(problem.gradient)
        if optimizer is not None:
            optimizer.step()
        return output

    def read(output: Tensor) -> list[Tensor]:
        copied = output.detach().clone()
        return [copied, *stacked((leaf.grad for leaf in leaves), problem)]

    return train, read


def captured(make: Callable[[], Run], calls: int = 1) -> Run:
    """The run that `make` prepares, recorded in a CUDA graph, so many times in a row.

    It is prepared on the stream that is recorded, because backward runs on the stream of its
    forward pass.  As torch.cuda.graph asks for: warm up on that stream, then record.
    """
    current, stream = torch.cuda.current_stream(), torch.cuda.Stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        run = make()
        for _ in range(WARM_UPS):
            run.call()
    current.wait_stream(stream)
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    try:
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            for _ in range(calls):
                recorded = run.call()
    except Exception as failed:
        # What torch.cuda.graph leaves behind; up to PyTorch 2.12 the allocator would go on to
        # believe in a capture, and no later one could be made (its pull request 180395).
        torch.cuda.set_stream(current)
        with suppress(AttributeError, RuntimeError):
            torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
        raise failed.__context__ or failed from None  # the capture's end fails because it failed

    def replay() -> Any:
        graph.replay()
        return recorded, run  # and so its leaves, which the graph reads, live as long as this

    def results() -> list[Tensor]:
        graph.replay()
        assert run.read is not None
        return run.read(recorded)

    return Run(replay, results)


def stacked(gradients: Iterable[Tensor | None], problem: Problem) -> list[Tensor]:
    """One gradient for each leaf of the problem, also where every layer (or sublayer) has its own
    parameters."""
    first, *others = (torch.zeros(()) if g is None else g for g in gradients)
    kinds = len(problem.leaves) - 1
    if len(others) > kinds:
        stacks = (torch.stack(others[kind::kinds]) for kind in range(kinds))
        others = [g.view_as(leaf) for g, leaf in zip(stacks, problem.leaves[1:], strict=True)]
    return [first, *others]
