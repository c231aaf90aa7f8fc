# SPDX-License-Identifier: Apache-2.0
"""MLPChain, ResidualChain, ResidualBlock as modules: what PyTorch users do with modules."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from cases import Spy, assert_close, each_layered, each_module, each_sequential
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import torch_deeppcr as dpcr

# ---- layers -------------------------------------------------------------------------------------


@each_layered
def test_layers_share_the_storage(make: Callable[..., nn.Module]) -> None:
    chain = make()
    drawn = torch.get_rng_state()
    layers = chain.layers()
    assert torch.equal(torch.get_rng_state(), drawn)  # nothing drawn
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
        state, expected = expected, layer(expected)
        if isinstance(layer, nn.Linear):
            expected = dpcr._activations.apply(*chain.activation, expected)
        if isinstance(chain, dpcr.nn.EulerChain):
            expected = state + chain.scale * expected
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
    chain = dpcr.nn.MLPChain(4, 3, segments=2, jacobian="zero", rtol=1e-3, memory="recompute")
    assert repr(chain) == (
        "MLPChain(width=4, depth=3, activation=tanh, bias=True, segments=2, jacobian=zero, "
        "rtol=0.001, memory=recompute)"
    )
    assert repr(dpcr.nn.ResidualChain(4, 3, segments=3)).endswith("bias=True, segments=3)")


SOLVER: dict[str, Any] = {
    "segments": 3,
    "jacobian": "identity",
    "refresh": "always",
    "rtol": 1e-3,
    "atol": 1e-5,
    "max_sweeps": 7,
    "on_unconverged": "ignore",
    "memory": "recompute",
}


@each_sequential
def test_solver_options_reach_the_operator(make: Callable[..., nn.Module]) -> None:
    """From the constructor, and from copies and files of the module."""
    chain = make(**SOLVER)
    assert all(f"{name}={value}" in repr(chain) for name, value in SOLVER.items())
    x = torch.randn(2, 4)
    kind = type(chain)
    plain = chain.to_sequential()
    for twin in (
        chain,
        copy.deepcopy(chain),
        pickle.loads(pickle.dumps(chain)),
        chain.double().float(),
        kind.from_sequential(plain, **SOLVER),
    ):
        with Spy() as spy:
            _, info = twin(x, return_info=True)
            twin(x).sum().backward()
        (forward, _, backward) = (arguments for _, arguments in spy.calls)
        raw = (3, "identity", "always", 1e-3, 1e-5, 7, False, None)
        assert forward[-9:] == (*raw, "checkpoints") and backward[-10:-2] == raw
        assert {name: getattr(info.plan, name) for name in SOLVER} == SOLVER
    assert make().state_dict().keys() == chain.state_dict().keys()
    assert "segments" not in repr(kind.from_sequential(plain))


@each_module
def test_newton_is_the_module(make: Callable[..., nn.Module]) -> None:
    """Same parameters, same result, same gradients, whatever the segments."""
    plain = make(dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    expected = plain(x)
    gradients = torch.autograd.grad(expected.square().sum(), list(plain.parameters()))
    for segments in (2, 3):
        for memory in ("states", "recompute"):
            chain = make(dtype=torch.float64, segments=segments, memory=memory)
            chain.load_state_dict(plain.state_dict())
            z, states, info = chain(x, return_states=True, return_info=True)
            assert_close(z, expected)
            assert torch.equal(states[-1], z) and info.sweeps.shape == (5,)
            assert_close(chain(x, warm_start=states), expected)
            ours = torch.autograd.grad(chain(x).square().sum(), list(chain.parameters()))
            assert_close(list(ours), list(gradients))


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


# ---- a call like an earlier one, and a long one --------------------------------------------------


def test_a_repeated_call_is_checked_as_the_first() -> None:
    chain, x = dpcr.nn.ResidualChain(4, 6, norm="layer_norm"), torch.randn(3, 4)
    first = chain(x)
    assert torch.equal(chain(x), first) and chain(x).requires_grad
    with torch.no_grad():
        assert torch.equal(chain(x), first) and torch.equal(chain(x), first)
    for wrong, error in ((torch.randn(3, 5), ValueError), (x.double(), TypeError)):
        with pytest.raises(error, match="weight1"):
            chain(wrong)
    chain.weight1.data = chain.weight1.data.double()
    with pytest.raises(TypeError, match="weight1 must have the dtype of input"):
        chain(x)
    chain.float()
    with dpcr.sequential():
        assert_close(chain(x), first)
    with torch.autocast("cpu", torch.bfloat16):
        assert chain(x.bfloat16()).dtype == torch.float32
    scale, chain.scale = chain.scale, 0.0
    assert torch.equal(chain(x), x)
    chain.scale = scale
    chain.solver = dpcr.nn.ResidualChain(4, 6, segments=3).solver
    assert chain(x, return_info=True)[1].plan.segments == 3
    assert_close(chain(x), first)
    for parameter in chain.parameters():
        parameter.requires_grad_(False)
    assert not chain(x).requires_grad
    gradient = torch.autograd.grad(chain(x.requires_grad_()).sum(), x)[0]
    assert gradient.shape == x.shape


@pytest.mark.parametrize("memory", ["states", "recompute"])
def test_a_repeated_call_has_the_derivatives_of_the_first(memory: str) -> None:
    """Of both orders, of several cotangents at once, and through a checkpoint."""
    chain = dpcr.nn.MLPChain(4, 6, memory=memory).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    leaves = [x, *chain.parameters()]

    def derivatives(run: Callable[[Tensor], Tensor]) -> list[Tensor]:
        z = run(x)
        cotangents = torch.stack([torch.ones_like(z), z.detach()])
        batched = torch.autograd.grad(
            z, leaves, cotangents, retain_graph=True, is_grads_batched=True
        )
        first = torch.autograd.grad(z.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        return [*batched, *first, *second]

    expected = derivatives(chain)
    assert "Recorded" in str(copy.deepcopy(chain)(x).grad_fn)
    assert "Repeated" in str(chain(x).grad_fn)
    assert_close(derivatives(chain), expected)
    output = checkpoint(chain, x, use_reentrant=False)
    gradients = torch.autograd.grad(output.square().sum(), leaves)
    assert_close(list(gradients), expected[3:6])


def test_a_million_steps() -> None:
    """Forward and backward, bit for bit what two halves give."""
    half = 500_000
    weight = (0.4 * torch.randn(2 * half, 4, 4)).requires_grad_()
    bias = torch.randn(2 * half, 4).requires_grad_()
    z = torch.randn(1, 4).requires_grad_()
    leaves = [z, weight, bias]
    whole = dpcr.mlp_chain(z, weight, bias)
    middle = dpcr.mlp_chain(z, weight[:half], bias[:half])
    assert torch.equal(whole, dpcr.mlp_chain(middle, weight[half:], bias[half:]))
    gradients = torch.autograd.grad(whole.sum(), leaves)
    parts = torch.autograd.grad(dpcr.mlp_chain(middle, weight[half:], bias[half:]).sum(), leaves)
    assert gradients[2][-1].abs().sum() > 0
    for mine, of_halves in zip(gradients, parts, strict=True):
        assert torch.equal(mine, of_halves)
