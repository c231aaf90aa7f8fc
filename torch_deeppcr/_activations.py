# SPDX-License-Identifier: Apache-2.0
"""The activations: names, parameters, PyTorch's functions and modules.

The table follows ``dpcr_activation`` of ``csrc/ops/chain.h``, whose formulas are those of PyTorch.
An activation is given by the user as a name, as ``(name, *parameters)``, or as a module of PyTorch;
inside it is always an `Activation`, a name and exactly the parameters that the operators take.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Activation(NamedTuple):
    """A resolved activation, as the operators take it."""

    name: str
    parameters: tuple[float, ...]


@dataclass(frozen=True)
class _Family:
    function: Callable[..., Tensor]  # (u, *parameters)
    module: Callable[..., nn.Module]  # (*parameters)
    defaults: dict[str, float] = field(default_factory=dict)  # parameter -> default, in order


_FAMILIES: dict[str, _Family] = {
    "identity": _Family(lambda u: u, nn.Identity),
    "relu": _Family(F.relu, nn.ReLU),
    "leaky_relu": _Family(F.leaky_relu, nn.LeakyReLU, {"negative_slope": 0.01}),
    "elu": _Family(F.elu, nn.ELU, {"alpha": 1.0}),
    "tanh": _Family(torch.tanh, nn.Tanh),
    "sigmoid": _Family(torch.sigmoid, nn.Sigmoid),
    "silu": _Family(F.silu, nn.SiLU),
    "gelu": _Family(F.gelu, nn.GELU),
    "gelu_tanh": _Family(
        lambda u: F.gelu(u, approximate="tanh"), lambda: nn.GELU(approximate="tanh")
    ),
    "softplus": _Family(F.softplus, nn.Softplus, {"beta": 1.0, "threshold": 20.0}),
}

#: Names of the activations, in the order of ``dpcr_activation``.
ACTIVATIONS: tuple[str, ...] = tuple(_FAMILIES)

# Exact classes: a subclass may compute something else.
NAME_OF_MODULE: dict[type, str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.ELU: "elu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Softplus: "softplus",
}


def resolve(activation: object) -> Activation:
    """An `Activation` from a name, ``(name, *parameters)`` or a module of PyTorch.

    Raises:
        ValueError: unknown name or module, wrong number of parameters, a parameter that is NaN.
        TypeError: neither of the three, or a parameter that is not a number.
    """
    if type(activation) is Activation:
        return activation
    if isinstance(activation, str):
        return _from_name(activation, ())
    if isinstance(activation, tuple | list) and activation and isinstance(activation[0], str):
        return _from_name(activation[0], tuple(activation[1:]))
    if isinstance(activation, nn.Module):
        return from_module(activation)
    raise TypeError(
        "activation must be a name, a tuple (name, *parameters) or a module such as nn.ReLU(), "
        f"got {activation!r}"
    )


def _from_name(name: str, parameters: tuple[object, ...]) -> Activation:
    family = _FAMILIES.get(name)
    if family is None:
        raise ValueError(f"activation must be one of {', '.join(_FAMILIES)}, got {name!r}")
    if not parameters:
        return Activation(name, tuple(family.defaults.values()))
    if len(parameters) != len(family.defaults):
        raise ValueError(
            f"activation {name!r} takes {len(family.defaults)} parameters "
            f"({', '.join(family.defaults) or 'none'}), got {len(parameters)}"
        )
    return Activation(name, tuple(map(_number, family.defaults, parameters)))


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"activation parameter {name} must be a number, got {value!r}")
    if math.isnan(value):
        raise ValueError(f"activation parameter {name} must not be NaN")
    return float(value)


def from_module(module: nn.Module) -> Activation:
    """The activation that a module computes; ValueError where it is none of the table."""
    name = NAME_OF_MODULE.get(type(module))
    if name is None:
        raise ValueError(
            "activation must be one of nn." + ", nn.".join(c.__name__ for c in NAME_OF_MODULE) + " "
            f"(not a subclass), got {type(module).__name__}"
        )
    if isinstance(module, nn.GELU) and module.approximate == "tanh":
        return Activation("gelu_tanh", ())
    # ``alpha``, ``beta``, ... are attributes of the modules under the same names.
    return _from_name(name, tuple(getattr(module, key) for key in _FAMILIES[name].defaults))


def to_module(activation: Activation) -> nn.Module:
    """A new module that computes the activation."""
    return _FAMILIES[activation.name].module(*activation.parameters)


def to_text(activation: Activation) -> str:
    """As in ``extra_repr``: ``tanh``, ``leaky_relu(negative_slope=0.2)``."""
    names = _FAMILIES[activation.name].defaults
    values = [f"{name}={value:g}" for name, value in zip(names, activation.parameters, strict=True)]
    return activation.name + (f"({', '.join(values)})" if values else "")


def apply(name: str, parameters: tuple[float, ...], u: Tensor) -> Tensor:
    """PyTorch's own function of the activation."""
    return _FAMILIES[name].function(u, *parameters)
