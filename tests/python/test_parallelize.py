# SPDX-License-Identifier: Apache-2.0
"""parallelize: what becomes a chain, what stays alone and why, and what it refuses."""

from __future__ import annotations

import copy
import sys
import warnings
from typing import Any

import pytest
import torch
from cases import ACTIVATIONS, Spy, assert_close
from models import Actor, RLBlock, assert_same, calls, describe_rl, mlp, parallel, stack_of
from torch import Tensor, nn
from torch.nn.utils import parametrizations, weight_norm

import torch_deeppcr as dpcr
from torch_deeppcr._activations import resolve, to_module
from torch_deeppcr.parallel import reading

X = torch.randn(5, 6, dtype=torch.float64)
each_face = pytest.mark.parametrize("stack", [False, True], ids=["per-layer", "stacked"])


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_described", {})


# ---- what becomes a chain -----------------------------------------------------------------------


@each_face
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation(name: str, stack: bool) -> None:
    activation = resolve((name, *ACTIVATIONS[name]) if ACTIVATIONS[name] else name)
    net, plain = parallel(stack_of(7, 6, lambda: to_module(activation)), stack=stack)
    assert calls(net, X) == ["mlp"]
    assert_same(net, plain, X)


@each_face
@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_between_linear_and_activation(norm: Any, stack: bool) -> None:
    net, plain = parallel(stack_of(7, 6, lambda: norm(6), nn.SiLU), stack=stack)
    assert calls(net, X) == ["layers"]
    assert_same(net, plain, X)


@each_face
@pytest.mark.parametrize("norm", [None, "layer_norm", "rms_norm"])
def test_residual_blocks(norm: str | None, stack: bool) -> None:
    blocks = [dpcr.nn.ResidualBlock(6, 4, "silu", norm, scale=0.5) for _ in range(7)]
    net, plain = parallel(nn.Sequential(*blocks).double(), stack=stack)
    assert calls(net, X) == ["residual"]
    assert_same(net, plain, X)


@each_face
@pytest.mark.parametrize("shape", [(4,), (3, 4), (2, 3, 4), (0, 4)])
def test_heads_and_tails_stay(shape: tuple[int, ...], stack: bool) -> None:
    net, plain = parallel(mlp(), stack=stack)
    input = torch.randn(*shape, dtype=torch.float64)
    assert calls(net, input) == ["mlp"]
    assert_same(net, plain, input)


@each_face
def test_nested_sequentials_are_one_chain(stack: bool) -> None:
    def pair() -> nn.Sequential:
        return nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Identity(), nn.Tanh()))

    net, plain = parallel(
        nn.Sequential(pair(), nn.Sequential(*(pair() for _ in range(5)))).double()
    )
    assert len(dpcr.report(net).chains) == 1 and dpcr.report(net).chains[0].length == 6
    assert calls(net, X) == ["mlp"]
    assert_same(net, plain, X)


