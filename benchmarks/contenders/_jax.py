# SPDX-License-Identifier: Apache-2.0
"""Contenders in JAX: the steps of the problems, and a jitted function as a run.

JAX has to be told to use one thread before it is imported.  With that flag small matrix products
are also up to ten times faster (measured: associative_scan over 4 x 4 blocks): the fair setting.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from problems import PASSES, SCALE, Problem
from torch import Tensor

from . import Contender, Run

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
).strip()
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

try:
    import jax
    import jax.numpy as jnp
    import numpy as np

    MISSING = ""
    # As PyTorch: no TF32 on a GPU.
    jax.config.update("jax_default_matmul_precision", "highest")
except ImportError as reason:
    jax = jnp = np = None
    MISSING = f"JAX is not installed: {reason} (extra `bench` of the package)"

Array = Any


class JaxContender(Contender):
    """Takes part where JAX is there and has the problem's kind of device."""

    def cannot(self, problem: Problem) -> str:
        if MISSING:
            return MISSING
        if problem.run not in PASSES:
            return "written for " + " and ".join(PASSES) + " only"
        if problem.device != "cpu" and jax.default_backend() != "gpu":
            return "this JAX has no GPU"
        return self.unfit(problem)

    def unfit(self, problem: Problem) -> str:
        """As `cannot`, about the problem alone."""
        return ""


# ---- the steps of problems.py once more: z (...,w) and the parameters of one step ---------------


def layer_norm(z: Array, gamma: Array, beta: Array) -> Array:
    centred = z - z.mean(-1, keepdims=True)
    variance = (centred * centred).mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + 1e-5) * gamma + beta


def mlp_step(z: Array, weight: Array, bias: Array) -> Array:
    return jnp.tanh(z @ weight.T + bias)


def relu_step(z: Array, weight: Array, bias: Array) -> Array:
    return jax.nn.relu(z @ weight.T + bias)


def residual_step(z: Array, w1: Array, b1: Array, w2: Array, b2: Array) -> Array:
    return z + SCALE * (jax.nn.silu(z @ w1.T + b1) @ w2.T + b2)


def prenorm_step(
    z: Array, w1: Array, b1: Array, w2: Array, b2: Array, gamma: Array, beta: Array
) -> Array:
    inner = layer_norm(z, gamma, beta)
    return z + jax.nn.silu(inner @ w1.T + b1) @ w2.T + b2


def layers_step(z: Array, weight: Array, bias: Array, gamma: Array, beta: Array) -> Array:
    a = z
    for w, b, g, e in zip(weight, bias, gamma, beta, strict=True):
        a = jax.nn.silu(layer_norm(a @ w.T + b, g, e))
    return z + a


STEPS = {
    "mlp": mlp_step,
    "normal": mlp_step,
    "relu": relu_step,
    "residual": residual_step,
    "prenorm": prenorm_step,
    "layers": layers_step,
}


def after(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """The affine map x -> A x + b of the first, then the second; dense blocks (...,w,w)."""
    (A1, b1), (A2, b2) = first, second
    return A2 @ A1, apply(A2, b1) + b2


def after_diagonal(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    (A1, b1), (A2, b2) = first, second
    return A2 * A1, A2 * b1 + b2


def apply(A: Array, x: Array) -> Array:
    return (A @ x[..., None])[..., 0]


# ---- runs ---------------------------------------------------------------------------------------


def run(problem: Problem, function: Callable[..., Array]) -> Run:
    """function(*leaves) -> output; its gradients by JAX where the problem trains."""
    if not problem.trains:
        return run_pass(problem, lambda *leaves: [function(*leaves)])

    def train(gradient: Array, *leaves: Array) -> list[Array]:
        output, pullback = jax.vjp(function, *leaves)
        return [output, *pullback(gradient)]

    return run_pass(problem, train)


def run_pass(
    problem: Problem,
    whole: Callable[..., list[Array]],
    notes: Callable[[list[Array]], dict[str, Any]] = lambda extra: {},
) -> Run:
    """whole([gradient,] *leaves) -> output and gradients, and after them what notes reads."""
    leaves = [to_jax(leaf) for leaf in problem.leaves]
    arguments = [to_jax(problem.gradient), *leaves] if problem.trains else leaves
    count = 1 + len(leaves) if problem.trains else 1
    jitted = jax.jit(whole)

    def call() -> list[Array]:
        return jax.block_until_ready(jitted(*arguments))

    def results() -> list[Tensor]:
        return [torch.from_numpy(np.array(array)) for array in call()[:count]]

    return Run(call, results, lambda: notes(call()[count:]))


def to_jax(tensor: Tensor) -> Array:
    return jax.device_put(tensor.cpu().numpy().copy())
