# SPDX-License-Identifier: Apache-2.0
"""Runs a chain of any kind: which implementation, and how its derivatives are taken.

    no native kernel for device or dtype,
    or inside of `sequential`               PyTorch's loop, differentiated by PyTorch
    torch.compile, torch.export             the raw operator with what _ops.py registers for it
    no gradient can be asked for            the raw operator; no states are kept
    otherwise                               an autograd.Function around the raw operators

An autograd.Function, and not the autograd registration of the raw operator, because only a Function
is right under `torch.func` and forward mode.  Its backward is a Function too, so that gradients of
gradients work: they are taken through the plain loop (`_calculus`), which costs nothing until then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _calculus, _native, _plan, _vmap
from ._kinds import ChainKind, Options
from ._switch import sequential_wanted
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
    kind: ChainKind, options: Options, keep: str, z0: Tensor, *tensors: MaybeTensor
) -> tuple[Tensor, Tensor, MaybeTensor]:
    """(z0, *parameters, guess) -> z_L (B,w), kept states, report (6,B) or None where the loop ran.

    keep: "states" where the caller wants them (L,B,w); with "nothing" what is kept is what backward
    will need, if a gradient may be asked for.
    """
    if sequential_wanted() or not native(z0):
        if not sequential_wanted():
            _native.refuse(z0)
        return *kind.loop(options, keep == "states", z0, *tensors[:-1]), None
    recording = torch.is_grad_enabled() and (
        z0.requires_grad or any(t is not None and t.requires_grad for t in tensors[:-1])
    )
    if torch.compiler.is_compiling():
        refuse_under_compile()
        if options.watch and options.solver[0] > 1:
            raise NotImplementedError(
                f'on_unconverged="{options.watch}" is not supported under torch.compile, which '
                'cannot look at the samples: use "sequential" or "ignore", and return_info=True'
            )
        # An exported graph is for inference; should it be trained, backward recomputes the states.
        if keep == "nothing" and recording and not torch.compiler.is_exporting():
            keep = options.kept
        return kind.forward(options, keep, z0, *tensors)
    if keep == "nothing" and recording:
        keep = options.kept
    if func_active():
        return Chain.apply(kind, options, keep, z0, *tensors)
    if recording or forward_ad_active():
        return RecordedChain.apply(kind, options, keep, z0, *tensors)
    return run(kind, options, keep, z0, *tensors)


def run(
    kind: ChainKind, options: Options, keep: str, *tensors: MaybeTensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The raw operator, past the Python code that is registered for it."""
    output = call(kind.forward, options, keep, *tensors)
    if options.watch and options.solver[0] > 1:
        _plan.complain(options, output[2], "forward")
    return output


def run_backward(
    kind: ChainKind, options: Options, keep: str, needs: Sequence[bool], *tensors: MaybeTensor
) -> tuple[Tensor, ...]:
    """The raw backward operator, as `run`; without its report."""
    output = call(kind.backward, options, keep, needs, *tensors)
    if options.watch and options.solver[0] > 1:
        _plan.complain(options, output[-1], "backward")
    return output[:-1]


def call(operator: Callable[..., Any], *inputs: Any) -> Any:
    """A raw operator, past the Python code that is registered for it; what it does not have is
    NotImplementedError."""
    try:
        with below_autograd():
            return operator(*inputs)
    except RuntimeError as error:
        _native.explain(error)
        raise


def native(tensor: Tensor) -> bool:
    """Whether a native kernel takes tensors of this device and dtype."""
    return (
        tensor.dtype is torch.float32 or tensor.dtype is torch.float64
    ) and tensor.device.type in _native.devices


class Chain(torch.autograd.Function):
    """(kind, options, keep, z0, *parameters, guess) -> z, kept states, info."""

    @staticmethod
    def forward(
        kind: ChainKind, options: Options, keep: str, *tensors: MaybeTensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return run(kind, options, keep, *tensors)

    @staticmethod
    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        ctx.kind, ctx.options, ctx.keep, z0, *parameters, _ = inputs
        _, kept, info = output
        if ctx.keep == "checkpoints":
            ctx.mark_non_differentiable(kept, info)
        else:
            ctx.mark_non_differentiable(info)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(z0, kept, *parameters)
        if forward_ad_active():
            ctx.save_for_forward(z0, *parameters)  # an output here would keep the graph alive

    @staticmethod
    def backward(
        ctx: Any, gz: MaybeTensor, gstates: MaybeTensor, _: None
    ) -> tuple[MaybeTensor, ...]:
        needs = ctx.needs_input_grad[3:-1]
        if gz is None and gstates is None:
            return (None,) * (4 + len(needs))
        z0, kept, *parameters = ctx.saved_tensors
        keep = ctx.keep
        if (
            keep == "nothing"
        ):  # a transform hid from the forward pass that gradients would be wanted
            keep, kept = "states", recompute(ctx.kind, ctx.options, z0, parameters)
        tensors = (gz, gstates, z0, kept, *parameters)
        gradients = pullback(ctx.kind, ctx.options.backward(keep), keep, needs, *tensors)
        return (None, None, None, *select(gradients, needs), None)

    @staticmethod
    def jvp(ctx: Any, *tangents: MaybeTensor) -> tuple[MaybeTensor, ...]:
        def run(z0: Tensor, *parameters: MaybeTensor) -> tuple[Tensor, ...]:
            return ctx.kind.loop(ctx.options, ctx.keep == "states", z0, *parameters)

        with outer_forward_ad():
            z, states = _calculus.jvp(run, primals(ctx.saved_tensors), primals(tangents[3:-1]))
        return z, None if ctx.keep == "checkpoints" else states, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        kind: ChainKind,
        options: Options,
        keep: str,
        *tensors: Any,
    ) -> _vmap.Mapped:
        def call(*one: Any) -> tuple[Tensor, ...]:
            return solve(kind, options, keep, *one)  # type: ignore[return-value]  # not the loop

        return _vmap.chain(call, info.batch_size, in_dims[3:], kind.sampled, *tensors)


