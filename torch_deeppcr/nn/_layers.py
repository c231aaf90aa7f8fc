# SPDX-License-Identifier: Apache-2.0
"""`LayersChain`: L equal stacks of Linear, norm, activation with stacked parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import _activations, _checks
from .._plan import SolverOptions
from .._solve import Output
from ..functional import ActivationLike, run_layers
from . import _stacking
from ._block import NORMS
from ._solving import SolvedChain

if TYPE_CHECKING:
    from typing_extensions import Unpack

_PARAMETERS = ("weight", "bias", "norm_weight", "norm_bias")


class LayersChain(SolvedChain):
    """A stack of ``depth`` steps of ``sublayers`` layers act(norm(W a + b)) each, as one operator.

    Without skip, ``nn.Sequential(nn.Linear, nn.LayerNorm, activation, ...)``; with skip, every step
    is added to its input: the blocks of very deep networks of reinforcement learning.

    Args:
        width: w, size of every layer.
        depth: L, number of steps.
        sublayers: M, layers of a step, at least 1.
        activation: as in `torch_deeppcr.mlp_chain`.
        norm: None, "layer_norm" or "rms_norm", with learned affine parameters.
        skip: whether the input of a step is added to its result.
        scale: a finite number, of what the layers give.
        bias: whether the linear maps have a bias.
        norm_eps: None is PyTorch's default.
        device, dtype: of the parameters.
        **solver: how the chain is solved, as in `torch_deeppcr.mlp_chain`.

    Parameters:
        weight (depth, sublayers, width, width), bias, norm_weight and norm_bias (depth, sublayers,
        width); those that the options leave out are None (norm_bias belongs to "layer_norm" alone).

    Raises:
        TypeError, ValueError: a size is no int >= 0 (sublayers: >= 1), or an option is unknown.
    """

    weight: Tensor
    bias: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None

    def __init__(
        self,
        width: int,
        depth: int,
        sublayers: int = 1,
        activation: ActivationLike = "silu",
        norm: str | None = None,
        skip: bool = True,
        scale: float = 1.0,
        bias: bool = True,
        norm_eps: float | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **solver: Unpack[SolverOptions],
    ) -> None:
        super().__init__(depth, solver)
        self.width = _checks.size("width", width)
        self.sublayers = _checks.size("sublayers", sublayers)
        if sublayers < 1:
            raise ValueError("sublayers must be at least 1, got 0")
        self.activation = _activations.resolve(activation)
        _checks.choice("norm", norm, NORMS)
        self.norm = norm
        self.skip = _checks.flag("skip", skip)
        self.scale = _checks.finite("scale", scale)
        self.norm_eps = None if norm_eps is None else _checks.epsilon("norm_eps", norm_eps)
        there = {
            "weight": True,
            "bias": _checks.flag("bias", bias),
            "norm_weight": norm is not None,
            "norm_bias": norm == "layer_norm",
        }
        for name in _PARAMETERS:
            shape = (
                (depth, sublayers, width, width) if name == "weight" else (depth, sublayers, width)
            )
            empty = torch.empty(shape, device=device, dtype=dtype) if there[name] else None
            self.register_parameter(name, None if empty is None else nn.Parameter(empty))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all layers anew, in order, as `nn.Linear` does; norms start at 1 and 0."""
        weights = self.weight.detach().flatten(0, 1).unbind(0)
        biases: Sequence[Tensor | None] = [None] * len(weights)
        if self.bias is not None:
            biases = self.bias.detach().flatten(0, 1).unbind(0)
        for weight, bias in zip(weights, biases, strict=True):
            _stacking.reset_linear(weight, bias)
        if self.norm_weight is not None:
            nn.init.ones_(self.norm_weight)
        if self.norm_bias is not None:
            nn.init.zeros_(self.norm_bias)

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
        options = (self.activation, self.norm, self.norm_eps, self.skip, self.scale)
        return run_layers(call, input, self._own(*_PARAMETERS), *options)

    def extra_repr(self) -> str:
        eps = "" if self.norm_eps is None else f", norm_eps={self.norm_eps:g}"
        return (
            f"width={self.width}, depth={self.depth}, sublayers={self.sublayers}, "
            f"activation={_activations.to_text(self.activation)}, norm={self.norm}, "
            f"skip={self.skip}, scale={self.scale:g}, bias={self.bias is not None}{eps}"
            f"{self.solver.text()}"
        )
