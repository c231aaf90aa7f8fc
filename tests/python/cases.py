# SPDX-License-Identifier: Apache-2.0
"""What the tests share: random problems, the loops they are held to, a spy on operator calls."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import torch_deeppcr as dpcr
from torch_deeppcr import _activations, _kinds, reference

# name -> a setting of its parameters that is not the default
ACTIVATIONS: dict[str, tuple[float, ...]] = {
    "identity": (),
    "relu": (),
    "leaky_relu": (0.2,),
    "elu": (0.7,),
    "tanh": (),
    "sigmoid": (),
    "silu": (),
    "gelu": (),
    "gelu_tanh": (),
    "softplus": (1.5, 2.0),
}
NORMS = (None, "layer_norm", "rms_norm")
KINDS = ("mlp", "residual", "euler", "layers", "denoise")
NORMED = ("residual", "layers")
WIDE = ("residual", "denoise")  # h may be another than w


@dataclass
class Chain:
    """A chain with its tensors: ``run`` by the product, ``loop`` by the reference."""

    kind: str
    length: int
    batch: int
    width: int
    hidden: int = 0
    activation: str = "tanh"
    norm: str | None = None
    bias: bool = True
    scale: float = 0.5
    gain: float = 1.0
    dtype: torch.dtype = torch.float64
    seed: int = 0
    solver: dict[str, Any] = field(default_factory=dict)  # segments and so on
    norm_eps: float | None = None
    layers: int = 2  # of kind "layers", and "denoise", which may have none
    skip: bool = True  # of kind "layers"
    noise: bool = True  # of kind "denoise"
    tensors: list[Tensor | None] = field(init=False)  # input, then the parameters

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        L, w = self.length, self.width
        h = self.hidden if self.kind in WIDE and self.hidden else w

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            values = torch.randn(*shape, generator=generator, dtype=torch.float64) * scale
            return values.to(self.dtype)

        steps = (L, self.layers) if self.kind == "layers" else (L,)

        def matrix(rows: int, columns: int) -> Tensor:
            return normal(*steps, rows, columns, scale=self.gain * max(columns, 1) ** -0.5)

        def vector(size: int, there: bool = True, mean: float = 0.0) -> Tensor | None:
            return normal(*steps, size, scale=0.3) + mean if there else None

        z = normal(self.batch, w)
        if self.kind in ("mlp", "euler"):
            self.tensors = [z, matrix(w, w), vector(w, self.bias)]
            return
        if self.kind == "denoise":
            hidden = normal(self.layers, h, h, scale=self.gain * max(h, 1) ** -0.5)
            c = self.scale * (1 + normal(L, 1, scale=0.3))
            self.tensors = [
                *(z, normal(h, w, scale=self.gain * max(w, 1) ** -0.5)),
                *(normal(L, self.layers + 1, h, scale=0.3), hidden if self.layers else None),
                normal(w, h, scale=self.gain * max(h, 1) ** -0.5),
                normal(w, scale=0.3) if self.bias else None,
                torch.cat([1 + normal(L, 1, scale=0.05), c], 1),
                normal(L, self.batch, w, scale=0.1) if self.noise else None,
            ]
            return
        linear = [matrix(h, w), vector(h, self.bias)]
        if self.kind == "residual":
            linear += [matrix(w, h), vector(w, self.bias)]
        gamma = vector(w, self.norm is not None, mean=1.0)
        beta = vector(w, self.norm == "layer_norm")
        self.tensors = [z, *linear, gamma, beta]

    @property
    def present(self) -> list[Tensor]:
        return [tensor for tensor in self.tensors if tensor is not None]

    @property
    def activation_parameters(self) -> tuple[float, ...]:
        return ACTIVATIONS[self.activation]

    @property
    def eps(self) -> float:
        if self.norm_eps is not None:
            return self.norm_eps
        if self.norm != "rms_norm":
            return 1e-5
        return torch.finfo(torch.float64 if self.dtype == torch.float64 else torch.float32).eps

    @property
    def options(self) -> list[Any]:
        """Of the kind, as the raw operators and the references take them."""
        options: list[Any] = [self.activation, list(self.activation_parameters)]
        if self.kind in NORMED:
            options += [self.norm or "none", self.eps]
        if self.kind == "layers":
            options.append(self.skip)
        return options if self.kind in ("mlp", "denoise") else [*options, self.scale]

    @property
    def reference(self) -> Callable[..., Any]:
        return getattr(reference, self.kind)

    @property
    def chain_kind(self) -> _kinds.ChainKind:
        (kind,) = (kind for kind in _kinds.KINDS if kind.name == self.kind)
        return kind

    def one_step(self, parameters: Iterable[Tensor | None], index: int) -> list[Tensor | None]:
        """The parameters of a chain of that step alone."""
        return [
            p[index : index + 1] if stacked and p is not None else p
            for p, stacked in zip(parameters, self.chain_kind.stacked, strict=True)
        ]

    def all(self, present: Iterable[Tensor]) -> list[Tensor | None]:
        """``tensors`` with other values."""
        values = iter(present)
        return [None if tensor is None else next(values) for tensor in self.tensors]

    def run(self, *present: Tensor, **more: Any) -> Any:
        tensors = self.all(present or self.present)
        activation = (self.activation, *ACTIVATIONS[self.activation])
        options = {"activation": activation, **self.solver, **more}
        if self.kind == "mlp":
            return dpcr.mlp_chain(*tensors, **options)
        if self.kind == "euler":
            return dpcr.euler_chain(*tensors, scale=self.scale, **options)
        if self.kind == "denoise":
            *tensors, coefficients, noise = tensors
            options |= {"coefficients": coefficients, "noise": noise}
            return dpcr.denoise_chain(*tensors, **options)
        options |= {"norm": self.norm, "norm_eps": self.norm_eps, "scale": self.scale}
        if self.kind == "layers":
            return dpcr.layers_chain(*tensors, skip=self.skip, **options)
        return dpcr.residual_chain(*tensors, **options)

    def loop(self, *present: Tensor, return_states: bool = False) -> Any:
        """The reference, for inputs (..., w) too."""
        z, *parameters = self.all(present or self.present)
        outer = z.shape[:-1]
        flat = z.reshape(math.prod(outer), self.width)
        for index in self.chain_kind.sampled:
            if parameters[index] is not None:
                parameters[index] = parameters[index].reshape(self.length, *flat.shape)
        out, states = self.reference(flat, *parameters, *self.options, True)
        out = out.reshape(*outer, self.width)
        states = states.reshape(self.length, *outer, self.width)
        return (out, states) if return_states else out

    def elementary(self, *present: Tensor) -> Tensor:
        """The loop in elementary operations, which PyTorch differentiates rightly at any order: its
        third derivatives of layer_norm take mean and variance to be constants."""
        z, *parameters = self.all(present or self.present)
        count = self.length
        if self.kind == "denoise":
            return self.elementary_denoise(z, *parameters)
        steps = [[None] * count if p is None else p.unbind(0) for p in parameters]
        activation = (self.activation, ACTIVATIONS[self.activation])
        if self.kind in ("mlp", "euler"):
            for weight, bias in zip(*steps, strict=True):
                u = z @ weight.T
                a = _activations.apply(*activation, u if bias is None else u + bias)
                z = a if self.kind == "mlp" else z + self.scale * a
            return z
        if self.kind == "layers":
            for step in zip(*steps, strict=True):
                a = z
                for m in range(self.layers):
                    weight, bias, gamma, beta = (None if p is None else p[m] for p in step)
                    u = a @ weight.T if bias is None else a @ weight.T + bias
                    a = _activations.apply(*activation, self.normed(u, gamma, beta))
                z = self.scale * a + (z if self.skip else 0)
            return z
        for weight1, bias1, weight2, bias2, gamma, beta in zip(*steps, strict=True):
            u = self.normed(z, gamma, beta)
            u = u @ weight1.T if bias1 is None else u @ weight1.T + bias1
            u = _activations.apply(*activation, u) @ weight2.T
            z = z + self.scale * (u if bias2 is None else u + bias2)
        return z

    def elementary_denoise(
        self,
        z: Tensor,
        weight_in: Tensor,
        bias: Tensor,
        weight_hidden: Tensor | None,
        weight_out: Tensor,
        bias_out: Tensor | None,
        coefficients: Tensor,
        noise: Tensor | None,
    ) -> Tensor:
        activation = (self.activation, ACTIVATIONS[self.activation])
        for index in range(self.length):
            b = bias[index]
            x = _activations.apply(*activation, z @ weight_in.T + b[0])
            for m in range(self.layers):
                x = x + _activations.apply(*activation, x @ weight_hidden[m].T + b[m + 1])
            x = x @ weight_out.T
            x = x if bias_out is None else x + bias_out
            z = coefficients[index, 0] * z + coefficients[index, 1] * x
            z = z if noise is None else z + noise[index]
        return z

    def normed(self, u: Tensor, gamma: Tensor | None, beta: Tensor | None) -> Tensor:
        u = u - u.mean(-1, keepdim=True) if self.norm == "layer_norm" else u
        if self.norm:
            u = u / (u.square().mean(-1, keepdim=True) + self.eps).sqrt() * gamma
        return u if beta is None else u + beta

    def to(self, dtype: torch.dtype, device: torch.device | str = "cpu") -> Chain:
        """The same numbers in another dtype, on another device."""
        other = Chain(
            self.kind,
            self.length,
            self.batch,
            self.width,
            self.hidden,
            self.activation,
            self.norm,
            self.bias,
            self.scale,
            self.gain,
            dtype,
            self.seed,
            solver=self.solver,
            norm_eps=self.norm_eps,
            layers=self.layers,
            skip=self.skip,
            noise=self.noise,
        )
        other.tensors = [None if t is None else t.detach().to(device, dtype) for t in self.tensors]
        return other

    def require_grad(self) -> Chain:
        for tensor in self.present:
            tensor.requires_grad_()
        return self


SMALL_CHAINS = [
    Chain("mlp", 3, 2, 3, activation="tanh"),
    Chain("mlp", 2, 3, 2, activation="gelu", bias=False),
    Chain("residual", 2, 2, 3, hidden=2, activation="silu", norm="layer_norm"),
    Chain("residual", 2, 2, 2, hidden=3, activation="softplus", norm="rms_norm", bias=False),
    Chain("layers", 2, 2, 4, activation="silu", norm="layer_norm"),
    Chain("layers", 2, 3, 2, layers=1, norm="rms_norm", bias=False, skip=False),
    Chain("euler", 2, 3, 3, activation="silu"),
    Chain("mlp", 5, 2, 3, activation="tanh", solver={"segments": 2, "memory": "recompute"}),
    Chain("euler", 4, 2, 2, activation="tanh", bias=False, solver={"segments": 4}),
    Chain("residual", 3, 2, 3, activation="silu", norm="layer_norm", solver={"segments": 3}),
    Chain("layers", 4, 2, 3, activation="gelu", solver={"segments": 2}),
    Chain("denoise", 3, 2, 3, layers=0, bias=False, noise=False, solver={"segments": 3}),
    Chain("denoise", 2, 2, 2, hidden=3, activation="silu", layers=1),
]
RAW_CHAINS = [*SMALL_CHAINS[:6], SMALL_CHAINS[-1]]
"""One segment, every kind that has parameters of its own."""


# For Newton: contracting, marginal, and chaotic, which takes a sweep for nearly every segment.
EASY = Chain("mlp", 96, 3, 4, gain=0.8)
MARGINAL = Chain("mlp", 96, 3, 4, gain=1.1)
CHAOTIC = Chain("mlp", 128, 3, 8, gain=4.0)
BLOCKS = Chain("residual", 96, 3, 4, hidden=5, activation="silu", norm="layer_norm", scale=0.05)


def solve(chain: Chain, **options: Any) -> tuple[Tensor, Tensor, dpcr.ChainInfo]:
    """z, states, info."""
    return chain.run(return_states=True, return_info=True, **options)


def all_are(status: Tensor, value: dpcr.Status) -> bool:
    return bool((status == value).all())


MAKERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": lambda **o: dpcr.nn.MLPChain(4, 3, **o),
    "mlp-elu": lambda **o: dpcr.nn.MLPChain(4, 3, ("elu", 0.5), bias=False, **o),
    "euler": lambda **o: dpcr.nn.EulerChain(4, 3, ("elu", 0.5), scale=0.3, **o),
    "layers": lambda **o: dpcr.nn.LayersChain(4, 3, 2, norm="layer_norm", **o),
    "layers-plain": lambda **o: dpcr.nn.LayersChain(4, 3, activation="tanh", skip=False, **o),
    "residual": lambda **o: dpcr.nn.ResidualChain(4, 3, **o),
    "residual-layer_norm": lambda **o: dpcr.nn.ResidualChain(
        4, 3, hidden=5, activation=nn.LeakyReLU(0.3), norm="layer_norm", scale=0.3, **o
    ),
    "residual-rms_norm": lambda **o: dpcr.nn.ResidualChain(
        4, 3, hidden=2, activation="gelu_tanh", norm="rms_norm", norm_eps=1e-3, bias=False, **o
    ),
}
each_module = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
#: Those that show their steps as modules on the chain's storage.
LAYERED = {name: make for name, make in MAKERS.items() if "layers" not in name}
each_layered = pytest.mark.parametrize("make", LAYERED.values(), ids=LAYERED)
#: Those that go to and from an `nn.Sequential`.
SEQUENTIAL = {name: make for name, make in LAYERED.items() if name != "euler"}
each_sequential = pytest.mark.parametrize("make", SEQUENTIAL.values(), ids=SEQUENTIAL)


def name_of(value: object) -> str | None:
    """Test ids."""
    if isinstance(value, Chain):
        solver = "".join(f"-{option}" for option in value.solver.values())
        return f"{value.kind}-{value.activation}-{value.norm}{solver}"
    return None


@dataclass
class Problem:
    """A linear recurrence: ``run`` by the product, ``loop`` by the reference."""

    blocks: str
    length: int
    batch: int
    width: int
    shared: bool = False
    start: bool = True
    reverse: bool = False
    segments: int = 1
    growth: float = 0.9
    seed: int = 0

    def tensors(self, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
        """A, b, x0."""
        generator = torch.Generator().manual_seed(self.seed)
        L, B, w = self.length, self.batch, self.width
        inner = {"dense": (w, w), "diagonal": (w,), "scalar": (1,)}

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        A = None
        if self.blocks != "identity":
            A = normal(L, 1 if self.shared else B, *inner[self.blocks]) * self.growth
            if self.blocks == "dense":
                A = A / math.sqrt(max(w, 1))
        values = [A, normal(L, B, w), normal(B, w) if self.start else None]
        return [None if t is None else t.to(dtype) for t in values]

    def run(self, *tensors: Tensor | None, **more: Any) -> Any:
        options = {"reverse": self.reverse, "blocks": self.blocks, "segments": self.segments}
        return dpcr.linear_recurrence(*tensors, **options, **more)

    def loop(self, *tensors: Tensor | None) -> Tensor:
        return reference.linear_recurrence(*tensors, self.blocks, self.reverse)


def present(function: Any, tensors: list[Tensor | None]) -> tuple[Any, list[Tensor]]:
    """The function of the tensors that are there, and they."""

    def restricted(*values: Tensor) -> Any:
        given = iter(values)
        return function(*(None if t is None else next(given) for t in tensors))

    return restricted, [t for t in tensors if t is not None]


def scale_of(tensor: Tensor) -> float:
    """Largest finite magnitude."""
    values = tensor.detach().abs()
    values = values[values.isfinite()]
    return float(values.max()) if values.numel() else 0.0


def assert_close(actual: Any, expected: Any, factor: float = 1e3) -> None:
    """Trees of tensors agree to ``factor`` roundings of the largest element of each tensor (or of a
    hundredth of the tree's largest: what is exactly zero in theory need not be so in rounding)."""
    flat_a, spec_a = torch.utils._pytree.tree_flatten(actual)
    flat_e, spec_e = torch.utils._pytree.tree_flatten(expected)
    assert len(flat_a) == len(flat_e), (spec_a, spec_e)
    floor = 1e-2 * max((scale_of(e) for e in flat_e if e is not None), default=0.0)
    for a, e in zip(flat_a, flat_e, strict=True):
        if a is None or e is None:
            assert a is e
            continue
        assert a.shape == e.shape and a.dtype == e.dtype, (a.shape, e.shape, a.dtype, e.dtype)
        tolerance = factor * torch.finfo(e.dtype).eps * max(scale_of(e), floor)
        torch.testing.assert_close(a, e, rtol=0.0, atol=tolerance, equal_nan=True)


def gradients(function: Callable[..., Any], tensors: list[Tensor], seed: int = 7) -> list[Tensor]:
    """Gradients of a random linear form of all outputs."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    outputs = torch.utils._pytree.tree_leaves(function(*leaves))
    generator = torch.Generator().manual_seed(seed)
    total = sum(
        (o * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o)).sum()
        for o in outputs
    )
    # The loop leaves out what L = 0 does not use.
    return list(torch.autograd.grad(total, leaves, materialize_grads=True))


def on_host(tree: Any) -> Any:
    """The tree with its tensors on the CPU."""
    return torch.utils._pytree.tree_map_only(Tensor, Tensor.cpu, tree)


class Spy(TorchDispatchMode):
    """Records the calls of deeppcr's raw operators: (name, arguments)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "deeppcr":
            self.calls.append((func._opname, args))
        return func(*args, **(kwargs or {}))

    def arguments(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]
