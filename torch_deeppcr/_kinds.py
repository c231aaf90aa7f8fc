# SPDX-License-Identifier: Apache-2.0
"""The kinds of chain: what is specific to an MLP layer or a residual block.

Everything else in the package (checks, fake kernels, autograd, vmap, fallback) is written once over
a `ChainKind`.  A chain operator ``torch.ops.deeppcr.<name>`` takes

    (z0, *parameters, guess, *step options, *solver options, frozen, keep) -> (z, states, info)

and its ``_backward``

    (gz, gstates, z0, kept, *parameters, *step options, *solver options, frozen, keep, needs)
        -> (gz0, *gradients of the parameters, info)

with z0 (B,w), guess and gstates (L,B,w), info (6,B), and needs: one flag for z0 and for each
parameter.  Solver options may be None, the library's default.  frozen: None or no flags, or one for
each step whose parameters are constants: these rows of the gradients are zero (forward takes it for
the sake of its backward).  keep says what forward returns as states, and backward takes as kept:
"nothing" (0,B,w), "states" (L,B,w), or "checkpoints", fewer states, from which backward computes
the others again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _activations, _checks, reference
from ._transforms import without_autocast

#: Number of the raw operators' solver options: `torch_deeppcr._plan.Solver.raw`.
SOLVER_OPTIONS = 7
_NONE = (None,) * (SOLVER_OPTIONS - 1)


class Options(NamedTuple):
    """Everything that a chain is told besides tensors."""

    step: tuple[Any, ...]  # of the kind, in the order of its operator
    solver: tuple[Any, ...]  # in the order of the operators
    kept: str = "states"  # what forward keeps for backward: "states" or "checkpoints"
    watch: str = ""  # "warn" or "raise" where a sample does not converge
    frozen: tuple[bool, ...] = ()  # steps whose parameters are constants; empty: none
    back: int = 0  # segments of the backward pass; 0: those of the solver

    def backward(self, keep: str) -> Options:
        """Of the backward pass; checkpoints are made for one number of segments."""
        if self.back == 0 or keep != "states":
            return self
        return self._replace(solver=(self.back, *self.solver[1:]))

    @property
    def raw(self) -> tuple[Any, ...]:
        """As the operators take them, but for keep: None where it means the same, because it costs
        a call less."""
        activation, activation_parameters, *rest = self.step
        solver = (1, *_NONE) if self.solver[0] == 1 else self.solver
        return (activation, activation_parameters or None, *rest, *solver, self.frozen or None)


@dataclass(frozen=True, eq=False)
class ChainKind:
    name: str
    # parameter -> (shape in letters, must it be there); without an L, all steps share it
    shapes: dict[str, tuple[str, bool]]
    reference: Callable[..., tuple[Tensor, Tensor]]
    check_options: Callable[..., None]  # (parameters, *options)
    has_skip: Callable[..., bool]  # of its options: whether z_{l-1} is a term of z_l
    # Of each parameter, whether it has a row for each step.
    stacked: tuple[bool, ...] = field(init=False)
    every_stacked: bool = field(init=False)
    # Indices of the parameters with a row for each sample, (L,B,w), and of those that are matrices.
    sampled: tuple[int, ...] = field(init=False)
    matrices: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        letters = [letters for letters, _ in self.shapes.values()]

        def where(holds: Callable[[str], bool]) -> tuple[int, ...]:
            return tuple(index for index, shape in enumerate(letters) if holds(shape))

        def is_matrix(shape: str) -> bool:
            return len(shape) > 1 and not set(shape[-2:]) - {"w", "h"}

        object.__setattr__(self, "stacked", tuple(shape[0] == "L" for shape in letters))
        object.__setattr__(self, "every_stacked", all(self.stacked))
        object.__setattr__(self, "sampled", where(lambda shape: shape == "LBw"))
        object.__setattr__(self, "matrices", where(is_matrix))

    @property
    def operator(self) -> Any:
        return getattr(torch.ops.deeppcr, self.name).default

    @property
    def operator_backward(self) -> Any:
        return getattr(torch.ops.deeppcr, f"{self.name}_backward").default

    @property
    def count(self) -> int:
        """Number of parameters."""
        return len(self.shapes)

    def loop(
        self, options: Options, with_states: bool, z0: Tensor, *parameters: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The reference in the dtype of its inputs, also under autocast."""
        steps: tuple[Tensor | list[Tensor] | None, ...]
        if any(options.frozen):
            values = zip(parameters, self.stacked, strict=True)
            steps = tuple(_stop_gradient(options.frozen, p, stacked) for p, stacked in values)
        else:
            steps = parameters
        with without_autocast(z0):
            return self.reference(z0, *steps, *options.step, with_states)

    def forward(
        self, options: Options, keep: str, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The raw operator of (z0, *parameters, guess)."""
        return self.operator(*tensors, *options.raw, keep)

    def backward(
        self, options: Options, keep: str, needs: Sequence[bool], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        """The raw vector-Jacobian product of (gz, gstates, z0, kept, *parameters)."""
        return self.operator_backward(*tensors, *options.raw, keep, needs)

    def flops(self, parameters: Sequence[Tensor | None]) -> int:
        """Of the matrix products of one sample, walked once."""
        stacks = zip(parameters, self.stacked, strict=True)
        length = next(p.shape[0] for p, stacked in stacks if stacked and p is not None)
        weights = [(parameters[index], self.stacked[index]) for index in self.matrices]
        steps = [(p, 1 if stacked else length) for p, stacked in weights]
        return sum(2 * count * p.numel() for p, count in steps if p is not None)


def _stop_gradient(
    frozen: Sequence[bool], parameter: Tensor | None, stacked: bool
) -> Tensor | list[Tensor] | None:
    """The parameter, a constant in the steps that are frozen: (L, ...), or one that all steps share
    as a list of what each step has."""
    if parameter is None:
        return None
    steps = parameter.unbind(0) if stacked else [parameter] * len(frozen)
    each = [
        step.detach() if constant else step for constant, step in zip(frozen, steps, strict=True)
    ]
    return torch.stack(each) if stacked else each


def _check_activation(activation: str, activation_parameters: Sequence[float]) -> None:
    resolved = _activations.resolve(activation)
    if len(activation_parameters) != len(resolved.parameters):
        raise ValueError(
            f"activation_parameters must hold {len(resolved.parameters)} numbers for "
            f"{activation!r}, got {len(activation_parameters)}"
        )


def _check_mlp_options(
    parameters: tuple[Tensor | None, ...], activation: str, activation_parameters: Sequence[float]
) -> None:
    _check_activation(activation, activation_parameters)


def _check_euler_options(
    parameters: tuple[Tensor | None, ...],
    activation: str,
    activation_parameters: Sequence[float],
    scale: float,
) -> None:
    _check_activation(activation, activation_parameters)
    _checks.finite("scale", scale)


def _check_residual_options(
    parameters: tuple[Tensor | None, ...],
    activation: str,
    activation_parameters: Sequence[float],
    norm: str,
    norm_eps: float,
    scale: float,
) -> None:
    _check_activation(activation, activation_parameters)
    _checks.choice("norm", norm, _checks.NORMS)
    _checks.norm_parameters(norm, *parameters[-2:])
    _checks.epsilon("norm_eps", norm_eps)
    _checks.finite("scale", scale)


def _check_layers_options(
    parameters: tuple[Tensor | None, ...],
    activation: str,
    activation_parameters: Sequence[float],
    norm: str,
    norm_eps: float,
    skip: bool,
    scale: float,
) -> None:
    _check_residual_options(parameters, activation, activation_parameters, norm, norm_eps, scale)
    _checks.sublayers(parameters[0])


def _check_denoise_options(
    parameters: tuple[Tensor | None, ...], activation: str, activation_parameters: Sequence[float]
) -> None:
    _check_activation(activation, activation_parameters)
    _checks.hidden_layers(*parameters[1:3])


MLP = ChainKind(
    "mlp",
    {"weight": ("Lww", True), "bias": ("Lw", False)},
    reference.mlp,
    _check_mlp_options,
    lambda *options: False,
)

EULER = ChainKind(
    "euler",
    {"weight": ("Lww", True), "bias": ("Lw", False)},
    reference.euler,
    _check_euler_options,
    lambda *options: True,
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
    lambda *options: True,
)

LAYERS = ChainKind(
    "layers",
    {
        "weight": ("LMww", True),
        "bias": ("LMw", False),
        "norm_weight": ("LMw", False),
        "norm_bias": ("LMw", False),
    },
    reference.layers,
    _check_layers_options,
    lambda activation, activation_parameters, norm, norm_eps, skip, scale: skip,
)

DENOISE = ChainKind(
    "denoise",
    {
        "weight_in": ("hw", True),
        "bias": ("LNh", True),
        "weight_hidden": ("Mhh", False),
        "weight_out": ("wh", True),
        "bias_out": ("w", False),
        "coefficients": ("L2", True),
        "noise": ("LBw", False),
    },
    reference.denoise,
    _check_denoise_options,
    lambda *options: True,
)

KINDS = (MLP, RESIDUAL, EULER, LAYERS, DENOISE)
