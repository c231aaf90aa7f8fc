# SPDX-License-Identifier: Apache-2.0
"""Models to parallelize, and the comparison with what they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from cases import Spy, assert_close
from torch import Tensor, nn

import torch_deeppcr as dpcr
from torch_deeppcr.parallel.stack import position


def stack_of(
    depth: int, width: int, *between: Callable[[], nn.Module], dtype: Any = torch.float64
) -> nn.Sequential:
    """depth times Linear and what else is given."""
    modules: list[nn.Module] = []
    for _ in range(depth):
        modules += [nn.Linear(width, width), *(make() for make in between)]
    return nn.Sequential(*modules).to(dtype)


def mlp(depth: int = 8, width: int = 6, dtype: Any = torch.float64) -> nn.Sequential:
    """A head and a tail of other widths around a chain."""
    modules: list[nn.Module] = [nn.Linear(4, width), nn.Tanh()]
    for _ in range(depth):
        modules += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*modules, nn.Linear(width, 3)).to(dtype)


class RLBlock(nn.Module):
    """Four times Dense, LayerNorm, SiLU, and a skip: deep networks of reinforcement learning."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.ModuleList([nn.Linear(width, width) for _ in range(4)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for dense, norm in zip(self.dense, self.norms, strict=True):
            y = nn.functional.silu(norm(dense(y)))
        return x + y


def describe_rl(block: RLBlock) -> dpcr.steps.Step:
    return dpcr.steps.layers(list(zip(block.dense, block.norms, strict=True)), "silu")


class Actor(nn.Module):
    """Observations -> actions, with a trunk of blocks in a ModuleList."""

    def __init__(self, layers: int, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Linear(7, width)
        self.blocks = nn.ModuleList([RLBlock(width) for _ in range(layers // 4)])
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return torch.tanh(self.head(x))


def run(net: Callable[[Tensor], Tensor], input: Tensor) -> tuple[Tensor, Tensor]:
    """Output and the gradient of the input; those of the parameters are left in .grad."""
    leaf = input.detach().clone().requires_grad_()
    output = net(leaf)
    output.square().sum().backward()
    return output.detach(), leaf.grad


def gradients(net: nn.Module, names: list[str]) -> dict[str, Tensor | None]:
    """Under the names of the plain model, whatever the face."""
    found: dict[str, Tensor | None] = {}
    for name in names:
        path, _, own = name.rpartition(".")
        module = net.get_submodule(path)
        place = position(module, own)
        if place is None:
            found[name] = module._parameters[own].grad
        else:
            gradient = place[0].whole(place[1]).grad
            found[name] = None if gradient is None else gradient[place[2]]
    return found


def assert_same(net: nn.Module, plain: nn.Module, input: Tensor, **tolerance: float) -> None:
    """Outputs and all gradients."""
    net.zero_grad(), plain.zero_grad()
    assert_close(run(net, input), run(plain, input), **tolerance)
    names = [name for name, _ in plain.named_parameters()]
    ours = gradients(net, names)
    for name, gradient in gradients(plain, names).items():
        assert (ours[name] is None) == (gradient is None), name
        if gradient is not None:
            assert_close(ours[name], gradient, **tolerance)


def parallel(net: Any, **options: Any) -> tuple[Any, Any]:
    """A parallel copy and the original, both of which see the chain's own operator."""
    return dpcr.parallelize(copy.deepcopy(net), **options), net


def calls(net: Callable[[Tensor], Any], input: Tensor) -> list[str]:
    """Names of the operators that a call runs."""
    with Spy() as spy, torch.no_grad():
        net(input)
    return [name for name, _ in spy.calls]
