# SPDX-License-Identifier: Apache-2.0
"""parallelize on models of others (random weights), and named ModuleLists."""

from __future__ import annotations

import contextlib
import copy
import importlib.machinery
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from cases import assert_close
from models import Actor, RLBlock, assert_same, calls, describe_rl, parallel
from torch import Tensor, nn

import torch_deeppcr as dpcr
from torch_deeppcr.parallel import reading

each_face = pytest.mark.parametrize("stack", [False, True], ids=["per-layer", "stacked"])


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_described", {})
    dpcr.register_block(RLBlock, describe_rl)


# ---- deep networks of reinforcement learning ----------------------------------------------------


@each_face
@pytest.mark.parametrize("layers", [64, 1024])
@pytest.mark.parametrize("segments", ["auto", 4])
def test_deep_actors(layers: int, segments: Any, stack: bool) -> None:
    net, plain = parallel(Actor(layers).double(), chain="blocks", stack=stack, segments=segments)
    input = torch.randn(3, 7, dtype=torch.float64)
    assert calls(net, input) == ["layers"]
    (chain,) = dpcr.report(net).chains
    assert chain.path == f"blocks.0-{layers // 4 - 1}" and chain.stacked == stack
    assert_same(net, plain, input, factor=1e6)
    assert list(net.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("jacobian", ["auto", "identity"])
def test_wide_residual_stacks_need_no_jacobians(jacobian: str) -> None:
    net, plain = parallel(
        Actor(256, width=256).double(), chain="blocks", segments=16, jacobian=jacobian
    )
    input = torch.randn(2, 7, dtype=torch.float64)
    assert_same(net, plain, input, factor=1e6)


# ---- timm ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timm() -> Iterator[Any]:
    """timm without torchvision, whose wheels bring a torch of their own; models do not need it."""
    names = ["torchvision"] + [
        f"torchvision.{name}"
        for name in (
            "transforms transforms.functional transforms.v2 datasets ops ops.misc models "
            "models.feature_extraction"
        ).split()
    ]
    absent = "torchvision" not in sys.modules and not importlib.util.find_spec("torchvision")
    # Others ask once whether it is there, and remember the answer for their own tests.
    for other in ("transformers.utils.import_utils", "diffusers.utils.import_utils"):
        with contextlib.suppress(ImportError):
            importlib.import_module(other).is_torchvision_available()
    if absent:
        for name in names:
            module = MagicMock(__spec__=importlib.machinery.ModuleSpec(name, None), __path__=[])
            sys.modules[name] = module
    try:
        yield pytest.importorskip(
            "timm", reason="timm is not installed (pip install --no-deps timm)"
        )
    finally:
        for name in names if absent else ():
            del sys.modules[name]


@pytest.mark.parametrize("name", ["mixer_s32_224", "resmlp_12_224"])
@each_face
def test_mixers_mix_tokens_and_stay(timm: Any, name: str, stack: bool) -> None:
    """Their blocks transpose: the state of a step would be the whole image."""
    plain = timm.create_model(name, img_size=64).double().eval()
    net, _ = parallel(plain, stack=stack)
    report = dpcr.report(net)
    assert not report.chains and type(net.blocks) is nn.Sequential
    assert all(m.reason.endswith("can say that it is") for m in report.left if "blocks" in m.path)
    input = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert torch.equal(net(input), plain(input))
    assert_same(net, plain, input)


@each_face
def test_timm_mlps_as_residual_blocks(timm: Any, stack: bool) -> None:
    """What a Mixer does to channels, block after block: timm's Mlp behind a norm."""
    from timm.layers import Mlp

    class ChannelMixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mlp = nn.LayerNorm(16), Mlp(16, 32, drop=0.1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mlp(self.norm(x))

    def describe(block: ChannelMixing) -> dpcr.steps.Step:
        return dpcr.steps.residual(block.mlp.fc1, block.mlp.fc2, block.mlp.act, block.norm)

    dpcr.register_block(ChannelMixing, describe)
    plain = nn.Sequential(nn.Linear(8, 16), *(ChannelMixing() for _ in range(8))).double().eval()
    net, _ = parallel(plain, stack=stack)
    input = torch.randn(2, 5, 8, dtype=torch.float64)
    assert calls(net, input) == ["residual"]
    assert_same(net, plain, input)
    net.train()
    assert calls(net, input) == []
    assert any(m.reason == "drops at random in training" for m in dpcr.report(net).left)


# ---- transformers -------------------------------------------------------------------------------


def test_a_transformers_encoder_keeps_everything() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
    )
    plain = transformers.BertModel(config).eval()
    net = dpcr.parallelize(copy.deepcopy(plain))
    report = dpcr.report(net)
    assert not report.chains and str(report).startswith("nothing is replaced\nleft alone:")
    left = {m.path: m.reason for m in report.left}
    assert left["encoder.layer"] == "a ModuleList, which is not named by chain="
    assert left["encoder.layer.0.intermediate.dense"] == "it is not inside an nn.Sequential"
    tokens = torch.arange(12).reshape(2, 6)
    ours, theirs = net(tokens).last_hidden_state, plain(tokens).last_hidden_state
    assert torch.equal(ours, theirs)
    ours.sum().backward(), theirs.sum().backward()
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)
    with pytest.raises(ValueError, match=r"encoder\.layer\.0: BertLayer is no step"):
        dpcr.parallelize(net, chain="encoder.layer")


