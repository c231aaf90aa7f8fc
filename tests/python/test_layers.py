# SPDX-License-Identifier: Apache-2.0
"""`layers_chain` and `LayersChain` against the modules that users write; bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import assert_close
from torch import Tensor, nn

import torch_deeppcr as dpcr

W, L, M = 5, 4, 3
NORMS = {None: nn.Identity, "layer_norm": nn.LayerNorm, "rms_norm": nn.RMSNorm}


def modules_of(norm: str | None) -> list[nn.Sequential]:
    """L steps, drawn in the order of the layers."""
    return [
        nn.Sequential(
            *(nn.Sequential(nn.Linear(W, W), NORMS[norm](W), nn.SiLU()) for _ in range(M))
        )
        for _ in range(L)
    ]


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("norm", NORMS)
def test_the_module_is_its_plain_modules(norm: str | None, skip: bool) -> None:
    """Drawn from the same seed; values and gradients."""
    torch.manual_seed(3)
    chain = dpcr.nn.LayersChain(W, L, M, norm=norm, skip=skip)
    torch.manual_seed(3)
    steps = modules_of(norm)
    x = torch.randn(6, W)
    z = x
    for step in steps:
        z = z + step(z) if skip else step(z)
    assert_close(chain(x), z)
    z.square().sum().backward()
    chain(x).square().sum().backward()
    expected = [torch.stack([layer[0].weight.grad for layer in step]) for step in steps]
    assert_close(chain.weight.grad, torch.stack(expected))
    if norm:
        expected = [torch.stack([layer[1].weight.grad for layer in step]) for step in steps]
        assert_close(chain.norm_weight.grad, torch.stack(expected))


def test_parameters_of_the_module() -> None:
    def names(**options: Any) -> set[str]:
        return set(dpcr.nn.LayersChain(W, L, M, **options).state_dict())

    assert names() == {"weight", "bias"} and names(bias=False) == {"weight"}
    assert names(norm="rms_norm") == {"weight", "bias", "norm_weight"}
    chain = dpcr.nn.LayersChain(W, L, M, norm="layer_norm", norm_eps=1e-3, segments=2)
    assert [tuple(p.shape) for p in chain.parameters()] == [(L, M, W, W), *[(L, M, W)] * 3]
    assert (chain.norm_weight == 1).all() and (chain.norm_bias == 0).all()
    assert repr(chain) == (
        "LayersChain(width=5, depth=4, sublayers=3, activation=silu, norm=layer_norm, skip=True, "
        "scale=1, bias=True, norm_eps=0.001, segments=2)"
    )


weight, vector, z = torch.randn(L, M, W, W), torch.randn(L, M, W), torch.randn(2, W)


@pytest.mark.parametrize(
    ("parameters", "options", "error", "message"),
    [
        ((weight[:, :0], None), {}, ValueError, "M >= 1"),
        ((weight[0],), {}, ValueError, r"weight must have shape \(L, M, w, w\)"),
        ((weight, vector[:, :2]), {}, ValueError, r"bias must have shape \(L, M, w\)"),
        ((weight, None, vector), {}, ValueError, "norm_weight must be None"),
        (
            (weight, None, vector, vector),
            {"norm": "rms_norm"},
            ValueError,
            "norm_bias must be None",
        ),
        ((weight,), {"norm": "batch_norm"}, ValueError, "norm must be one of"),
        ((weight,), {"skip": 1}, TypeError, "skip must be True or False"),
        ((weight,), {"scale": float("inf")}, ValueError, "scale must be finite"),
    ],
)
def test_bad_arguments(
    parameters: tuple[Tensor | None, ...],
    options: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    for dtype in (torch.float32, torch.bfloat16):  # the kernel's, and the loop's
        tensors = (None if t is None else t.to(dtype) for t in (z, *parameters))
        with pytest.raises(error, match=message):
            dpcr.layers_chain(*tensors, **options)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_no_layer_in_a_step(device: str) -> None:
    """The raw operator, its kernel and its fake kernel."""
    tensors = (z.to(device), weight[:, :0].to(device), None, None, None, None)
    options = ("silu", [], "none", 1e-5, True, 1.0, 1, "dense", "adaptive", 1e-6, 0.0, -1, True)
    with pytest.raises(ValueError, match="M >= 1"):
        torch.ops.deeppcr.layers(*tensors, *options, [], "nothing")


def test_bad_modules() -> None:
    for options, error, message in (
        ({"sublayers": 0}, ValueError, "sublayers must be at least 1"),
        ({"sublayers": 1.0}, TypeError, "sublayers must be an int"),
        ({"skip": None}, TypeError, "skip"),
    ):
        with pytest.raises(error, match=message):
            dpcr.nn.LayersChain(W, L, **options)