def test_sequentials_anywhere_in_a_model() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleDict(
                {"a": stack_of(6, 6, nn.Tanh), "b": stack_of(7, 6, nn.ReLU)}
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.branches["a"](x) + self.branches["b"](x)

    net, plain = parallel(Model())
    assert [c.path for c in dpcr.report(net).chains] == ["branches.a.0-11", "branches.b.0-13"]
    assert calls(net, X) == ["mlp", "mlp"]
    assert_same(net, plain, X)


def test_a_sequential_inside_of_a_module_inside_of_a_sequential() -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = stack_of(6, 6, nn.Tanh)

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

    net, plain = parallel(nn.Sequential(Wrapped(), *stack_of(6, 6, nn.ReLU)).double())
    assert [c.path for c in dpcr.report(net).chains] == ["0.inner.0-11", "1-12"]
    assert_same(net, plain, X)


@pytest.mark.parametrize(
    "second",
    [
        lambda: stack_of(6, 6, nn.ReLU),
        lambda: stack_of(6, 6, lambda: nn.LayerNorm(6), nn.Tanh),
        lambda: nn.Sequential(
            *(m for _ in range(6) for m in (nn.Linear(6, 6, bias=False), nn.Tanh()))
        ),
    ],
    ids=["activation", "norm", "bias"],
)
def test_runs_of_different_steps_are_split(second: Any) -> None:
    net, plain = parallel(nn.Sequential(*stack_of(6, 6, nn.Tanh), *second()).double())
    assert [c.length for c in dpcr.report(net).chains] == [6, 6]
    assert_same(net, plain, X)


def test_widths_are_split() -> None:
    net, plain = parallel(
        nn.Sequential(*stack_of(6, 6, nn.Tanh), nn.Linear(6, 5), *stack_of(6, 5, nn.Tanh)).double()
    )
    assert [c.width for c in dpcr.report(net).chains] == [6, 5]
    assert_same(net, plain, X)


@each_face
def test_dropout_is_skipped_in_eval_mode_only(stack: bool) -> None:
    net, plain = parallel(stack_of(6, 6, nn.Tanh, lambda: nn.Dropout(0.5)).eval(), stack=stack)
    assert calls(net, X) == ["mlp"]
    assert_same(net, plain, X)
    net.train(), plain.train()
    assert calls(net, X) == []
    torch.manual_seed(3)
    expected = plain(X)
    torch.manual_seed(3)
    assert torch.equal(net(X), expected)
    net.eval()
    assert calls(net, X) == ["mlp"]


def test_dropout_that_drops_nothing_is_skipped_in_training() -> None:
    net, plain = parallel(stack_of(6, 6, nn.Tanh, lambda: nn.Dropout(0.0)))
    assert net.training and calls(net, X) == ["mlp"]
    assert_same(net, plain, X)


def test_dropout_in_a_model_that_is_parallelized_while_training() -> None:
    net, _ = parallel(stack_of(6, 6, nn.Tanh, lambda: nn.Dropout(0.5)).train(), stack=True)
    assert isinstance(net, dpcr.nn.ParallelSequential)
    (chain,) = (dpcr.report(net.eval())).chains
    assert not chain.stacked and "Dropout" in chain.note
    assert calls(net, X) == ["mlp"]


# ---- blocks of the user -------------------------------------------------------------------------


class PreNorm(nn.Module):
    def __init__(self, width: int = 6, hidden: int = 8, scale: float = 0.3) -> None:
        super().__init__()
        self.norm, self.scale = nn.LayerNorm(width), scale
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(nn.functional.gelu(self.up(self.norm(x))))


def describe_pre_norm(block: PreNorm) -> dpcr.steps.Step:
    return dpcr.steps.residual(block.up, block.down, "gelu", norm=block.norm, scale=block.scale)


@each_face
def test_a_registered_block(stack: bool) -> None:
    dpcr.register_block(PreNorm, describe_pre_norm)
    net, plain = parallel(nn.Sequential(*(PreNorm() for _ in range(7))).double(), stack=stack)
    assert calls(net, X) == ["residual"]
    assert_same(net, plain, X)


@each_face
def test_blocks_of_several_layers(stack: bool) -> None:
    dpcr.register_block(RLBlock, describe_rl)
    net, plain = parallel(nn.Sequential(*(RLBlock(6) for _ in range(7))).double(), stack=stack)
    assert calls(net, X) == ["layers"]
    assert_same(net, plain, X)


class Inner(nn.Module):
    """A block that is itself made of an nn.Sequential."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = stack_of(4, 6, nn.Tanh)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


@each_face
def test_sequentials_inside_of_steps_are_not_chains_of_their_own(stack: bool) -> None:
    def describe(block: Inner) -> dpcr.steps.Step:
        return dpcr.steps.layers([(linear, None) for linear in block.layers[::2]], "tanh")

    dpcr.register_block(Inner, describe)
    net, plain = parallel(
        nn.Sequential(*(Inner() for _ in range(8))).double(), stack=stack, segments=8
    )
    assert [c.path for c in dpcr.report(net).chains] == ["0-7"]
    assert calls(net, X) == ["layers"] and type(net[0].layers) is nn.Sequential
    assert_same(net, plain, X)


class Raw(nn.Module):
    """An Euler step with bare Parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(6, 6) / 3), nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.tanh(x @ self.w.T + self.b)


