# SPDX-License-Identifier: Apache-2.0
"""`parallelize` and `unparallelize`: plain containers into parallel ones, in place, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from .. import _checks
from .._plan import Solver, SolverOptions, solver_of
from .._planner import WIDEST_STACKED
from .applied import NotInOrder, check_iteration, check_order
from .containers import Parallel, ParallelModuleList, convert, restore, stack_parts
from .reading import Part, active_dropout, is_dropout, touched
from .stack import can_stack
from .steps import Slot

if TYPE_CHECKING:
    from typing_extensions import Unpack

Module = TypeVar("Module", bound=nn.Module)


def parallelize(
    net: Module,
    stack: bool = False,
    *,
    chain: str | Sequence[str] | None = None,
    example_inputs: tuple[Any, ...] | None = None,
    **solver: Unpack[SolverOptions],
) -> Module:
    """Runs the chains inside a model as operators, in place.

    Every run of equal steps inside any `nn.Sequential`, however nested, becomes a chain:
    `nn.Linear` of equal width with an activation or none, perhaps an `nn.LayerNorm` or `nn.RMSNorm`
    between them; `torch_deeppcr.nn.ResidualBlock`; your blocks (`torch_deeppcr.register_block`).
    `nn.Identity`, and `nn.Dropout` in eval mode, are skipped.  Only exact classes count: what is
    quantised, parametrised, has hooks or a forward of its own stays as it is.  Where steps differ a
    chain ends and another begins.  `torch_deeppcr.report` tells what became of everything.

    Modules, Parameters, ``state_dict`` keys, hooks, train and eval stay what they were.  The loop
    still runs, by itself, wherever it is the right or the faster way: other devices and dtypes,
    active Dropout, steps too few or too wide.

    Args:
        net: any module.
        stack: whether the parameters of every chain become a few stacked Parameters, before an
            optimiser is built: autograd and optimisers then handle those alone, which is most of
            the time of a training step.  ``parameters()`` changes, ``state_dict`` does not.  Layers
            wider than 181 (w h > 2^15) are stacked only if they are frozen, or if ``segments`` is
            given: training is faster without.
        chain: path of an `nn.ModuleList` (or several) whose owner applies its blocks one after
            another, ``for block in self.blocks: x = block(x)``.  That is checked, by `torch.fx`
            where it can read the owner's forward, and its blocks must all be equal steps.
        example_inputs: inputs of the owner's forward, for one run of it where `torch.fx` cannot.
        **solver: how chains are solved, as in `torch_deeppcr.mlp_chain`.

    Returns:
        ``net`` itself.  What was parallel before is read again, with the new options.

    Raises:
        TypeError: ``net`` is no module, ``chain`` names no ModuleList, an unknown option.
        ValueError: a path in ``chain`` does not exist, its blocks are not equal steps or not
            applied in order, a description is wrong, or segments do not fit a chain; with the path.
    """
    _require_module(net)
    _checks.flag("stack", stack)
    solver_of(solver)
    lists = _named_lists(net, [chain] if isinstance(chain, str) else list(chain or ()))
    if example_inputs is not None and (len(lists) != 1 or not isinstance(example_inputs, tuple)):
        raise TypeError("example_inputs must be a tuple, of one list that is named by chain=")
    unparallelize(net)
    try:
        for path in lists:
            _convert_list(net, path, stack, example_inputs, solver)
        _convert_sequentials(net, net, "", stack, solver)
    except BaseException:
        unparallelize(net)
        raise
    return net


def unparallelize(net: Module) -> Module:
    """Undoes `parallelize`, in place; stacked parameters become Parameters of the layers again.

    Returns:
        ``net`` itself.

    Raises:
        TypeError: ``net`` is no module.
    """
    _require_module(net)
    for _, module in list(net.named_modules()):
        for key in [k for k, hook in module._forward_pre_hooks.items() if type(hook) is _Arm]:
            del module._forward_pre_hooks[key]
        for key in [k for k, hook in module._forward_hooks.items() if type(hook) is _Disarm]:
            del module._forward_hooks[key]
            module._forward_hooks_always_called.pop(key, None)
        if isinstance(module, Parallel):
            restore(module)
    return net


def make_parallel(net: nn.Module, container: Any, stack: bool) -> list[Part]:
    """Reads a converted container; without chains it becomes plain again."""
    parts = container._read(training=False, strict=True)
    runs = [part for part in parts if part.is_run]
    if not runs:
        restore(container)
        return parts
    for part in runs:
        _check_segments(container, part)
    pieces = list(_uniform(runs)) if stack else runs
    if stack:
        outside = references(net)
        asked = solver_of(container._options).segments != "auto"
        fitting = [run for run in pieces if not why_not_stacked(run, outside, asked)]
        stack_parts(container, fitting)
    uncut = [len(run.units) for run in pieces] == [len(run.units) for run in runs]
    drops = any(map(active_dropout, container.modules()))
    container._refresh(parts if uncut and not drops else None)
    return parts


def _require_module(net: object) -> None:
    if not isinstance(net, nn.Module):
        raise TypeError(f"net must be a torch.nn.Module, got {type(net).__name__}")


def _check_segments(container: Any, part: Part) -> None:
    solver: Solver = solver_of(container._options)
    if solver.segments == "auto":
        return
    try:
        _checks.segments(solver.segments, len(part.units))
    except ValueError as error:
        raise ValueError(f"{container._where}{part.span}: {error}") from None


def _convert_sequentials(
    net: nn.Module, module: nn.Module, path: str, stack: bool, solver: SolverOptions
) -> None:
    """Outermost nn.Sequentials of a module, and those inside of what stays alone in them."""
    if isinstance(module, Parallel):
        return
    if type(module) is not nn.Sequential or "forward" in vars(module):
        for name, child in module.named_children():
            _convert_sequentials(net, child, f"{path}{name}.", stack, solver)
        return
    convert(module, path, solver)
    parts = make_parallel(net, module, stack)
    for leaf in (leaf for part in parts if not part.is_run for leaf in part.units[0].leaves):
        _convert_sequentials(net, leaf.module, f"{path}{leaf.path}.", stack, solver)


# ---- stacking -----------------------------------------------------------------------------------


def _uniform(runs: list[Part]) -> Iterator[Part]:
    """The runs, cut where layers begin or cease to want gradients: a Parameter does or does not."""
    for run in runs:
        pieces: list[Part] = []
        last: object = None
        for unit in run.units:
            assert unit.step is not None
            wants = [slot.read().requires_grad for slot in unit.step.slots()]
            if not pieces or wants != last:
                pieces.append(Part())
            pieces[-1].units.append(unit)
            last = wants
        yield from (piece for piece in pieces if piece.is_run)


def why_not_stacked(run: Part, outside: Counter[int], asked: bool) -> str:
    """The reason why the parameters of a run stay with their layers; empty: there is none.

    asked: the user says how many segments, so the chain runs as an operator in any case.
    """
    first = run.units[0].step
    assert first is not None
    trains = any(slot.read().requires_grad for slot in first.slots())
    if trains and not asked and first.elements > WIDEST_STACKED:
        return "so wide that training is faster on the layers' own parameters"
    slots: list[Slot] = []
    for unit in run.units:
        assert unit.step is not None
        slots += unit.step.slots()
        if any(is_dropout(inner) for module in unit.modules for inner in module.modules()):
            return "Dropout between the layers: training runs the loop, on the layers' parameters"
    strange = next((slot.owner for slot in slots if not can_stack(slot.owner)), None)
    if strange is not None:
        return f"{type(strange).__name__} has parameters of its own, only those of Linear and norms"
    if any(outside[id(slot.read())] > 1 for slot in slots):
        return "parameters are shared"
    return ""


def references(net: nn.Module) -> Counter[int]:
    """How often each Parameter is there; a module that is there twice counts twice."""
    return Counter(
        id(parameter)
        for _, module in net.named_modules(remove_duplicate=False)
        for parameter in module._parameters.values()
    )


# ---- named lists --------------------------------------------------------------------------------


class _Arm:
    """Forward pre-hook of the owner: iterating over its list now gives the chain."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, owner: nn.Module, _: Any) -> None:
        getattr(owner, self.name)._armed = True


