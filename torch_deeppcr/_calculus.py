# SPDX-License-Identifier: Apache-2.0
"""Derivatives of a function written in differentiable PyTorch operations.

They serve where no fused kernel exists: the derivative of a backward pass, and forward mode.  Both
are built on `torch.func.vjp`, which nests in every other transform (forward mode of plain autograd
does not), so each result can be differentiated again.

    vjp   g -> J^T g
    jvp   t -> J t = (g -> J^T g)^T t        the transpose of a map that is linear in g

Inputs may be None, and outputs must be a tuple of tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ._transforms import without_autocast

Function = Callable[..., tuple[Tensor, ...]]
MaybeTensor = Tensor | None


def vjp(
    function: Function,
    inputs: Sequence[MaybeTensor],
    cotangents: Sequence[MaybeTensor],
    wanted: Sequence[bool],
) -> tuple[MaybeTensor, ...]:
    """Cotangents of the ``wanted`` inputs, None for the others; a cotangent None is zero."""
    active = [i for i, tensor in enumerate(inputs) if wanted[i] and tensor is not None]
    restricted, values = _restrict(function, inputs, active)
    with without_autocast(values[0]):
        outputs, pull = _linearize(restricted, values)
        gradients = dict(zip(active, pull(_fill(cotangents, outputs)), strict=True))
    return tuple(gradients.get(i) for i in range(len(inputs)))


def jvp(
    function: Function, inputs: Sequence[MaybeTensor], tangents: Sequence[MaybeTensor]
) -> tuple[Tensor, ...]:
    """Tangents of the outputs; a tangent None is zero."""
    active = [i for i, tangent in enumerate(tangents) if tangent is not None]
    restricted, values = _restrict(function, inputs, active)
    with without_autocast(values[0]):
        outputs, pull = _linearize(restricted, values)
        zeros = tuple(torch.zeros_like(output) for output in outputs)
        _, transposed = _linearize(pull, [zeros])
        return transposed(tuple(tangents[i] for i in active))[0]


def _linearize(function: Callable[..., Any], inputs: Sequence[Any]) -> Any:
    """(outputs, pull): torch.func.vjp, whose annotation allows three values."""
    return torch.func.vjp(function, *inputs)


def _restrict(
    function: Function, inputs: Sequence[MaybeTensor], active: Sequence[int]
) -> tuple[Function, list[Any]]:
    """``function`` of the active inputs alone, the others held fixed; and the active inputs."""

    def restricted(*values: Tensor) -> tuple[Tensor, ...]:
        arguments = list(inputs)
        for i, value in zip(active, values, strict=True):
            arguments[i] = value
        return tuple(function(*arguments))

    return restricted, [inputs[i] for i in active]


def _fill(cotangents: Sequence[MaybeTensor], outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(
        torch.zeros_like(output) if cotangent is None else cotangent
        for cotangent, output in zip(cotangents, outputs, strict=True)
    )
