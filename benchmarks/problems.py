# SPDX-License-Identifier: Apache-2.0
"""What is computed: a problem, its inputs, and the plain loop that defines the right answer.

A problem has *leaves*, the tensors that gradients are taken of: z0 (B,w) and the stacked parameters
(L,...) of a chain, or the blocks A and right sides b (L,B,w) of a recurrence.  Its result is the
output, the gradient of every leaf, given the output's, or both: that depends on the pass.  All
numbers are drawn on the CPU from one seed, so that every device and contender has the same.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torch_deeppcr as dpcr

FORWARD, TRAIN = "forward", "forward+backward"
PASSES = (FORWARD, TRAIN)
BACKWARD, STEP = "backward", "training step"
"""Backward alone: of a forward pass that ran once, before.  A training step: forward, backward, and
plain SGD on the parameters."""
LEARNING_RATE = 1e-12
"""Of SGD: the work is that of any other rate, and the parameters stay what they are."""
SCALE = 1 / 32
"""Of the branches of the plain residual chain: 1/sqrt(L) for L = 1024."""
SUBLAYERS = 4
"""Of a block of the networks of reinforcement learning."""
SMALLEST = 1e-30
"""What is smaller, a gradient that has vanished on the way, counts as so large when errors are
relative: float32 cannot hold it with all digits."""


# ---- chains: one step, and the stacked module ---------------------------------------------------


def mlp_step(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.tanh(F.linear(z, weight, bias))


def relu_step(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.relu(F.linear(z, weight, bias))


def residual_step(z: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return z + SCALE * F.linear(F.silu(F.linear(z, w1, b1)), w2, b2)


def prenorm_step(
    z: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, gamma: Tensor, beta: Tensor
) -> Tensor:
    inner = F.layer_norm(z, z.shape[-1:], gamma, beta)
    return z + F.linear(F.silu(F.linear(inner, w1, b1)), w2, b2)


def layers_step(z: Tensor, weight: Tensor, bias: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    a = z
    for w, b, g, e in zip(*(p.unbind() for p in (weight, bias, gamma, beta)), strict=True):
        a = F.silu(F.layer_norm(F.linear(a, w, b), b.shape, g, e))
    return z + a


def mlp(width: int, length: int, **options: object) -> nn.Module:
    return dpcr.nn.MLPChain(width, length, activation="tanh", **options)


def relu(width: int, length: int, **options: object) -> nn.Module:
    return dpcr.nn.MLPChain(width, length, activation="relu", **options)


def residual(width: int, length: int, **options: object) -> nn.Module:
    """SiLU: a ReLU near 0 falls to either side by rounding, which is no error of anybody's."""
    return dpcr.nn.ResidualChain(width, length, activation="silu", scale=SCALE, **options)


def prenorm(width: int, length: int, **options: object) -> nn.Module:
    return dpcr.nn.ResidualChain(width, length, activation="silu", norm="layer_norm", **options)


def layers(width: int, length: int, **options: object) -> nn.Module:
    return dpcr.nn.LayersChain(width, length, SUBLAYERS, norm="layer_norm", **options)


