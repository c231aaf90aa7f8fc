# SPDX-License-Identifier: Apache-2.0
"""What one step of a chain is: `Step`, made by the functions of this file from parts of a module.

They are what the ``describe`` of `register_block` returns:

    class Block(nn.Module):
        def forward(self, x):
            return x + self.fc2(F.silu(self.fc1(self.norm(x))))

    def describe(block):
        return dpcr.steps.residual(block.fc1, block.fc2, "silu", norm=block.norm)

    dpcr.register_block(Block, describe)

A linear map is given as an `nn.Linear` or as ``(weight, bias)``, a norm as an `nn.LayerNorm` or
`nn.RMSNorm`, an activation as a name or one of PyTorch's modules (`torch_deeppcr.mlp_chain`).
Subclasses are refused: they may compute something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _activations, _checks
from .._kinds import EULER, LAYERS, MLP, RESIDUAL, ChainKind
from .._solve import Output
from ..functional import ActivationLike, run_euler, run_layers, run_mlp, run_residual
from .stack import is_exactly

__all__ = ["Step", "euler", "layers", "mlp", "residual"]

Linear = nn.Linear | tuple[Tensor, Tensor | None]
Norm = nn.LayerNorm | nn.RMSNorm | None


class Slot(NamedTuple):
    """Where a parameter lives; read at every call.  owner None: not looked for yet (`locate`)."""

    owner: nn.Module | None
    name: str
    tensor: Tensor | None = None

    def read(self) -> Tensor:
        if self.owner is not None:
            return getattr(self.owner, self.name)
        assert self.tensor is not None
        return self.tensor


Row = tuple[Slot, ...] | None  # one slot for every sublayer of the step; None: no such parameter


@dataclass(frozen=True, eq=False)
class Step:
    """One step: its kind, the options of the kind, and where its parameters are."""

    kind: ChainKind
    options: tuple[Any, ...]  # as the functions of the kind take them after the parameters
    rows: tuple[Row, ...]  # in the order of kind.shapes

    def traits(self) -> tuple[Any, ...]:
        """What the steps of one chain must have in common."""
        tensors = [None if row is None else [slot.read() for slot in row] for row in self.rows]
        shapes = tuple(
            None if row is None else tuple((t.shape, t.dtype, t.device) for t in row)
            for row in tensors
        )
        return (self.kind.name, self.options, shapes)

    def slots(self) -> list[Slot]:
        return [slot for row in self.rows for slot in row or ()]

    @property
    def width(self) -> int:
        """w: W1 of every kind is (.., w), and the first row."""
        return self._weight().shape[-1]

    @property
    def elements(self) -> int:
        """Of one weight."""
        return self._weight().numel()

    def _weight(self) -> Tensor:
        row = self.rows[0]
        assert row is not None
        return row[0].read()


#: Runs a chain of a kind: (call, input, stacked parameters, *options).
RUN: dict[str, Callable[..., Output]] = {
    MLP.name: run_mlp,
    EULER.name: run_euler,
    RESIDUAL.name: run_residual,
    LAYERS.name: run_layers,
}


# ---- the kinds ----------------------------------------------------------------------------------


def mlp(linear: Linear, activation: ActivationLike = "identity", norm: Norm = None) -> Step:
    """z' = act(norm(W z + b)); without a norm a step of `torch_deeppcr.mlp_chain`."""
    if norm is not None:
        return layers([(linear, norm)], activation, skip=False)
    weight, bias = _square("linear", linear)
    return Step(MLP, (_activations.resolve(activation),), ((weight,), bias and (bias,)))


def euler(linear: Linear, activation: ActivationLike, scale: float = 1.0) -> Step:
    """z' = z + scale act(W z + b), a step of `torch_deeppcr.euler_chain`."""
    weight, bias = _square("linear", linear)
    options = (_activations.resolve(activation), _checks.finite("scale", scale))
    return Step(EULER, options, ((weight,), bias and (bias,)))


def residual(
    linear1: Linear,
    linear2: Linear,
    activation: ActivationLike,
    norm: Norm = None,
    scale: float = 1.0,
) -> Step:
    """z' = z + scale linear2(act(linear1(norm(z)))), a step of `torch_deeppcr.residual_chain`."""
    weight1, bias1 = _linear("linear1", linear1)
    weight2, bias2 = _linear("linear2", linear2)
    hidden, width = weight1.read().shape
    if weight2.read().shape != (width, hidden):
        raise ValueError(
            f"linear2 must map {hidden} -> {width}, the reverse of linear1, got a weight of shape "
            f"{tuple(weight2.read().shape)}"
        )
    name, eps, gamma, beta = _norm(norm, width)
    rows = ((weight1,), bias1 and (bias1,), (weight2,), bias2 and (bias2,), gamma, beta)
    options = (_activations.resolve(activation), name, eps, _checks.finite("scale", scale))
    return Step(RESIDUAL, options, rows)


