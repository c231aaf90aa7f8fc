# SPDX-License-Identifier: Apache-2.0
"""What PyTorch must know about the raw operators, whose kernels the native library registers:
shapes (fake kernels, which serve meta tensors too), autograd, vmap and autocast.

The public functions use the autograd registration under `torch.compile` and `torch.export` alone;
in eager mode they go through the autograd.Functions of `_chain` and `_recurrence`, because the
registration raises under `torch.func` and knows no forward mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _chain, _checks, _plan, _recurrence, _vmap
from ._kinds import KINDS, SOLVER_OPTIONS, ChainKind, Options
from ._transforms import refuse_tangents

MaybeTensor = Tensor | None
_AUTOCAST_DEVICES = ("cpu", "cuda")


def register() -> None:
    """To be called once, after the native library is loaded."""
    for kind in KINDS:
        _register_chain(kind)
        _register_chain_backward(kind)
    _register_recurrence()
    _register_recurrence_backward()
    _register_update()
    names = [name for kind in KINDS for name in (kind.name, f"{kind.name}_backward")]
    for name in (*names, "linear_recurrence", "linear_recurrence_backward", "newton_update"):
        for device in _AUTOCAST_DEVICES:
            torch.library.register_autocast(f"deeppcr::{name}", device, torch.float32)


class _GuardedLibrary(torch.library.Library):
    """Registers kernels that refuse inputs with tangents.

    Without the guard an input that has a tangent but needs no gradient would lose it silently.
    """

    def impl(self, op_name: Any, fn: Any, *args: Any, **kwargs: Any) -> None:
        def guarded(keyset: Any, *inputs: Any, **named: Any) -> Any:
            refuse_tangents(inputs)
            return fn(keyset, *inputs, **named)

        super().impl(op_name, guarded, *args, **kwargs)


_library = _GuardedLibrary("deeppcr", "FRAGMENT")  # kernels live as long as it does


def _register_autograd(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> None:
    torch.library.register_autograd(name, backward, setup_context=setup_context, lib=_library)


def _native_dtype(name: str, tensor: Tensor) -> None:
    if tensor.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name} must be float32 or float64, got {tensor.dtype}")


# ---- chains -------------------------------------------------------------------------------------


def _register_chain(kind: ChainKind) -> None:
    name = f"deeppcr::{kind.name}"
    end = 2 + kind.count  # of the tensors

    def fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        z0, *parameters, guess = inputs[:end]
        options, keep = _options(inputs[end:]), inputs[-1]
        length = _check_chain(kind, options, keep, z0, tuple(parameters))
        if guess is not None:
            sizes = {"L": length, "B": z0.shape[0], "w": z0.shape[1]}
            _checks.shape("guess", _checks.like("guess", guess, "z0", z0), "LBw", sizes)
        kept = z0.new_empty((_kept(length, options, keep), *z0.shape))
        return z0.new_empty(z0.shape), kept, _empty_info(z0)

    def setup_context(
        ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        head = (kind, _options(inputs[end:]), inputs[-1])
        _chain.Chain.setup_context(ctx, (*head, *inputs[:end]), output)

    def backward(
        ctx: Any, gz: MaybeTensor, gstates: MaybeTensor, _: MaybeTensor
    ) -> tuple[MaybeTensor, ...]:
        rest = (None,) * (1 + len(ctx.options.step) + SOLVER_OPTIONS + 2)
        if gz is None and gstates is None:
            return (*(None,) * (end - 1), *rest)
        needs = list(ctx.needs_input_grad[: end - 1])
        z0, kept, *parameters = ctx.saved_tensors
        keep = ctx.keep
        if keep != "states":
            gstates = None
        if keep == "nothing":
            keep, kept = "states", _chain.recompute(kind, ctx.options, z0, parameters)
        gradients = kind.backward(ctx.options, keep, needs, gz, gstates, z0, kept, *parameters)
        return (*_chain.select(gradients[:-1], needs), *rest)

    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> _vmap.Mapped:
        def call(*tensors: Any) -> tuple[Tensor, ...]:
            return kind.forward(_options(inputs[end:]), inputs[-1], *tensors)

        return _vmap.chain(call, info.batch_size, in_dims[:end], kind.sampled, *inputs[:end])

    torch.library.register_fake(name, fake)
    _register_autograd(name, backward, setup_context)
    torch.library.register_vmap(name, vmap)


def _register_chain_backward(kind: ChainKind) -> None:
    name = f"deeppcr::{kind.name}_backward"
    end = 4 + kind.count

    def fake(*inputs: Any) -> tuple[Tensor, ...]:
        gz, gstates, z0, kept, *parameters = inputs[:end]
        options, keep, needs = _options(inputs[end:-1]), *inputs[-2:]
        length = _check_chain(kind, options, keep, z0, tuple(parameters))
        if keep == "nothing":
            raise ValueError("keep must be 'states' or 'checkpoints' in a backward pass")
        batch, width = z0.shape
        sizes = {"C": _kept(length, options, keep), "L": length, "B": batch, "w": width}
        _checks.shape("kept", _checks.like("kept", kept, "z0", z0), "CBw", sizes)
        if gz is not None:
            _checks.shape("gz", _checks.like("gz", gz, "z0", z0), "Bw", sizes)
        if gstates is not None:
            _checks.shape("gstates", _checks.like("gstates", gstates, "z0", z0), "LBw", sizes)
        return (*_empty_gradients(z0, (z0, *parameters), needs), _empty_info(z0))

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        head = (kind, _options(inputs[end:-1]), *inputs[-2:])
        _chain.ChainBackward.setup_context(ctx, (*head, *inputs[:end]), output)
        ctx.mark_non_differentiable(output[-1])

    def backward(ctx: Any, *cotangents: MaybeTensor) -> tuple[MaybeTensor, ...]:
        wanted = ctx.needs_input_grad[:3] + ctx.needs_input_grad[4:end]
        gz, gstates, z0, *parameters = _chain.double_pullback(
            kind, ctx.options, ctx.needs, ctx.saved_tensors, cotangents[:-1], wanted
        )
        rest = (None,) * (len(ctx.options.step) + SOLVER_OPTIONS + 3)
        return (gz, gstates, z0, None, *parameters, *rest)

    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> _vmap.Mapped:
        def call(*tensors: Any) -> tuple[Tensor, ...]:
            return kind.backward(_options(inputs[end:-1]), *inputs[-2:], *tensors)

        rest = (kind.sampled, inputs[-1], *inputs[:end])
        return _vmap.chain_backward(call, info.batch_size, in_dims[:end], *rest)

    torch.library.register_fake(name, fake)
    _register_autograd(name, backward, setup_context)
    torch.library.register_vmap(name, vmap)


def _options(values: tuple[Any, ...]) -> Options:
    """Of (*step options, *solver options, frozen, keep), None where the operators say so."""
    activation, activation_parameters, *rest = values[: len(values) - 2 - SOLVER_OPTIONS]
    step = (activation, tuple(activation_parameters or ()), *rest)
    solver, frozen = values[len(step) : -2], values[-2]
    return Options(step, solver, frozen=tuple(frozen or ()))


def _check_chain(
    kind: ChainKind,
    options: Options,
    keep: str,
    z0: Tensor,
    parameters: tuple[MaybeTensor, ...],
) -> int:
    """Returns L."""
    _native_dtype("z0", z0)
    if z0.dim() != 2:
        raise ValueError(f"z0 must have shape (B, w), got {tuple(z0.shape)}")
    sizes = _checks.parameters(kind.shapes, parameters, "z0", z0)
    kind.check_options(parameters, *options.step)
    segments, jacobian, refresh, rtol, atol, _, _ = options.solver
    _checks.segments(segments, sizes["L"])
    _checks.choice("jacobian", jacobian, (*_plan.JACOBIANS, None))
    _checks.choice("refresh", refresh, (*_plan.REFRESHES, None))
    if rtol is not None:
        _checks.positive("rtol", rtol)
    if atol is not None:
        _checks.epsilon("atol", atol)
    _checks.frozen(options.frozen, sizes["L"])
    _checks.choice("keep", keep, ("nothing", "states", "checkpoints"))
    return sizes["L"]


def _kept(length: int, options: Options, keep: str) -> int:
    """Number of states that forward keeps."""
    if keep == "checkpoints":
        return _plan.checkpoints(length, options.solver[0])
    return length if keep == "states" else 0


def _empty_info(z0: Tensor) -> Tensor:
    return z0.new_empty((_plan.REPORT, z0.shape[0]), dtype=torch.float64)


def _empty_gradients(
    like: Tensor, tensors: tuple[MaybeTensor, ...], needs: list[bool]
) -> tuple[Tensor, ...]:
    return tuple(
        like.new_empty(tensor.shape if need and tensor is not None else 0)
        for tensor, need in zip(tensors, needs, strict=True)
    )


# ---- linear recurrence --------------------------------------------------------------------------


def _register_recurrence() -> None:
    name = "deeppcr::linear_recurrence"

    def fake(*inputs: Any) -> tuple[Tensor, Tensor]:
        A, b, x0, blocks, _, segments = inputs
        _native_dtype("b", b)
        _checks.recurrence(A, b, x0, blocks)
        _checks.segments(segments, b.shape[0])
        return b.new_empty(b.shape), b.new_empty(b.shape[1], dtype=torch.int32)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _recurrence.Recurrence.setup_context(ctx, inputs, output)

    def backward(ctx: Any, gx: MaybeTensor, _: MaybeTensor) -> tuple[MaybeTensor, ...]:
        if gx is None:
            return (None,) * 6
        A, x0, x = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        gradients = _recurrence.raw_backward()(
            gx, A, x0, gx if x is None else x, *ctx.options, needs[0], needs[2]
        )
        return (*_chain.select(gradients, needs), None, None, None)

    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> _vmap.Mapped:
        def call(*tensors: Any) -> tuple[Tensor, ...]:
            return _recurrence.raw()(*tensors, *inputs[3:])

        return _vmap.recurrence(call, info.batch_size, in_dims[:3], *inputs[:3])

    torch.library.register_fake(name, fake)
    _register_autograd(name, backward, setup_context)
    torch.library.register_vmap(name, vmap)


def _register_recurrence_backward() -> None:
    name = "deeppcr::linear_recurrence_backward"

    def fake(*inputs: Any) -> tuple[Tensor, ...]:
        gx, A, x0, x, blocks, _, segments, need_A, need_x0 = inputs
        _native_dtype("gx", gx)
        sizes = _checks.recurrence(A, gx, x0, blocks, "gx")
        _checks.segments(segments, gx.shape[0])
        _checks.shape("x", _checks.like("x", x, "gx", gx), "LBw", sizes)
        gA, gx0 = _empty_gradients(gx, (A, x0), [need_A, need_x0])
        return gA, gx.new_empty(gx.shape), gx0

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options = inputs[4:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*inputs[:4])

    def backward(ctx: Any, *cotangents: MaybeTensor) -> tuple[MaybeTensor, ...]:
        gradients = _recurrence.double_pullback(
            ctx.saved_tensors, ctx.options, cotangents, ctx.needs_input_grad[:4]
        )
        return (*gradients, *(None,) * 5)

    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> _vmap.Mapped:
        def call(*tensors: Any) -> tuple[Tensor, ...]:
            return _recurrence.raw_backward()(*tensors, *inputs[4:])

        return _vmap.recurrence_backward(
            call, info.batch_size, in_dims[:4], *inputs[7:], *inputs[:4]
        )

    torch.library.register_fake(name, fake)
    _register_autograd(name, backward, setup_context)
    torch.library.register_vmap(name, vmap)


# ---- sweeps over steps of others -----------------------------------------------------------------


def _register_update() -> None:
    """Without derivatives: a sweep is part of a search, whose result has one of its own."""
    name = "deeppcr::newton_update"

    def fake(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        states, ends, *_ = inputs
        _native_dtype("states", states)
        _checks.update(*inputs)
        converged = states.new_empty(ends.shape[1], dtype=torch.int64)
        return states.new_empty(states.shape), states.new_empty(ends.shape[:2]), converged

    def backward(ctx: Any, *cotangents: MaybeTensor) -> tuple[None, ...]:
        raise NotImplementedError("torch.ops.deeppcr.newton_update has no derivative")

    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> _vmap.Mapped:
        raise NotImplementedError("torch.ops.deeppcr.newton_update does not take part in vmap")

    torch.library.register_fake(name, fake)
    _register_autograd(name, backward, lambda ctx, inputs, output: None)
    torch.library.register_vmap(name, vmap)
