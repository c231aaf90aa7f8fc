# SPDX-License-Identifier: Apache-2.0
"""`MLPChain`: L equal layers act(W z + b) with stacked parameters."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .. import _activations, _checks
from ..functional import ActivationLike, Output, mlp_chain
from . import _stacking


class MLPChain(nn.Module):
    """A stack of ``depth`` layers act(W z + b) of equal width, run as one operator.

    Computes what ``nn.Sequential(nn.Linear(width, width), activation, nn.Linear(width, width),
    ...)`` computes, with two Parameters in place of 2 * depth.

    Args:
        width: w, size of every layer.
        depth: L, number of layers.
        activation: as in `torch_deeppcr.mlp_chain`.
        bias: whether the layers have a bias.
        device, dtype: of the parameters.

    Parameters:
        weight: (depth, width, width), each as in `nn.Linear`.
        bias: (depth, width) or None.

    ``reset_parameters`` draws what ``depth`` new `nn.Linear`s would draw from the same seed.  A
    tensor of three dimensions is not a matrix to ``nn.init.xavier_uniform_`` and the like:
    initialise the layers of `layers` instead.

    Raises:
        TypeError, ValueError: width or depth is no int >= 0, or the activation is unknown.
    """

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
    ) -> None:
        super().__init__()
        self.width = _checks.size("width", width)
        self.depth = _checks.size("depth", depth)
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

    def forward(self, input: Tensor, return_states: bool = False) -> Output:
        """input (..., width) -> (..., width); also the states (depth, ..., width) if asked for."""
        return mlp_chain(
            input,
            self.weight,
            self.bias,
            activation=self.activation,
            return_states=return_states,
        )

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

    def to_sequential(self) -> nn.Sequential:
        """An `nn.Sequential` of Linear and activation modules with copies of the parameters."""
        modules: list[nn.Module] = []
        for weight, bias in self._steps():
            linear = _stacking.new_linear(weight.clone(), None if bias is None else bias.clone())
            linear.weight.requires_grad_(self.weight.requires_grad)
            if self.bias is not None:
                linear.bias.requires_grad_(self.bias.requires_grad)
            modules.append(linear)
            if self.activation.name != "identity":
                modules.append(_activations.to_module(self.activation))
        return nn.Sequential(*modules).train(self.training)

    @classmethod
    def from_sequential(cls, sequential: nn.Sequential) -> MLPChain:
        """A chain with copies of the parameters of Linear, activation, Linear, activation, ...

        Every Linear must be square, of the same width, dtype and device, and be followed by the
        same activation (or none by any).

        Raises:
            ValueError: a module does not fit; the message names its index.
            TypeError: ``sequential`` is no `nn.Sequential`.
        """
        _stacking.require_exact_sequential(sequential)
        linears, indices, activation = _split(sequential)
        for index, linear in zip(indices, linears, strict=True):
            if linear.in_features != linear.out_features:
                raise ValueError(
                    f"sequential[{index}] must be square, got "
                    f"{linear.in_features} -> {linear.out_features}"
                )
        _stacking.require_unshared(linears, indices, "sequential")
        chain = cls(linears[0].in_features, 0, activation, device="meta")
        chain.depth = len(linears)
        for name in ("weight", "bias"):
            tensors = [getattr(linear, name) for linear in linears]
            stacked = _stacking.stack(name, tensors, indices, "sequential")
            chain.register_parameter(name, stacked)
        return chain.train(sequential.training)

    def extra_repr(self) -> str:
        return (
            f"width={self.width}, depth={self.depth}, "
            f"activation={_activations.to_text(self.activation)}, bias={self.bias is not None}"
        )

    def _steps(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Detached views of the weight and bias of every layer."""
        biases = [None] * self.depth if self.bias is None else self.bias.detach().unbind(0)
        return zip(self.weight.detach().unbind(0), biases, strict=True)


def _split(
    sequential: nn.Sequential,
) -> tuple[list[nn.Linear], list[int], _activations.Activation]:
    """The Linears of a chain, their indices, and the activation behind each of them."""
    linears: list[nn.Linear] = []
    indices: list[int] = []
    activations: list[_activations.Activation | None] = []
    for index, module in enumerate(sequential):
        where = f"sequential[{index}]"
        if type(module) is nn.Linear or not linears or activations[-1] is not None:
            linears.append(_stacking.require_exact(module, nn.Linear, where))
            indices.append(index)
            activations.append(None)
            continue
        try:
            activations[-1] = _activations.from_module(module)
        except ValueError as error:
            raise ValueError(f"{where} must be nn.Linear or an activation: {error}") from None
        _stacking.require_exact(module, type(module), where)
    if not linears:
        raise ValueError("sequential must hold at least one nn.Linear")
    resolved = [activation or _activations.resolve("identity") for activation in activations]
    for index, activation in zip(indices, resolved, strict=True):
        if activation != resolved[0]:
            raise ValueError(
                f"the activation after sequential[{index}] must be that after sequential[0], "
                f"{_activations.to_text(resolved[0])}, got {_activations.to_text(activation)}"
            )
    return linears, indices, resolved[0]