class Block(nn.Module):
    """What is written for a step of `layers`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width), nn.SiLU())
                for _ in range(SUBLAYERS)
            )
        )

    def forward(self, z: Tensor) -> Tensor:
        return z + self.layers(z)


def blocks(chain: nn.Module) -> nn.Sequential:
    """`Block`s with copies of the parameters of `layers`."""
    made = nn.Sequential(*(Block(chain.width) for _ in range(chain.depth)))
    stacked = (chain.weight, chain.bias, chain.norm_weight, chain.norm_bias)
    with torch.no_grad():
        for block, *of_block in zip(made, *stacked, strict=True):
            for (linear, norm, _), *own in zip(block.layers, *of_block, strict=True):
                own_places = (linear.weight, linear.bias, norm.weight, norm.bias)
                for parameter, value in zip(own_places, own, strict=True):
                    parameter.copy_(value)
    return made.to(chain.weight.device)


def orthogonal(*shape: int) -> Tensor:
    """Blocks (...,w,w), drawn uniformly."""
    q, r = torch.linalg.qr(torch.randn(*shape))
    return (q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)).contiguous()


def draw_chain(problem: Problem) -> list[Tensor]:
    """Orthogonal weights for the kind "mlp": with normal ones, those of the kind "normal", no
    gradient reaches the first layers."""
    length, width = problem.length, problem.width
    chain = problem.module()
    parameters = [p.detach() for p in chain.parameters()]
    if problem.kind == "mlp":
        parameters = [orthogonal(length, width, width), 0.01 * torch.randn(length, width)]
    if problem.kind == "relu":  # half of a state is zero: so it neither grows nor vanishes
        gain = math.sqrt(2)
        parameters = [gain * orthogonal(length, width, width), 0.1 * torch.randn(length, width)]
    if problem.kind == "normal":
        weight = torch.randn(length, width, width) / math.sqrt(width)  # gain 1
        parameters = [weight, 0.1 * torch.randn(length, width)]
    return [torch.randn(problem.batch, width), *parameters]


def chain_loop(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def loop(z: Tensor, *stacked: Tensor) -> Tensor:
        for parameters in zip(*(p.unbind() for p in stacked), strict=True):
            z = step(z, *parameters)
        return z

    return loop


# ---- recurrences x_l = A_l x_{l-1} + b_l, x_0 = 0 -----------------------------------------------


def draw_dense(problem: Problem) -> list[Tensor]:
    """0.99 times orthogonal blocks: products neither underflow nor grow in a thousand steps."""
    size = (problem.length, problem.batch, problem.width)
    return [0.99 * orthogonal(*size, problem.width), torch.randn(size)]


def draw_diagonal(problem: Problem) -> list[Tensor]:
    size = (problem.length, problem.batch, problem.width)
    return [1 - 0.02 * torch.rand(size), torch.randn(size)]


def dense_loop(blocks: Tensor, b: Tensor) -> Tensor:
    x, states = torch.zeros_like(b[0]), []
    for block, right in zip(blocks.unbind(), b.unbind(), strict=True):
        x = torch.baddbmm(right.unsqueeze(-1), block, x.unsqueeze(-1)).squeeze(-1)
        states.append(x)
    return torch.stack(states)


def diagonal_loop(blocks: Tensor, b: Tensor) -> Tensor:
    x, states = torch.zeros_like(b[0]), []
    for block, right in zip(blocks.unbind(), b.unbind(), strict=True):
        x = torch.addcmul(right, block, x)
        states.append(x)
    return torch.stack(states)


# ---- the table of kinds, and a problem ----------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """step and module are those of a chain, modules what PyTorch's users write in place of it; a
    recurrence has none.  matrices: w x w ones in a step of a chain; skip: whether its steps add to
    their input.  slack: how many times the usual error is right, 1 but for gradients that have lost
    their digits to whoever computes them.  kinks: whether a rounding decides which gradients there
    are, so that nobody is better than the plain loop in float32."""

    title: str
    draw: Callable[[Problem], list[Tensor]]
    loop: Callable[..., Tensor]
    step: Callable[..., Tensor] | None = None
    module: Callable[..., nn.Module] | None = None
    modules: Callable[[nn.Module], nn.Sequential] = lambda chain: chain.to_sequential()
    matrices: int = 1
    skip: bool = False
    slack: float = 1.0
    kinks: bool = False


KINDS = {
    "mlp": Kind("MLP (Linear, tanh)", draw_chain, chain_loop(mlp_step), mlp_step, mlp),
    "normal": Kind(
        "MLP (Linear, tanh), normal weights",
        draw_chain,
        chain_loop(mlp_step),
        mlp_step,
        mlp,
        # Gradients are products of hundreds of ill-conditioned matrices.  Measured, L = 1024: the
        # error of our S = 1 is 0.5 to 7 times that of PyTorch's loop, with more segments up to 29.
        slack=10.0,
    ),
    "relu": Kind(
        "MLP (Linear, ReLU)",
        draw_chain,
        chain_loop(relu_step),
        relu_step,
        relu,
        kinks=True,
    ),
    "residual": Kind(
        "residual (SiLU, scale 1/32)",
        draw_chain,
        chain_loop(residual_step),
        residual_step,
        residual,
        matrices=2,
        skip=True,
    ),
    "prenorm": Kind(
        "pre-norm residual (SiLU)",
        draw_chain,
        chain_loop(prenorm_step),
        prenorm_step,
        prenorm,
        matrices=2,
        skip=True,
    ),
    "layers": Kind(
        f"blocks of {SUBLAYERS} (Linear, LayerNorm, SiLU), skip",
        draw_chain,
        chain_loop(layers_step),
        layers_step,
        layers,
        blocks,
        matrices=SUBLAYERS,
        skip=True,
    ),
    "dense": Kind("recurrence, dense blocks", draw_dense, dense_loop),
    "diagonal": Kind("recurrence, diagonal blocks", draw_diagonal, diagonal_loop),
}


def parse_size(text: str) -> tuple[str, int, int, int]:
    """KIND,LENGTH,WIDTH,BATCH of a command line."""
    try:
        kind, *numbers = text.split(",")
        length, width, batch = map(int, numbers)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be KIND,L,W,B, not {text!r}") from None
    if kind not in KINDS or min(length, width, batch) < 1:
        listed = ", ".join(KINDS)
        raise argparse.ArgumentTypeError(f"{text!r}: KIND is one of {listed}; L, W, B are >= 1")
    return kind, length, width, batch


@dataclass(frozen=True)
class Problem:
    """One pass of one kind at one size, float32."""

    kind: str
    length: int
    width: int
    batch: int
    run: str = FORWARD
    device: str = "cpu"

    def __str__(self) -> str:
        size = f"L={self.length}, w={self.width}, B={self.batch}"
        return f"{KINDS[self.kind].title}, {size}, {self.run}"

    @property
    def is_chain(self) -> bool:
        return KINDS[self.kind].step is not None

    @property
    def trains(self) -> bool:
        """Whether gradients are part of it."""
        return self.run != FORWARD

    @cached_property
    def leaves(self) -> tuple[Tensor, ...]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return tuple(t.to(self.device) for t in KINDS[self.kind].draw(self))

    @cached_property
    def gradient(self) -> Tensor:
        """Of the output."""
        seeded = torch.Generator().manual_seed(1)
        of_states = () if self.is_chain else (self.length,)
        shape = (*of_states, self.batch, self.width)
        return torch.randn(shape, generator=seeded).to(self.device)

    def module(self, **options: object) -> nn.Module:
        """A new stacked chain of this kind, on the CPU."""
        make = KINDS[self.kind].module
        assert make is not None, f"{self.kind} is no chain"
        return make(self.width, self.length, **options)

    @cached_property
    def chain(self) -> nn.Module:
        """The stacked chain with this problem's parameters, to be copied."""
        chain = self.module().to(self.device)
        with torch.no_grad():
            for parameter, value in zip(chain.parameters(), self.leaves[1:], strict=True):
                parameter.copy_(value)
        return chain

    def loaded(self, **options: object) -> nn.Module:
        """A new stacked chain with this problem's parameters, solved as the options say."""
        chain = copy.deepcopy(self.chain)
        chain.solver = replace(chain.solver, **options)
        return chain

    def in_pass(self, run: str) -> Problem:
        """Another pass over the very same numbers."""
        other = replace(self, run=run)
        shared = ("leaves", "gradient", "chain") if self.is_chain else ("leaves", "gradient")
        other.__dict__.update((name, getattr(self, name)) for name in shared)
        return other

    def part(self, everything: Sequence[Tensor]) -> list[Tensor]:
        """Of the output and all gradients what is the result of this pass."""
        parts = {FORWARD: slice(0, 1), BACKWARD: slice(1, None)}
        return list(everything[parts.get(self.run, slice(None))])

    def plain(self, dtype: torch.dtype) -> list[Tensor]:
        """The result by the plain loop in a given precision, as float64."""
        leaves = [t.to(dtype, copy=True).requires_grad_(self.trains) for t in self.leaves]
        with torch.set_grad_enabled(self.trains):
            output = KINDS[self.kind].loop(*leaves)
        gradients = (
            torch.autograd.grad(output, leaves, self.gradient.to(dtype)) if self.trains else ()
        )
        return self.part([t.detach().double() for t in (output, *gradients)])


def error(result: list[Tensor], truth: list[Tensor]) -> float:
    """The largest relative error over output and gradients, norm-wise for each step or sample (the
    first axis).  NaN is worse than any number; a result of another shape is no result."""
    if [t.shape for t in result] != [t.shape for t in truth]:
        return math.inf
    worst = 0.0
    for mine, right in zip(result, truth, strict=True):
        mine = mine.to(right.device, torch.float64)
        distance, size = (t.flatten(1).norm(dim=1) for t in (mine - right, right))
        ratio = distance / size.clamp(min=SMALLEST)
        worst = max(worst, ratio.nan_to_num(nan=math.inf).max().item())
    return worst