@each_face
def test_bare_parameters(stack: bool) -> None:
    dpcr.register_block(Raw, lambda block: dpcr.steps.euler((block.w, block.b), "tanh", 0.1))
    net, plain = parallel(nn.Sequential(*(Raw() for _ in range(7))).double(), stack=stack)
    assert calls(net, X) == ["euler"]
    assert_same(net, plain, X)
    (chain,) = dpcr.report(net).chains
    assert not chain.stacked and (not stack or "Raw has parameters of its own" in chain.note)


def test_an_attribute_of_a_block_is_read_live() -> None:
    dpcr.register_block(PreNorm, describe_pre_norm)
    net, plain = parallel(nn.Sequential(*(PreNorm() for _ in range(14))).double())
    for model in (net, plain):
        for index in range(7, 14):
            model[index].scale = 0.7
    assert_same(net, plain, X)
    assert [c.length for c in dpcr.report(net).chains] == [7, 7]


WRONG = {
    "scale": lambda b: dpcr.steps.residual(b.up, b.down, "gelu", b.norm, 1.0),
    "activation": lambda b: dpcr.steps.residual(b.up, b.down, "silu", b.norm, b.scale),
    "norm": lambda b: dpcr.steps.residual(b.up, b.down, "gelu", None, b.scale),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_description_is_refused_with_the_path(wrong: str) -> None:
    dpcr.register_block(PreNorm, WRONG[wrong])
    net = nn.Module()
    net.trunk = nn.Sequential(nn.Linear(6, 6), *(PreNorm() for _ in range(4)))
    with pytest.raises(ValueError, match=r"trunk\.1: describe of PreNorm: .*not what the block"):
        dpcr.parallelize(net)
    assert type(net.trunk) is nn.Sequential


def test_a_wrong_description_is_found_behind_zeros() -> None:
    """A last layer that starts at zero hides everything before it."""
    dpcr.register_block(PreNorm, WRONG["activation"])
    blocks = [PreNorm() for _ in range(4)]
    for block in blocks:
        nn.init.zeros_(block.down.weight)
    with pytest.raises(ValueError, match="with random parameters"):
        dpcr.parallelize(nn.Sequential(*blocks))


def test_a_block_that_differs_from_its_fellows_is_found() -> None:
    dpcr.register_block(PreNorm, lambda b: dpcr.steps.residual(b.up, b.down, "gelu", b.norm, 0.3))
    blocks = [PreNorm() for _ in range(4)] + [PreNorm(scale=0.5)]
    with pytest.raises(ValueError, match=r"^4: describe of PreNorm"):
        dpcr.parallelize(nn.Sequential(*blocks))


def test_a_block_is_run_once_and_without_side_effects() -> None:
    runs: list[bool] = []

    class Counting(PreNorm):
        def forward(self, x: Tensor) -> Tensor:
            runs.append(self.training)
            return super().forward(x)

    dpcr.register_block(Counting, describe_pre_norm)
    net = nn.Sequential(*(Counting() for _ in range(8))).double().train()
    state = torch.get_rng_state()
    dpcr.parallelize(net)
    assert len(runs) == 9 and not any(runs)  # each, and a copy of the first
    assert all(block.training for block in net.modules())
    before = len(runs)
    net(X), net.eval()(X), net.train()(X)
    assert len(runs) == before
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("describe", "message"),
    [
        (lambda b: None, "0: describe of PreNorm: must return a step"),
        (lambda b: dpcr.steps.mlp(b.up), "0: describe of PreNorm: linear must be square"),
        (lambda b: dpcr.steps.residual(b.up, b.up, "relu"), "linear2 must map 8 -> 6"),
        (lambda b: b.missing, "0: describe of PreNorm: 'PreNorm' object has no attribute"),
        (lambda b: dpcr.steps.residual(b.up, b.down, "cube"), "activation must be one of"),
        (
            lambda b: dpcr.steps.residual((b.up.weight.clone(), None), b.down, "gelu"),
            "is not a parameter of the block",
        ),
    ],
)
def test_descriptions_that_do_not_work(describe: Any, message: str) -> None:
    dpcr.register_block(PreNorm, describe)
    with pytest.raises((ValueError, TypeError), match=message):
        dpcr.parallelize(nn.Sequential(PreNorm(), PreNorm()))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((3, print), TypeError),
        ((int, print), TypeError),
        ((PreNorm, None), TypeError),
        ((nn.Linear, print), ValueError),
        ((nn.Sequential, print), ValueError),
    ],
)
def test_bad_registrations(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"cls must|describe must"):
        dpcr.register_block(*arguments)


