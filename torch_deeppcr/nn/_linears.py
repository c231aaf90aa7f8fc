# SPDX-License-Identifier: Apache-2.0
"""What chains with one linear map per step share as modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import _activations, _checks
from .._plan import SolverOptions
from ..functional import ActivationLike
from . import _stacking
from ._solving import SolvedChain

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LinearChain(SolvedChain):
    """Stacked weights (depth, width, width) and biases (depth, width), and an activation."""

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        width: int,
        depth: int,
        activation: ActivationLike = "tanh",
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **solver: Unpack[SolverOptions],
    ) -> None:
        super().__init__(depth, solver)
        self.width = _checks.size("width", width)
        self.activation = _activations.resolve(activation)
        self.weight = nn.Parameter(torch.empty(depth, width, width, device=device, dtype=dtype))
        if _checks.flag("bias", bias):
            self.bias = nn.Parameter(torch.empty(depth, width, device=device, dtype=dtype))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all layers anew, in order, as `nn.Linear` does."""
        for weight, bias in self._steps():
            _stacking.reset_linear(weight, bias)

    def layers(self) -> tuple[nn.Linear, ...]:
        """The layers as `nn.Linear`s on the chain's storage, for ``nn.init`` and inspection.

        Their parameters are detached views: writing into them changes the chain, gradients do not
        reach it.  They are those of the moment: `.to` may move the chain away from them.
        """
        weights = self.weight.detach().unbind(0)
        biases = [None] * self.depth if self.bias is None else self.bias.detach().unbind(0)
        return tuple(
            _stacking.new_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)
        )

    def extra_repr(self) -> str:
        return (
            f"width={self.width}, depth={self.depth}, "
            f"activation={_activations.to_text(self.activation)}, bias={self.bias is not None}"
            f"{self.solver.text()}"
        )

    def _steps(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Detached views of the weight and bias of every layer."""
        biases = [None] * self.depth if self.bias is None else self.bias.detach().unbind(0)
        return zip(self.weight.detach().unbind(0), biases, strict=True)
