# SPDX-License-Identifier: Apache-2.0
"""The modules against PyTorch's own: initial draws, results, conversion there and back."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from cases import ACTIVATIONS, NORMS, assert_close, each_sequential
from torch import nn

import torch_deeppcr as dpcr


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [0, 1, 3, 16, 33])
def test_initialisation_draws_what_linears_draw(width: int, bias: bool, dtype: torch.dtype) -> None:
    """Bit-equal from the same seed, and the generator is left in the same state."""
    torch.manual_seed(5)
    with pytest.warns(UserWarning, match="zero-element") if not width else nullcontext():
        layers = [nn.Linear(width, width, bias, dtype=dtype) for _ in range(4)]
    after = torch.rand(3)
    torch.manual_seed(5)
    chain = dpcr.nn.MLPChain(width, 4, bias=bias, dtype=dtype)
    assert torch.equal(torch.rand(3), after)
    assert torch.equal(chain.weight, torch.stack([layer.weight for layer in layers]))
    if bias:
        assert torch.equal(chain.bias, torch.stack([layer.bias for layer in layers]))
    else:
        assert chain.bias is None
    torch.manual_seed(5)
    chain.reset_parameters()
    assert torch.equal(chain.weight, torch.stack([layer.weight for layer in layers]))


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_initialisation_draws_what_blocks_draw(norm: str | None, bias: bool) -> None:
    torch.manual_seed(5)
    blocks = [dpcr.nn.ResidualBlock(4, 7, norm=norm, bias=bias) for _ in range(3)]
    after = torch.rand(3)
    torch.manual_seed(5)
    chain = dpcr.nn.ResidualChain(4, 3, 7, norm=norm, bias=bias)
    assert torch.equal(torch.rand(3), after)
    other = dpcr.nn.ResidualChain.from_sequential(nn.Sequential(*blocks))
    assert chain.state_dict().keys() == other.state_dict().keys()
    for name, value in chain.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_mlp_chain_is_the_sequential(activation: str) -> None:
    chain = dpcr.nn.MLPChain(4, 3, (activation, *ACTIVATIONS[activation]), dtype=torch.float64)
    plain = chain.to_sequential()
    assert len(plain) == (3 if activation == "identity" else 6)
    x = torch.randn(5, 4, dtype=torch.float64)
    assert_close(chain(x), plain(x))
    again = dpcr.nn.MLPChain.from_sequential(plain)
    assert again.activation == chain.activation
    assert torch.equal(again(x), chain(x))


@each_sequential
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_round_trip_through_a_sequential(
    make: Callable[..., nn.Module], dtype: torch.dtype
) -> None:
    chain = make(dtype=dtype)
    first = next(chain.parameters()).requires_grad_(False)
    chain.eval()
    plain = chain.to_sequential()
    x = torch.randn(5, 4, dtype=dtype)
    assert_close(chain(x), plain(x), factor=10 if dtype == torch.bfloat16 else 1e3)
    assert not plain.training and not plain[0].training
    again = type(chain).from_sequential(plain)
    assert not again.training
    assert repr(again).replace(", norm_eps=1e-05", "") == repr(chain)
    for (name, ours), (_, theirs) in zip(
        chain.named_parameters(), again.named_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs) and ours.requires_grad == theirs.requires_grad, name
        assert ours.requires_grad == (ours is not first)
    with torch.no_grad():  # copies: neither sees the other's changes
        next(plain.parameters()).zero_()
    assert torch.equal(again(x), chain(x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_default_eps_is_that_of_the_modules(norm: str, dtype: torch.dtype) -> None:
    chain = dpcr.nn.ResidualChain(4, 1, norm=norm, dtype=dtype)
    x = torch.randn(5, 4, dtype=dtype)
    eps = dpcr.functional._default_eps(norm, x)
    x = x * eps**0.5  # so small that eps counts
    factor = 10 if dtype == torch.bfloat16 else 1e3
    assert_close(chain(x), chain.to_sequential()(x), factor=factor)
    before = chain(x)
    chain.norm_eps = 2 * eps
    assert not torch.allclose(chain(x), before, rtol=1e-2, atol=0.0)  # it does count


def test_residual_block_is_an_ordinary_module() -> None:
    block = dpcr.nn.ResidualBlock(4, 6, activation="silu", norm="rms_norm", scale=0.5)
    x = torch.randn(2, 3, 4)
    inner = block.linear2(nn.functional.silu(block.linear1(block.norm(x))))
    assert torch.equal(block(x), x + 0.5 * inner)
    names = {"norm.weight", "linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias"}
    assert set(block.state_dict()) == names
    assert dpcr.nn.ResidualBlock(4).norm is None
    assert "scale=0.5" in repr(block)


# ---- what does not fit ----

BAD_SEQUENTIALS: list[tuple[Any, type[nn.Module], str]] = []


def refuse(kind: str, modules: list[Any], message: str) -> None:
    cls = dpcr.nn.MLPChain if kind == "mlp" else dpcr.nn.ResidualChain
    BAD_SEQUENTIALS.append((nn.Sequential(*modules), cls, message))


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


def patched(module: nn.Module) -> nn.Module:
    module.forward = lambda x: x
    return module


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


def edited(block: nn.Module, **children: Any) -> nn.Module:
    for name, child in children.items():
        setattr(block, name, child)
    return block


class MyLinear(nn.Linear):
    pass


def linear(width: int = 4, out: int = 4, **options: Any) -> nn.Linear:
    return nn.Linear(width, out, **options)


def block(width: int = 4, *values: Any, **options: Any) -> nn.Module:
    return dpcr.nn.ResidualBlock(width, *values, **options)


shared = linear()
refuse("mlp", [], "at least one nn.Linear")
refuse("mlp", [linear(), nn.Tanh(), nn.Tanh()], r"sequential\[2\] must be exactly Linear, got Tanh")
refuse("mlp", [nn.Tanh(), linear()], r"sequential\[0\] must be exactly Linear, got Tanh")
refuse("mlp", [linear(4, 5)], r"sequential\[0\] must be square, got 4 -> 5")
refuse("mlp", [linear(), linear(5, 5)], r"weight of sequential\[1\] must agree")
refuse("mlp", [linear(), linear(bias=False)], r"bias of sequential\[1\] must agree .* got None")
refuse("mlp", [linear(), linear().double()], r"sequential\[1\] must agree .* float64")
refuse("mlp", [linear(), linear(device="meta")], r"sequential\[1\] must agree .* meta")
refuse("mlp", [linear(), frozen(linear())], r"sequential\[1\] must agree .*frozen")
refuse(
    "mlp", [linear(), nn.Tanh(), linear(), nn.ReLU()], r"after sequential\[2\] .* tanh, got relu"
)
refuse("mlp", [linear(), nn.Tanh(), linear()], r"after sequential\[2\] .* tanh, got identity")
refuse("mlp", [linear(), nn.ELU(1.0), linear(), nn.ELU(2.0)], r"elu\(alpha=1\), got elu\(alpha=2\)")
refuse("mlp", [linear(), nn.Dropout()], r"sequential\[1\] must be nn.Linear or an activation")
refuse("mlp", [MyLinear(4, 4)], r"sequential\[0\] must be exactly Linear, got MyLinear")
refuse("mlp", [linear(), nn.utils.parametrizations.weight_norm(linear())], r"sequential\[1\]")
refuse("mlp", [linear(), nn.utils.spectral_norm(linear())], r"sequential\[1\] has hooks")
refuse("mlp", [hooked(linear())], r"sequential\[0\] has hooks")
refuse("mlp", [linear(), hooked(nn.Tanh())], r"sequential\[1\] has hooks")
refuse("mlp", [patched(linear())], r"sequential\[0\] has hooks or a forward of its own")
refuse(
    "mlp", [shared, linear(), shared], r"sequential\[2\] shares a parameter with sequential\[0\]"
)
refuse("residual", [], "at least one ResidualBlock")
refuse("residual", [linear()], r"sequential\[0\] must be exactly ResidualBlock, got Linear")
refuse("residual", [block(), block(norm="rms_norm")], r"sequential\[1\] must have the options")
refuse("residual", [block(), block(scale=0.5)], r"sequential\[1\] must have the options")
refuse("residual", [block(), block(activation="tanh")], r"sequential\[1\] must have the options")
refuse("residual", [block(), block(5)], r"sequential\[1\] must have the options")
refuse("residual", [block(4, 5), block(4, 6)], r"sequential\[1\] must have the options")
refuse("residual", [block(), block(bias=False)], r"bias1 of sequential\[1\] must agree")
refuse("residual", [hooked(block())], r"sequential\[0\] has hooks")
refuse("residual", [edited(block(), linear1=MyLinear(4, 4))], r"\.linear1 must be exactly Linear")
refuse("residual", [edited(block(), linear2=linear(4, 5))], r"\.linear2 must map 4 -> 4")
refuse("residual", [edited(block(), activation=nn.Hardtanh())], r"\.activation: .* got Hardtanh")
refuse("residual", [edited(block(), norm=nn.BatchNorm1d(4))], r"\.norm must be exactly RMSNorm")
refuse("residual", [edited(block(), norm=nn.LayerNorm(5))], r"\.norm must be over 4 elements")
refuse("residual", [edited(block(), norm=nn.LayerNorm(4, bias=False))], r"learned affine")
refuse("residual", [edited(block(), norm=nn.RMSNorm(4, elementwise_affine=False))], "affine")


@pytest.mark.parametrize(("sequential", "cls", "message"), BAD_SEQUENTIALS)
def test_what_does_not_fit_is_named(sequential: nn.Sequential, cls: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls.from_sequential(sequential)


def test_from_sequential_wants_a_sequential() -> None:
    for cls in (dpcr.nn.MLPChain, dpcr.nn.ResidualChain):
        with pytest.raises(TypeError, match=r"sequential must be an nn\.Sequential, got list"):
            cls.from_sequential([linear()])


def test_one_bias_of_two() -> None:
    """Blocks whose second map alone lost its bias."""
    blocks = [edited(block(), linear2=linear(bias=False)) for _ in range(2)]
    chain = dpcr.nn.ResidualChain.from_sequential(nn.Sequential(*blocks))
    assert chain.bias1 is not None and chain.bias2 is None
    x = torch.randn(3, 4)
    assert_close(chain(x), nn.Sequential(*blocks)(x))
    assert_close(chain.to_sequential()(x), chain(x))
