# SPDX-License-Identifier: Apache-2.0
"""Reads modules that are applied one after another as steps of chains.

container -> leaves     nested nn.Sequentials opened
leaves    -> units      a step (with the modules that make it), or one module alone and why
units     -> parts      runs of steps that fit together, and what is between them
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import nn

from .. import _activations
from ..nn._block import ResidualBlock
from . import steps
from .stack import is_exactly, position
from .steps import Step

#: Fewer steps are not worth an operator.
SHORTEST = 2

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_DROPOUTS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_SINGLE = "one step alone is not worth an operator"

Describe = Callable[[Any], Step]
_described: dict[type[nn.Module], Describe] = {}


def register_block(cls: type[nn.Module], describe: Describe) -> None:
    """Makes modules of a class of yours steps of chains.

    Args:
        cls: the class itself; its subclasses are not meant.
        describe: describe(block) -> what the block computes in eval mode, by a function of
            `torch_deeppcr.steps`.  It must name parameters of the block, not copies.  It is checked
            when a block becomes part of a chain: the block's own forward is run once on random
            input and must give the same.  Registering a class again replaces what was said before.

    Raises:
        TypeError: ``cls`` is no class of modules, or describe cannot be called.
        ValueError: ``cls`` is understood without being described.
    """
    if not isinstance(cls, type) or not issubclass(cls, nn.Module):
        raise TypeError(f"cls must be a class of modules, got {cls!r}")
    if not callable(describe):
        raise TypeError(f"describe must be a function of a block, got {describe!r}")
    if cls in (nn.Sequential, nn.ModuleList, nn.Linear, ResidualBlock):
        raise ValueError(f"cls must be a class of yours: {cls.__name__} is understood as it is")
    _described[cls] = describe


class Leaf(NamedTuple):
    path: str
    module: nn.Module


@dataclass
class Unit:
    """A step and the modules that make it; without a step one module alone, and why."""

    leaves: list[Leaf]
    step: Step | None = None
    reason: str = ""
    described: bool = False  # by a function of the user
    traits: tuple[Any, ...] = ()

    @property
    def modules(self) -> list[nn.Module]:
        return [leaf.module for leaf in self.leaves]


@dataclass
class Part:
    """A run of steps that fit together, or one module that stays alone."""

    units: list[Unit] = field(default_factory=list)

    @property
    def is_run(self) -> bool:
        return len(self.units) >= SHORTEST and self.units[0].step is not None

    @property
    def span(self) -> str:
        """The leaves' names: "0" or "0-2047"."""
        first, last = self.units[0].leaves[0].path, self.units[-1].leaves[-1].path
        return first if first == last else f"{first}-{last}"


# ---- why a module is not what its class says ----------------------------------------------------


def touched(module: nn.Module) -> str:
    """Why calling the module does more, or other, than its class says; empty: it does not."""
    state = vars(module)
    if any(state[hooks] for hooks in _HOOKS):
        return "has hooks"
    if "forward" in state:
        return "its forward was replaced on the instance"
    return ""


def sharded(module: nn.Module) -> str:
    """Why a module that FSDP2 shards is not to be read; empty: it is not sharded."""
    if not (type(module).__name__.startswith("FSDP") and hasattr(module, "unshard")):
        return ""
    return (
        "it is sharded by itself (fully_shard), so that its parameters are there only while it "
        "runs: shard the whole model, fully_shard(net), after parallelize"
    )


def is_dropout(module: nn.Module) -> bool:
    """One that drops something, in training."""
    return isinstance(module, _DROPOUTS) and module.p > 0


def active_dropout(module: nn.Module) -> bool:
    return is_dropout(module) and module.training


# ---- container -> leaves ------------------------------------------------------------------------


def leaves(container: nn.Module, path: str = "") -> Iterator[Leaf]:
    """The modules of a Sequential or ModuleList in order, those of inner Sequentials in place."""
    for name, module in container._modules.items():
        if module is None:
            continue
        if type(module) is nn.Sequential and not touched(module):
            yield from leaves(module, f"{path}{name}.")
        else:
            yield Leaf(path + name, module)


# ---- leaves -> units ----------------------------------------------------------------------------


