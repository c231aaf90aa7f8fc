# SPDX-License-Identifier: Apache-2.0
"""Runs a chain of any kind: which implementation, and how its derivatives are taken.

    no native kernel for device or dtype    PyTorch's loop, differentiated by PyTorch
    torch.compile, torch.export             the raw operator with what is registered for it
    (_ops.py) no gradient can be asked for            the raw operator; no states are kept
    otherwise                               an autograd.Function around the raw operators

An autograd.Function, and not the autograd registration of the raw operator, because only a Function
is right under `torch.func` and forward mode.  Its backward is a Function too, so that gradients of
gradients work: they are taken through the plain loop (`_calculus`), which costs nothing until then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _calculus, _native, _vmap
from ._kinds import ChainKind, Options
from ._transforms import (
    below_autograd,
    forward_ad_active,
    func_active,
    outer_forward_ad,
    primals,
    refuse_under_compile,
)

MaybeTensor = Tensor | None
Parameters = tuple[MaybeTensor, ...]


def solve(
    kind: ChainKind, options: Options, keep_states: bool, z0: Tensor, *parameters: MaybeTensor
) -> tuple[Tensor, Tensor]:
    """z_L (B,w) and the states (L,B,w); where they are not kept they may be (0,B,w)."""
    if not native(z0):
        return kind.loop(z0, *parameters, *options, keep_states)
    recording = torch.is_grad_enabled() and (
        z0.requires_grad or any(p is not None and p.requires_grad for p in parameters)
    )
    if torch.compiler.is_compiling():
        refuse_under_compile()
        # An exported graph is for inference; should it be trained, backward recomputes the states.
        keep_states = keep_states or (recording and not torch.compiler.is_exporting())
        return kind.forward(z0, *parameters, *options, keep_states)
    if func_active():
        return Chain.apply(kind, options, keep_states or recording, z0, *parameters)
    if recording or forward_ad_active():
        return RecordedChain.apply(kind, options, keep_states or recording, z0, *parameters)
    with below_autograd():  # past the Python code that is registered for it
        return kind.forward(z0, *parameters, *options, keep_states)


def native(tensor: Tensor) -> bool:
    """Whether a native kernel takes tensors of this device and dtype."""
    return (
        tensor.dtype is torch.float32 or tensor.dtype is torch.float64
    ) and tensor.device.type in _native.devices


class Chain(torch.autograd.Function):
    """(kind, options, save_states, z0, *parameters) -> z, states."""

    @staticmethod
    def forward(
        kind: ChainKind, options: Options, save: bool, z0: Tensor, *parameters: MaybeTensor
    ) -> tuple[Tensor, Tensor]:
        with below_autograd():
            return kind.forward(z0, *parameters, *options, save)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.kind, ctx.options, ctx.saved, z0, *parameters = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z0, output[1], *parameters)
        if forward_ad_active():
            ctx.save_for_forward(z0, *parameters)  # an output here would keep the graph alive

    @staticmethod
    def backward(ctx: Any, gz: MaybeTensor, gstates: MaybeTensor) -> tuple[MaybeTensor, ...]:
        needs = ctx.needs_input_grad[3:]
        if gz is None and gstates is None:
            return (None,) * (3 + len(needs))
        z0, states, *parameters = ctx.saved_tensors
        if not ctx.saved:  # a transform hid from the forward pass that gradients would be wanted
            states = recompute(ctx.kind, ctx.options, z0, parameters)
        gradients = pullback(ctx.kind, ctx.options, needs, gz, gstates, z0, states, *parameters)
        return (None, None, None, *select(gradients, needs))

    @staticmethod
    def jvp(ctx: Any, *tangents: MaybeTensor) -> tuple[Tensor, ...]:
        def run(z0: Tensor, *parameters: MaybeTensor) -> tuple[Tensor, ...]:
            return ctx.kind.loop(z0, *parameters, *ctx.options, ctx.saved)

        with outer_forward_ad():
            return _calculus.jvp(run, primals(ctx.saved_tensors), primals(tangents[3:]))

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        kind: ChainKind,
        options: Options,
        save: bool,
        *tensors: Any,
    ) -> _vmap.Mapped:
        def call(*one: Any) -> tuple[Tensor, ...]:
            return solve(kind, options, save, *one)

        return _vmap.chain(call, info.batch_size, in_dims[3:], *tensors)


class RecordedChain(Chain):
    """`Chain` outside of torch.func: a forward with ctx spares PyTorch's slow argument binding."""

    setup_context = staticmethod(torch.autograd.Function.setup_context)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = Chain.forward(*inputs)
        Chain.setup_context(ctx, inputs, output)
        return output


