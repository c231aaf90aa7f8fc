# SPDX-License-Identifier: Apache-2.0
"""Between L modules with parameters of their own and one module with stacked ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)

# Attributes of nn.Module that change what a call computes, all empty on an untouched module.
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def new_linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A Linear around the given tensors: no copy, no random numbers drawn, no gradient."""
    fan_out, fan_in = weight.shape
    linear = nn.Linear(fan_in, fan_out, bias=bias is not None, device="meta")
    set_parameters(linear, weight=weight, bias=bias)
    return linear


def set_parameters(module: nn.Module, **tensors: Tensor | None) -> None:
    """Puts tensors in place of parameters of a module."""
    for name, tensor in tensors.items():
        parameter = None if tensor is None else nn.Parameter(tensor, requires_grad=False)
        module.register_parameter(name, parameter)


def reset_linear(weight: Tensor, bias: Tensor | None) -> None:
    """Draws one layer in place exactly as ``nn.Linear.reset_parameters`` draws it."""
    fan_in = weight.shape[1]
    if weight.numel():
        nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        bound = 1 / math.sqrt(fan_in) if fan_in > 0 else 0
        nn.init.uniform_(bias, -bound, bound)


def require_exact(module: object, expected: type[Module], where: str) -> Module:
    """The module; ValueError unless it is an ``expected`` untouched: no subclass, no hooks."""
    if type(module) is not expected:
        raise ValueError(
            f"{where} must be exactly {expected.__name__}, got {type(module).__name__}"
        )
    assert isinstance(module, expected)
    if any(getattr(module, hooks) for hooks in _HOOKS) or "forward" in vars(module):
        raise ValueError(f"{where} has hooks or a forward of its own, which would be lost")
    return module


def require_exact_sequential(module: object) -> None:
    if not isinstance(module, nn.Sequential):
        raise TypeError(f"sequential must be an nn.Sequential, got {type(module).__name__}")
    require_exact(module, nn.Sequential, "sequential")


def require_unshared(modules: Sequence[nn.Module], indices: Sequence[int], what: str) -> None:
    """ValueError where a parameter appears twice: copies would no longer be tied."""
    seen: dict[int, int] = {}
    for index, module in zip(indices, modules, strict=True):
        for parameter in module.parameters():
            first = seen.setdefault(id(parameter), index)
            if first != index:
                raise ValueError(
                    f"{what}[{index}] shares a parameter with {what}[{first}]; "
                    "a chain holds its own copy for every step"
                )


def stack(
    name: str, tensors: Sequence[Tensor | None], indices: Sequence[int], what: str
) -> nn.Parameter | None:
    """A Parameter of copies stacked along a new first dimension; None where all are None.

    ValueError, naming the index of the first that differs, unless all agree in being there, shape,
    dtype, device and requires_grad.
    """

    def traits(tensor: Tensor | None) -> object:
        if tensor is None:
            return None
        return (tuple(tensor.shape), tensor.dtype, tensor.device, tensor.requires_grad)

    expected = traits(tensors[0])
    for index, tensor in zip(indices, tensors, strict=True):
        if traits(tensor) != expected:
            raise ValueError(
                f"{name} of {what}[{index}] must agree with that of {what}[{indices[0]}] in shape, "
                f"dtype, device and requires_grad: {_describe(tensors[0])}, got {_describe(tensor)}"
            )
    first = tensors[0]
    if first is None:
        return None
    with torch.no_grad():
        stacked = torch.stack([tensor for tensor in tensors if tensor is not None])
    return nn.Parameter(stacked, requires_grad=first.requires_grad)


def _describe(tensor: Tensor | None) -> str:
    if tensor is None:
        return "None"
    dtype = str(tensor.dtype).removeprefix("torch.")
    frozen = "" if tensor.requires_grad else ", frozen"
    return f"{tuple(tensor.shape)} {dtype} on {tensor.device}{frozen}"