class Reader:
    """Turns leaves into units.

    training: whether active Dropouts count; without, the modules are read as in eval mode.
    accept: called with every unit that a user described; its ValueError is the reason to leave the
        unit alone, or (``strict``) goes to the caller, with the path.
    """

    def __init__(
        self, where: str, training: bool, strict: bool, accept: Callable[[Unit], None]
    ) -> None:
        self.where, self.training, self.strict, self.accept = where, training, strict, accept

    def read(self, container: nn.Module) -> list[Part]:
        todo = list(leaves(container))
        units: list[Unit] = []
        index = 0
        while index < len(todo):
            unit = self._unit(todo, index)
            index += len(unit.leaves)
            while unit.step is not None and index < len(todo) and self._skipped(todo[index].module):
                unit.leaves.append(todo[index])
                index += 1
            units.append(unit)
        return _parts(units)

    def _skipped(self, module: nn.Module) -> bool:
        """Identity, and Dropout that does nothing."""
        if type(module) is nn.Identity:
            return not touched(module)
        return type(module) in _DROPOUTS and not touched(module) and not self._drops(module)

    def _drops(self, module: nn.Module) -> bool:
        return self.training and active_dropout(module)

    def _unit(self, todo: list[Leaf], index: int) -> Unit:
        leaf = todo[index]
        module = leaf.module
        reason = sharded(module) or touched(module)
        if reason:
            return Unit([leaf], reason=reason)
        if is_exactly(module, nn.Linear):
            return self._linear(todo, index)
        if type(module) is ResidualBlock or type(module) in _described:
            return self._block(leaf)
        return Unit([leaf], reason=self._strange(module))

    def _linear(self, todo: list[Leaf], index: int) -> Unit:
        """Linear, perhaps a norm, perhaps an activation; what does nothing may lie between them."""
        linear: Any = todo[index].module
        if linear.in_features != linear.out_features:
            sizes = f"{linear.in_features} -> {linear.out_features}"
            return Unit([todo[index]], reason=f"maps {sizes}: a step keeps the width")
        taken, norm, activation, end = 1, None, None, index + 1
        while activation is None and end < len(todo):
            module: Any = todo[end].module
            end += 1
            if self._skipped(module):
                taken = end - index
            elif norm is None and _is_norm(module, linear.out_features):
                norm, taken = module, end - index
            elif type(module) in _activations.NAME_OF_MODULE and not touched(module):
                activation, taken = module, end - index
            else:
                break
        unit = Unit(todo[index : index + taken])
        try:
            unit.step = steps.mlp(linear, activation or "identity", norm)
        except ValueError as error:
            return Unit(todo[index : index + 1], reason=str(error))
        return unit

    def _block(self, leaf: Leaf) -> Unit:
        block: Any = leaf.module
        unit = Unit([leaf], described=type(block) in _described)
        inner = [module for module in block.modules() if module is not block]
        reasons = (reason for reason in map(touched, inner) if reason)
        unit.reason = next(reasons, "")
        if any(map(self._drops, inner)):
            unit.reason = "drops at random in training"
        if unit.reason:
            return unit
        try:
            step = _described[type(block)](block) if unit.described else _residual(block)
            if not isinstance(step, Step):
                raise TypeError(f"must return a step of torch_deeppcr.steps, got {step!r}")
            unit.step = steps.locate(step, block)
            if unit.described:
                self.accept(unit)
        except Exception as error:  # describe is the user's code
            if self.strict and unit.described:
                kind = error if isinstance(error, TypeError) else ValueError()
                raise type(kind)(
                    f"{self.where}{leaf.path}: describe of {type(block).__name__}: {error}"
                ) from error
            unit.step, unit.reason = None, str(error)
        return unit

    def _strange(self, module: nn.Module) -> str:
        name = type(module).__name__
        for known in (nn.Linear, nn.Sequential, ResidualBlock, *_described):
            if isinstance(module, known):
                return f"{name} is a subclass of {known.__name__}: only exact classes are steps"
        if self._drops(module):
            return "drops at random in training"
        return f"{name} is no step; torch_deeppcr.register_block can say that it is"


def _is_norm(module: Any, width: int) -> bool:
    norms = is_exactly(module, nn.LayerNorm) or is_exactly(module, nn.RMSNorm)
    return norms and tuple(module.normalized_shape) == (width,) and not touched(module)


def _residual(block: ResidualBlock) -> Step:
    return steps.residual(block.linear1, block.linear2, block.activation, block.norm, block.scale)


# ---- units -> parts -----------------------------------------------------------------------------


def _parts(units: list[Unit]) -> list[Part]:
    parts: list[Part] = []
    for unit in units:
        if unit.step is not None:
            unit.traits = unit.step.traits()
        if not (parts and _follows(parts[-1].units[-1], unit)):
            parts.append(Part())
        parts[-1].units.append(unit)
    for part in parts:
        if not part.is_run and part.units[0].step is not None:
            part.units[0].reason = _SINGLE
    return parts


def _follows(last: Unit, unit: Unit) -> bool:
    """Whether a unit can be the next step of a chain."""
    if last.step is None or unit.step is None or last.traits != unit.traits:
        return False
    for before, after in zip(last.step.slots(), unit.step.slots(), strict=True):
        here, there = position(before.owner, before.name), position(after.owner, after.name)
        if (here is None) != (there is None):
            return False
        if here is None or there is None:
            continue
        sublayers = len(unit.step.slots()) // len([row for row in unit.step.rows if row])
        if here[0] is not there[0] or here[1] != there[1] or there[2] - here[2] != sublayers:
            return False
    return True
