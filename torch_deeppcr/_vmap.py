# SPDX-License-Identifier: Apache-2.0
"""`torch.vmap` of the operators.

Samples are independent, so the mapped dimension joins the batch where the parameters are shared: V
batches of B become one batch of V B, and so it does in parameters (L,B,w) that have a row for each
sample.  Where other parameters are mapped too (ensembles), or every map needs its own gradient of
them, the operator is called V times.

A rule gets the callable that it shall use, so that it serves the raw operators and the
autograd.Functions alike.  A mapped dimension is an int, or None for a tensor that is shared.
Every rule returns outputs and their mapped dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Call = Callable[..., tuple[Tensor, ...]]
Dims = Sequence[int | None]
Mapped = tuple[tuple[Tensor, ...], tuple[int | None, ...]]
MaybeTensor = Tensor | None


def chain(
    call: Call, size: int, dims: Dims, sampled: Sequence[int], *tensors: MaybeTensor
) -> Mapped:
    """call: (z0 (B,w), *parameters, guess (L,B,w)) -> z (B,w), states (C,B,w), info (6,B).

    sampled: which of the parameters have a row for each sample.
    """
    z0, *parameters, guess = tensors
    assert z0 is not None
    if _any_mapped(dims[1:-1], sampled):
        return _loop(call, size, dims, tensors)
    guess = None if guess is None else _fold(guess, dims[-1], size, 1)
    parameters = _fold_sampled(parameters, dims[1:-1], size, sampled)
    z, states, info = call(_fold(z0, dims[0], size, 0), *parameters, guess)
    batch = _size(z0, dims[0], 0)
    outputs = zip((z, states, info), (0, 1, 1), strict=True)
    return tuple(_unfold(out, size, batch, axis) for out, axis in outputs), (0, 1, 1)


def chain_backward(
    call: Call,
    size: int,
    dims: Dims,
    sampled: Sequence[int],
    needs: Sequence[bool],
    *tensors: MaybeTensor,
) -> Mapped:
    """call: (gz (B,w), gstates (L,B,w), z0, kept (C,B,w), *parameters) -> gz0 and parameter
    gradients; the raw operator adds info (6,B).

    sampled: as in `chain`.
    """
    z0 = tensors[2]
    assert z0 is not None
    own = any(need for index, need in enumerate(needs[1:]) if index not in sampled)
    if own or _any_mapped(dims[4:], sampled):
        return _loop(call, size, dims, tensors)
    folded = [
        None if tensor is None else _fold(tensor, dim, size, axis)
        for tensor, dim, axis in zip(tensors, dims, (0, 1, 0, 1), strict=False)
    ]
    outputs = list(call(*folded, *_fold_sampled(tensors[4:], dims[4:], size, sampled)))
    mapped: list[int | None] = [None] * len(outputs)
    batch = _size(z0, dims[2], 0)
    if needs[0]:
        outputs[0], mapped[0] = _unfold(outputs[0], size, batch, 0), 0
    for index in (1 + index for index in sampled):
        if needs[index]:
            outputs[index], mapped[index] = _unfold(outputs[index], size, batch, 1), 1
    if len(outputs) > len(needs):
        outputs[-1], mapped[-1] = _unfold(outputs[-1], size, batch, 1), 1
    return tuple(outputs), tuple(mapped)


def _any_mapped(dims: Dims, sampled: Sequence[int]) -> bool:
    """Whether a parameter is mapped that does not fold."""
    return any(dim is not None for index, dim in enumerate(dims) if index not in sampled)


def _fold_sampled(
    parameters: Sequence[MaybeTensor], dims: Dims, size: int, sampled: Sequence[int]
) -> list[MaybeTensor]:
    """The parameters for V B samples."""
    return [
        p if p is None or index not in sampled else _fold(p, dims[index], size, 1)
        for index, p in enumerate(parameters)
    ]


def recurrence(
    call: Call, size: int, dims: Dims, A: MaybeTensor, b: Tensor, x0: MaybeTensor
) -> Mapped:
    """call: (A (L,B|1,...), b (L,B,w), x0 (B,w)) -> x (L,B,w), info (B,)."""
    batch = _size(b, dims[1], 1)
    if not _blocks_fold(A, dims[0], batch):
        return _loop(call, size, dims, (A, b, x0))
    x, info = call(
        _fold_blocks(A, dims[0], size),
        _fold(b, dims[1], size, 1),
        None if x0 is None else _fold(x0, dims[2], size, 0),
    )
    return (_unfold(x, size, batch, 1), _unfold(info, size, batch, 0)), (1, 0)


def recurrence_backward(
    call: Call,
    size: int,
    dims: Dims,
    need_A: bool,
    need_x0: bool,
    gx: Tensor,
    A: MaybeTensor,
    x0: MaybeTensor,
    x: Tensor,
) -> Mapped:
    """call: (gx (L,B,w), A, x0, x (L,B,w)) -> gA, gb, gx0."""
    batch = _size(gx, dims[0], 1)
    own_gradient = need_A and dims[1] is None  # of blocks that the maps share
    if own_gradient or not _blocks_fold(A, dims[1], batch):
        return _loop(call, size, dims, (gx, A, x0, x))
    gA, gb, gx0 = call(
        _fold(gx, dims[0], size, 1),
        _fold_blocks(A, dims[1], size),
        None if x0 is None else _fold(x0, dims[2], size, 0),
        _fold(x, dims[3], size, 1),
    )
    gradients = (
        _unfold(gA, size, batch, 1) if need_A else gA,
        _unfold(gb, size, batch, 1),
        _unfold(gx0, size, batch, 0) if need_x0 else gx0,
    )
    return gradients, (1 if need_A else None, 1, 0 if need_x0 else None)


def _blocks_fold(A: MaybeTensor, dim: int | None, batch: int) -> bool:
    """Whether blocks (L,B|1,...) fold without being copied V times."""
    return A is None or _size(A, dim, 1) == (1 if dim is None else batch)


def _fold_blocks(A: MaybeTensor, dim: int | None, size: int) -> MaybeTensor:
    return A if A is None or dim is None else _fold(A, dim, size, 1)


def _size(tensor: Tensor, dim: int | None, axis: int) -> int:
    """Size of ``axis``, counted without the mapped dimension."""
    return tensor.shape[axis if dim is None or axis < dim else axis + 1]


def _fold(tensor: Tensor, dim: int | None, size: int, axis: int) -> Tensor:
    """(..., B, ...) mapped over ``dim`` -> (..., V B, ...), B at ``axis``."""
    if dim is None:
        shape = list(tensor.shape)
        shape.insert(axis, size)
        return tensor.unsqueeze(axis).expand(shape).flatten(axis, axis + 1)
    return tensor.movedim(dim, axis).flatten(axis, axis + 1)


def _unfold(tensor: Tensor, size: int, batch: int, axis: int) -> Tensor:
    """(..., V B, ...) -> (..., V, B, ...)."""
    return tensor.unflatten(axis, (size, batch))


def _loop(call: Call, size: int, dims: Dims, tensors: Sequence[MaybeTensor]) -> Mapped:
    """V calls; with V = 0 one call on zeros, for the shapes."""

    def sample(tensor: MaybeTensor, dim: int | None, index: int) -> MaybeTensor:
        if tensor is None or dim is None:
            return tensor
        if size == 0:
            shape = list(tensor.shape)
            shape.pop(dim)
            return tensor.new_zeros(shape)
        return tensor.select(dim, index)

    results = [
        call(*(sample(tensor, dim, index) for tensor, dim in zip(tensors, dims, strict=True)))
        for index in range(max(size, 1))
    ]
    outputs = tuple(torch.stack(column)[:size] for column in zip(*results, strict=True))
    return outputs, tuple(0 for _ in outputs)
