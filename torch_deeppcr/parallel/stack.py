# SPDX-License-Identifier: Apache-2.0
"""The stacked face: the parameters of many layers as rows of a few Parameters.

A `Stack` belongs to the container of the layers (its *home*), which holds the stacked
Parameters.  The layers stay where they were, with another class: their ``weight`` and ``bias`` are
views of their rows.  So indexing, iteration, hooks, ``state_dict`` and ``load_state_dict`` work as
ever, with the keys of the layers, while ``parameters()`` and with it optimisers see the stacked
ones alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Stack:
    """The stacked Parameters of one run of layers; row r of each belongs to layer r."""

    def __init__(self, home: nn.Module, names: dict[str, str]) -> None:
        self.home = home  # no submodule of ours: this is no Module
        self.names = names  # column -> name in home
        self.changes = 0  # attributes of layers that were set or deleted (guard.py)
        self._unbound: dict[str, tuple[Tensor, ...]] = {}
        self._assigned: dict[str, dict[int, nn.Parameter]] = {}

    def whole(self, column: str) -> Tensor:
        """The stacked Parameter, as it is now."""
        return self.home._parameters[self.names[column]]  # type: ignore[return-value]

    def row(self, column: str, index: int) -> Tensor:
        """A differentiable view."""
        unbound = self._unbound.get(column)
        return replicated(self.whole(column))[index] if unbound is None else unbound[index]

    @contextmanager
    def unbound(self) -> Iterator[None]:
        """While all rows are read one by one: one derivative, not one of full size for each."""
        self._unbound = {column: self.whole(column).unbind(0) for column in self.names}
        try:
            yield
        finally:
            self._unbound = {}

    def assign(self, column: str, index: int, tensor: nn.Parameter) -> None:
        """Takes what ``load_state_dict(assign=True)`` gives a layer, until `finish_load`."""
        self._assigned.setdefault(column, {})[index] = tensor

    def finish_load(self) -> None:
        for column, rows in self._assigned.items():
            old = self.whole(column)
            if len(rows) < len(old) and old.is_meta:
                raise RuntimeError(
                    f"assign=True gives {len(rows)} of the {len(old)} layers that are stacked in "
                    f"{self.names[column]!r}, which is on the meta device: give all of them"
                )
            tensors = [rows[i].detach() if i in rows else old[i].detach() for i in range(len(old))]
            new = nn.Parameter(torch.stack(tensors), requires_grad=old.requires_grad)
            self.home._parameters[self.names[column]] = new
        self._assigned = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_unbound": {}, "_assigned": {}}


def replicated(tensor: Any) -> Tensor:
    """A sharded tensor gathered once, so that its rows are not gathered one by one."""
    if not hasattr(tensor, "device_mesh"):  # of DTensor, whose import takes half a second
        return tensor
    from torch.distributed.tensor import Replicate

    return tensor.redistribute(placements=[Replicate()] * tensor.device_mesh.ndim)


# ---- layers with stacked parameters -------------------------------------------------------------


class _Stacked(nn.Module):
    """A layer whose parameters are rows of a stack; a mixin before the layer's own class."""

    _stack: Stack
    _columns: dict[str, tuple[str, int]]  # own parameter -> column of the stack, row

    def _stacked_row(self, name: str) -> Any:
        if name in self._parameters:
            return self._parameters[name]
        return self._stack.row(*self._columns[name])

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Tensor) and name in self._columns and name not in self._parameters:
            raise NotImplementedError(
                f"{name} of this layer is a row of a stacked Parameter and cannot be replaced: "
                f"write into it (with torch.no_grad(): layer.{name}.copy_(...)), or call "
                "torch_deeppcr.unparallelize first"
            )
        if name != "training":
            self._stack.changes += 1
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        self._stack.changes += 1
        super().__delattr__(name)

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        raise NotImplementedError(
            "the parameters of this layer are rows of stacked Parameters, which are frozen as a "
            "whole: freeze layers before parallelize(net, stack=True), or use stack=False"
        )

    def _views(self) -> dict[str, nn.Parameter]:
        """The rows as Parameters on the storage of the stack, for code that wants Parameters."""
        views = {}
        for name, (column, row) in self._columns.items():
            whole = self._stack.whole(column)
            views[name] = nn.Parameter(
                replicated(whole.detach())[row], requires_grad=whole.requires_grad
            )
        return views

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        own = self._parameters
        rows = {name: self._stacked_row(name) for name in self._columns}
        try:
            self.__dict__["_parameters"] = _in_order(type(self), {**own, **rows})
            super()._save_to_state_dict(destination, prefix, keep_vars)
        finally:
            self.__dict__["_parameters"] = own

    def _load_from_state_dict(self, *arguments: Any) -> None:
        own, views = self._parameters, self._views()
        loaded: dict[str, Any] = _in_order(type(self), {**own, **views})
        before = {name: view.data_ptr() for name, view in views.items()}
        try:
            self.__dict__["_parameters"] = loaded
            super()._load_from_state_dict(*arguments)
        finally:
            self.__dict__["_parameters"] = own
        for name, view in views.items():  # another Parameter, or (swap_tensors) other memory
            if loaded[name] is not view or view.data_ptr() != before[name]:
                self._stack.assign(*self._columns[name], loaded[name])

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """With its home a layer like it, alone a plain one with parameters of its own."""
        if id(self._stack.home) in memo:
            new = type(self).__new__(type(self))
            memo[id(self)] = new
            new.__dict__.update(copy.deepcopy(self.__dict__, memo))
            return new
        new = type(self).__new__(type(self))
        state = {key: value for key, value in vars(self).items() if key != "_stack"}
        new.__dict__.update(copy.deepcopy(state, memo))
        return _restore(new, self._views())


