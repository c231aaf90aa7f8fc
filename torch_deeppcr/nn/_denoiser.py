# SPDX-License-Identifier: Apache-2.0
"""`Denoiser`: a residual MLP that predicts noise; its whole denoising loop is one operator."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import _activations, _checks
from .._plan import SolverOptions
from .._solve import Output
from ..functional import ActivationLike, denoise_chain
from . import _stacking

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..sampling.schedule import Schedule


class Denoiser(nn.Module):
    """A network for diffusion models of vectors (latents, actions, tables, small images).

        x_0 = act(W_in z + b_0(t)),   x_m = x_{m-1} + act(W_m x_{m-1} + b_m(t)),  m = 1..M,
        out = W_out x_M + b_out

    Trained as any module, by ``denoiser(noisy, timestep)``.  A chain of its steps is native
    (`torch_deeppcr.denoise_chain`): `denoise` runs it as one operator, with gradients, and so does
    `torch_deeppcr.sample` with ``plan="auto"``.

    Args:
        width: w, numbers of a sample.
        hidden: h, width of the layers.
        layers: M >= 0.
        activation: as in `torch_deeppcr.mlp_chain`.
        features: of the timestep, sines and cosines; an even number.
        device, dtype: of the parameters.

    Parameters:
        weight_in (h, w), weight_hidden (M, h, h), weight_out (w, h), bias_out (w), and those of
        ``time``, a small MLP that makes the biases b_0(t)..b_M(t).

    Raises:
        TypeError, ValueError: a size is no int or too small, or the activation is unknown.
    """

    def __init__(
        self,
        width: int,
        hidden: int,
        layers: int = 2,
        activation: ActivationLike = "silu",
        features: int = 64,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.width, self.hidden = _checks.size("width", width), _checks.size("hidden", hidden)
        self.layers, self.features = _checks.size("layers", layers), _even("features", features)
        self.activation = _activations.resolve(activation)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.weight_in = parameter(hidden, width)
        self.weight_hidden = parameter(layers, hidden, hidden)
        self.weight_out = parameter(width, hidden)
        self.bias_out = parameter(width)
        self.time = nn.Sequential(
            nn.Linear(features, hidden, device=device, dtype=dtype),
            nn.SiLU(),
            nn.Linear(hidden, (layers + 1) * hidden, device=device, dtype=dtype),
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draws all parameters anew, as `nn.Linear` does."""
        _stacking.reset_linear(self.weight_in.detach(), None)
        for weight in self.weight_hidden.detach():
            _stacking.reset_linear(weight, None)
        _stacking.reset_linear(self.weight_out.detach(), self.bias_out.detach())
        for layer in self.time:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def time_bias(self, timestep: Tensor) -> Tensor:
        """The biases of all layers, timestep (R,) -> (R, M + 1, h)."""
        half = self.features // 2
        steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
        angles = timestep.float().unsqueeze(-1) * torch.exp(-math.log(10000.0) / half * steps)
        waves = torch.cat((angles.sin(), angles.cos()), -1).to(self.bias_out.dtype)
        return self.time(waves).unflatten(-1, (self.layers + 1, self.hidden))

    def forward(self, sample: Tensor, timestep: Tensor | float) -> Tensor:
        """sample (R, ...) of ``width`` numbers each, timestep (R,) or one for all -> (R, ...)."""
        z = sample.reshape(sample.shape[0], -1)
        times = torch.as_tensor(timestep, device=z.device).expand(z.shape[0])
        bias = self.time_bias(times)
        x = self._activate(nn.functional.linear(z, self.weight_in) + bias[:, 0])
        for m in range(self.layers):
            u = nn.functional.linear(x, self.weight_hidden[m]) + bias[:, m + 1]
            x = x + self._activate(u)
        return nn.functional.linear(x, self.weight_out, self.bias_out).reshape(sample.shape)

    def _activate(self, u: Tensor) -> Tensor:
        return _activations.apply(*self.activation, u)

    def denoise(
        self,
        latents: Tensor,
        schedule: Schedule,
        noise: Tensor | None = None,
        *,
        return_states: bool = False,
        warm_start: Tensor | None = None,
        return_info: bool = False,
        **solver: Unpack[SolverOptions],
    ) -> Output:
        """The whole loop of a schedule as one operator.

        Args:
            latents: x_0 (B, ...) of ``width`` numbers each.
            schedule: a `torch_deeppcr.Schedule` whose steps are linear in the model's output: no
                clipped predictions, no memory, one call a step.
            noise: standard normal numbers (L, B, ...), or None where the schedule draws none.
            return_states: also return all states (L, B, ...).
            warm_start: a guess of them.
            return_info: also return a `ChainInfo`.
            **solver: segments, jacobian and so on, as in `torch_deeppcr.mlp_chain`; ``segments`` of
                L is DeepPCR.

        Returns:
            x_L like latents, and what was asked for.  Differentiable with respect to latents,
            noise and parameters.

        Raises:
            NotImplementedError: the schedule is not of that form.
            ValueError: noise is missing or not wanted, or a shape does not fit.
        """
        chain = schedule.linear_chain(latents, noise)
        shape = latents.shape
        if latents[:1].numel() != self.width and latents.shape[0]:
            raise ValueError(
                f"latents must have {self.width} numbers in each sample, got shape {tuple(shape)}"
            )
        guess = None
        if warm_start is not None:
            guess = warm_start.reshape(len(schedule), shape[0], -1) * chain.scale_out
        result = denoise_chain(
            latents.reshape(shape[0], self.width) * chain.scale_in,
            self.weight_in,
            self.time_bias(schedule.timesteps.to(latents.device)),
            self.weight_hidden,
            self.weight_out,
            self.bias_out,
            coefficients=chain.coefficients,
            noise=chain.noise,
            activation=self.activation,
            return_states=return_states,
            warm_start=guess,
            return_info=return_info,
            **solver,
        )
        outputs = list(result) if isinstance(result, tuple) else [result]
        outputs[0] = outputs[0].reshape(shape)  # the last scale is 1
        if return_states:
            outputs[1] = (outputs[1] / chain.scale_out).reshape(len(schedule), *shape)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)

    def extra_repr(self) -> str:
        return (
            f"width={self.width}, hidden={self.hidden}, layers={self.layers}, "
            f"activation={_activations.to_text(self.activation)}, features={self.features}"
        )


def _even(name: str, value: object) -> int:
    size = _checks.size(name, value)
    if size < 2 or size % 2:
        raise ValueError(f"{name} must be an even number >= 2, got {size}")
    return size
