# SPDX-License-Identifier: Apache-2.0
"""One Newton sweep over steps that somebody else evaluates: `newton_update`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import _checks, _native, reference
from ._chain import call, native
from ._switch import sequential_wanted
from ._transforms import func_active, refuse_under_compile, without_autocast

MaybeTensor = Tensor | None


def newton_update(
    states: Tensor,
    ends: Tensor,
    jacobian: MaybeTensor,
    structure: str,
    tolerance: Tensor,
    rtol: float,
    segments: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """The second half of a Newton sweep over the steps x_l = f_l(x_{l-1}), l = 1..W.

        r_l = e_l - x_l,   d_l = A_l d_{l-1} + r_l, d_0 = 0,   x_l <- e_l + A_l d_{l-1}

    For steps that are evaluated elsewhere, all at once; the window of a sampler, for example.  With
    A the Jacobians it is Newton's method, with the identity Picard's, with zero Jacobi's.  A new
    x_1 is always exact, so W sweeps are the loop whatever A is.

    Args:
        states: (W+1, B, w), x_0, which is exact, and the guesses x_1..x_W.
        ends: (W, B, w), e_l = f_l(x_{l-1}).
        jacobian: what stands for df_l/dx at x_{l-1}, for all samples or one for each:
            (W, B or 1, w, w), (W, B or 1, w), (W, B or 1, 1) or None; that of l = 1 is not read.
        structure: "dense", "diagonal", "scalar", "identity" or "zero" (the last two: None).
        tolerance: (W,) float64, absolute, on the device of the states.
        rtol: relative to the largest element of e_l.
        segments: of the recurrence, 1..W; 0: its own choice.

    Returns:
        The new states (W+1, B, w), x_0 among them; error (W, B), of their dtype, the largest
        element of d_l; converged (B,) int64, the number of leading steps whose error is at most
        tolerance_l + rtol |e_l|.

    A new state that is not finite, or larger than 10 times the largest finite e of its sample, is
    replaced by e_l; its error counts |A_l d_{l-1}| and |r_l|, too.  Where an element of d_{l-1} is
    exactly 0 (all of them, with dense A) A is not asked, it may be inf there.  Errors that are not
    finite are inf.  Where e_1 is not finite, converged is 1: the loop would have got there, too.
    A sample's numbers do not depend on its batch mates.

    float32 and float64 run native kernels, other dtypes and devices, and everything inside of
    `sequential`, the loop of `reference.newton_update`.  There are no derivatives: an input that
    requires one, outside of `torch.no_grad`, raises NotImplementedError, as `torch.func` does.

    Raises:
        ValueError, TypeError: naming the argument.
        NotImplementedError: see above, and where the native library for CUDA is missing.
    """
    _checks.real_tensor("states", states)
    _checks.update(states, ends, jacobian, structure, tolerance, rtol, segments)
    tensors = (states, ends, jacobian, tolerance)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        raise NotImplementedError(
            "newton_update has no derivatives: call it under torch.no_grad, or detach its inputs"
        )
    if func_active():
        raise NotImplementedError("newton_update does not take part in torch.func's transforms")
    if sequential_wanted() or not native(states):
        if not sequential_wanted():
            _native.refuse(states)
        with without_autocast(states):
            return reference.newton_update(states, ends, jacobian, structure, tolerance, rtol)
    inputs = (states, ends, jacobian, structure, tolerance, rtol, segments)
    if torch.compiler.is_compiling():
        refuse_under_compile()
        return raw()(*inputs)
    return call(raw(), *inputs)


def raw() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return torch.ops.deeppcr.newton_update.default