# ---- ModuleLists --------------------------------------------------------------------------------


class Listed(nn.Module):
    """Blocks applied by a forward that subclasses write."""

    def __init__(self, blocks: int = 7) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(dpcr.nn.ResidualBlock(6, 4, "silu") for _ in range(blocks))
        self.head = nn.Linear(6, 2)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Enumerated(Listed):
    def forward(self, x: Tensor) -> Tensor:
        for _, block in enumerate(self.blocks):
            x = block(x)
        return self.head(x)


class Branching(Listed):
    """torch.fx cannot read this."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            return x
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class ByIndex(Listed):
    def forward(self, x: Tensor) -> Tensor:
        for index in range(len(self.blocks)):
            x = self.blocks[index](x)
        return self.head(x)


class Reversed(Listed):
    def forward(self, x: Tensor) -> Tensor:
        for block in reversed(self.blocks):
            x = block(x)
        return self.head(x)


class Between(Listed):
    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(x)


class Collecting(Listed):
    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return self.head(x + outputs[2])


class Side(Listed):
    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.blocks:
            y = y + block(x)
        return self.head(y)


X = torch.randn(5, 6, dtype=torch.float64)


@each_face
@pytest.mark.parametrize("model", [Listed, Enumerated])
@pytest.mark.parametrize("example", [None, (X,)])
def test_a_named_list(model: type[Listed], example: Any, stack: bool) -> None:
    net, plain = parallel(model(), chain="blocks", stack=stack, example_inputs=example)
    assert calls(net, X) == ["residual"]
    assert_same(net, plain, X)
    assert (
        len(net.blocks) == 7
        and [b is net.blocks[i] for i, b in enumerate(net.blocks)] == [True] * 7
    )
    assert type(net.blocks) is dpcr.nn.ParallelModuleList
    assert torch.equal(net.blocks[2](X), plain.blocks[2](X))
    assert dpcr.report(net).chains[0].path == "blocks.0-6"
    twin = copy.deepcopy(net)
    assert calls(twin, X) == ["residual"]
    assert_same(twin, plain, X)
    with dpcr.sequential():
        assert calls(net, X) == [] and torch.equal(net(X), plain(X))
    dpcr.unparallelize(net)
    assert type(net.blocks) is nn.ModuleList and not net._forward_hooks
    assert [vars(m).keys() for m in net.modules()] == [vars(m).keys() for m in plain.modules()]
    assert torch.equal(net(X), plain(X))


def test_a_list_in_a_model_that_fx_cannot_read() -> None:
    with pytest.raises(
        ValueError, match=r"blocks: torch\.fx cannot read forward, give example_inputs"
    ):
        dpcr.parallelize(Branching(), chain="blocks")
    net, plain = parallel(Branching(), chain="blocks", example_inputs=(X,))
    assert calls(net, X) == ["residual"]
    assert_same(net, plain, X)


@pytest.mark.parametrize("example", [None, (X,)], ids=["fx", "run"])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (ByIndex, r"blocks: forward must iterate over the list itself: for block in self\.blocks"),
        (
            Reversed,
            "blocks: forward (calls blocks.6|makes 7 calls, not one of each block in order)",
        ),
        (Between, "blocks: forward gives (blocks.1|a block) something else"),
        (Side, "blocks: forward gives (blocks.1|a block) something else"),
        (
            Collecting,
            "blocks: forward (uses the output of blocks.2 elsewhere|fails when the blocks are one)",
        ),
    ],
)
def test_blocks_that_are_not_applied_in_order(model: Any, message: str, example: Any) -> None:
    net = model()
    with pytest.raises(ValueError, match=message):
        dpcr.parallelize(net, chain="blocks", example_inputs=example)
    assert type(net.blocks) is nn.ModuleList and not net._forward_hooks


def test_blocks_of_unequal_shapes() -> None:
    net = nn.Module()
    net.inner = Listed()
    net.inner.blocks[3] = dpcr.nn.ResidualBlock(6, 5, "silu").double()
    with pytest.raises(
        ValueError, match=r"inner\.blocks\.3 must be a step like inner\.blocks\.0: "
    ):
        dpcr.parallelize(net, chain="inner.blocks")
    net.inner.blocks[3] = nn.Linear(6, 5)
    with pytest.raises(ValueError, match=r"inner\.blocks\.3: maps 6 -> 5"):
        dpcr.parallelize(net, chain="inner.blocks")
    net.inner.blocks = nn.ModuleList()
    with pytest.raises(ValueError, match=r"inner\.blocks holds no blocks"):
        dpcr.parallelize(net, chain="inner.blocks")


def test_an_exception_inside_forward_leaves_the_list_as_it_is() -> None:
    net = dpcr.parallelize(Listed(), chain="blocks")
    with pytest.raises(TypeError):
        net(X, X)
    with pytest.raises(Exception):  # noqa: B017  # whatever PyTorch says of a string
        net("x")
    assert len(list(net.blocks)) == 7


def test_a_compiled_list() -> None:
    net, plain = parallel(Listed(), chain="blocks")
    function = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert_close(function(X), plain(X))
    function(X).sum().backward(), plain(X).sum().backward()
    assert_close(net.head.weight.grad, plain.head.weight.grad)
    assert len(list(net.blocks)) == 7