def pullback(
    kind: ChainKind,
    options: Options,
    needs: Sequence[bool],
    gz: MaybeTensor,
    gstates: MaybeTensor,
    z0: Tensor,
    states: Tensor,
    *parameters: MaybeTensor,
) -> tuple[Tensor, ...]:
    """Gradients of z0 and the parameters; those that are not needed are of shape (0,)."""
    tensors = (gz, gstates, z0, states, *parameters)
    if func_active():
        return ChainBackward.apply(kind, options, needs, *tensors)
    if torch.is_grad_enabled() or forward_ad_active():
        return RecordedChainBackward.apply(kind, options, needs, *tensors)
    with below_autograd():
        return kind.backward(*tensors, *options, needs)


class ChainBackward(torch.autograd.Function):
    """(kind, options, needs, gz, gstates, z0, states, *parameters) -> gradients.

    The states are a function of the other inputs; derivatives recompute them.
    """

    @staticmethod
    def forward(
        kind: ChainKind, options: Options, needs: Sequence[bool], *tensors: MaybeTensor
    ) -> tuple[Tensor, ...]:
        with below_autograd():
            return kind.backward(*tensors, *options, needs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kind, ctx.options, ctx.needs, gz, gstates, z0, _, *parameters = inputs
        ctx.set_materialize_grads(False)
        saved = (gz, gstates, z0, *parameters)
        ctx.save_for_backward(*saved)
        if forward_ad_active():
            ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *cotangents: MaybeTensor) -> tuple[MaybeTensor, ...]:
        wanted = ctx.needs_input_grad[3:6] + ctx.needs_input_grad[7:]
        gz, gstates, z0, *parameters = double_pullback(
            ctx.kind, ctx.options, ctx.needs, ctx.saved_tensors, cotangents, wanted
        )
        return (None, None, None, gz, gstates, z0, None, *parameters)

    @staticmethod
    def jvp(ctx: Any, *tangents: MaybeTensor) -> tuple[Tensor, ...]:
        run = reference_pullback(ctx.kind, ctx.options, ctx.needs)
        with outer_forward_ad():
            inputs = primals(ctx.saved_tensors)
            needed = iter(_calculus.jvp(run, inputs, primals([*tangents[3:6], *tangents[7:]])))
        zero = ctx.saved_tensors[2].new_zeros(0)
        return tuple(next(needed) if need else zero for need in ctx.needs)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        kind: ChainKind,
        options: Options,
        needs: Sequence[bool],
        *tensors: Any,
    ) -> _vmap.Mapped:
        def call(*one: Any) -> tuple[Tensor, ...]:
            return pullback(kind, options, needs, *one)

        return _vmap.chain_backward(call, info.batch_size, in_dims[3:], needs, *tensors)


class RecordedChainBackward(ChainBackward):
    """`ChainBackward` outside of torch.func, as `RecordedChain`."""

    setup_context = staticmethod(torch.autograd.Function.setup_context)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        output = ChainBackward.forward(*inputs)
        ChainBackward.setup_context(ctx, inputs, output)
        return output


def select(gradients: Sequence[Tensor], needs: Sequence[bool]) -> tuple[MaybeTensor, ...]:
    return tuple(g if need else None for g, need in zip(gradients, needs, strict=True))


def recompute(
    kind: ChainKind, options: Options, z0: Tensor, parameters: Sequence[MaybeTensor]
) -> Tensor:
    """The states (L,B,w) for a backward pass whose forward pass did not keep them."""
    with torch.no_grad():
        return solve(kind, options, True, z0, *parameters)[1]


def reference_pullback(
    kind: ChainKind, options: Options, needs: Sequence[bool]
) -> _calculus.Function:
    """(gz, gstates, z0, *parameters) -> the needed gradients, in differentiable operations."""

    def run(gz: MaybeTensor, gstates: MaybeTensor, *tensors: MaybeTensor) -> tuple[Tensor, ...]:
        def forward(z0: Tensor, *parameters: MaybeTensor) -> tuple[Tensor, ...]:
            return kind.loop(z0, *parameters, *options, gstates is not None)

        gradients = _calculus.vjp(forward, tensors, (gz, gstates), needs)
        return tuple(g for g in gradients if g is not None)

    return run


def double_pullback(
    kind: ChainKind,
    options: Options,
    needs: Sequence[bool],
    tensors: Sequence[MaybeTensor],
    cotangents: Sequence[MaybeTensor],
    wanted: Sequence[bool],
) -> tuple[MaybeTensor, ...]:
    """Gradients of `reference_pullback` at ``tensors`` = (gz, gstates, z0, *parameters)."""
    needed = [g for g, need in zip(cotangents, needs, strict=True) if need]
    return _calculus.vjp(reference_pullback(kind, options, needs), tensors, needed, wanted)
