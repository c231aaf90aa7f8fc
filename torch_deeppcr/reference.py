# SPDX-License-Identifier: Apache-2.0
"""The chains as plain PyTorch loops: what every other implementation is held to.

The loops take what the raw operators ``torch.ops.deeppcr.*`` do, but for the options that say how a
chain is solved, and return its last state and all states.  They are the oracle of the tests, they
run where there is no native kernel (other devices and dtypes, a missing library), and derivatives
of derivatives are taken through them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _activations
from ._transforms import func_active

Shared = Tensor | Sequence[Tensor]  # a parameter of all steps, or what each of them has


def mlp(
    z0: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    activation_parameters: Sequence[float],
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    """z_l = act(W_l z_{l-1} + b_l).

    Shapes: z0 (B,w), weight (L,w,w) as `torch.nn.Linear`, bias (L,w) or None.
    Returns z_L (B,w) and the states z_1..z_L (L,B,w), or (0,B,w) where they are not wanted.
    """
    biases = _steps(bias, weight.shape[0])

    def step(index: int, z: Tensor) -> Tensor:
        u = F.linear(z, weights[index], biases[index])
        return _activations.apply(activation, tuple(activation_parameters), u)

    weights = weight.unbind(0)
    return _walk(z0, weight.shape[0], step, save_states)


def euler(
    z0: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    activation_parameters: Sequence[float],
    scale: float,
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    """z_l = z_{l-1} + scale act(W_l z_{l-1} + b_l).

    Shapes and results: as `mlp`.
    """
    weights, biases = weight.unbind(0), _steps(bias, weight.shape[0])

    def step(index: int, z: Tensor) -> Tensor:
        u = F.linear(z, weights[index], biases[index])
        return z + scale * _activations.apply(activation, tuple(activation_parameters), u)

    return _walk(z0, weight.shape[0], step, save_states)


def residual(
    z0: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    activation: str,
    activation_parameters: Sequence[float],
    norm: str,
    norm_eps: float,
    scale: float,
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    """z_l = z_{l-1} + scale (W2_l act(W1_l norm(z_{l-1}) + b1_l) + b2_l).

    Shapes: z0 (B,w), weight1 (L,h,w), bias1 (L,h), weight2 (L,w,h), bias2, norm_weight and
    norm_bias (L,w); biases and norm parameters may be None.
    norm: "none", "layer_norm", "rms_norm".
    Returns z_L (B,w) and the states z_1..z_L (L,B,w), or (0,B,w) where they are not wanted.
    """
    length = weight1.shape[0]
    weights1, weights2 = weight1.unbind(0), weight2.unbind(0)
    biases1, biases2 = _steps(bias1, length), _steps(bias2, length)
    gammas, betas = _steps(norm_weight, length), _steps(norm_bias, length)

    def step(index: int, z: Tensor) -> Tensor:
        u = _norm(norm, z, gammas[index], betas[index], norm_eps)
        u = F.linear(u, weights1[index], biases1[index])
        u = _activations.apply(activation, tuple(activation_parameters), u)
        return z + scale * F.linear(u, weights2[index], biases2[index])

    return _walk(z0, length, step, save_states)


def layers(
    z0: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    activation: str,
    activation_parameters: Sequence[float],
    norm: str,
    norm_eps: float,
    skip: bool,
    scale: float,
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    """z_l = (z_{l-1} if skip) + scale a_M,  a_0 = z_{l-1},  a_m = act(norm(W_lm a_{m-1} + b_lm)).

    Shapes: z0 (B,w), weight (L,M,w,w), bias, norm_weight and norm_bias (L,M,w) or None.
    norm and results: as `residual`.
    """
    length, inner = weight.shape[:2]

    def by_layer(stacked: Tensor | None) -> Sequence[Sequence[Tensor | None]]:
        return [_steps(step, inner) for step in _steps(stacked, length)]

    weights, biases = by_layer(weight), by_layer(bias)
    gammas, betas = by_layer(norm_weight), by_layer(norm_bias)

    def step(index: int, z: Tensor) -> Tensor:
        a = z
        layer = zip(weights[index], biases[index], gammas[index], betas[index], strict=True)
        for matrix, vector, gamma, beta in layer:
            u = _norm(norm, F.linear(a, matrix, vector), gamma, beta, norm_eps)  # type: ignore[arg-type]
            a = _activations.apply(activation, tuple(activation_parameters), u)
        return z + scale * a if skip else scale * a

    return _walk(z0, length, step, save_states)


def denoise(
    z0: Tensor,
    weight_in: Shared,
    bias: Tensor,
    weight_hidden: Shared | None,
    weight_out: Shared,
    bias_out: Shared | None,
    coefficients: Tensor,
    noise: Tensor | None,
    activation: str,
    activation_parameters: Sequence[float],
    save_states: bool,
) -> tuple[Tensor, Tensor]:
    """z_l = a_l z_{l-1} + c_l (W_out x_M + b_out) + n_l,  x_0 = act(W_in z_{l-1} + b_l0),
    x_m = x_{m-1} + act(W_m x_{m-1} + b_lm).

    Shapes: z0 (B,w), weight_in (h,w), bias (L,M+1,h), weight_hidden (M,h,h) or None where M is 0,
    weight_out (w,h), bias_out (w) or None, coefficients (L,2) of a and c, noise (L,B,w) or None.
    What all steps share may be given as the list of what each step has.
    Results: as `mlp`.
    """
    length = bias.shape[0]
    biases, factors = [step.unbind(0) for step in bias.unbind(0)], coefficients.unbind(0)
    noises = _steps(noise, length)
    first, last = _each(weight_in, length), _each(weight_out, length)
    inner, shift = _each(weight_hidden, length), _each(bias_out, length)

    def step(index: int, z: Tensor) -> Tensor:
        vectors, matrices = iter(biases[index]), inner[index]
        x = F.linear(z, first[index], next(vectors))  # type: ignore[arg-type]
        x = _activations.apply(activation, tuple(activation_parameters), x)
        for matrix, vector in zip(() if matrices is None else matrices, vectors, strict=True):
            u = F.linear(x, matrix, vector)
            x = x + _activations.apply(activation, tuple(activation_parameters), u)
        a, c = factors[index].unbind(0)
        z = a * z + c * F.linear(x, last[index], shift[index])  # type: ignore[arg-type]
        added = noises[index]
        return z if added is None else z + added

    return _walk(z0, length, step, save_states)


def linear_recurrence(
    A: Tensor | None, b: Tensor, x0: Tensor | None, blocks: str, reverse: bool
) -> Tensor:
    """x_l = A_l x_{l-1} + b_l; with ``reverse`` x_l = A_l x_{l+1} + b_l from the last step down.

    Shapes: b (L,B,w); x0 (B,w), None is zero; A by ``blocks``: "dense" (L,B,w,w), "diagonal"
    (L,B,w), "scalar" (L,B,1), each with 1 in place of B where the samples share it, "identity"
    None. Returns x (L,B,w).
    """
    length = b.shape[0]
    if length == 0:
        return b.clone()
    steps = _steps(A, length)
    inputs = b.unbind(0)
    x = x0
    states: list[Tensor] = []
    for index in reversed(range(length)) if reverse else range(length):
        block = steps[index]
        if x is None:  # A of the first step meets a zero: it is not read, be it inf
            x = inputs[index].clone()
        elif block is None:
            x = x + inputs[index]
        elif blocks == "dense":
            x = torch.matmul(block, x.unsqueeze(-1)).squeeze(-1) + inputs[index]
        else:
            x = block * x + inputs[index]
        states.append(x)
    return torch.stack(states[::-1] if reverse else states)


def newton_update(
    states: Tensor,
    ends: Tensor,
    jacobian: Tensor | None,
    structure: str,
    tolerance: Tensor,
    rtol: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The second half of a Newton sweep: `torch_deeppcr._update.newton_update`, by a loop."""
    length, batch = ends.shape[:2]
    sizes: dict[str, list[Tensor]] = {name: [] for name in ("end", "start", "error", "others")}
    starts, steps = [], _steps(jacobian, length)
    d = torch.zeros_like(states[0])
    for index, (x, e) in enumerate(zip(states[1:].unbind(0), ends.unbind(0), strict=True)):
        moved, r = _times(steps[index], d, structure), e - x
        start = torch.where(moved == 0, e, e + moved)
        d = moved + r
        starts.append(start)
        sizes["end"].append(_largest(e))
        sizes["start"].append(_largest(start))
        sizes["error"].append(_largest(d))
        sizes["others"].append(torch.maximum(_largest(moved), _largest(r)))
    if length == 0:
        return states.clone(), ends.new_empty((0, batch)), tolerance.new_zeros(batch).long()
    end, start, error, others = (torch.stack(sizes[name]).double() for name in sizes)
    largest = end.masked_fill(end.isinf(), 0).amax(0)
    guarded = ~(start <= 10 * largest)
    error = torch.where(guarded, torch.maximum(error, others), error)
    right = error.isfinite() & (error <= tolerance.unsqueeze(1) + rtol * end)
    converged = right.long().cumprod(0).sum(0)
    updated = torch.where(guarded.unsqueeze(-1), ends, torch.stack(starts))
    return (
        torch.cat([states[:1], updated]),
        error.to(states.dtype),
        converged.masked_fill(end[0].isinf(), 1),
    )


