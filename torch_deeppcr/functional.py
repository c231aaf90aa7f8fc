# SPDX-License-Identifier: Apache-2.0
"""The public functions: arguments are resolved and checked, then `_chain` or `_recurrence` runs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _activations, _chain, _checks, _recurrence
from ._activations import Activation
from ._kinds import MLP, RESIDUAL, ChainKind, Options
from ._transforms import autocast_enabled, func_active

ActivationLike = str | tuple[Any, ...] | torch.nn.Module | Activation
#: A tensor, or a tuple of it and what ``return_states`` or ``return_info`` asks for.
Output = Any
_NORMS = (None, "layer_norm", "rms_norm")


class RecurrenceInfo(NamedTuple):
    """How a linear recurrence was solved.

    levels: levels of the parallel cyclic reduction that ran, ceil(log2 segments); an int, or a 0-d
        tensor where a number cannot be read (`torch.compile`, `torch.func`, meta tensors).
    recomputed: bool (B,), samples that the plain loop computed in the end, because a product of
        their blocks over- or underflowed although the loop would not have.
    """

    levels: int | Tensor
    recomputed: Tensor


def mlp_chain(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: ActivationLike = "tanh",
    return_states: bool = False,
) -> Output:
    """L layers of equal width, z_l = act(W_l z_{l-1} + b_l), as one operator.

    Args:
        input: z_0 (..., w).
        weight: (L, w, w), each W_l as in `torch.nn.Linear` (out, in).
        bias: (L, w) or None.
        activation: "identity", "relu", "leaky_relu", "elu", "tanh", "sigmoid", "silu", "gelu",
            "gelu_tanh" or "softplus"; a tuple (name, *parameters); or one of PyTorch's modules of
            these functions, such as ``nn.ELU(0.5)``.
        return_states: also return all states z_1..z_L.

    Returns:
        z_L (..., w), and with ``return_states`` the states (L, ..., w).  L = 0 gives a copy of the
        input.  Both are differentiable, any number of times, in reverse and in forward mode.

    float32 and float64 on the CPU run in the native kernel; every other floating-point dtype and
    device runs PyTorch's loop.  Under autocast the chain computes and returns float32, unlike
    `nn.Linear`.

    Raises:
        TypeError: a tensor is of another type, or of another dtype than ``input``.
        ValueError: a shape does not fit, tensors are on several devices, or an option is unknown.
    """
    name, numbers = _activations.resolve(activation)
    return _run(MLP, (name, numbers), return_states, input, weight, bias)


def residual_chain(
    input: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    norm_weight: Tensor | None = None,
    norm_bias: Tensor | None = None,
    *,
    activation: ActivationLike = "relu",
    norm: str | None = None,
    norm_eps: float | None = None,
    scale: float = 1.0,
    return_states: bool = False,
) -> Output:
    """L residual blocks, z_l = z_{l-1} + scale (W2_l act(W1_l norm(z_{l-1}) + b1_l) + b2_l).

    Args:
        input: z_0 (..., w).
        weight1, bias1: (L, h, w) and (L, h) or None; h is the hidden width.
        weight2, bias2: (L, w, h) and (L, w) or None.
        norm_weight, norm_bias: (L, w) or None; only with a norm (norm_bias only with "layer_norm").
        activation: as in `mlp_chain`.
        norm: None, "layer_norm" or "rms_norm", over the w elements of a state.
        norm_eps: None is PyTorch's default: 1e-5 for "layer_norm", for "rms_norm" eps of the
            arithmetic's dtype (float32 for half precision).
        scale: a finite number.
        return_states: also return all states z_1..z_L.

    Returns, dtypes, devices, autocast and errors: as `mlp_chain`.
    """
    name, numbers = _activations.resolve(activation)
    _checks.choice("norm", norm, _NORMS)
    norm = norm or "none"
    _checks.norm_parameters(norm, norm_weight, norm_bias)
    if norm_eps is None:
        norm_eps = _default_eps(norm, input)
    else:
        norm_eps = _checks.epsilon("norm_eps", norm_eps)
    options = (name, numbers, norm, norm_eps, _checks.finite("scale", scale))
    parameters = (weight1, bias1, weight2, bias2, norm_weight, norm_bias)
    return _run(RESIDUAL, options, return_states, input, *parameters)


def linear_recurrence(
    A: Tensor | None,
    b: Tensor,
    x0: Tensor | None = None,
    *,
    reverse: bool = False,
    blocks: str | None = None,
    segments: int | str = "auto",
    return_info: bool = False,
) -> Output:
    """x_l = A_l x_{l-1} + b_l for l = 1..L, a block-bidiagonal linear system in x_1..x_L.

    Args:
        A: dense (L, B, w, w), diagonal (L, B, w) or scalar (L, B, 1) blocks, each with 1 in place
            of B where the samples share them; None: identity blocks, a cumulative sum.  Dense
            blocks are read through their strides (``A.mT``, batch-first views) without a copy.
        b: (L, B, w).
        x0: (B, w); None is zero, and A_1 is then not read.
        reverse: x_l = A_l x_{l+1} + b_l from the last step down, x0 entering after it.  Nothing is
            transposed: the adjoint of the recurrence has the blocks A_{l+1}^T.
        blocks: "dense", "diagonal", "scalar" or "identity".  Needed only where the shape of A could
            be read in two ways: A (L, w, w) with B = w.  With "dense" such an A is shared by the
            samples.
        segments: into how many parts S the steps are cut.  1 is the plain loop, L is parallel
            cyclic reduction, ceil(log2 L) levels; between them every part is reduced first.  "auto"
            is 1 on the CPU.  The result does not depend on it, but for rounding.
        return_info: also return a `RecurrenceInfo`.

    Returns:
        x (L, B, w), differentiable any number of times, in reverse and in forward mode.

    dtypes, devices and autocast: as `mlp_chain`.

    Raises:
        TypeError: a tensor is of another type, or of another dtype than ``b``.
        ValueError: a shape does not fit or is ambiguous, tensors are on several devices, segments
            is not in 1..L, or ``blocks`` is unknown.

    Method: reduce-then-scan over segments, the scan by parallel cyclic reduction as in DeepPCR
    (Danieli et al., NeurIPS 2023, arXiv 2309.16318).
    """
    b = _checks.real_tensor("b", b)
    if autocast_enabled(b):
        A, b, x0 = (_to_float32(tensor) for tensor in (A, b, x0))
    kind = _block_kind(A, b, blocks)
    if kind == "dense" and A is not None and A.dim() == 3:
        A = A.unsqueeze(1)
    _checks.recurrence(A, b, x0, kind)
    count = 1 if segments == "auto" else _checks.segments(segments, b.shape[0])
    x, info = _recurrence.solve(A, b, x0, kind, _checks.flag("reverse", reverse), count)
    return (x, _info(info)) if _checks.flag("return_info", return_info) else x


def _run(
    kind: ChainKind,
    options: Options,
    return_states: bool,
    state: Tensor,
    *parameters: Tensor | None,
) -> Output:
    state = _checks.real_tensor("input", state)
    if autocast_enabled(state):
        state = _to_float32(state)
        parameters = tuple(map(_to_float32, parameters))
    _checks.parameters(kind.shapes, parameters, "input", state)
    _checks.flag("return_states", return_states)
    outer = state.shape[:-1]
    if len(outer) != 1:
        state = state.flatten(0, -2) if outer else state.unsqueeze(0)
    z, states = _chain.solve(kind, options, return_states, state, *parameters)
    if len(outer) != 1:
        z = z.unflatten(0, outer) if outer else z.squeeze(0)
        states = states.unflatten(1, outer) if outer else states.squeeze(1)
    return (z, states) if return_states else z


def _to_float32(value: Any) -> Any:
    """What autocast does to the inputs of an operator that needs precision; float64 stays."""
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value


def _default_eps(norm: str, state: object) -> float:
    """PyTorch's: for "rms_norm" eps of the arithmetic, which is float32 for half precision."""
    if norm != "rms_norm":
        return 1e-5
    double = _checks.real_tensor("input", state).dtype == torch.float64
    return torch.finfo(torch.float64 if double else torch.float32).eps


