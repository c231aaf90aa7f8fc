# SPDX-License-Identifier: Apache-2.0
"""`report`: what `parallelize` made of a model, and what it left alone and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from .._plan import solver_of
from .containers import Parallel
from .reading import Leaf, Part, Reader, sharded
from .replace import references, why_not_stacked
from .stack import position, stack_of
from .verify import Verifier


class ChainReport(NamedTuple):
    """One chain.

    path: of the modules that make it, "trunk.0-2047".  length: L.  width: w.  kind: of the steps.
    stacked: whether it has a few stacked Parameters.  note: why not, where it cannot.
    """

    path: str
    kind: str
    length: int
    width: int
    stacked: bool
    note: str


class Left(NamedTuple):
    """A module that is called by itself: its path, class, and the reason."""

    path: str
    type: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What `parallelize` made of a model; ``print(report)`` shows it."""

    chains: tuple[ChainReport, ...]
    left: tuple[Left, ...]

    def __str__(self) -> str:
        lines = [
            f"{c.path}: a chain of {c.length} steps, kind {c.kind}, width {c.width}, parameters "
            + ("stacked" if c.stacked else "per layer")
            + (f" ({c.note})" if c.note else "")
            for c in self.chains
        ]
        if not lines:
            lines = ["nothing is replaced"]
        groups: dict[tuple[str, str], list[str]] = {}
        for module in self.left:
            groups.setdefault((module.type, module.reason), []).append(module.path or "(the model)")
        if groups:
            lines.append("left alone:")
        for (kind, reason), paths in groups.items():
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            lines.append(f"  {', '.join(paths[:3])}{more} ({kind}): {reason}")
        return "\n".join(lines)


def report(net: nn.Module) -> Report:
    """What is a chain in a model now, and every other module with parameters, and why it is not.

    Args:
        net: any module, whether or not it was given to `parallelize`.

    Raises:
        TypeError: ``net`` is no module.
    """
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")
    collected = _Collector(net)
    collected.visit(net, "")
    return Report(tuple(collected.chains), tuple(collected.left))


class _Collector:
    def __init__(self, net: nn.Module) -> None:
        self.chains: list[ChainReport] = []
        self.left: list[Left] = []
        self.references = references(net)

    def visit(self, module: nn.Module, path: str) -> None:
        if isinstance(module, Parallel):
            module._current()
            asked = solver_of(module._options).segments != "auto"
            self._parts(module._read(), path, parallel=True, asked=asked)
        elif type(module) is nn.Sequential:
            reader = Reader(path, training=False, strict=False, accept=Verifier().check)
            self._parts(reader.read(module), path, parallel=False)
        else:
            if any(parameter is not None for parameter in module._parameters.values()):
                self._leave(module, path, sharded(module) or "it is not inside an nn.Sequential")
            elif isinstance(module, nn.Sequential):
                name = type(module).__name__
                reason = sharded(module) or f"{name} is a subclass of Sequential: it may do more"
                self._leave(module, path, reason)
            elif isinstance(module, nn.ModuleList) and len(module):
                self._leave(module, path, "a ModuleList, which is not named by chain=")
            for name, child in module.named_children():
                self.visit(child, f"{path}{name}.")

    def _parts(self, parts: list[Part], path: str, parallel: bool, asked: bool = False) -> None:
        for part in parts:
            step = part.units[0].step
            if part.is_run and parallel and step is not None:
                stacked = all(position(slot.owner, slot.name) for slot in step.slots())
                note = "" if stacked else why_not_stacked(part, self.references, asked)
                self.chains.append(
                    ChainReport(
                        path + part.span, step.kind.name, len(part.units), step.width, stacked, note
                    )
                )
                continue
            for unit in part.units:
                self._alone(unit.leaves, path, unit.reason or "parallelize was not called")

    def _alone(self, leaves: list[Leaf], path: str, reason: str) -> None:
        for leaf in leaves:
            if any(stack_of(m) or any(True for _ in m.parameters()) for m in leaf.module.modules()):
                self._leave(leaf.module, f"{path}{leaf.path}", reason)
            for name, inner in leaf.module.named_modules():
                if isinstance(inner, Parallel):
                    self.visit(inner, f"{path}{leaf.path}.{name}.")

    def _leave(self, module: nn.Module, path: str, reason: str) -> None:
        self.left.append(Left(path.removesuffix("."), type(module).__name__, reason))