# ---- what stays alone ---------------------------------------------------------------------------


class MyLinear(nn.Linear):
    pass


class Adapted(nn.Module):
    """As LoRA wraps layers."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base, self.down, self.up = base, nn.Linear(6, 2, False), nn.Linear(2, 6, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def patched() -> nn.Linear:
    linear = nn.Linear(6, 6)
    linear.forward = lambda x: 2 * x  # type: ignore[method-assign]
    return linear


def hooked() -> nn.Linear:
    linear = nn.Linear(6, 6)
    linear.register_forward_hook(lambda module, args, output: 2 * output)
    return linear


def old_weight_norm() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return weight_norm(nn.Linear(6, 6))


STRANGE = {
    "subclass": (lambda: MyLinear(6, 6), "MyLinear is a subclass of Linear"),
    "lora": (lambda: Adapted(nn.Linear(6, 6)), "Adapted is no step"),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Linear(6, 6)), "subclass of Linear"),
    "weight norm": (old_weight_norm, "has hooks"),
    "patched": (patched, "its forward was replaced"),
    "hooked": (hooked, "has hooks"),
    "quantised": (
        lambda: torch.ao.nn.qat.Linear(
            6, 6, qconfig=torch.ao.quantization.get_default_qat_qconfig()
        ).eval(),
        "subclass of Linear",
    ),
    "convolution": (lambda: nn.Conv1d(1, 1, 1), "Conv1d is no step"),
    "not square": (lambda: nn.Linear(6, 7), "maps 6 -> 7"),
}


@pytest.mark.parametrize("what", STRANGE)
def test_only_exact_classes(what: str) -> None:
    make, reason = STRANGE[what]
    plain = nn.Sequential(*stack_of(6, 6, nn.Tanh), make(), *stack_of(6, 6, nn.Tanh))
    plain = plain.double()
    net = copy.copy(plain)  # the same modules: some do not like to be copied
    net._modules = dict(plain._modules)
    dpcr.parallelize(net)
    assert [c.length for c in dpcr.report(net).chains] == [6, 6]
    left = {m.path: m.reason for m in dpcr.report(net).left}
    assert reason in left["12"], left
    if what not in ("not square", "convolution", "quantised"):  # the last is of float32
        assert_close(net(X), plain(X))


def test_what_no_activation_is_stays_alone() -> None:
    net, plain = parallel(stack_of(6, 6, nn.PReLU))
    assert type(net) is nn.Sequential and "PReLU is no step" in str(dpcr.report(net))
    assert torch.equal(net(X), plain(X))


def test_a_model_without_chains_is_untouched() -> None:
    plain = nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(24, 6)).double()
    input = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    net, _ = parallel(plain)
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]
    assert [vars(m).keys() for m in net.modules()] == [vars(m).keys() for m in plain.modules()]
    assert not dpcr.report(net).chains and "nothing is replaced" in str(dpcr.report(net))
    assert torch.equal(net(input), plain(input))
    for a, b in zip(
        torch.autograd.grad(net(input).sum(), [input, *net.parameters()]),
        torch.autograd.grad(plain(input).sum(), [input, *plain.parameters()]),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_one_step_alone_is_no_chain() -> None:
    net = dpcr.parallelize(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    assert type(net) is nn.Sequential
    assert [m.reason for m in dpcr.report(net).left] == ["one step alone is not worth an operator"]


@pytest.mark.parametrize("depth, width, batch", [(3, 6, 5), (8, 96, 1), (8, 64, 4096)])
def test_short_and_wide_chains_run_the_loop_unless_asked(
    depth: int, width: int, batch: int
) -> None:
    plain = stack_of(depth, width, nn.Tanh, dtype=torch.float32)
    input = torch.randn(batch, width)
    net, _ = parallel(plain)
    assert calls(net, input) == [] and torch.equal(net(input), plain(input))
    assert calls(dpcr.parallelize(net, segments=1), input) == ["mlp"]


def test_wide_layers_that_train_are_not_stacked_unless_asked() -> None:
    plain = stack_of(8, 264, nn.Tanh, dtype=torch.float32)
    net, _ = parallel(plain, stack=True)
    (chain,) = dpcr.report(net).chains
    assert not chain.stacked and chain.note.startswith("so wide that training is faster")
    input = torch.randn(2, 264)
    assert calls(net, input) == [] and torch.equal(net(input), plain(input))
    assert dpcr.report(dpcr.parallelize(net, stack=True, segments=1)).chains[0].stacked
    frozen = dpcr.parallelize(net.requires_grad_(False), stack=True)
    assert dpcr.report(frozen).chains[0].stacked and calls(frozen, input) == ["mlp"]
    assert calls(frozen, torch.randn(2048, 264)) == []


# ---- report, unparallelize, sequential ----------------------------------------------------------


def test_the_report() -> None:
    net = nn.Module()
    net.head, net.trunk = nn.Linear(3, 6), stack_of(6, 6, nn.Tanh)
    net.blocks, net.other = nn.ModuleList([nn.Linear(6, 6)]), nn.Sequential(nn.Linear(6, 2))
    before = dpcr.report(net)
    assert not before.chains and "parallelize was not called" in str(before)
    report = dpcr.report(dpcr.parallelize(net))
    (chain,) = report.chains
    assert chain == ("trunk.0-11", "mlp", 6, 6, False, "")
    assert {m.path: m.reason for m in report.left} == {
        "head": "it is not inside an nn.Sequential",
        "blocks": "a ModuleList, which is not named by chain=",
        "blocks.0": "it is not inside an nn.Sequential",
        "other.0": "maps 6 -> 2: a step keeps the width",
    }
    text = str(report)
    assert text.startswith(
        "trunk.0-11: a chain of 6 steps, kind mlp, width 6, parameters per layer"
    )
    assert "head, blocks.0 (Linear): it is not inside an nn.Sequential" in text
    assert "6 steps of kind mlp" in repr(net)


@each_face
def test_unparallelize_gives_everything_back(stack: bool) -> None:
    net, plain = parallel(mlp(), stack=stack)
    input = torch.randn(3, 4, dtype=torch.float64)
    net(input).sum().backward(), plain(input).sum().backward()
    assert dpcr.unparallelize(net) is net
    assert [type(m) for m in net.modules()] == [type(m) for m in plain.modules()]
    assert [vars(m).keys() for m in net.modules()] == [vars(m).keys() for m in plain.modules()]
    for (name, ours), (other, theirs) in zip(
        net.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert name == other and type(ours) is nn.Parameter and torch.equal(ours, theirs)
        assert_close(ours.grad, theirs.grad)
    assert torch.equal(net(input), plain(input))


def test_it_is_read_again_with_new_options() -> None:
    net = dpcr.parallelize(mlp(), segments=4)
    assert dpcr.parallelize(net, stack=True) is net
    assert dpcr.report(net).chains[0].stacked
    assert not dpcr.report(dpcr.parallelize(net)).chains[0].stacked
    assert len(list(net.parameters())) == 20


@each_face
def test_sequential(stack: bool) -> None:
    net, plain = parallel(mlp(), stack=stack)
    chain = dpcr.nn.MLPChain(6, 8)
    input = torch.randn(3, 4, dtype=torch.float64)
    with dpcr.sequential():
        with dpcr.sequential():
            assert calls(chain, torch.randn(2, 6)) == []
        assert calls(net, input) == [] and torch.equal(net(input), plain(input))
        assert_same(net, plain, input)
        _, info = chain(torch.randn(2, 6), return_info=True)
        assert "inside of torch_deeppcr.sequential()" in info.why
    assert calls(net, input) == ["mlp"] and calls(chain, torch.randn(2, 6)) == ["mlp"]


def test_sequential_ends_with_an_exception() -> None:
    with pytest.raises(KeyError), dpcr.sequential():
        raise KeyError
    assert calls(dpcr.nn.MLPChain(6, 8), torch.randn(2, 6)) == ["mlp"]


@each_face
@pytest.mark.parametrize("segments", [1, 3, 8])
def test_options_reach_the_chain(segments: int, stack: bool) -> None:
    net, plain = parallel(mlp(), stack=stack, segments=segments, jacobian="dense", rtol=1e-12)
    with torch.no_grad(), Spy() as spy:
        net(torch.randn(3, 4, dtype=torch.float64))
    (arguments,) = spy.arguments("mlp")
    newton = ("dense", 1e-12) if segments > 1 else (None, None)  # one has no use for it
    assert (arguments[6], arguments[7], arguments[9]) == (segments, *newton)
    assert_same(net, plain, torch.randn(3, 4, dtype=torch.float64))


# ---- changes behind its back --------------------------------------------------------------------


@each_face
def test_inner_hooks_fire_with_one_warning(stack: bool) -> None:
    net, plain = parallel(mlp(depth=14), stack=stack)
    input = torch.randn(3, 4, dtype=torch.float64)
    seen: list[Tensor] = []
    handle = net[15].register_forward_hook(lambda module, args, output: seen.append(output))
    with pytest.warns(RuntimeWarning, match="has hooks: it is called by itself again"):
        net(input)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_close(net(input), plain(input))
    assert len(seen) == 2
    assert_close(seen[0], plain[:16](input))
    assert calls(net, input) == ["mlp", "mlp"]  # before and behind it
    handle.remove()
    assert calls(net, input) == ["mlp"] and len(seen) == 3


@each_face
@pytest.mark.parametrize("kind", ["forward_pre", "full_backward", "full_backward_pre"])
def test_every_kind_of_hook(kind: str, stack: bool) -> None:
    net, plain = parallel(mlp(), stack=stack)
    seen: list[Any] = []
    getattr(net[5], f"register_{kind}_hook")(lambda *arguments: seen.append(arguments) or None)
    with pytest.warns(RuntimeWarning, match="has hooks"):
        assert_same(net, plain, torch.randn(3, 4, dtype=torch.float64))
    assert len(seen) == 1


def test_hooks_of_inner_sequentials_fire() -> None:
    inner = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(9)]
    net, plain = parallel(nn.Sequential(*inner).double())
    assert calls(net, X) == ["mlp"]
    seen: list[Tensor] = []
    net[4].register_forward_hook(lambda module, args, output: seen.append(output))
    with pytest.warns(RuntimeWarning, match="Sequential in .* has hooks"):
        output = net(X)
    assert_close([output, *seen], [plain(X), plain[:5](X)])
    assert calls(net, X) == ["mlp", "mlp"]


def test_hooks_for_all_modules_of_the_process() -> None:
    net, _ = parallel(mlp())
    seen: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, args, out: seen.append(m))
    try:
        assert calls(net, torch.randn(3, 4, dtype=torch.float64)) == []
    finally:
        handle.remove()
    assert seen == [*net, net]


@each_face
def test_a_layer_is_replaced(stack: bool) -> None:
    net, plain = parallel(mlp(depth=14), stack=stack)
    input = torch.randn(3, 4, dtype=torch.float64)
    net(input)
    for model in (net, plain):
        torch.manual_seed(1)
        model[15] = nn.ReLU()
        model[6] = nn.Linear(6, 6).double()
        model._modules["8"] = MyLinear(6, 6).double()
    assert_close(net(input), plain(input))
    assert_same(net, plain, input)


def test_a_class_or_an_attribute_changes() -> None:
    net, plain = parallel(stack_of(14, 6, nn.LeakyReLU))
    net(X)
    for model in (net, plain):
        model[13].negative_slope = 0.3
        torch.manual_seed(0)
        parametrizations.weight_norm(model[2])
        model[6].forward = lambda x: 3 * x
    assert_same(net, plain, X)


@each_face
def test_containers_grow_and_shrink(stack: bool) -> None:
    net, plain = parallel(stack_of(8, 6, nn.Tanh), stack=stack)
    for model in (net, plain):
        torch.manual_seed(0)
        model.append(nn.Linear(6, 6).double())
        model.insert(0, nn.Tanh())
        model.extend(stack_of(5, 6, nn.ReLU))
        del model[4]
        model.pop(-1)
    assert len(net) == len(plain)
    assert_close(net(X), plain(X))
    assert calls(net, X)


# ---- bad input ----------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [dpcr.parallelize, dpcr.unparallelize, dpcr.report])
def test_not_a_module(function: Any) -> None:
    with pytest.raises(TypeError, match=r"net must be a torch\.nn\.Module, got int"):
        function(3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"segments": 9}, ValueError, r"1-16|trunk\.2-17: segments must be in 1..L = 1..8, got 9"),
        ({"segments": 0}, ValueError, "segments must be in 1..L"),
        ({"jacobian": "banana"}, ValueError, "jacobian must be one of"),
        ({"speed": 9}, TypeError, "unexpected keyword argument 'speed'"),
        ({"stack": 1}, TypeError, "stack must be True or False"),
        ({"chain": "blocks"}, ValueError, r"chain='blocks' does not exist in Module; .*: 'list'"),
        ({"chain": "trunk"}, TypeError, "chain='trunk' must be exactly an nn.ModuleList"),
        ({"chain": ["list", 3]}, TypeError, "chain must be the path of a ModuleList, got 3"),
        ({"example_inputs": (X,)}, TypeError, "example_inputs must be a tuple, of one list"),
    ],
)
def test_bad_options(options: Any, error: type[Exception], message: str) -> None:
    net = nn.Module()
    net.trunk, net.list = mlp(), nn.ModuleList([nn.Linear(6, 6)])
    with pytest.raises(error, match=message):
        dpcr.parallelize(net, **options)
    assert type(net.trunk) is nn.Sequential and type(net.list) is nn.ModuleList


def test_bad_inputs_get_the_answer_of_the_modules() -> None:
    net, plain = parallel(stack_of(6, 6, nn.Tanh))
    for bad in (torch.randn(5, 7, dtype=torch.float64), torch.randn(5, 6), "x", torch.tensor(1.0)):
        with pytest.raises(Exception) as theirs:
            plain(bad)
        with pytest.raises(type(theirs.value)) as ours:
            net(bad)
        assert str(ours.value) == str(theirs.value)


# ---- size ---------------------------------------------------------------------------------------


@each_face
def test_ten_thousand_layers(stack: bool) -> None:
    """The work is linear: ten times the layers, about ten times the calls."""

    def calls_made(depth: int) -> int:
        net, count = stack_of(depth, 2, nn.Tanh, dtype=torch.float32), 0

        def seen(frame: Any, event: str, argument: Any) -> None:
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(seen)
        try:
            dpcr.parallelize(net, stack=stack)
        finally:
            sys.setprofile(None)
        assert dpcr.report(net).chains[0].length == depth
        return count

    calls_made(100)
    assert calls_made(10_000) < 12 * calls_made(1_000)


def test_an_actor_by_its_blocks() -> None:
    dpcr.register_block(RLBlock, describe_rl)
    net, plain = parallel(Actor(64).double(), chain="blocks")
    input = torch.randn(3, 7, dtype=torch.float64)
    assert calls(net, input) == ["layers"]
    assert_same(net, plain, input, factor=1e4)
