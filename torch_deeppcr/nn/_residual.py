# SPDX-License-Identifier: Apache-2.0
"""`ResidualChain`: L equal residual blocks with stacked parameters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import _activations, _checks
from .._plan import SolverOptions
from .._solve import Output
from ..functional import ActivationLike, run_residual
from . import _stacking
from ._block import NORMS, ResidualBlock, chain_options, chain_parameters, require_plain
from ._solving import SolvedChain

if TYPE_CHECKING:
    from typing_extensions import Unpack

_PARAMETERS = ("weight1", "bias1", "weight2", "bias2", "norm_weight", "norm_bias")


class ResidualChain(SolvedChain):
    """A stack of ``depth`` `ResidualBlock`s of equal width, run as one operator.

    Args:
        width: w, size of the states.
        depth: L, number of blocks.
        hidden: h, size of the hidden layers (None: width).
        activation: as in `torch_deeppcr.mlp_chain`.
        norm: None, "layer_norm" or "rms_norm", with learned affine parameters.
        scale: a finite number, the same for all blocks.
        bias: whether the two linear maps have a bias.
        norm_eps: None is PyTorch's default.
        device, dtype: of the parameters.
        **solver: how the chain is solved, as in `torch_deeppcr.mlp_chain`.

    Parameters:
        weight1 (depth, hidden, width), bias1 (depth, hidden), weight2 (depth, width, hidden),
        bias2 (depth, width), norm_weight and norm_bias (depth, width); those that the options leave
        out are None (norm_bias belongs to "layer_norm" alone).

    ``reset_parameters`` draws what ``depth`` new blocks would draw from the same seed.  To
    initialise otherwise, work on `layers`.

    Raises:
        TypeError, ValueError: a size is no int >= 0, or an option is unknown.
    """

    weight1: Tensor
    bias1: Tensor | None
    weight2: Tensor
    bias2: Tensor | None
    norm_weight: Tensor | None
    norm_bias: Tensor | None

    def __init__(
        self,
        width: int,
        depth: int,
        hidden: int | None = None,
        activation: ActivationLike = "relu",
        norm: str | None = None,
        scale: float = 1.0,
        bias: bool = True,
        norm_eps: float | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        **solver: Unpack[SolverOptions],
    ) -> None:
        super().__init__(depth, solver)
        self.width = _checks.size("width", width)
        self.hidden = width if hidden is None else _checks.size("hidden", hidden)
        self.activation = _activations.resolve(activation)
        _checks.choice("norm", norm, NORMS)
        self.norm = norm
        self.scale = _checks.finite("scale", scale)
        self.norm_eps = None if norm_eps is None else _checks.epsilon("norm_eps", norm_eps)
        bias = _checks.flag("bias", bias)
        shapes = {
            "weight1": (depth, self.hidden, width),
            "bias1": (depth, self.hidden) if bias else None,
            "weight2": (depth, width, self.hidden),
            "bias2": (depth, width) if bias else None,
            "norm_weight": (depth, width) if norm else None,
            "norm_bias": (depth, width) if norm == "layer_norm" else None,
        }
        for name, shape in shapes.items():
            empty = None if shape is None else torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, None if empty is None else nn.Parameter(empty))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all blocks anew, in order, as `nn.Linear` does; norms start at 1 and 0."""
        for tensors in self._steps():
            _stacking.reset_linear(tensors["weight1"], tensors.get("bias1"))
            _stacking.reset_linear(tensors["weight2"], tensors.get("bias2"))
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
        """As `MLPChain.forward`."""
        call = self._call(return_states, warm_start, return_info)
        options = (self.activation, self.norm, self.norm_eps, self.scale)
        return run_residual(call, input, self._own(*_PARAMETERS), *options)

    def layers(self) -> tuple[ResidualBlock, ...]:
        """The blocks as `ResidualBlock`s on the chain's storage, for ``nn.init`` and inspection.

        Their parameters are detached views: writing into them changes the chain, gradients do not
        reach it.  They are those of the moment: `.to` may move the chain away from them.
        """
        return tuple(self._block(tensors) for tensors in self._steps())

    def to_sequential(self) -> nn.Sequential:
        """An `nn.Sequential` of `ResidualBlock`s with copies of the parameters."""
        blocks = []
        for tensors in self._steps():
            copies = {name: tensor.clone() for name, tensor in tensors.items()}
            block = self._block(copies)
            for name, parameter in chain_parameters(block).items():
                if parameter is not None:
                    parameter.requires_grad_(getattr(self, name).requires_grad)
            blocks.append(block)
        return nn.Sequential(*blocks).train(self.training)

    @classmethod
    def from_sequential(
        cls, sequential: nn.Sequential, **solver: Unpack[SolverOptions]
    ) -> ResidualChain:
        """A chain with copies of the parameters of `ResidualBlock`s of equal options.

        **solver: as for a new chain.

        Raises:
            ValueError: a module does not fit; the message names its index.
            TypeError: ``sequential`` is no `nn.Sequential`.
        """
        _stacking.require_exact_sequential(sequential)
        if not len(sequential):
            raise ValueError("sequential must hold at least one ResidualBlock")
        blocks: list[ResidualBlock] = []
        options: dict[str, Any] = {}
        for index, module in enumerate(sequential):
            blocks.append(require_plain(module, f"sequential[{index}]"))
            own = chain_options(blocks[-1])
            options = options or own
            if own != options:
                raise ValueError(
                    f"sequential[{index}] must have the options of sequential[0], {options}, "
                    f"got {own}"
                )
        indices = range(len(blocks))
        _stacking.require_unshared(blocks, indices, "sequential")
        chain = cls(depth=0, device="meta", **options, **solver)
        chain.depth = len(blocks)
        chain._check_segments()
        tensors = [chain_parameters(block) for block in blocks]
        for name in _PARAMETERS:
            column = [named[name] for named in tensors]
            chain.register_parameter(name, _stacking.stack(name, column, indices, "sequential"))
        return chain.train(sequential.training)

    def extra_repr(self) -> str:
        eps = "" if self.norm_eps is None else f", norm_eps={self.norm_eps:g}"
        return (
            f"width={self.width}, depth={self.depth}, hidden={self.hidden}, "
            f"activation={_activations.to_text(self.activation)}, norm={self.norm}, "
            f"scale={self.scale:g}, bias={self.bias1 is not None}{eps}{self.solver.text()}"
        )

    def _steps(self) -> Iterator[dict[str, Tensor]]:
        """Detached views of the parameters of every block."""
        stacked = {name: getattr(self, name) for name in _PARAMETERS}
        views = {
            name: tensor.detach().unbind(0)
            for name, tensor in stacked.items()
            if tensor is not None
        }
        for index in range(self.depth):
            yield {name: tensors[index] for name, tensors in views.items()}

    def _block(self, tensors: dict[str, Tensor]) -> ResidualBlock:
        block = ResidualBlock(
            self.width,
            self.hidden,
            self.activation,
            self.norm,
            self.scale,
            self.bias1 is not None,
            self.norm_eps,
            device="meta",
        )
        for number in ("1", "2"):
            _stacking.set_parameters(
                getattr(block, f"linear{number}"),
                weight=tensors[f"weight{number}"],
                bias=tensors.get(f"bias{number}"),
            )
        if block.norm is not None:
            names = {"weight": "norm_weight", "bias": "norm_bias"}
            affine = {name: tensors[own] for name, own in names.items() if own in tensors}
            _stacking.set_parameters(block.norm, **affine)
        return block