class StackedLinear(_Stacked, nn.Linear):
    """An `nn.Linear` whose weight and bias are rows of a `Stack`."""


class StackedLayerNorm(_Stacked, nn.LayerNorm):
    """An `nn.LayerNorm` whose affine parameters are rows of a `Stack`."""


class StackedRMSNorm(_Stacked, nn.RMSNorm):
    """An `nn.RMSNorm` whose weight is a row of a `Stack`."""


def _row_property(name: str) -> Any:
    return property(lambda self: self._stacked_row(name))


# After the classes, where "weight: Tensor" of their annotations cannot shadow it.
for _class in (StackedLinear, StackedLayerNorm, StackedRMSNorm):
    for _name in ("weight", "bias"):
        setattr(_class, _name, _row_property(_name))

_STACKED: dict[type, type] = {
    nn.Linear: StackedLinear,
    nn.LayerNorm: StackedLayerNorm,
    nn.RMSNorm: StackedRMSNorm,
}
_PLAIN: dict[type, type] = {stacked: plain for plain, stacked in _STACKED.items()}


def is_exactly(module: object, plain: type[nn.Module]) -> bool:
    """Whether a module is of the class itself, stacked or not."""
    return type(module) is plain or (plain in _STACKED and type(module) is _STACKED[plain])


def can_stack(module: nn.Module | None) -> bool:
    return type(module) in _STACKED


def position(module: nn.Module | None, name: str) -> tuple[Stack, str, int] | None:
    """Stack, column and row of a parameter, None where it is not stacked."""
    if not isinstance(module, _Stacked) or name in module._parameters:
        return None
    return (module._stack, *module._columns[name])


def stack_of(module: nn.Module) -> Stack | None:
    return vars(module).get("_stack") if isinstance(module, _Stacked) else None


def enter(module: nn.Module, name: str, stack: Stack, column: str, row: int) -> None:
    """Gives a parameter up for a row of a stack that holds its value."""
    del module._parameters[name]
    if not isinstance(module, _Stacked):
        module.__dict__["_stack"], module.__dict__["_columns"] = stack, {}
        module.__class__ = _STACKED[type(module)]
    module.__dict__["_columns"][name] = (column, row)


def leave(module: nn.Module) -> None:
    """Gives a layer Parameters of its own again: copies of its rows, with their gradients."""
    if not isinstance(module, _Stacked):
        return
    views = module._views()
    for name, view in views.items():
        column, row = module._columns[name]
        gradient = module._stack.whole(column).grad
        if gradient is not None:
            view.grad = gradient[row].clone()
    del module.__dict__["_stack"]
    _restore(module, views)


def _restore(module: nn.Module, views: dict[str, nn.Parameter]) -> nn.Module:
    plain = _PLAIN[type(module)]
    own: dict[str, Any] = dict(module._parameters)
    del module.__dict__["_columns"]
    object.__setattr__(module, "__class__", plain)  # past our own, whose stack is gone
    for name, view in views.items():
        own[name] = nn.Parameter(view.detach().clone(), requires_grad=view.requires_grad)
        own[name].grad = view.grad
    module.__dict__["_parameters"] = _in_order(plain, own)
    return module


def _in_order(kind: type, parameters: dict[str, Any]) -> dict[str, Any]:
    """weight before bias, as the layers have them."""
    return dict(sorted(parameters.items(), key=lambda item: item[0] != "weight"))