def _block_kind(A: object, b: Tensor, blocks: str | None) -> str:
    """Which blocks the shape of A means; ValueError where it could mean two things."""
    if blocks is not None:
        _checks.choice("blocks", blocks, _checks.BLOCKS)
    if A is None:
        return blocks or "identity"
    A = _checks.like("A", A, "b", b)
    if blocks is not None:
        return blocks
    if A.dim() not in (3, 4):
        raise ValueError(f"A must have 3 or 4 dimensions, got shape {tuple(A.shape)}")
    if A.dim() == 4 or b.dim() != 3:
        return "dense"
    batch, width = b.shape[1:]
    if A.shape[1:] == (width, width) and width > 1:  # with width 1 all readings agree
        if batch == width:
            raise ValueError(
                f"A of shape {tuple(A.shape)} may hold diagonal blocks (L, B, w) or dense blocks "
                '(L, w, w) that the samples share: say which by blocks="diagonal" or blocks="dense"'
            )
        raise ValueError(
            f"A of shape {tuple(A.shape)} does not fit b of shape {tuple(b.shape)}; dense blocks "
            'that the samples share are A[:, None], or say blocks="dense"'
        )
    return "scalar" if A.shape[2] == 1 else "diagonal"


def _info(info: Tensor) -> RecurrenceInfo:
    opaque = torch.compiler.is_compiling() or func_active() or info.is_meta
    levels = info[0] if opaque else int(info[0])
    return RecurrenceInfo(levels, info[1:] != 0)
