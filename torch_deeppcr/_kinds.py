# SPDX-License-Identifier: Apache-2.0
"""The kinds of chain: what is specific to an MLP layer or a residual block.

Everything else in the package (checks, fake kernels, autograd, vmap, fallback) is written once over
a `ChainKind`.  A chain operator ``torch.ops.deeppcr.<name>`` takes

    (z0, *parameters, *options, save_states) -> (z, states)

and its ``_backward``

    (gz, gstates, z0, states, *parameters, *options, needs) -> (gz0, *gradients of the parameters)

with z0 (B,w), states (L,B,w), and needs: one flag for z0 and for each parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _activations, _checks, reference
from ._transforms import without_autocast

#: Values of the options of a kind, in the order of its operator.
Options = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class ChainKind:
    name: str
    shapes: dict[str, tuple[str, bool]]  # parameter -> (shape in letters, must it be there)
    reference: Callable[..., tuple[Tensor, Tensor]]
    check_options: Callable[..., None]  # (parameters, *options)

    @property
    def count(self) -> int:
        """Number of parameters."""
        return len(self.shapes)

    def loop(self, z0: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
        """The reference in the dtype of its inputs, also under autocast."""
        with without_autocast(z0):
            return self.reference(z0, *arguments)

    @property
    def forward(self) -> Callable[..., tuple[Tensor, Tensor]]:
        """The raw operator."""
        return getattr(torch.ops.deeppcr, self.name).default

    @property
    def backward(self) -> Callable[..., tuple[Tensor, ...]]:
        """The raw operator of the vector-Jacobian product."""
        return getattr(torch.ops.deeppcr, f"{self.name}_backward").default


def _check_activation(activation: str, activation_parameters: list[float]) -> None:
    resolved = _activations.resolve(activation)
    if len(activation_parameters) != len(resolved.parameters):
        raise ValueError(
            f"activation_parameters must hold {len(resolved.parameters)} numbers for "
            f"{activation!r}, got {len(activation_parameters)}"
        )


def _check_mlp_options(
    parameters: tuple[Tensor | None, ...], activation: str, activation_parameters: list[float]
) -> None:
    _check_activation(activation, activation_parameters)


def _check_residual_options(
    parameters: tuple[Tensor | None, ...],
    activation: str,
    activation_parameters: list[float],
    norm: str,
    norm_eps: float,
    scale: float,
) -> None:
    _check_activation(activation, activation_parameters)
    _checks.choice("norm", norm, _checks.NORMS)
    _checks.norm_parameters(norm, *parameters[-2:])
    _checks.epsilon("norm_eps", norm_eps)
    _checks.finite("scale", scale)


MLP = ChainKind(
    "mlp",
    {"weight": ("Lww", True), "bias": ("Lw", False)},
    reference.mlp,
    _check_mlp_options,
)

RESIDUAL = ChainKind(
    "residual",
    {
        "weight1": ("Lhw", True),
        "bias1": ("Lh", False),
        "weight2": ("Lwh", True),
        "bias2": ("Lw", False),
        "norm_weight": ("Lw", False),
        "norm_bias": ("Lw", False),
    },
    reference.residual,
    _check_residual_options,
)

KINDS = (MLP, RESIDUAL)
