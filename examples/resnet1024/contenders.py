# SPDX-License-Identifier: Apache-2.0
"""Who takes part: one small class each, and the registry at the end.

Every contender trains the same network,

    stem   Linear(pixels, width)
    chain  `depth` residual blocks  z + scale * (W2 act(W1 norm(z) + b1) + b2)
    head   Linear(width, classes)

from the same initial parameters (drawn in this order from one seed; a stacked chain draws what its
blocks would) on the same minibatches.  They differ in how the chain runs.  To add one, write a
class and put it into CONTENDERS: the command line, the table and the plot read the registry.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from options import Options
from torch import nn
from torch.func import functional_call
from watched import Watched

import torch_deeppcr as dpcr


class Contender:
    """The same for all: the network, and by default the whole training on unchanged minibatches."""

    name: str
    title: str
    compiles = False
    """Whether the time of its first pass is worth a column."""
    optional = False
    """Whether a machine may lack what it needs (a C++ compiler) without failing the demo."""

    def depth(self, options: Options) -> int:
        return options.depth

    def last_step(self, options: Options, total: int) -> int:
        """Where it stops; the slow ones earlier than the schedule's end."""
        return total

    def chain(self, options: Options) -> nn.Module:
        raise NotImplementedError

    def build(self, options: Options, features: int, classes: int) -> nn.Sequential:
        """The network on the CPU.  The global seed is set here: same seed, same parameters."""
        torch.manual_seed(options.seed)
        parts = OrderedDict()
        parts["stem"] = nn.Linear(features, options.width)
        parts["chain"] = self.chain(options)
        parts["head"] = nn.Linear(options.width, classes)
        return nn.Sequential(parts)

    def minibatch(self, index: torch.Tensor, step: int) -> torch.Tensor:
        """The indices of a step's minibatch, if it wants them otherwise than they come."""
        return index

    def training(self) -> AbstractContextManager[object]:
        """Around the training steps that follow the first pass."""
        return nullcontext()

    def evaluation(self) -> AbstractContextManager[object]:
        """Around a pass over the test images."""
        return nullcontext()

    def block_options(self, options: Options) -> dict[str, object]:
        return {
            "hidden": options.hidden_width,
            "activation": options.activation,
            "norm": None if options.norm == "none" else options.norm,
            "scale": options.branch_scale(self.depth(options)),
        }


class PyTorch(Contender):
    """What everybody writes: nn.Sequential of residual blocks."""

    name = "pytorch"
    title = "PyTorch's loop"

    def last_step(self, options: Options, total: int) -> int:
        return min(total, options.slow_steps)

    def chain(self, options: Options) -> nn.Module:
        blocks = range(self.depth(options))
        kind = self.block_options(options)
        return nn.Sequential(*(dpcr.nn.ResidualBlock(options.width, **kind) for _ in blocks))


class Reordered(PyTorch):
    """PyTorch's loop with all sums in another order: the yardstick for the gap of two curves.

    The units of the state and the hidden units are renumbered in all parameters, and the images
    inside each minibatch are shuffled.  In exact arithmetic the losses would be equal.
    """

    name = "reordered"
    title = "PyTorch's loop, sums in another order"
    share = 0.4

    def last_step(self, options: Options, total: int) -> int:
        """A gap needs no whole training, and this costs as much as PyTorch's loop."""
        return max(1, round(self.share * super().last_step(options, total)))

    def build(self, options: Options, features: int, classes: int) -> nn.Sequential:
        net = super().build(options, features, classes)
        renumber = torch.Generator().manual_seed(options.seed)
        state = torch.randperm(options.width, generator=renumber)
        hidden = torch.randperm(options.hidden_width, generator=renumber)
        with torch.no_grad():
            reindex(net.stem, rows=state)
            for block in net.chain:
                if block.norm is not None:
                    for parameter in block.norm.parameters():
                        parameter.copy_(parameter[state])
                reindex(block.linear1, rows=hidden, columns=state)
                reindex(block.linear2, rows=state, columns=hidden)
            reindex(net.head, columns=state)
        return net

    def minibatch(self, index: torch.Tensor, step: int) -> torch.Tensor:
        shuffle = torch.Generator().manual_seed(step)
        return index[torch.randperm(len(index), generator=shuffle)]


def reindex(
    linear: nn.Linear, rows: torch.Tensor | None = None, columns: torch.Tensor | None = None
) -> None:
    """The same layer with its outputs (rows) and inputs (columns) renumbered, in place."""
    if rows is not None:
        linear.weight.copy_(linear.weight[rows])
        linear.bias.copy_(linear.bias[rows])
    if columns is not None:
        linear.weight.copy_(linear.weight[:, columns])


class DeepPCR(Contender):
    """The whole chain as one operator, in one segment: its loop, fused."""

    name = "deeppcr"
    title = "deeppcr"

    def solver(self, options: Options) -> dict[str, object]:
        return {"segments": 1}

    def chain(self, options: Options) -> nn.Module:
        kind = self.block_options(options) | self.solver(options)
        return dpcr.nn.ResidualChain(options.width, self.depth(options), **kind)


