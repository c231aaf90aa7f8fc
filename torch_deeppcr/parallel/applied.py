# SPDX-License-Identifier: Apache-2.0
"""Checks that the forward of a module applies the blocks of a ModuleList one after another.

Twice: with the plain list, that every block gets what the one before it gave and nobody else looks
at it; and with the parallel list, that the forward iterates over it (``for block in self.blocks``),
so that one callable can take the place of all blocks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from .containers import ParallelModuleList
from .verify import cuda_devices

_TOLERANCE = 1e-3


class NotInOrder(ValueError):
    """The blocks are not applied one after another."""


class _Tracer(fx.Tracer):
    """Enters the forward of the owner alone."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return True


def check_order(owner: nn.Module, name: str, example: tuple[Any, ...] | None) -> None:
    """Of the plain list ``name``; ValueError where its blocks are not applied in order."""
    if example is not None:
        _watch(owner, getattr(owner, name), example)
        return
    graph = _trace(owner)
    calls = [n for n in graph.nodes if n.op == "call_module" and _inside(n.target, name)]
    expected = [f"{name}.{key}" for key in getattr(owner, name)._modules]
    if [node.target for node in calls] != expected:
        raise NotInOrder(f"forward calls {_names(calls)}, not its {len(expected)} blocks in order")
    for before, node in zip([None, *calls], calls, strict=False):
        if node.kwargs or len(node.args) != 1:
            raise NotInOrder(f"forward gives {node.target} more than the state")
        if before is None:
            continue
        if node.args[0] is not before:
            raise NotInOrder(f"forward gives {node.target} something else than {before.target}'s")
        if len(before.users) > 1:
            raise NotInOrder(f"forward uses the output of {before.target} elsewhere, too")


def check_iteration(owner: nn.Module, name: str, example: tuple[Any, ...] | None) -> None:
    """Of the parallel list ``name``; ValueError where forward reaches the blocks by index."""
    blocks = getattr(owner, name)
    assert isinstance(blocks, ParallelModuleList)
    if example is not None:
        _compare(owner, blocks, example)
        return
    calls: list[Any] = []

    def run(input: Any) -> Any:
        calls.append(input)
        return input

    blocks.__dict__["_armed"], blocks.__dict__["_run"] = True, run
    try:
        graph = _trace(owner)
    finally:
        del blocks.__dict__["_armed"], blocks.__dict__["_run"]
    by_index = [n for n in graph.nodes if n.op == "call_module" and _inside(n.target, name)]
    if len(calls) != 1 or by_index:
        raise NotInOrder(_ITERATE)


_ITERATE = "forward must iterate over the list itself: for block in self.{name}: x = block(x)"


def _trace(owner: nn.Module) -> fx.Graph:
    try:
        return _Tracer().trace(owner)
    except Exception as error:  # whatever the user's forward does with proxies
        raise NotInOrder(
            "torch.fx cannot read forward, give example_inputs=(...) for one run of it: "
            f"{type(error).__name__}: {error}"
        ) from error


def _inside(target: Any, name: str) -> bool:
    return str(target).startswith(f"{name}.")


def _names(calls: list[fx.Node]) -> str:
    return ", ".join(str(node.target) for node in calls[:4]) + (", ..." if len(calls) > 4 else "")


# ---- by a run -----------------------------------------------------------------------------------


def _watch(owner: nn.Module, blocks: nn.ModuleList, example: tuple[Any, ...]) -> None:
    """One run with hooks that see what goes in and out of the blocks."""
    seen: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], Any]] = []

    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        seen.append((module, args, kwargs, output))

    handles = [block.register_forward_hook(note, with_kwargs=True) for block in blocks]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=_devices(example)):
            owner(*example)
    finally:
        for handle in handles:
            handle.remove()
    if [entry[0] for entry in seen] != list(blocks):
        raise NotInOrder(f"forward makes {len(seen)} calls, not one of each block in order")
    previous: Any = None
    for module, args, kwargs, output in seen:
        if kwargs or len(args) != 1:
            raise NotInOrder(f"forward gives {type(module).__name__} more than the state")
        if previous is not None and args[0] is not previous:
            raise NotInOrder("forward gives a block something else than the output of the last")
        previous = output


def _compare(owner: nn.Module, blocks: ParallelModuleList, example: tuple[Any, ...]) -> None:
    """One run of the blocks and one of the chain must agree."""
    calls: list[Any] = []
    run = blocks._run

    def counted(input: Any) -> Any:
        calls.append(input)
        return run(input)

    with torch.no_grad(), torch.random.fork_rng(devices=_devices(example)):
        expected = owner(*example)
        blocks.__dict__["_armed"], blocks.__dict__["_run"] = True, counted
        try:
            actual = owner(*example)
        except Exception as error:  # of the user's forward, which meets one callable
            raise NotInOrder(f"forward fails when the blocks are one chain: {error}") from error
        finally:
            del blocks.__dict__["_armed"], blocks.__dict__["_run"]
    if len(calls) != 1:
        raise NotInOrder(_ITERATE)
    pairs = zip(_tensors(expected), _tensors(actual), strict=True)
    if not all(torch.allclose(a, b, _TOLERANCE, _TOLERANCE, equal_nan=True) for a, b in pairs):
        raise NotInOrder("forward gives another output when the blocks are one chain")


def _devices(example: tuple[Any, ...]) -> list[torch.device]:
    return cuda_devices(*torch.utils._pytree.tree_leaves(example))


def _tensors(value: Any) -> list[Tensor]:
    leaves = torch.utils._pytree.tree_leaves(value)
    return [leaf.double() for leaf in leaves if isinstance(leaf, Tensor)]