class RecordedChain(Chain):
    """`Chain` outside of torch.func: a forward with ctx spares PyTorch's slow argument binding."""

    setup_context = staticmethod(torch.autograd.Function.setup_context)

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = Chain.forward(*inputs)
        Chain.setup_context(ctx, inputs, output)
        return output


def pullback(
    kind: ChainKind,
    options: Options,
    keep: str,
    needs: Sequence[bool],
    *tensors: MaybeTensor,
) -> tuple[Tensor, ...]:
    """Gradients of z0 and the parameters; those that are not needed are of shape (0,).

    tensors: gz, gstates, z0, kept, *parameters.
    """
    if func_active():
        return ChainBackward.apply(kind, options, keep, needs, *tensors)
    if torch.is_grad_enabled() or forward_ad_active():
        return RecordedChainBackward.apply(kind, options, keep, needs, *tensors)
    return run_backward(kind, options, keep, needs, *tensors)


class ChainBackward(torch.autograd.Function):
    """(kind, options, keep, needs, gz, gstates, z0, kept, *parameters) -> gradients.

    What was kept is a function of the other inputs; derivatives recompute it.
    """

    @staticmethod
    def forward(
        kind: ChainKind, options: Options, keep: str, needs: Sequence[bool], *tensors: MaybeTensor
    ) -> tuple[Tensor, ...]:
        return run_backward(kind, options, keep, needs, *tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.kind, ctx.options, _, ctx.needs, gz, gstates, z0, _, *parameters = inputs
        ctx.set_materialize_grads(False)
        saved = (gz, gstates, z0, *parameters)
        ctx.save_for_backward(*saved)
        if forward_ad_active():
            ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *cotangents: MaybeTensor) -> tuple[MaybeTensor, ...]:
        wanted = ctx.needs_input_grad[4:7] + ctx.needs_input_grad[8:]
        gz, gstates, z0, *parameters = double_pullback(
            ctx.kind, ctx.options, ctx.needs, ctx.saved_tensors, cotangents, wanted
        )
        return (None, None, None, None, gz, gstates, z0, None, *parameters)

    @staticmethod
    def jvp(ctx: Any, *tangents: MaybeTensor) -> tuple[Tensor, ...]:
        run = reference_pullback(ctx.kind, ctx.options, ctx.needs)
        with outer_forward_ad():
            inputs = primals(ctx.saved_tensors)
            needed = iter(_calculus.jvp(run, inputs, primals([*tangents[4:7], *tangents[8:]])))
        zero = ctx.saved_tensors[2].new_zeros(0)
        return tuple(next(needed) if need else zero for need in ctx.needs)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        kind: ChainKind,
        options: Options,
        keep: str,
        needs: Sequence[bool],
        *tensors: Any,
    ) -> _vmap.Mapped:
        def call(*one: Any) -> tuple[Tensor, ...]:
            return pullback(kind, options, keep, needs, *one)

        dims, sampled = in_dims[4:], kind.sampled
        return _vmap.chain_backward(call, info.batch_size, dims, sampled, needs, *tensors)


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
        return solve(kind, options, "states", z0, *parameters, None)[1]


def reference_pullback(
    kind: ChainKind, options: Options, needs: Sequence[bool]
) -> _calculus.Function:
    """(gz, gstates, z0, *parameters) -> the needed gradients, in differentiable operations."""

    def run(gz: MaybeTensor, gstates: MaybeTensor, *tensors: MaybeTensor) -> tuple[Tensor, ...]:
        def forward(z0: Tensor, *parameters: MaybeTensor) -> tuple[Tensor, ...]:
            return kind.loop(options, gstates is not None, z0, *parameters)

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
