# SPDX-License-Identifier: Apache-2.0
"""`MLPChain`: L equal layers act(W z + b) with stacked parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from .. import _activations
from .._plan import SolverOptions
from .._solve import Output
from ..functional import run_mlp
from . import _stacking
from ._linears import LinearChain

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MLPChain(LinearChain):
    """A stack of ``depth`` layers act(W z + b) of equal width, run as one operator.

    Computes what ``nn.Sequential(nn.Linear(width, width), activation, nn.Linear(width, width),
    ...)`` computes, with two Parameters in place of 2 * depth.

    Args:
        width: w, size of every layer.
        depth: L, number of layers.
        activation: as in `torch_deeppcr.mlp_chain`.
        bias: whether the layers have a bias.
        device, dtype: of the parameters.
        **solver: how the chain is solved, as in `torch_deeppcr.mlp_chain`.

    Parameters:
        weight: (depth, width, width), each as in `nn.Linear`.
        bias: (depth, width) or None.

    ``reset_parameters`` draws what ``depth`` new `nn.Linear`s would draw from the same seed.  A
    tensor of three dimensions is not a matrix to ``nn.init.xavier_uniform_`` and the like:
    initialise the layers of `layers` instead.

    Raises:
        TypeError, ValueError: width or depth is no int >= 0, or the activation is unknown.
    """

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
        return run_mlp(call, input, self._own("weight", "bias"), self.activation)

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
    def from_sequential(
        cls, sequential: nn.Sequential, **solver: Unpack[SolverOptions]
    ) -> MLPChain:
        """A chain with copies of the parameters of Linear, activation, Linear, activation, ...

        Every Linear must be square, of the same width, dtype and device, and be followed by the
        same activation (or none by any).  **solver: as for a new chain.

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
        chain = cls(linears[0].in_features, 0, activation, device="meta", **solver)
        chain.depth = len(linears)
        chain._check_segments()
        for name in ("weight", "bias"):
            tensors = [getattr(linear, name) for linear in linears]
            stacked = _stacking.stack(name, tensors, indices, "sequential")
            chain.register_parameter(name, stacked)
        return chain.train(sequential.training)


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
