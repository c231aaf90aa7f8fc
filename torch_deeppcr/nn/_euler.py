# SPDX-License-Identifier: Apache-2.0
"""`EulerChain`: L equal Euler steps z + scale act(W z + b) with stacked parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import _checks
from .._plan import SolverOptions
from .._solve import Output
from ..functional import ActivationLike, run_euler
from ._linears import LinearChain

if TYPE_CHECKING:
    from typing_extensions import Unpack


class EulerChain(LinearChain):
    """A stack of ``depth`` explicit Euler steps z + scale act(W z + b), run as one operator.

    The residual network with one linear map per block, or a discretised neural ODE
    z' = act(W(t) z + b(t)) with step size ``scale``.

    Args:
        width: w, size of the states.
        depth: L, number of steps.
        activation: as in `torch_deeppcr.mlp_chain`.
        scale: a finite number, the same for all steps.
        bias: whether the steps have a bias.
        device, dtype: of the parameters.
        **solver: how the chain is solved, as in `torch_deeppcr.mlp_chain`.

    Parameters:
        weight (depth, width, width) and bias (depth, width) or None, drawn as those of `MLPChain`.

    Raises:
        TypeError, ValueError: width or depth is no int >= 0, or an option is unknown.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        activation: ActivationLike = "tanh",
        scale: float = 1.0,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **solver: Unpack[SolverOptions],
    ) -> None:
        super().__init__(width, depth, activation, bias, device, dtype, **solver)
        self.scale = _checks.finite("scale", scale)

    def forward(
        self,
        input: Tensor,
        return_states: bool = False,
        *,
        warm_start: Tensor | None = None,
        return_info: bool = False,
    ) -> Output:
        """input (..., width) -> (..., width); also the states (depth, ..., width) and a `ChainInfo`
        if asked for.  warm_start: a guess of the states."""
        call = self._call(return_states, warm_start, return_info)
        parameters = self._own("weight", "bias")
        return run_euler(call, input, parameters, self.activation, self.scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, scale={self.scale:g}"
