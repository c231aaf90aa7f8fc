# SPDX-License-Identifier: Apache-2.0
"""Runs the linear recurrence x_l = A_l x_{l-1} + b_l, with the same choices as `_chain`.

Its derivatives are recurrences again, so no loop is needed at any order:

    adjoint   y_l = A_{l+1}^T y_{l+1} + g_l,   gb = y,   gA_l = y_l x_{l-1}^T,   gx0 = A_1^T y_1
    tangent   t_l = A_l t_{l-1} + (dA_l x_{l-1} + db_l),   t_0 = dx0

With ``reverse`` "previous" is l+1, and the first step in the order of the walk is L.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _calculus, _native, _vmap, reference
from ._chain import call, native
from ._switch import sequential_wanted
from ._transforms import (
    below_autograd,
    forward_ad_active,
    func_active,
    outer_forward_ad,
    plain,
    primals,
    refuse_under_compile,
    without_autocast,
)

MaybeTensor = Tensor | None


def solve(
    A: MaybeTensor, b: Tensor, x0: MaybeTensor, blocks: str, reverse: bool, segments: int
) -> tuple[Tensor, Tensor]:
    """x (L,B,w) and info int32 (B,): 1 where the sample was recomputed by the loop."""
    if not native(b):
        if not sequential_wanted():
            _native.refuse(b)
        with without_autocast(b):
            x = reference.linear_recurrence(A, b, x0, blocks, reverse)
        return x, b.new_zeros(b.shape[1], dtype=torch.int32)
    inputs = (A, b, x0, blocks, reverse, segments)
    if torch.compiler.is_compiling():
        refuse_under_compile()
        return raw()(*inputs)
    if func_active():
        return Recurrence.apply(*inputs)
    recording = torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in (A, b, x0)
    )
    if recording or forward_ad_active():
        return RecordedRecurrence.apply(*inputs)
    return call(raw(), *inputs)


def at_once(
    A: Any, b: Any, x0: Any, blocks: str | None, reverse: Any, segments: Any
) -> Tensor | None:
    """x by the raw operator, which checks its inputs itself, in the plainest of calls: on the
    CPU, nothing recorded, A of four dimensions or its kind told.  None otherwise, and where the
    operator fails: the long way then says why."""
    count = 1 if segments == "auto" else segments
    tensors = (A, b) if x0 is None else (A, b, x0)
    if (
        torch.compiler.is_compiling()
        or sequential_wanted()
        or not all([plain(tensor) for tensor in tensors])
        or not native(b)
        or not (A.dim() == 4 or blocks in ("diagonal", "scalar"))
        or type(reverse) is not bool
        or type(count) is not int
    ):
        return None
    if torch.is_grad_enabled() and any([tensor.requires_grad for tensor in tensors]):
        return None
    try:
        with below_autograd():
            return raw()(A, b, x0, blocks or "dense", reverse, count)[0]
    except (RuntimeError, TypeError, ValueError):
        return None


def levels(b: Tensor, segments: int) -> int:
    """Of the cyclic reduction in `solve`: ceil(log2 S), and 0 where the loop ran.

    Not told by the kernel: on a GPU it would have to be waited for.
    """
    if not native(b) or b.numel() == 0:
        return 0
    count = 0
    while 1 << count < segments:
        count += 1
    return count


def raw() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.ops.deeppcr.linear_recurrence.default


def raw_backward() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return torch.ops.deeppcr.linear_recurrence_backward.default


class Recurrence(torch.autograd.Function):
    """(A, b, x0, blocks, reverse, segments) -> x, info."""

    @staticmethod
    def forward(
        A: MaybeTensor, b: Tensor, x0: MaybeTensor, blocks: str, reverse: bool, segments: int
    ) -> tuple[Tensor, Tensor]:
        return call(raw(), A, b, x0, blocks, reverse, segments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        A, b, x0, *ctx.options = inputs
        x, info = output
        ctx.mark_non_differentiable(info)
        ctx.set_materialize_grads(False)
        # The states are needed for gA alone.
        ctx.save_for_backward(A, x0, x if ctx.needs_input_grad[0] else None)
        if forward_ad_active():
            ctx.save_for_forward(A, b, x0)  # an output here would keep the graph alive

    @staticmethod
    def backward(ctx: Any, gx: MaybeTensor, _: None) -> tuple[MaybeTensor, ...]:
        if gx is None:
            return (None,) * 6
        A, x0, x = ctx.saved_tensors
        need_A, need_b, need_x0 = ctx.needs_input_grad[:3]
        x = gx if x is None else x  # not read then
        gA, gb, gx0 = pullback(gx, A, x0, x, *ctx.options, need_A, need_x0)
        return (
            gA if need_A else None,
            gb if need_b else None,
            gx0 if need_x0 else None,
            None,
            None,
            None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None]:
        with outer_forward_ad():
            saved, moving = primals(ctx.saved_tensors), primals(tangents[:3])
            return tangent(saved, ctx.options, moving), None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> _vmap.Mapped:
        *tensors, blocks, reverse, segments = inputs

        def call(A: MaybeTensor, b: Tensor, x0: MaybeTensor) -> tuple[Tensor, ...]:
            return solve(A, b, x0, blocks, reverse, segments)

        return _vmap.recurrence(call, info.batch_size, in_dims[:3], *tensors)


class RecordedRecurrence(Recurrence):
    """`Recurrence` outside of torch.func: see `_chain.RecordedChain`."""

    setup_context = staticmethod(torch.autograd.Function.setup_context)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = Recurrence.forward(*inputs)
        Recurrence.setup_context(ctx, inputs, output)
        return output


def pullback(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """(gx, A, x0, x, blocks, reverse, segments, need_A, need_x0) -> gA, gb, gx0."""
    if func_active():
        return RecurrenceBackward.apply(*inputs)
    if torch.is_grad_enabled() or forward_ad_active():
        return RecordedRecurrenceBackward.apply(*inputs)
    return call(raw_backward(), *inputs)


class RecurrenceBackward(torch.autograd.Function):
    """The fused `adjoint`; gradients that are not needed are of shape (0,)."""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        return call(raw_backward(), *inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options = inputs[4:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:4])
        if forward_ad_active():
            ctx.save_for_forward(*inputs[:4])

    @staticmethod
    def backward(ctx: Any, *cotangents: MaybeTensor) -> tuple[MaybeTensor, ...]:
        wanted = ctx.needs_input_grad[:4]
        return (*double_pullback(ctx.saved_tensors, ctx.options, cotangents, wanted), *(None,) * 5)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        with outer_forward_ad():
            inputs = primals(ctx.saved_tensors)
            return _calculus.jvp(adjoint(*ctx.options), inputs, primals(tangents[:4]))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> _vmap.Mapped:
        tensors, options = inputs[:4], inputs[4:]

        def call(*one: Any) -> tuple[Tensor, ...]:
            return pullback(*one, *options)

        needs = options[3:]
        return _vmap.recurrence_backward(call, info.batch_size, in_dims[:4], *needs, *tensors)


class RecordedRecurrenceBackward(RecurrenceBackward):
    """`RecurrenceBackward` outside of torch.func."""

    setup_context = staticmethod(torch.autograd.Function.setup_context)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = RecurrenceBackward.forward(*inputs)
        RecurrenceBackward.setup_context(ctx, inputs, output)
        return output


def double_pullback(
    tensors: tuple[MaybeTensor, ...],
    options: tuple[Any, ...],
    cotangents: tuple[MaybeTensor, ...],
    wanted: tuple[bool, ...],
) -> tuple[MaybeTensor, ...]:
    """Gradients of `adjoint` at ``tensors`` = (gx, A, x0, x)."""
    return _calculus.vjp(adjoint(*options), tensors, cotangents, wanted)


def adjoint(
    blocks: str, reverse: bool, segments: int, need_A: bool, need_x0: bool
) -> _calculus.Function:
    """(gx, A, x0, x) -> gA, gb, gx0 in differentiable operations, x being an input of its own."""

    def run(gx: Tensor, A: MaybeTensor, x0: MaybeTensor, x: Tensor) -> tuple[Tensor, ...]:
        y = _adjoint_states(gx, A, blocks, reverse, segments)
        gA = gx0 = gx.new_zeros(0)
        if need_A:
            assert A is not None
            gA = _block_gradient(y, previous(x, x0, reverse), blocks)
            if A.shape[1] != gA.shape[1]:
                gA = gA.sum(1, keepdim=True)
        if need_x0:
            assert x0 is not None
            first = slice(-1, None) if reverse else slice(0, 1)
            gx0 = _multiply(_transposed(A, blocks), y, blocks, first).sum(0)
        return gA, y, gx0

    return run


def tangent(
    saved: Sequence[Any], options: Sequence[Any], tangents: Sequence[MaybeTensor]
) -> Tensor:
    """Tangent of x, for saved (A, b, x0) and the tangents of A, b, x0, each perhaps None."""
    A, b, x0 = saved
    dA, db, dx0 = tangents
    blocks, reverse, _ = options
    right = torch.zeros_like(b) if db is None else db
    if dA is not None:
        x, _ = solve(A, b, x0, *options)
        with without_autocast(x):
            right = right + _multiply(dA, previous(x, x0, reverse), blocks)
    return solve(A, right, dx0, *options)[0]


def previous(x: Tensor, x0: MaybeTensor, reverse: bool) -> Tensor:
    """x_{l-1} of every step: x (L,B,w) moved on by one, x0 entering."""
    if x.shape[0] == 0:
        return x
    start = torch.zeros_like(x[:1]) if x0 is None else x0.unsqueeze(0)
    return torch.cat([x[1:], start] if reverse else [start, x[:-1]])


def _adjoint_states(
    gx: Tensor, A: MaybeTensor, blocks: str, reverse: bool, segments: int
) -> Tensor:
    """y (L,B,w).  The last step starts the adjoint, which walks the other way over views of A^T."""
    length = gx.shape[0]
    if length == 0:
        return gx
    rest, last = (slice(1, None), 0) if reverse else (slice(0, -1), length - 1)
    steps = slice(0, -1) if reverse else slice(1, None)
    shifted = _transposed(A, blocks)
    if shifted is not None:
        shifted = shifted[steps]
    segments = max(1, min(segments, length - 1))
    y, _ = solve(shifted, gx[rest], gx[last], blocks, not reverse, segments)
    return torch.cat([gx[last : last + 1], y] if reverse else [y, gx[last : last + 1]])


def _transposed(A: MaybeTensor, blocks: str) -> MaybeTensor:
    return A.mT if A is not None and blocks == "dense" else A


def _multiply(A: MaybeTensor, x: Tensor, blocks: str, steps: slice = slice(None)) -> Tensor:
    """A_l x_l for the given steps, (L,B,w)."""
    if A is None:
        return x[steps]
    if blocks == "dense":
        return torch.matmul(A[steps], x[steps].unsqueeze(-1)).squeeze(-1)
    return A[steps] * x[steps]


def _block_gradient(y: Tensor, x: Tensor, blocks: str) -> Tensor:
    """y_l x_l^T, its diagonal or its trace, per sample."""
    if blocks == "dense":
        return y.unsqueeze(-1) * x.unsqueeze(-2)
    product = y * x
    return product.sum(-1, keepdim=True) if blocks == "scalar" else product