def _times(A: Tensor | None, d: Tensor, structure: str) -> Tensor:
    """A d (B,w), and 0 where d is: all of a sample's where A is dense, else element by element."""
    if structure == "zero":
        return torch.zeros_like(d)
    if A is None:
        return d
    if structure == "dense":
        moved = torch.matmul(A, d.unsqueeze(-1)).squeeze(-1)
        return moved.masked_fill((d == 0).all(-1, keepdim=True), 0)
    return (A * d).masked_fill(d == 0, 0)


def _largest(x: Tensor) -> Tensor:
    """Of |x| over the last dimension; inf where an element is not finite."""
    if x.shape[-1] == 0:
        return x.new_zeros(x.shape[:-1])
    return x.abs().nan_to_num(nan=torch.inf, posinf=torch.inf).amax(-1)


def _norm(kind: str, z: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> Tensor:
    if kind == "layer_norm":
        return _layer_norm(z, gamma, beta, eps)
    return F.rms_norm(z, z.shape[-1:], gamma, eps) if kind == "rms_norm" else z


def _layer_norm(z: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> Tensor:
    """F.layer_norm; inside torch.func, where derivatives of any order are taken, by elementary
    operations: PyTorch's own are wrong from the third on (from the second where one is forward),
    because they take mean and variance to be constants."""
    if not func_active():
        return F.layer_norm(z, z.shape[-1:], gamma, beta, eps)
    z = z - z.mean(-1, keepdim=True)
    z = z * torch.rsqrt(z.square().mean(-1, keepdim=True) + eps)
    z = z if gamma is None else z * gamma
    return z if beta is None else z + beta


def _walk(
    z0: Tensor, length: int, step: Callable[[int, Tensor], Tensor], save_states: bool
) -> tuple[Tensor, Tensor]:
    z = z0.clone() if length == 0 else z0
    states: list[Tensor] = []
    for index in range(length):
        z = step(index, z)
        if save_states:
            states.append(z)
    return z, torch.stack(states) if states else z0.new_empty((0, *z0.shape))


def _each(shared: Shared | None, length: int) -> Sequence[Tensor | None]:
    return [shared] * length if shared is None or isinstance(shared, Tensor) else shared


def _steps(stacked: Tensor | None, length: int) -> Sequence[Tensor | None]:
    """The tensors of the steps; by unbind, whose backward is one stack and not L additions."""
    return [None] * length if stacked is None else stacked.unbind(0)
