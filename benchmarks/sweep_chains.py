# SPDX-License-Identifier: Apache-2.0
"""The chains of the tables of sweeps, and one solve of one of them.

They span what Newton's method meets: contracting, marginal and chaotic MLPs, residual chains that
grow, that hardly move, and that are normalised, and blocks of several layers with a norm each.
Drawn per seed: weights, then the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import torch_deeppcr as dpcr

BATCH = 2
ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": F.gelu, "silu": F.silu}
SMALLEST = 1e-9
"""No error of the loop counts as smaller."""


@dataclass(frozen=True)
class Chain:
    """gain: of the normal weights of an MLP; scale: of the branches of a residual chain; layers: of
    a block, where they are the branch; wide: also counted at a width where no Jacobian pays."""

    title: str
    activation: str
    gain: float | None = None
    scale: float | None = None
    norm: str | None = None
    contracts: bool = False
    chaotic: bool = False
    layers: int = 0
    wide: bool = False

    @property
    def residual(self) -> bool:
        return self.scale is not None

    def draw(self, length: int, width: int, seed: int) -> tuple[Tensor, list[Tensor]]:
        """z0 (B,w) and the parameters: normal weights, or PyTorch's default ones."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.gain is not None:
                weight = torch.randn(length, width, width) * self.gain / math.sqrt(width)
                parameters = [weight, torch.randn(length, width) * 0.1]
            elif self.layers:
                shapes = [(length, self.layers, width, width), (length, self.layers, width)]
                parameters = [(2 * torch.rand(s) - 1) / math.sqrt(width) for s in shapes]
            else:
                shapes = [(length, width, width), (length, width)] * 2
                parameters = [(2 * torch.rand(s) - 1) / math.sqrt(width) for s in shapes]
            return torch.randn(BATCH, width), parameters

    def step(self, z: Tensor, weight: Tensor, bias: Tensor, *second: Tensor) -> Tensor:
        act = ACTIVATIONS[self.activation]
        if not self.residual:
            return act(F.linear(z, weight, bias))
        if self.layers:
            a = z
            for matrix, vector in zip(weight, bias, strict=True):
                a = act(F.layer_norm(F.linear(a, matrix, vector), z.shape[-1:]))
            return z + self.scale * a
        inner = F.layer_norm(z, z.shape[-1:]) if self.norm else z
        return z + self.scale * F.linear(act(F.linear(inner, weight, bias)), *second)

    def loop(self, z: Tensor, parameters: list[Tensor]) -> Tensor:
        """All states (L,B,w) by the plain loop."""
        states = []
        for of_step in zip(*parameters, strict=True):
            z = self.step(z, *of_step)
            states.append(z)
        return torch.stack(states)

    def solve(self, z: Tensor, parameters: list[Tensor], **options: Any) -> Any:
        """What the product returns, with return_info."""
        if self.residual:
            function: Callable[..., Any] = dpcr.layers_chain if self.layers else dpcr.residual_chain
            options.update(scale=self.scale, norm=self.norm)
        else:
            function = dpcr.mlp_chain
        return function(z, *parameters, activation=self.activation, return_info=True, **options)


CHAINS = (
    Chain("MLP tanh, gain 1", "tanh", gain=1.0, contracts=True),
    Chain("MLP tanh, gain 1.2", "tanh", gain=1.2),
    Chain("MLP tanh, gain 1.5 (chaotic)", "tanh", gain=1.5, chaotic=True),
    Chain("MLP ReLU, gain sqrt 2 (He)", "relu", gain=math.sqrt(2)),
    Chain("MLP GELU, gain sqrt 2", "gelu", gain=math.sqrt(2), contracts=True),
    Chain("residual tanh, scale 1", "tanh", scale=1.0),
    Chain("residual ReLU, scale 1/32", "relu", scale=1 / 32),
    Chain("pre-norm residual ReLU, scale 1", "relu", scale=1.0, norm="layer_norm"),
    Chain("pre-norm residual SiLU, scale 1", "silu", scale=1.0, norm="layer_norm", wide=True),
    Chain(
        "4 x (Linear, LayerNorm, SiLU), skip",
        "silu",
        scale=1.0,
        norm="layer_norm",
        layers=4,
        wide=True,
    ),
)


class Case(NamedTuple):
    """A chain as drawn; its exact states (L,B,w); how far off the loop in float32 ends (B); and
    the result of one segment (B,w)."""

    chain: Chain
    z0: Tensor
    parameters: list[Tensor]
    exact: Tensor
    own: Tensor
    sequential: Tensor


def case(chain: Chain, length: int, width: int, seed: int) -> Case:
    z0, parameters = chain.draw(length, width, seed)
    exact = chain.loop(z0.double(), [p.double() for p in parameters])
    own = largest(chain.loop(z0, parameters)[-1] - exact[-1]).clamp_min(SMALLEST)
    sequential, _ = chain.solve(z0, parameters, segments=1)
    return Case(chain, z0, parameters, exact, own, sequential)


def largest(x: Tensor) -> Tensor:
    """Maximum norm of every sample."""
    return x.abs().amax(-1)


def history(given: Case, sweeps: int, **options: Any) -> list[dict[str, float | None]]:
    """Sample 0 after 1, 2, ... sweeps: the error of its worst state, and what the solver thinks.

    Every number of sweeps is a solve of its own that is stopped there and left as it is.  Errors
    are relative, each state's to its own size; None: not a number.
    """
    found: list[dict[str, float | None]] = []
    for most in range(1, sweeps + 1):
        _, states, info = given.chain.solve(
            given.z0,
            given.parameters,
            max_sweeps=most,
            on_unconverged="ignore",
            return_states=True,
            **options,
        )
        point = {
            "sweeps": float(info.sweeps[0]),
            "error": finite(state_error(states, given.exact)),
            "estimate": finite(float(info.residual[0])),
        }
        if found and point["sweeps"] == found[-1]["sweeps"]:
            break
        found.append(point)
    return found


def state_error(states: Tensor, exact: Tensor) -> float:
    """Of the worst state of sample 0."""
    wrong = largest(states[:, 0].double() - exact[:, 0]) / largest(exact[:, 0]).clamp_min(SMALLEST)
    return float(wrong.nan_to_num(nan=math.inf).max())


def finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
