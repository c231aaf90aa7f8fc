# SPDX-License-Identifier: Apache-2.0
"""`ParallelSequential` and `ParallelModuleList`: containers whose runs of steps are chains.

They hold the very modules that the plain containers held, under the same names.  What they add is a
*program*: the modules in order, with every run of steps replaced by a `Chain`.  It is made when the
container is, and made anew when a `Guard` says that a module has changed.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import _checks
from .._plan import SolverOptions, solver_of
from .._planner import Planner
from .._switch import sequential_wanted
from .chain import Chain, unbound
from .guard import Guard, global_hooks
from .reading import Part, Reader, leaves
from .stack import Stack, enter, leave
from .verify import Verifier

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Program:
    """What a container runs: chains and single modules, in order."""

    def __init__(self, container: Parallel, where: str, parts: list[Part]) -> None:
        solver = solver_of(container._options)
        self.parts = parts
        self.items: list[Callable[[Any], Any]] = []
        for part in parts:
            if part.is_run:
                self.items.append(Chain(part, where, _clamp(solver, part), container._planner))
            else:
                self.items.extend(part.units[0].modules)
        opened = [module for module in container.modules() if type(module) is nn.Sequential]
        self.guard = Guard([container, *opened], [*_watched(parts), *opened])

    @property
    def chains(self) -> list[Chain]:
        return [item for item in self.items if isinstance(item, Chain)]


class Parallel(nn.Module):
    """What both containers share; a mixin before `nn.Sequential` or `nn.ModuleList`."""

    _options: SolverOptions
    _where: str  # path in the model, for messages
    _planner: Planner
    _stacks: list[Stack]
    _stacked: dict[str, Stack]  # own Parameter -> its stack
    _program: Program | None
    _verifier: Verifier

    # ---- the program ----------------------------------------------------------------------------

    def _read(self, training: bool = True, strict: bool = False) -> list[Part]:
        return Reader(self._where, training, strict, self._verifier.check).read(self)

    def _refresh(self, parts: list[Part] | None = None) -> Program:
        """parts: what `_read` gives, where it is known."""
        program = self._program = Program(self, self._where, parts or self._read())
        return program

    def _current(self) -> Program:
        program = self._program
        if program is not None and (torch.compiler.is_compiling() or program.guard.holds()):
            return program
        hooked = 0 if program is None else len(program.guard.touched)
        program = self._refresh()
        if len(program.guard.touched) > hooked:
            module, reason = program.guard.touched[-1]
            warnings.warn(
                f"{type(module).__name__} in {self._where or 'the model'!r} {reason}: it is called "
                "by itself again, and no longer is part of a chain (torch_deeppcr.report)",
                RuntimeWarning,
                stacklevel=4,
            )
        return program

    def _run(self, input: Any) -> Any:
        if sequential_wanted() or (not torch.compiler.is_compiling() and global_hooks()):
            with unbound(set(self._stacks)):
                for module in self._modules.values():
                    input = module(input)  # type: ignore[misc]
            return input
        for item in self._current().items:
            input = item(input)
        return input

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self._current()  # Dropouts came or went; torch.compile cannot read modules
        return self

    def extra_repr(self) -> str:
        program = self._program or self._refresh()
        stacked = {True: ", stacked", False: ""}
        return "".join(
            f"# {c.path}: {c.length} steps of kind {c.step.kind.name}, width {c.width}"
            f"{stacked[c.stacked]}\n"
            for c in program.chains
        ).rstrip()

    # ---- copies ---------------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_program": None, "_verifier": Verifier()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # A stacked layer that is pickled alone brings its home along, and is not complete yet.
        if all("_modules" in vars(leaf.module) for leaf in leaves(self)):
            self._refresh()

    # ---- stacked Parameters ---------------------------------------------------------------------

    def _stack_part(self, part: Part) -> None:
        """Replaces the parameters of a run by a few that hold all of them."""
        steps = [unit.step for unit in part.units if unit.step is not None]
        names: dict[str, str] = {}
        stack = Stack(self, names)
        for index, column in enumerate(steps[0].kind.shapes):
            if steps[0].rows[index] is None:
                continue
            slots = [slot for step in steps for slot in step.rows[index] or ()]
            tensors = [slot.read() for slot in slots]
            names[column] = f"stack{len(self._stacks)}_{column}"
            with torch.no_grad():
                stacked = nn.Parameter(torch.stack(tensors), tensors[0].requires_grad)
            gradients = [tensor.grad for tensor in tensors]
            if any(gradient is not None for gradient in gradients):
                pairs = zip(gradients, tensors, strict=True)
                stacked.grad = torch.stack(
                    [torch.zeros_like(t) if g is None else g for g, t in pairs]
                )
            self._parameters[names[column]] = stacked
            self._stacked[names[column]] = stack
            for row, slot in enumerate(slots):
                assert slot.owner is not None
                enter(slot.owner, slot.name, stack, column, row)
        self._stacks.append(stack)

    def _unstack(self) -> None:
        for module in list(self.modules()):
            leave(module)
        for name in self._stacked:
            del self._parameters[name]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        with _without(self, self._stacked):
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(self, *arguments: Any) -> None:
        with _without(self, self._stacked):
            super()._load_from_state_dict(*arguments)


class _without:  # a context manager that reads as a word
    """A module without some of its own Parameters: the layers save and load those."""

    def __init__(self, module: nn.Module, names: dict[str, Stack]) -> None:
        self.module, self.names, self.all = module, names, module._parameters

    def __enter__(self) -> None:
        kept = {name: value for name, value in self.all.items() if name not in self.names}
        self.module.__dict__["_parameters"] = kept

    def __exit__(self, *_: object) -> None:
        self.module.__dict__["_parameters"] = self.all


def _finish_load(module: nn.Module, _: object) -> None:
    for stack in module._stacks:  # type: ignore[union-attr]
        stack.finish_load()


def _clamp(solver: Any, part: Part) -> Any:
    """A run that a hook has cut in two is shorter than what `parallelize` checked."""
    if solver.segments == "auto" or solver.segments <= len(part.units):
        return solver
    return replace(solver, segments=len(part.units))


def _watched(parts: list[Part]) -> list[nn.Module]:
    """Leaves, and what is inside of blocks that are steps."""
    modules: list[nn.Module] = []
    for part in parts:
        for unit in part.units:
            if unit.step is None:
                modules.extend(unit.modules)
            else:
                modules.extend(inner for module in unit.modules for inner in module.modules())
    return modules


# ---- plain container <-> parallel one -----------------------------------------------------------


def convert(container: Any, where: str, options: SolverOptions) -> None:
    """Makes a plain container a parallel one, in place."""
    container.__class__ = {v: k for k, v in PLAIN.items()}[type(container)]
    state = container.__dict__
    state.update(_options=options, _where=where, _planner=Planner(), _program=None)
    state.update(_stacks=[], _stacked={}, _verifier=Verifier())


def restore(container: Parallel) -> None:
    """Makes it a plain one again."""
    container._unstack()
    for name in Parallel.__annotations__:
        vars(container).pop(name, None)
    vars(container).pop("_armed", None)
    hooks = container._load_state_dict_post_hooks
    for key in [key for key, hook in hooks.items() if hook is _finish_load]:
        del hooks[key]
    container.__class__ = PLAIN[type(container)]


def stack_parts(container: Parallel, parts: list[Part]) -> None:
    if not container._stacks:
        container.register_load_state_dict_post_hook(_finish_load)
    for part in parts:
        container._stack_part(part)


class ParallelSequential(Parallel, nn.Sequential):
    """An `nn.Sequential` whose runs of equal steps are chains.

    `torch_deeppcr.parallelize` makes one of an `nn.Sequential`; it can also be built like one.

    Args:
        *modules: as of `nn.Sequential`.
        stack: whether the parameters of each chain are stacked (`torch_deeppcr.parallelize`).
        **solver: how chains are solved, as in `torch_deeppcr.mlp_chain`.

    Indexing, slicing, iteration, ``len``, ``append``, ``state_dict`` and the rest are those of
    `nn.Sequential`; a module that is replaced, or gets a hook, is called by itself from then on.
    """

    def __init__(self, *modules: Any, stack: bool = False, **solver: Unpack[SolverOptions]) -> None:
        from .replace import make_parallel

        solver_of(solver)
        super().__init__(*modules)
        self.__class__ = nn.Sequential  # type: ignore[assignment]
        convert(self, "", solver)
        make_parallel(self, self, _checks.flag("stack", stack))

    def forward(self, input: Any) -> Any:
        """What `nn.Sequential` computes."""
        return self._run(input)

    def __getitem__(self, index: Any) -> Any:
        if not isinstance(index, slice):
            return super().__getitem__(index)
        part = nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        convert(part, self._where, self._options)
        return part


class ParallelModuleList(Parallel, nn.ModuleList):
    """An `nn.ModuleList` whose owner applies its blocks one after another, as chains.

    `torch_deeppcr.parallelize` makes one of a list that is named by ``chain=``.  While the owner's
    forward runs, ``for block in self.blocks: x = block(x)`` meets one callable that runs all of
    them; everywhere else iterating, indexing and ``len`` see the blocks.
    """

    _armed: bool = False

    def __iter__(self) -> Iterator[Any]:
        if self._armed and not sequential_wanted():
            return iter((self._run,))
        return super().__iter__()


PLAIN: dict[type, Any] = {
    ParallelSequential: nn.Sequential,
    ParallelModuleList: nn.ModuleList,
}
