# SPDX-License-Identifier: Apache-2.0
"""One run of steps as it is called: parameters read live, then the operator or the modules' loop.

Nothing is kept from call to call but where the parameters are: whatever an optimiser, FSDP,
``functional_call`` or ``p.data.add_()`` did to them is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

from .. import _chain, _native, _planner
from .._plan import Solver
from .._planner import Planner
from .._solve import Call
from .._transforms import autocast_enabled, forward_ad_active, func_active
from .reading import Part
from .stack import Stack, position
from .steps import RUN, Slot, shape_column


class Column:
    """One parameter of all steps: L of them, or L M where a step has M sublayers."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self.name = slots[0].name
        self.names = [slot.name for slot in slots]
        self.owners = [slot.owner for slot in slots]
        self.uniform = len(set(self.names)) == 1
        place = position(slots[0].owner, slots[0].name)
        self.stack: Stack | None = None
        if place is not None:
            self.stack, self.stacked_as, self.first = place

    def parameters(self) -> list[Tensor]:
        """Those of per-layer modules."""
        if self.uniform:
            name = self.name
            return [owner._parameters[name] for owner in self.owners]  # type: ignore[union-attr, misc]
        pairs = zip(self.owners, self.names, strict=True)
        return [owner._parameters[name] for owner, name in pairs]  # type: ignore[union-attr, misc]

    def read_stacked(self) -> Tensor:
        assert self.stack is not None
        whole = self.stack.whole(self.stacked_as)
        if len(self.owners) == len(whole):
            return whole
        return whole[self.first : self.first + len(self.owners)]


class Chain:
    """A run of L equal steps inside a container."""

    def __init__(self, part: Part, where: str, solver: Solver, planner: Planner) -> None:
        first = part.units[0].step
        assert first is not None
        self.step, self.path, self.length = first, where + part.span, len(part.units)
        self.modules = [module for unit in part.units for module in unit.modules]
        self.width, self.elements = first.width, first.elements
        self.solver, self.planner = solver, planner
        steps = [unit.step for unit in part.units]
        self.columns = [
            None if row is None else Column([s for step in steps for s in step.rows[index]])  # type: ignore[union-attr]
            for index, row in enumerate(first.rows)
        ]
        self.stacks = {column.stack for column in self.columns if column and column.stack}

    @property
    def stacked(self) -> bool:
        return bool(self.stacks)

    def __call__(self, input: Tensor) -> Tensor:
        if not self._fits(input):
            return self.loop(input)
        read = self._read(input)
        if read is None:
            return self.loop(input)
        parameters, frozen = read
        call = Call(False, None, False, self.solver, self.planner, frozen)
        try:
            return RUN[self.step.kind.name](call, input, parameters, *self.step.options)
        except _native.Unsupported:  # by the kernels of the device
            return self.loop(input)

    def loop(self, input: Tensor) -> Tensor:
        """The modules one after another, as the container would call them."""
        with unbound(self.stacks):
            for module in self.modules:
                input = module(input)
        return input

    def _fits(self, input: object) -> bool:
        """Whether the operator takes the input; what it does not take gets PyTorch's own answer."""
        if not isinstance(input, Tensor) or input.dim() == 0 or input.shape[-1] != self.width:
            return False
        if input.layout is not torch.strided or input.is_nested or hasattr(input, "device_mesh"):
            return False
        if _chain.native(input):
            return True
        return autocast_enabled(input) and input.device.type not in _native.missing

    def _read(self, input: Tensor) -> tuple[tuple[Tensor | None, ...], tuple[bool, ...]] | None:
        """Parameters and frozen steps; None where the loop is right, or is faster."""
        whole = [
            column.read_stacked() if column and column.stack else None for column in self.columns
        ]
        own = [c.parameters() if c and not c.stack else [] for c in self.columns]
        training = torch.is_grad_enabled() and (
            input.requires_grad
            or any(tensor is not None and tensor.requires_grad for tensor in whole)
            or any(parameter.requires_grad for parameters in own for parameter in parameters)
        )
        if not self._pays(input, training):
            return None
        autocast = autocast_enabled(input)
        read: list[Tensor | None] = []
        for index, (stacked, parameters) in enumerate(zip(whole, own, strict=True)):
            if self.columns[index] is None:
                read.append(None)
                continue
            if parameters:
                if not autocast and {p.dtype for p in parameters} != {input.dtype}:
                    return None  # not torch.stack's promotion, but the loop's error
                stacked = _stack(parameters)
            if stacked is None or hasattr(stacked, "device_mesh") or stacked.device != input.device:
                return None
            read.append(shape_column(self.step, index, stacked))
        frozen = self._frozen([parameters for parameters in own if parameters]) if training else ()
        return tuple(read), frozen

    def _pays(self, input: Tensor, training: bool) -> bool:
        """Always where segments are given, and in graphs: the loop takes minutes to compile."""
        if self.solver.segments != "auto" or torch.compiler.is_compiling():
            return True
        batch = input.numel() // max(self.width, 1)
        work = (self.length, self.elements, batch)
        return _planner.native_pays(*work, training, self.stacked, input.is_cuda)

    def _frozen(self, columns: list[list[Tensor]]) -> tuple[bool, ...]:
        """Steps none of whose parameters wants a gradient; empty where there are none, or all."""
        if not columns or func_active() or forward_ad_active():
            return ()
        wanted = [False] * self.length
        for parameters in columns:
            each = len(parameters) // self.length
            wants = [parameter.requires_grad for parameter in parameters]
            for sublayer in range(each):
                pairs = zip(wanted, wants[sublayer::each], strict=True)
                wanted = [before or wants_too for before, wants_too in pairs]
            if all(wanted):
                return ()
        return tuple(not want for want in wanted) if any(wanted) else ()


def _stack(parameters: list[Tensor]) -> Tensor | None:
    """torch.stack; None where shapes or devices have come to differ."""
    if torch.compiler.is_compiling():
        return torch.stack(parameters)
    try:
        return torch.stack(parameters)
    except RuntimeError:
        return None


@contextmanager
def unbound(stacks: set[Stack]) -> Iterator[None]:
    with ExitStack() as exits:
        for stack in stacks:
            exits.enter_context(stack.unbound())
        yield
