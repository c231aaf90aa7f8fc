# SPDX-License-Identifier: Apache-2.0
"""MLPChain, ResidualChain, ResidualBlock as modules: what PyTorch users do with modules."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from cases import ACTIVATIONS, NORMS, assert_close
from torch import nn
from torch.func import functional_call

import torch_deeppcr as dpcr

MAKERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": lambda **o: dpcr.nn.MLPChain(4, 3, **o),
    "mlp-elu": lambda **o: dpcr.nn.MLPChain(4, 3, ("elu", 0.5), bias=False, **o),
    "residual": lambda **o: dpcr.nn.ResidualChain(4, 3, **o),
    "residual-layer_norm": lambda **o: dpcr.nn.ResidualChain(
        4, 3, hidden=5, activation=nn.LeakyReLU(0.3), norm="layer_norm", scale=0.3, **o
    ),
    "residual-rms_norm": lambda **o: dpcr.nn.ResidualChain(
        4, 3, hidden=2, activation="gelu_tanh", norm="rms_norm", norm_eps=1e-3, bias=False, **o
    ),
}
each_module = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


# ---- against the plain modules ------------------------------------------------------------------


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


@each_module
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


# ---- layers -------------------------------------------------------------------------------------


@each_module
def test_layers_share_the_storage(make: Callable[..., nn.Module]) -> None:
    chain = make()
    state = torch.get_rng_state()
    layers = chain.layers()
    assert torch.equal(torch.get_rng_state(), state)  # nothing drawn
    assert len(layers) == 3
    stacked = {p.untyped_storage().data_ptr() for p in chain.parameters()}
    for layer in layers:
        for parameter in layer.parameters():
            assert parameter.untyped_storage().data_ptr() in stacked
            assert not parameter.requires_grad
    for module in nn.ModuleList(layers).modules():  # the usual initialisation loop
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight)
    weight = next(chain.parameters())[1]
    rows = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    torch.testing.assert_close(rows, torch.eye(len(rows)), atol=1e-5, rtol=0.0)
    x = torch.randn(2, 4)
    expected = x
    for layer in layers:
        expected = layer(expected)
        if isinstance(layer, nn.Linear):
            activation = chain.activation
            expected = dpcr._activations.apply(*activation, expected)
    assert_close(chain(x), expected)


def test_writing_into_layers_is_seen_by_autograd() -> None:
    chain = dpcr.nn.MLPChain(4, 3)
    loss = chain(torch.randn(2, 4)).sum()
    with torch.no_grad():
        chain.layers()[1].weight.zero_()
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


# ---- what users do with modules -----------------------------------------------------------------


@each_module
def test_copies_and_files(make: Callable[..., nn.Module], tmp_path: Path) -> None:
    chain = make()
    x = torch.randn(2, 4)
    expected = chain(x)
    twins = [copy.deepcopy(chain), pickle.loads(pickle.dumps(chain))]
    buffer = io.BytesIO()
    torch.save(chain, buffer)
    buffer.seek(0)
    twins.append(torch.load(buffer, weights_only=False))
    torch.save(chain.state_dict(), tmp_path / "chain.pt")
    twins.append(make())
    twins[-1].load_state_dict(torch.load(tmp_path / "chain.pt", weights_only=True), strict=True)
    safetensors.torch.save_model(chain, tmp_path / "chain.safetensors")
    twins.append(make())
    safetensors.torch.load_model(twins[-1], tmp_path / "chain.safetensors", strict=True)
    twins.append(make(device="meta").to_empty(device="cpu"))
    twins[-1].load_state_dict(chain.state_dict(), strict=True)
    twins.append(make(device="meta"))
    twins[-1].load_state_dict(copy.deepcopy(chain.state_dict()), strict=True, assign=True)
    for twin in twins:
        assert torch.equal(twin(x), expected) and repr(twin) == repr(chain)
        with torch.no_grad():
            next(twin.parameters()).zero_()
    assert torch.equal(chain(x), expected)


def test_state_dict_is_strict() -> None:
    state = dpcr.nn.MLPChain(4, 3).state_dict()
    assert set(state) == {"weight", "bias"}
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        dpcr.nn.MLPChain(4, 5).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Unexpected key.*bias"):
        dpcr.nn.MLPChain(4, 3, bias=False).load_state_dict(state)
    with pytest.raises(RuntimeError, match=r"Missing key.*norm_weight"):
        plain = dpcr.nn.ResidualChain(4, 3).state_dict()
        dpcr.nn.ResidualChain(4, 3, norm="rms_norm").load_state_dict(plain)
    assert set(dpcr.nn.ResidualChain(4, 3, norm="layer_norm").state_dict()) == {
        *("weight1", "bias1", "weight2", "bias2"),
        *("norm_weight", "norm_bias"),
    }


@each_module
def test_dtypes_and_devices(make: Callable[..., nn.Module]) -> None:
    chain = make()
    x = torch.randn(2, 4)
    double = copy.deepcopy(chain).double()
    assert double(x.double()).dtype == torch.float64
    half = copy.deepcopy(chain).to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert copy.deepcopy(chain).to("meta")(x.to("meta")).is_meta
    assert make(dtype=torch.float64)(x.double()).dtype == torch.float64
    with pytest.raises(TypeError, match="must have the dtype of input"):
        double(x)


@each_module
def test_initialisation_on_meta_draws_nothing(make: Callable[..., nn.Module]) -> None:
    state = torch.get_rng_state()
    chain = make(device="meta")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.is_meta for p in chain.parameters())
    torch.manual_seed(3)
    chain = chain.to_empty(device="cpu")
    chain.reset_parameters()
    torch.manual_seed(3)
    for ours, theirs in zip(chain.parameters(), make().parameters(), strict=True):
        assert torch.equal(ours, theirs)


@each_module
def test_utilities(make: Callable[..., nn.Module]) -> None:
    chain = make()
    x = torch.randn(2, 4)
    vector = nn.utils.parameters_to_vector(chain.parameters())
    assert vector.numel() == sum(p.numel() for p in chain.parameters())
    nn.utils.vector_to_parameters(vector * 0.5, chain.parameters())
    halved = {name: p.detach() for name, p in chain.named_parameters()}
    assert torch.equal(functional_call(make(), halved, (x,)), chain(x))
    chain(x).sum().backward()
    assert nn.utils.clip_grad_norm_(chain.parameters(), 1e-3) > 0
    chain.zero_grad()
    assert all(p.grad is None for p in chain.parameters())
    averaged = torch.optim.swa_utils.AveragedModel(chain)
    averaged.update_parameters(chain)
    assert torch.equal(averaged(x), chain(x))


def test_parametrization() -> None:
    chain = dpcr.nn.MLPChain(4, 3)

    class Half(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight / 2

    x = torch.randn(2, 4)
    plain = dpcr.mlp_chain(x, chain.weight / 2, chain.bias)
    nn.utils.parametrize.register_parametrization(chain, "weight", Half())
    assert torch.equal(chain(x), plain)
    chain(x).sum().backward()
    assert chain.parametrizations.weight.original.grad is not None


def test_hooks_fire() -> None:
    chain = dpcr.nn.MLPChain(4, 3)
    seen = []
    chain.register_forward_hook(lambda *_: seen.append("forward"))
    chain.register_full_backward_hook(lambda *_: seen.append("backward"))
    chain(torch.randn(2, 4, requires_grad=True)).sum().backward()
    assert seen == ["forward", "backward"]


@each_module
def test_shapes_and_states(make: Callable[..., nn.Module]) -> None:
    chain = make()
    for outer in ((), (2,), (0,), (2, 3)):
        x = torch.randn(*outer, 4)
        z, states = chain(x, return_states=True)
        assert z.shape == x.shape and states.shape == (3, *outer, 4)
        assert torch.equal(states[-1], z) and torch.equal(z, chain(x))
    with pytest.raises(ValueError, match="must have shape"):
        chain(torch.randn(2, 5))


@pytest.mark.parametrize(("width", "depth"), [(0, 3), (4, 0), (0, 0)])
def test_empty_chains(width: int, depth: int) -> None:
    for chain in (
        dpcr.nn.MLPChain(width, depth),
        dpcr.nn.ResidualChain(width, depth, hidden=2, norm="layer_norm"),
    ):
        x = torch.randn(3, width, requires_grad=True)
        z = chain(x)
        assert z.shape == x.shape
        z.sum().backward()
        assert torch.equal(x.grad, torch.ones_like(x))
        assert len(chain.layers()) == depth
        assert torch.equal(chain.to_sequential()(x), z)


def test_extra_repr() -> None:
    assert repr(dpcr.nn.MLPChain(4, 3)) == "MLPChain(width=4, depth=3, activation=tanh, bias=True)"
    chain = dpcr.nn.MLPChain(4, 3, nn.Softplus(2.0, 15.0), bias=False)
    assert "softplus(beta=2, threshold=15), bias=False" in repr(chain)
    chain = dpcr.nn.ResidualChain(4, 3, norm="rms_norm", scale=0.25, norm_eps=1e-3)
    assert repr(chain) == (
        "ResidualChain(width=4, depth=3, hidden=4, activation=relu, norm=rms_norm, scale=0.25, "
        "bias=True, norm_eps=0.001)"
    )


def test_options_reach_the_operator() -> None:
    """Each option changes the result."""
    x = torch.randn(2, 4)

    def run(**options: Any) -> torch.Tensor:
        torch.manual_seed(1)
        return dpcr.nn.ResidualChain(4, 3, **options)(x)

    results = [
        run(),
        run(activation="tanh"),
        run(activation=nn.ELU(0.5)),
        run(norm="layer_norm"),
        run(norm="rms_norm"),
        run(norm="layer_norm", norm_eps=0.5),
        run(scale=0.5),
        run(bias=False),
        run(hidden=6),
    ]
    for index, one in enumerate(results):
        for other in results[:index]:
            assert not torch.allclose(one, other)