class _Disarm(_Arm):
    """Forward hook of the owner, called also when its forward raises."""

    def __call__(self, owner: nn.Module, _: Any, __: Any = None) -> None:
        getattr(owner, self.name)._armed = False


def _named_lists(net: nn.Module, paths: list[str]) -> list[str]:
    known = [name for name, m in net.named_modules() if isinstance(m, nn.ModuleList)]
    for path in paths:
        if not isinstance(path, str):
            raise TypeError(f"chain must be the path of a ModuleList, got {path!r}")
        try:
            module = net.get_submodule(path)
        except AttributeError:
            raise ValueError(
                f"chain={path!r} does not exist in {type(net).__name__}; its ModuleLists are: "
                + (", ".join(map(repr, known)) or "none")
            ) from None
        if type(module) not in (nn.ModuleList, ParallelModuleList) or not path:
            raise TypeError(
                f"chain={path!r} must be exactly an nn.ModuleList inside of net, "
                f"got {type(module).__name__}"
            )
    return paths


def _convert_list(
    net: nn.Module,
    path: str,
    stack: bool,
    example: tuple[Any, ...] | None,
    solver: SolverOptions,
) -> None:
    parent, _, name = path.rpartition(".")
    owner, blocks = net.get_submodule(parent), net.get_submodule(path)
    if touched(blocks):
        raise ValueError(f"{path} {touched(blocks)}")
    convert(blocks, f"{path}.", solver)
    assert isinstance(blocks, ParallelModuleList)
    _require_equal_steps(blocks, path)
    try:
        check_order(owner, name, example)
        check_iteration(owner, name, example)
    except NotInOrder as error:
        raise ValueError(f"{path}: {str(error).format(name=name)}") from error
    make_parallel(net, blocks, stack)
    owner.register_forward_pre_hook(_Arm(name))
    owner.register_forward_hook(_Disarm(name), always_call=True)


def _require_equal_steps(blocks: ParallelModuleList, path: str) -> None:
    parts = blocks._read(training=False, strict=True)
    if len(parts) == 1 and parts[0].is_run:
        return
    if not parts:
        raise ValueError(f"{path} holds no blocks")
    for part in parts:
        unit = part.units[0]
        if unit.step is None:
            raise ValueError(f"{path}.{unit.leaves[0].path}: {unit.reason}")
    if len(parts) == 1:
        raise ValueError(f"{path}: {parts[0].units[0].reason}")
    first, other = parts[0].units[0], parts[1].units[0]
    raise ValueError(
        f"{path}.{other.leaves[0].path} must be a step like {path}.{first.leaves[0].path}: "
        f"{_differ(first.traits, other.traits)}"
    )


def _differ(first: tuple[Any, ...], other: tuple[Any, ...]) -> str:
    for what, a, b in zip(("kind", "options", "parameters"), first, other, strict=True):
        if a != b:
            return f"their {what} are {a} and {b}"
    return "their parameters are rows of different stacks"