class Parallelized(PyTorch):
    """PyTorch's script with one line more."""

    name = "parallelized"
    title = "PyTorch's loop + dpcr.parallelize(net, stack=True)"

    def last_step(self, options: Options, total: int) -> int:
        return total

    def build(self, options: Options, features: int, classes: int) -> nn.Sequential:
        return dpcr.parallelize(super().build(options, features, classes), stack=True)


class Auto(DeepPCR):
    """deeppcr as it is without options: it plans the number of segments itself."""

    name = "auto"
    title = "deeppcr, segments=auto"

    def solver(self, options: Options) -> dict[str, object]:
        return {"segments": "auto"}

    def chain(self, options: Options) -> nn.Module:
        size, kind = (options.width, self.depth(options)), self.block_options(options)
        walking = dpcr.nn.ResidualChain(*size, **kind, segments=1, device="meta")
        return Watched(*size, **kind, **self.solver(options)).walked_by(walking)


class Paper(Auto):
    """DeepPCR as published: every block a segment, all tangents at every sweep.

    A step takes a hundred times the arithmetic of the loop, so it makes only the first steps.
    """

    name = "paper"
    title = "deeppcr, the paper's method"
    share = 0.1

    def solver(self, options: Options) -> dict[str, object]:
        return {"segments": self.depth(options), "jacobian": "dense", "refresh": "always"}

    def last_step(self, options: Options, total: int) -> int:
        return max(1, round(self.share * min(total, options.slow_steps)))


class Compiled(DeepPCR):
    """PyTorch's best loop: torch.compile on a group of 16 blocks, one graph for all groups.

    The parameters are stacked as in deeppcr, so its optimiser is as fast; a group gets its slices
    of them as arguments.  A depth that 16 does not divide takes a second graph for the blocks that
    remain.
    """

    name = "compiled"
    title = "PyTorch's best loop (16 blocks compiled, reused)"
    compiles = True
    optional = True

    def chain(self, options: Options) -> nn.Module:
        stacked = super().chain(options)
        block = dpcr.nn.ResidualBlock(options.width, **self.block_options(options), device="meta")
        return CompiledGroups(stacked, block)

    def training(self) -> AbstractContextManager[object]:
        """A recompilation after the first pass is an error."""
        return torch.compiler.set_stance("fail_on_recompile")

    def evaluation(self) -> AbstractContextManager[object]:
        """Test batches are of another size: not worth a graph."""
        return torch.compiler.set_stance("force_eager")


# Stacked parameter of a chain -> the name that a block has for it.
IN_A_BLOCK = {
    "weight1": "linear1.weight",
    "bias1": "linear1.bias",
    "weight2": "linear2.weight",
    "bias2": "linear2.bias",
    "norm_weight": "norm.weight",
    "norm_bias": "norm.bias",
}


class CompiledGroups(nn.Module):
    """Runs the stacked parameters of a residual chain in compiled groups of `size` blocks.

    `block`, a residual block of the same kind, is only the program: its parameters are never read.
    """

    def __init__(self, chain: nn.Module, block: nn.Module, size: int = 16) -> None:
        super().__init__()
        self.parameters_of_blocks = nn.ParameterDict(chain.named_parameters())
        self.block = [block]  # in a list: not a submodule, so not trained and not saved
        self.size = size
        # The C++ wrapper takes a quarter less time per step than the default one in Python.  The
        # other two belong to an honest compile time: two graphs gain nothing from more compiler
        # threads, and headers that are compiled once would be there only from the second run on.
        best = {"cpp_wrapper": True, "compile_threads": 1, "cpp_cache_precompile_headers": False}
        self.group = torch.compile(self.blocks, fullgraph=True, dynamic=False, options=best)

    def groups(self) -> Iterator[tuple[torch.Tensor, ...]]:
        """Slices (size, ...) of the stacked parameters, group by group."""
        split = [p.split(self.size) for p in self.parameters_of_blocks.values()]
        return zip(*split, strict=True)

    def blocks(self, z: torch.Tensor, stacked: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """z (B,w) through as many blocks as `stacked` holds."""
        block, names = self.block[0], [IN_A_BLOCK[n] for n in self.parameters_of_blocks]
        for parameters in zip(*(p.unbind() for p in stacked), strict=True):
            z = functional_call(block, dict(zip(names, parameters, strict=True)), z)
        return z

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        for stacked in self.groups():
            z = self.group(z, stacked)
        return z


class Shallow(DeepPCR):
    """Two blocks of the same width, to say what the other 1022 are good for."""

    name = "shallow"
    title = "deeppcr, 2 blocks only"

    def depth(self, options: Options) -> int:
        return 2


# In the order of the table.
CONTENDERS: dict[str, Contender] = {
    c.name: c
    for c in (
        PyTorch(),
        Reordered(),
        Compiled(),
        DeepPCR(),
        Parallelized(),
        Auto(),
        Paper(),
        Shallow(),
    )
}


def chosen(options: Options) -> list[Contender]:
    """The contenders that the options name, in the order of the registry."""
    everybody = "all" in options.method
    return [c for c in CONTENDERS.values() if everybody or c.name in options.method]
