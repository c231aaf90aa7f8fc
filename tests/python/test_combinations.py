# SPDX-License-Identifier: Apache-2.0
"""README.md's table of graphs and transforms is what happens; and what graphs must not cost."""

from __future__ import annotations

import copy
import time

import combinations
import pytest
import torch
from models import stack_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import torch_deeppcr as dpcr


@pytest.fixture(autouse=True)
def _fresh():
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("face", combinations.FACES)
@pytest.mark.parametrize("name", combinations.COMBINATIONS)
def test_readme_says_what_happens(name: str, face: str) -> None:
    cells = dict(zip(combinations.FACES, combinations.documented()[name], strict=True))
    combination = combinations.COMBINATIONS[name]
    assert combinations.outcome(combination, combinations.FACES[face]) == cells[face]


def test_readme_lists_nothing_else() -> None:
    assert list(combinations.documented()) == list(combinations.COMBINATIONS)


def test_a_graph_does_not_grow_with_the_depth_of_a_stacked_chain() -> None:
    def nodes(depth: int) -> int:
        net = dpcr.parallelize(stack_of(depth, 6, nn.Tanh, dtype=torch.float32), stack=True)
        graphs: list[torch.fx.GraphModule] = []

        def keep(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
            graphs.append(graph)
            return graph

        torch.compile(net, backend=keep, fullgraph=True)(torch.randn(3, 6))
        return len(graphs[-1].graph.nodes)

    assert nodes(8) == nodes(2000)


def test_compiling_a_deep_stacked_chain_takes_seconds_not_minutes() -> None:
    """The loop would take two minutes at this depth; a wide margin, for machines under load."""
    net = dpcr.parallelize(stack_of(1024, 6, nn.Tanh, dtype=torch.float32), stack=True)
    begin = time.perf_counter()
    torch.compile(net, fullgraph=True)(torch.randn(3, 6)).sum().backward()
    assert time.perf_counter() - begin < 60


def test_hooks_that_come_after_compiling_are_for_eager_mode() -> None:
    net = dpcr.parallelize(stack_of(8, 6, nn.Tanh, dtype=torch.float32))
    input = torch.randn(3, 6)
    function = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(function(input), net(input))
    net.eval()
    torch.testing.assert_close(function(input), net(input))


@pytest.mark.parametrize("norm", [None, "layer_norm"])
@pytest.mark.parametrize("needs_input", [False, True])
@pytest.mark.parametrize("stack", [False, True])
def test_flop_counters_count_what_the_modules_would_be_counted(
    norm: str | None, needs_input: bool, stack: bool
) -> None:
    def count(net: nn.Module) -> int:
        input = torch.randn(5, 6, requires_grad=needs_input)
        with FlopCounterMode(display=False) as counter:
            net(input).sum().backward()
        return counter.get_total_flops()

    models = [
        nn.Sequential(*(dpcr.nn.ResidualBlock(6, 4, norm=norm) for _ in range(8))),
        stack_of(8, 6, *([lambda: nn.LayerNorm(6)] if norm else []), nn.SiLU, dtype=torch.float32),
    ]
    for plain in models:
        net = dpcr.parallelize(copy.deepcopy(plain), stack=stack)
        assert count(net) == count(plain) > 0
        frozen = copy.deepcopy(plain)
        for block in list(frozen)[: len(frozen) // 2]:
            block.requires_grad_(False)
        if not stack and isinstance(plain[0], dpcr.nn.ResidualBlock):
            assert count(dpcr.parallelize(copy.deepcopy(frozen))) == count(frozen)


def test_flops_of_recurrences() -> None:
    A, b = torch.randn(7, 3, 4, 4, requires_grad=True), torch.randn(7, 3, 4)
    with FlopCounterMode(display=False) as counter:
        dpcr.linear_recurrence(A, b).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 7 * 3 * 4 * 4