def layers(
    sublayers: Sequence[tuple[Linear, Norm]],
    activation: ActivationLike,
    skip: bool = True,
    scale: float = 1.0,
) -> Step:
    """z' = [z +] scale a_M, a_0 = z, a_m = act(norm_m(linear_m(a_{m-1}))).

    A step of `torch_deeppcr.layers_chain`.  All sublayers have the width of the state, norms of one
    class, and biases and affine parameters either all or none.
    """
    if not isinstance(sublayers, Sequence) or not sublayers:
        raise ValueError("sublayers must be a sequence of pairs (linear, norm), not empty")
    squares, norms = [], []
    for index, (linear, norm) in enumerate(sublayers):
        squares.append(_square(f"sublayers[{index}]", linear))
        norms.append(_norm(norm, squares[0][0].read().shape[0]))
        if norms[-1][:2] != norms[0][:2]:
            raise ValueError(f"the norm of sublayers[{index}] must be as that of sublayers[0]")
    name, eps = norms[0][:2]
    rows = (
        tuple(weight for weight, _ in squares),
        _all_or_none("bias", [bias and (bias,) for _, bias in squares]),
        _all_or_none("norm weight", [gamma for _, _, gamma, _ in norms]),
        _all_or_none("norm bias", [beta for _, _, _, beta in norms]),
    )
    options = (
        _activations.resolve(activation),
        name,
        eps,
        _checks.flag("skip", skip),
        _checks.finite("scale", scale),
    )
    return Step(LAYERS, options, rows)


# ---- the parts ----------------------------------------------------------------------------------


def _linear(name: str, linear: object) -> tuple[Slot, Slot | None]:
    if isinstance(linear, nn.Module):
        if not is_exactly(linear, nn.Linear):
            raise ValueError(f"{name} must be exactly nn.Linear, got {type(linear).__name__}")
        bias = linear._parameters.get("bias", ...) is not None
        return Slot(linear, "weight"), Slot(linear, "bias") if bias else None
    if isinstance(linear, tuple) and len(linear) == 2 and isinstance(linear[0], Tensor):
        weight, bias = linear
        if weight.dim() != 2:
            raise ValueError(f"the weight of {name} must be a matrix, got {tuple(weight.shape)}")
        return Slot(None, "", weight), None if bias is None else Slot(None, "", bias)
    raise TypeError(f"{name} must be an nn.Linear or a tuple (weight, bias), got {linear!r}")


def _square(name: str, linear: object) -> tuple[Slot, Slot | None]:
    weight, bias = _linear(name, linear)
    rows, columns = weight.read().shape
    if rows != columns:
        raise ValueError(f"{name} must be square, got {columns} -> {rows}")
    return weight, bias


def _norm(norm: Norm, width: int) -> tuple[str | None, float | None, Row, Row]:
    """name, eps, gamma, beta"""
    if norm is None:
        return None, None, None, None
    if not is_exactly(norm, nn.LayerNorm) and not is_exactly(norm, nn.RMSNorm):
        raise ValueError(
            f"norm must be exactly nn.LayerNorm or nn.RMSNorm, got {type(norm).__name__}"
        )
    if tuple(norm.normalized_shape) != (width,):
        raise ValueError(f"norm must be over {width} elements, got {norm.normalized_shape}")

    def row(name: str) -> Row:
        # A stacked parameter is not in _parameters, an absent one is there as None.
        there = hasattr(norm, name) and norm._parameters.get(name, ...) is not None
        return (Slot(norm, name),) if there else None

    if isinstance(norm, nn.LayerNorm):
        return "layer_norm", norm.eps, row("weight"), row("bias")
    return "rms_norm", norm.eps, row("weight"), None


def _all_or_none(name: str, rows: Sequence[Row]) -> Row:
    there = [row for row in rows if row is not None]
    if not there:
        return None
    if len(there) != len(rows):
        raise ValueError(f"either all sublayers have a {name}, or none")
    return tuple(slot for row in there for slot in row)


def locate(step: Step, block: nn.Module) -> Step:
    """The step with every parameter that was given as a tensor found in the block."""
    if all(slot.owner is not None for slot in step.slots()):
        return step
    homes = {
        id(parameter): (module, name)
        for module in block.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    }

    def find(slot: Slot) -> Slot:
        if slot.owner is not None:
            return slot
        if id(slot.tensor) not in homes:
            raise ValueError("a tensor that describe names is not a parameter of the block")
        return Slot(*homes[id(slot.tensor)])

    rows = tuple(row and tuple(map(find, row)) for row in step.rows)
    return Step(step.kind, step.options, rows)


def stack_rows(step: Step, tensors: Sequence[Sequence[Tensor] | None]) -> tuple[Any, ...]:
    """Stacked parameters (L, ...) or (L, M, ...) from the rows' tensors, step after step."""
    return tuple(
        None if column is None else shape_column(step, index, torch.stack(tuple(column)))
        for index, column in enumerate(tensors)
    )


def shape_column(step: Step, index: int, stacked: Tensor) -> Tensor:
    """(L M, ...) -> the shape that the operator takes, (L, ...) or (L, M, ...)."""
    row = step.rows[index]
    assert row is not None
    sublayers = step.kind is LAYERS
    return stacked.unflatten(0, (-1, len(row))) if sublayers else stacked
