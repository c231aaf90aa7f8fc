# SPDX-License-Identifier: Apache-2.0
"""The two faces of parallelize as models are used: checkpoints, copies, dtypes, frozen and shared
layers, hooks on everything, AMP, EMA, functional calls, meta devices."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import safetensors.torch
import torch
from cases import Spy, assert_close
from models import assert_same, calls, mlp, parallel, stack_of
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

import torch_deeppcr as dpcr

INPUT = torch.randn(5, 4, dtype=torch.float64)
each_face = pytest.mark.parametrize("stack", [False, True], ids=["per-layer", "stacked"])


def normed(dtype: Any = torch.float64) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), *stack_of(7, 6, lambda: nn.LayerNorm(6), nn.SiLU)).to(
        dtype
    )


# ---- Parameters ---------------------------------------------------------------------------------


def test_per_layer_parameters_are_the_very_same() -> None:
    net = mlp()
    before = dict(net.named_parameters())
    modules = list(net.modules())
    dpcr.parallelize(net)
    assert all(p is before[name] for name, p in net.named_parameters())
    assert all(a is b for a, b in zip(net.modules(), modules, strict=True))


def test_per_layer_values_are_read_at_every_call() -> None:
    net, plain = parallel(mlp())
    net(INPUT)
    for model in (net, plain):
        torch.manual_seed(0)
        model[4].weight.data.add_(0.3)  # leaves no trace in _version
        with torch.no_grad():
            model[6].bias.mul_(2)
        model[8].weight = nn.Parameter(torch.randn(6, 6, dtype=torch.float64))
    assert_same(net, plain, INPUT)


def test_per_layer_gradients_are_views_of_one_buffer() -> None:
    net, plain = parallel(mlp())
    assert_same(net, plain, INPUT)
    weights = [module.weight for module in net[2:18:2]]
    buffers = {weight.grad.untyped_storage().data_ptr() for weight in weights}
    assert len(buffers) == 1
    first = weights[0].grad.data_ptr()
    offsets = [weight.grad.data_ptr() - first for weight in weights]
    assert offsets == [8 * 36 * index for index in range(8)]


def test_stacked_parameters() -> None:
    net = dpcr.parallelize(mlp(), stack=True)
    assert {name: tuple(p.shape) for name, p in net.named_parameters()} == {
        "stack0_weight": (8, 6, 6),
        "stack0_bias": (8, 6),
        "0.weight": (6, 4),
        "0.bias": (6,),
        "18.weight": (3, 6),
        "18.bias": (3,),
    }


@each_face
@pytest.mark.parametrize("make", [mlp, normed])
def test_training(make: Callable[[], nn.Module], stack: bool) -> None:
    """Steps of an optimiser with weight decay, gradients accumulated over two passes."""
    net, plain = parallel(make(), stack=stack)
    for model in (net, plain):
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            for _ in range(2):
                model(torch.randn(5, 4, dtype=torch.float64)).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
    assert_close(net.state_dict(), dict(plain.state_dict()), factor=1e6)
    assert_same(net, plain, INPUT, factor=1e6)


@each_face
def test_dtypes(stack: bool) -> None:
    net, plain = parallel(mlp(), stack=stack)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        net.to(dtype), plain.to(dtype)
        input = INPUT.to(dtype)
        assert calls(net, input) == ([] if dtype is torch.bfloat16 else ["mlp"])
        assert_same(net, plain, input)
    net.half().double(), plain.half().double()
    assert_same(net, plain, INPUT)


@each_face
def test_one_layer_of_another_dtype(stack: bool) -> None:
    net, _ = parallel(mlp(), stack=stack)
    if stack:
        with pytest.raises(NotImplementedError, match="rows of stacked Parameters"):
            net[4].requires_grad_(False)
        return
    net[4].float()
    with pytest.raises(RuntimeError, match="same dtype"):
        net(INPUT)


# ---- frozen and shared layers -------------------------------------------------------------------


@each_face
@pytest.mark.parametrize("frozen", [range(2, 10), range(10, 18), [4, 8, 12], range(18)])
def test_frozen_layers(frozen: Any, stack: bool) -> None:
    plain = mlp()
    for index in frozen:
        plain[index].requires_grad_(False)
    net, _ = parallel(plain, stack=stack)
    assert_same(net, plain, INPUT)


def test_layers_frozen_after_parallelize_cost_nothing() -> None:
    net, plain = parallel(mlp())
    for model in (net, plain):
        model[:10].requires_grad_(False)
    with Spy() as spy:
        net(INPUT).sum().backward()
    (arguments,) = spy.arguments("mlp_backward")
    assert arguments[-3] == [True] * 4 + [False] * 4  # frozen
    assert arguments[-1] == [False, True, True]  # needs: not of the input
    assert_same(net, plain, INPUT)


def test_a_frozen_chain_costs_nothing() -> None:
    net, _ = parallel(stack_of(8, 6, nn.Tanh))
    net.requires_grad_(False)
    with Spy() as spy:
        output = net(torch.randn(3, 6, dtype=torch.float64))
    assert not output.requires_grad
    assert spy.arguments("mlp")[0][-1] == "nothing"  # no states are kept


def test_biases_that_are_frozen_alone() -> None:
    net, plain = parallel(mlp())
    for model in (net, plain):
        for index in (2, 6, 8):
            model[index].bias.requires_grad_(False)
        model[10].weight.requires_grad_(False)
    assert_same(net, plain, INPUT)


@each_face
def test_shared_layers(stack: bool) -> None:
    linear = nn.Linear(6, 6)
    plain = nn.Sequential(*(m for _ in range(7) for m in (linear, nn.Tanh()))).double()
    net, _ = parallel(plain, stack=stack)
    input = torch.randn(3, 6, dtype=torch.float64)
    assert calls(net, input) == ["mlp"]
    assert_same(net, plain, input)
    (chain,) = dpcr.report(net).chains
    assert not chain.stacked and chain.note == "parameters are shared"
    assert len(list(net.parameters())) == 2


def test_weights_that_are_tied_to_something_else_are_not_stacked() -> None:
    plain = nn.Module()
    plain.trunk, plain.decoder = stack_of(7, 6, nn.Tanh), nn.Linear(6, 6).double()
    plain.decoder.weight = plain.trunk[4].weight
    net, _ = parallel(plain, stack=True)
    assert not dpcr.report(net).chains[0].stacked
    assert net.decoder.weight is net.trunk[4].weight


# ---- checkpoints --------------------------------------------------------------------------------


@each_face
@pytest.mark.parametrize("make", [mlp, normed])
def test_state_dict_both_ways(make: Callable[[], nn.Module], stack: bool) -> None:
    net, plain = parallel(make(), stack=stack)
    assert list(net.state_dict()) == list(plain.state_dict())
    assert_close(dict(net.state_dict()), dict(plain.state_dict()))
    other = make()
    assert net.load_state_dict(other.state_dict()) == plain.load_state_dict(other.state_dict())
    assert_same(net, plain, INPUT)
    fresh = make()
    assert str(fresh.load_state_dict(net.state_dict())) == "<All keys matched successfully>"
    assert_same(net, fresh, INPUT)
    nested = nn.ModuleDict({"a": net})
    assert list(nested.state_dict()) == [f"a.{name}" for name in plain.state_dict()]
    nested.load_state_dict({f"a.{k}": v for k, v in make().state_dict().items()})


@each_face
def test_missing_and_extra_keys_give_pytorchs_message(stack: bool) -> None:
    net, plain = parallel(mlp(), stack=stack)
    state = plain.state_dict()
    del state["4.weight"]
    state["99.weight"], state["4.extra"], state["6.bias"] = INPUT, INPUT, torch.zeros(7)
    with pytest.raises(RuntimeError) as theirs:
        plain.load_state_dict(state)
    with pytest.raises(RuntimeError) as ours:
        net.load_state_dict(state)
    expected = str(theirs.value).replace("Sequential", "ParallelSequential")
    assert str(ours.value) == expected
    del state["6.bias"]
    result = net.load_state_dict(state, strict=False)
    assert result == plain.load_state_dict(state, strict=False)


@each_face
def test_load_with_assign(stack: bool) -> None:
    net, plain = parallel(mlp(dtype=torch.float32), stack=stack)
    state = mlp().state_dict()
    net.load_state_dict(state, assign=True), plain.load_state_dict(state, assign=True)
    assert {p.dtype for p in net.parameters()} == {torch.float64}
    assert_same(net, plain, INPUT)
    some = {name: value + 1 for name, value in state.items() if name in ("4.weight", "4.bias")}
    net.load_state_dict(some, assign=True, strict=False)
    plain.load_state_dict(some, assign=True, strict=False)
    assert_same(net, plain, INPUT)


@each_face
def test_meta_device(stack: bool) -> None:
    with torch.device("meta"):
        net = dpcr.parallelize(mlp(), stack=stack)
        plain = mlp()
    assert all(p.is_meta for p in net.parameters())
    state = mlp().state_dict()
    if stack:
        with pytest.raises(RuntimeError, match="give all of them"):
            copy.deepcopy(net).load_state_dict({"4.weight": state["4.weight"]}, False, assign=True)
    other = copy.deepcopy(net)
    net.load_state_dict(state, assign=True), plain.load_state_dict(state, assign=True)
    assert_same(net, plain, INPUT)
    other.to_empty(device="cpu")
    for module in other.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    other.load_state_dict(state)
    assert_same(other, plain, INPUT)


@each_face
@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
def test_copies(way: str, stack: bool) -> None:
    net, plain = parallel(mlp(), stack=stack, segments=2)
    if way == "deepcopy":
        twin = copy.deepcopy(net)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(net))
    else:
        buffer = io.BytesIO()
        torch.save(net, buffer)
        buffer.seek(0)
        twin = torch.load(buffer, weights_only=False)
    assert type(twin) is type(net) and dpcr.report(twin) == dpcr.report(net)
    assert_same(twin, plain, INPUT)
    with torch.no_grad():
        twin[4].weight.zero_()
    assert_same(net, plain, INPUT)  # its own memory
    assert bool(twin.state_dict()["4.weight"].eq(0).all())


@each_face
def test_weights_only_and_safetensors(stack: bool, tmp_path: Any) -> None:
    net, _ = parallel(mlp(), stack=stack)
    torch.save(net.state_dict(), tmp_path / "a.pt")
    fresh = mlp()
    fresh.load_state_dict(torch.load(tmp_path / "a.pt", weights_only=True))
    assert_same(net, fresh, INPUT)
    safetensors.torch.save_file(net.state_dict(), tmp_path / "a.safetensors")
    fresh = mlp()
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / "a.safetensors"))
    assert_same(net, fresh, INPUT)
    other = mlp()
    safetensors.torch.save_model(other, str(tmp_path / "b.safetensors"))
    net.load_state_dict(safetensors.torch.load_file(tmp_path / "b.safetensors"))
    assert_same(net, other, INPUT)


@each_face
def test_distributed_checkpoint(stack: bool, tmp_path: Any) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict

    net, plain = parallel(mlp(), stack=stack)
    state = get_model_state_dict(net)
    assert set(state) == set(plain.state_dict())
    dcp.save(state, checkpoint_id=tmp_path, no_dist=True)
    fresh = mlp()
    loaded = fresh.state_dict()
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    assert_same(net, fresh, INPUT)
    other = mlp()
    set_model_state_dict(net, other.state_dict())
    assert_same(net, other, INPUT)


# ---- the container ------------------------------------------------------------------------------


@each_face
def test_indexing_slicing_iteration(stack: bool) -> None:
    net, plain = parallel(mlp(), stack=stack)
    assert len(net) == len(plain) == 19
    assert isinstance(net[4], nn.Linear) and isinstance(net[-1], nn.Linear)
    assert [isinstance(m, nn.Linear) for m in net] == [isinstance(m, nn.Linear) for m in plain]
    input = torch.randn(3, 6, dtype=torch.float64)
    for ours, theirs in zip(net[2:5], plain[2:5], strict=True):
        assert torch.equal(ours(input), theirs(input))
    part, expected = net[4:18], plain[4:18]
    assert type(part) is dpcr.nn.ParallelSequential and len(part) == 14
    assert list(part.state_dict()) == list(expected.state_dict())
    assert calls(part, input) == ["mlp"]
    assert_same(part, expected, input)
    assert torch.equal(net[2].weight, plain[2].weight)


@each_face
def test_walking_the_layers_by_hand_trains_them(stack: bool) -> None:
    net, plain = parallel(mlp(), stack=stack)

    class Walk(nn.Module):
        def __init__(self, inner: nn.Sequential) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            for module in self.inner:
                x = module(x)
            return x

    assert_same(Walk(net), Walk(plain), INPUT)


def test_initialisers_write_into_stacked_parameters() -> None:
    net, plain = parallel(mlp(), stack=True)
    for model in (net, plain):
        torch.manual_seed(5)
        for module in model.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        model.apply(lambda m: m.reset_parameters() if isinstance(m, nn.Linear) else None)
        model[4].weight.data.mul_(2)
    assert_same(net, plain, INPUT)


def test_a_stacked_layer_cannot_be_swapped_out_silently() -> None:
    net = dpcr.parallelize(mlp(), stack=True)
    with pytest.raises(NotImplementedError, match="weight of this layer is a row of a stacked"):
        net[4].weight = nn.Parameter(torch.zeros(6, 6))


def test_a_copy_of_one_stacked_layer_is_a_plain_one() -> None:
    net = dpcr.parallelize(mlp(), stack=True)
    layer = copy.deepcopy(net[4])
    assert type(layer) is nn.Linear and [n for n, _ in layer.named_parameters()] == [
        "weight",
        "bias",
    ]
    assert torch.equal(layer.weight, net[4].weight)
    pickled = pickle.loads(pickle.dumps(net[4]))
    assert torch.equal(pickled.weight, net[4].weight)


def test_built_like_a_sequential() -> None:
    modules = list(stack_of(7, 6, nn.Tanh))
    net = dpcr.nn.ParallelSequential(*modules, segments=3)
    assert type(net) is dpcr.nn.ParallelSequential and dpcr.report(net).chains[0].length == 7
    stacked = dpcr.nn.ParallelSequential(*copy.deepcopy(modules), stack=True)
    assert dpcr.report(stacked).chains[0].stacked
    assert_same(net, nn.Sequential(*modules), torch.randn(3, 6, dtype=torch.float64))
    with pytest.raises(TypeError, match="'speed'"):
        dpcr.nn.ParallelSequential(*modules, speed=3)
    alone = dpcr.nn.ParallelSequential(nn.Linear(2, 3))
    assert alone(torch.ones(1, 2)).shape == (1, 3)


# ---- what training code does --------------------------------------------------------------------


@each_face
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant: bool, stack: bool) -> None:
    net, plain = parallel(mlp(), stack=stack)

    class Checkpointed(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.inner, x, use_reentrant=reentrant)

    assert_same(Checkpointed(net), Checkpointed(plain), INPUT)


@each_face
def test_amp_with_a_scaler(stack: bool) -> None:
    """Under autocast a chain computes and returns float32, where the loop would return bfloat16."""
    net, plain = parallel(mlp(dtype=torch.float32), stack=stack)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    before = copy.deepcopy(net.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        output = net(INPUT.float())
        loss = output.float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    moved = {name: value for name, value in net.state_dict().items()}
    assert all(not torch.equal(before[name], moved[name]) for name in moved)
    reference = torch.optim.SGD(plain.parameters(), 0.1)
    plain(INPUT.float()).square().mean().backward()
    reference.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(moved[name], value, rtol=0.05, atol=0.01)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert net[2:18](torch.randn(3, 6)).dtype == torch.float32


@each_face
@pytest.mark.parametrize("average", [None, get_ema_multi_avg_fn(0.9)], ids=["SWA", "EMA"])
def test_averaged_models(average: Any, stack: bool) -> None:
    net, plain = parallel(mlp(), stack=stack)
    ours, theirs = (AveragedModel(m, multi_avg_fn=average) for m in (net, plain))
    for _ in range(3):
        for model, averaged in ((net, ours), (plain, theirs)):
            torch.manual_seed(2)
            with torch.no_grad():
                for value in model.state_dict().values():
                    value.add_(torch.randn(value.shape, dtype=torch.float64))
            averaged.update_parameters(model)
    assert_close(ours(INPUT), theirs(INPUT))
    assert list(ours.module.state_dict()) == list(plain.state_dict())


@each_face
def test_functional_call(stack: bool) -> None:
    net, plain = parallel(mlp(), stack=stack)
    parameters = {name: p.detach() * 1.5 for name, p in net.named_parameters()}
    with torch.no_grad():
        for p in plain.parameters():
            p.mul_(1.5)
    assert_close(torch.func.functional_call(net, parameters, (INPUT,)), plain(INPUT))

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, parameters, (INPUT,)).square().sum()

    gradients = torch.func.grad(loss)(parameters)
    plain(INPUT).square().sum().backward()
    if not stack:
        assert_close(gradients, {name: p.grad for name, p in plain.named_parameters()})
    else:
        expected = torch.stack([module.weight.grad for module in plain[2:18:2]])
        assert_close(gradients["stack0_weight"], expected)


@each_face
def test_ensembles_by_vmap(stack: bool) -> None:
    plain = [mlp() for _ in range(3)]
    nets = [parallel(model, stack=stack)[0] for model in plain]
    parameters, buffers = torch.func.stack_module_state(nets)

    def one(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(nets[0], (parameters, buffers), (x,))

    outputs = torch.vmap(one, (0, 0, None))(parameters, buffers, INPUT)
    assert_close(outputs, torch.stack([model(INPUT) for model in plain]))

    def loss(parameters: Any, buffers: Any, x: Tensor) -> Tensor:
        return one(parameters, buffers, x).square().sum()

    gradients = torch.vmap(torch.func.grad(loss), (0, 0, None))(parameters, buffers, INPUT)
    for index, model in enumerate(plain):
        model(INPUT).square().sum().backward()
        name, expected = ("stack0_weight", model[2].weight.grad) if stack else ("2.weight", None)
        got = gradients[name][index]
        assert_close(
            got[0] if stack else got, model[2].weight.grad if expected is None else expected
        )


@each_face
def test_second_derivatives_and_forward_mode(stack: bool) -> None:
    net, plain = parallel(mlp(depth=6), stack=stack)

    def penalty(model: nn.Module) -> list[Tensor]:
        leaf = INPUT.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(model(leaf).square().sum(), leaf, create_graph=True)
        gradient.square().sum().backward()
        return [leaf.grad, model[0].weight.grad]

    assert_close(penalty(net), penalty(plain))
    tangent = torch.randn_like(INPUT)
    assert_close(
        torch.func.jvp(net, (INPUT,), (tangent,)), torch.func.jvp(plain, (INPUT,), (tangent,))
    )
