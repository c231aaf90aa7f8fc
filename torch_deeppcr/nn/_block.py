# SPDX-License-Identifier: Apache-2.0
"""`ResidualBlock`: one residual block in plain PyTorch, and its place in a stacked chain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import _activations, _checks
from ..functional import ActivationLike
from . import _stacking

NORMS = (None, "layer_norm", "rms_norm")


class ResidualBlock(nn.Module):
    """z + scale * linear2(activation(linear1(norm(z)))), as an ordinary module.

    Args:
        width, hidden: sizes of the state and of the hidden layer (None: width).
        activation: as in `torch_deeppcr.mlp_chain`.
        norm: None, "layer_norm" or "rms_norm", with learned affine parameters.
        scale: a finite number.
        bias: whether linear1 and linear2 have a bias.
        norm_eps: None is PyTorch's default.
        device, dtype: of the parameters.

    Submodules: norm (None, `nn.LayerNorm` or `nn.RMSNorm`), linear1, activation, linear2.
    """

    norm: nn.LayerNorm | nn.RMSNorm | None

    def __init__(
        self,
        width: int,
        hidden: int | None = None,
        activation: ActivationLike = "relu",
        norm: str | None = None,
        scale: float = 1.0,
        bias: bool = True,
        norm_eps: float | None = None,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        width = _checks.size("width", width)
        hidden = width if hidden is None else _checks.size("hidden", hidden)
        _checks.choice("norm", norm, NORMS)
        if norm_eps is not None:
            norm_eps = _checks.epsilon("norm_eps", norm_eps)
        self.scale = _checks.finite("scale", scale)
        if norm == "layer_norm":
            eps = 1e-5 if norm_eps is None else norm_eps
            self.norm = nn.LayerNorm(width, eps=eps, device=device, dtype=dtype)
        elif norm == "rms_norm":
            self.norm = nn.RMSNorm(width, eps=norm_eps, device=device, dtype=dtype)
        else:
            self.norm = None
        bias = _checks.flag("bias", bias)
        self.linear1 = nn.Linear(width, hidden, bias, device, dtype)
        self.activation = _activations.to_module(_activations.resolve(activation))
        self.linear2 = nn.Linear(hidden, width, bias, device, dtype)

    def forward(self, input: Tensor) -> Tensor:
        """input (..., width) -> (..., width)."""
        z = input if self.norm is None else self.norm(input)
        return input + self.scale * self.linear2(self.activation(self.linear1(z)))

    def extra_repr(self) -> str:
        return f"scale={self.scale:g}"


def chain_parameters(block: ResidualBlock) -> dict[str, Tensor | None]:
    """The parameters of a block under their names in the chain."""
    return {
        "weight1": block.linear1.weight,
        "bias1": block.linear1.bias,
        "weight2": block.linear2.weight,
        "bias2": block.linear2.bias,
        "norm_weight": None if block.norm is None else block.norm.weight,
        "norm_bias": getattr(block.norm, "bias", None),
    }


def chain_options(block: ResidualBlock) -> dict[str, Any]:
    """What the blocks of a chain must share, as arguments of `ResidualChain`."""
    norm = block.norm
    return {
        "width": block.linear1.in_features,
        "hidden": block.linear1.out_features,
        "activation": _activations.from_module(block.activation),
        "norm": {type(None): None, nn.LayerNorm: "layer_norm", nn.RMSNorm: "rms_norm"}[type(norm)],
        "norm_eps": None if norm is None else norm.eps,
        "scale": block.scale,
    }


def require_plain(module: nn.Module, where: str) -> ResidualBlock:
    """The module; ValueError unless it is a `ResidualBlock` as this file makes it."""
    block = _stacking.require_exact(module, ResidualBlock, where)
    for name in ("linear1", "linear2"):
        _stacking.require_exact(getattr(block, name), nn.Linear, f"{where}.{name}")
    _stacking.require_exact(block.activation, type(block.activation), f"{where}.activation")
    try:
        _activations.from_module(block.activation)
    except ValueError as error:
        raise ValueError(f"{where}.activation: {error}") from None
    width, hidden = block.linear1.in_features, block.linear1.out_features
    if (block.linear2.in_features, block.linear2.out_features) != (hidden, width):
        raise ValueError(f"{where}.linear2 must map {hidden} -> {width}, the reverse of linear1")
    if block.norm is not None:
        norm = nn.LayerNorm if isinstance(block.norm, nn.LayerNorm) else nn.RMSNorm
        _stacking.require_exact(block.norm, norm, f"{where}.norm")
        if block.norm.weight is None or (norm is nn.LayerNorm and block.norm.bias is None):
            raise ValueError(f"{where}.norm must have learned affine parameters")
        if tuple(block.norm.normalized_shape) != (width,):
            raise ValueError(
                f"{where}.norm must be over {width} elements, got {block.norm.normalized_shape}"
            )
    return block
