# SPDX-License-Identifier: Apache-2.0
"""FLOP formulas, with which torch.utils.flop_counter sees the operators.

They count what the loop would be counted for, matrix products alone and one walk, however the
operator is solved: model FLOPs, comparable with those of the modules.  What a solve really took is
in `ChainInfo.flops`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from ._kinds import KINDS, RESIDUAL, ChainKind

_BLOCKS = {"dense": 2, "diagonal": 0, "scalar": 0, "identity": 0}  # flops per element of a block


def register() -> None:
    """To be called once, after the native library is loaded."""
    for kind in KINDS:
        _register_chain(kind)
    _register(torch.ops.deeppcr.linear_recurrence, _recurrence)
    _register(torch.ops.deeppcr.linear_recurrence_backward, _recurrence_backward)
    _register(torch.ops.deeppcr.newton_update, _update)


def _register(operator: Any, formula: Any) -> None:
    register_flop_formula(operator)(formula)


def _size(shape: Any) -> int:
    size = 1
    for extent in shape:
        size *= extent
    return size


def _register_chain(kind: ChainKind) -> None:
    weights, first_stack = kind.matrices, kind.stacked.index(True)

    def step_flops(z0: Any, parameters: Any, index: int) -> int:
        """Of one product of all samples with one weight, of one step."""
        shape = parameters[index]
        if shape is None:
            return 0
        return 2 * z0[0] * _size(shape) // (max(shape[0], 1) if kind.stacked[index] else 1)

    def forward(z0: Any, *rest: Any, out_shape: Any = None, **_: Any) -> int:
        return rest[first_stack][0] * sum(step_flops(z0, rest, index) for index in weights)

    def backward(*inputs: Any, out_shape: Any = None, **_: Any) -> int:
        z0, parameters = inputs[2], inputs[4 : 4 + kind.count]
        frozen, _, needs = inputs[-3:]
        first_weight = parameters[weights[0]]
        length = parameters[first_stack][0]
        trained = [any(needs[1:]) and not flag for flag in frozen or [False] * length]
        if not (needs[0] or any(trained)):
            return 0
        first = 0 if needs[0] else trained.index(True)
        back = sum(step_flops(z0, parameters, i) for i in weights) * (len(trained) - first)
        if not needs[0] and not _norm_first(kind, needs):  # nobody asks for its input's gradient
            sublayers = first_weight[1] if len(first_weight) == 4 else 1
            back -= step_flops(z0, parameters, weights[0]) // sublayers
        own = sum(step_flops(z0, parameters, i) for i in weights if needs[1 + i])
        return back + own * sum(trained)

    _register(getattr(torch.ops.deeppcr, kind.name), forward)
    _register(getattr(torch.ops.deeppcr, f"{kind.name}_backward"), backward)


def _norm_first(kind: ChainKind, needs: Any) -> bool:
    """Whether the first thing that has parameters to train in a step is a norm."""
    return kind is RESIDUAL and any(needs[-2:])


def _recurrence(
    A: Any, b: Any, x0: Any, blocks: str, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    return _BLOCKS[blocks] * b[0] * b[1] * b[2] * b[2]


def _recurrence_backward(
    gx: Any, A: Any, x0: Any, x: Any, blocks: str, *rest: Any, out_shape: Any = None, **_: Any
) -> int:
    products = 1 + bool(rest[-2])  # of the adjoint, and the outer products of A's gradient
    return products * _BLOCKS[blocks] * x[0] * x[1] * x[2] * x[2]


def _update(
    states: Any, ends: Any, jacobian: Any, structure: str, *_: Any, out_shape: Any = None, **__: Any
) -> int:
    return 2 * _size(ends) * ends[2] if structure == "dense" else 0
