# SPDX-License-Identifier: Apache-2.0
"""Which of PyTorch's function transforms are active.

PyTorch has no public question for this; everything private that the package asks is in this file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch._C import _are_functorch_transforms_active as func_active
from torch._C import _AutoDispatchBelowAutograd as below_autograd
from torch._C._functorch import TransformType, get_interpreter_stack
from torch.autograd import forward_ad

__all__ = [
    "autocast_enabled",
    "below_autograd",
    "forward_ad_active",
    "func_active",
    "outer_forward_ad",
    "plain",
    "primals",
    "refuse_tangents",
    "refuse_under_compile",
    "without_autocast",
]


def forward_ad_active() -> bool:
    """Inside ``torch.autograd.forward_ad.dual_level()`` or `torch.func.jvp`, jacfwd, hessian."""
    return forward_ad._current_level >= 0


def plain(tensor: object) -> bool:
    """A tensor on the CPU that no mode and no transform has a say in."""
    return (
        type(tensor) in _PLAIN
        and tensor.is_cpu  # type: ignore[attr-defined]
        and not func_active()
        and not forward_ad_active()
        and not torch._C._is_any_autocast_enabled()
    )


_PLAIN = (Tensor, torch.nn.Parameter)


def primals(tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """What the ``jvp`` of an autograd.Function must compute with, given its saved tensors.

    PyTorch switches forward mode off for the rule and hands it dual tensors.  Left so, an outer jvp
    (`torch.func` nests, plain forward mode does not) would find no tangents in the result of the
    rule, and give zero without a word.  So the rule runs inside `outer_forward_ad`, on tensors that
    are stripped of the tangents of its own level.
    """
    if not func_active():
        return tensors
    return [None if t is None else forward_ad.unpack_dual(t).primal for t in tensors]


def outer_forward_ad() -> AbstractContextManager[object]:
    """Switches forward mode on again, for outer levels, in the ``jvp`` of an autograd.Function."""
    return forward_ad._set_fwd_grad_enabled(True) if func_active() else nullcontext()


def refuse_tangents(tensors: Iterable[object]) -> None:
    """Raises where a raw operator would drop the tangents of its inputs."""
    if not forward_ad_active() or not torch._C._is_fwd_grad_enabled():
        return
    for tensor in tensors:
        if isinstance(tensor, Tensor) and forward_ad.unpack_dual(tensor).tangent is not None:
            raise NotImplementedError(
                "torch.ops.deeppcr operators have no forward-mode derivative: call the functions "
                "of torch_deeppcr instead"
            )


@torch.compiler.assume_constant_result
def _func_grad_active() -> bool:
    return any(level.key() == TransformType.Grad for level in get_interpreter_stack() or ())


def refuse_under_compile() -> None:
    """Raises where `torch.compile` cannot take a derivative, or would take it to be zero."""
    if forward_ad_active():
        raise NotImplementedError(
            "forward-mode derivatives (jvp, jacfwd, hessian, forward_ad) of deeppcr operators are "
            "not supported under torch.compile: call them outside of the compiled function"
        )
    if _func_grad_active():
        raise NotImplementedError(
            "torch.func derivatives (grad, vjp, jacrev) of deeppcr operators are not supported "
            "under torch.compile: call them outside of the compiled function"
        )


def autocast_enabled(tensor: Tensor) -> bool:
    """Whether autocast is on for the device of ``tensor``."""
    if not torch._C._is_any_autocast_enabled():
        return False
    device = tensor.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """Switches autocast off for the device of ``tensor``."""
    if autocast_enabled(tensor):
        return torch.autocast(tensor.device.type, enabled=False)
    return nullcontext()
