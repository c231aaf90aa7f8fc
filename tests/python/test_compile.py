# SPDX-License-Identifier: Apache-2.0
"""torch.compile, torch.export and AOTInductor: what works, and what raises with which sentence."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import assert_close
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

import torch_deeppcr as dpcr


def networks() -> list[nn.Module]:
    return [
        dpcr.nn.MLPChain(5, 7, activation="gelu"),
        dpcr.nn.ResidualChain(5, 7, hidden=6, activation="silu", norm="layer_norm", scale=0.5),
        dpcr.nn.MLPChain(5, 7, segments=3, memory="recompute"),
    ]


each_network = pytest.mark.parametrize("net", networks(), ids=lambda net: type(net).__name__)


def compiled(function: Any, backend: str = "aot_eager", **options: Any) -> Any:
    return torch.compile(function, fullgraph=True, backend=backend, **options)


def with_gradients(function: Any, leaves: list[Tensor]) -> list[Any]:
    outputs = torch.utils._pytree.tree_leaves(function(leaves[0]))
    return [*outputs, *torch.autograd.grad(sum(o.square().sum() for o in outputs), leaves)]


@each_network
@pytest.mark.parametrize("shape", [(3, 5), (5,), (2, 3, 5), (0, 5)])
def test_forward_and_backward(net: nn.Module, shape: tuple[int, ...]) -> None:
    leaves = [torch.randn(*shape, requires_grad=True), *net.parameters()]
    assert_close(with_gradients(compiled(net), leaves), with_gradients(net, leaves))


@each_network
def test_states_and_inference(net: nn.Module) -> None:
    leaves = [torch.randn(3, 5, requires_grad=True), *net.parameters()]

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        return net(x, return_states=True)

    assert_close(with_gradients(compiled(both), leaves), with_gradients(both, leaves))
    with torch.no_grad():
        assert_close(compiled(net)(leaves[0]), net(leaves[0]))
    with torch.inference_mode():
        assert_close(compiled(net)(leaves[0]), net(leaves[0]))


def graph_calls(function: Any, *inputs: Any) -> list[tuple[Any, ...]]:
    """Arguments of deeppcr's operators in the traced graph."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compile(function, fullgraph=True, backend=backend)(*inputs)
    nodes = [node for graph in graphs for node in graph.graph.nodes]
    return [n.args for n in nodes if getattr(n.target, "namespace", "") == "deeppcr"]


@each_network
def test_graph_holds_one_operator(net: nn.Module) -> None:
    """One node whatever the depth; the states are kept only where a gradient may be asked for."""
    x = torch.randn(3, 5)
    (arguments,) = graph_calls(net, x)
    assert arguments[-1] == net.solver.kept
    with torch.no_grad():
        (arguments,) = graph_calls(net, x)
        assert arguments[-1] == "nothing"


@each_network
@pytest.mark.parametrize("outer", [(), (3,)])
def test_dynamic_batch(net: nn.Module, outer: tuple[int, ...]) -> None:
    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(net, fullgraph=True, backend=counter, dynamic=True)
    counts = []
    for batch in (9, 7, 2, 64):
        leaves = [torch.randn(batch, *outer, 5, requires_grad=True), *net.parameters()]
        assert_close(with_gradients(function, leaves), with_gradients(net, leaves))
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1], "a new batch size compiled anew"


@pytest.mark.parametrize("reverse", [False, True])
def test_recurrence_dynamic_length_and_batch(reverse: bool) -> None:
    def solve(A: Tensor, b: Tensor, x0: Tensor) -> Tensor:
        return dpcr.linear_recurrence(A, b, x0, reverse=reverse)

    counter = CompileCounterWithBackend("aot_eager")
    function = torch.compile(solve, fullgraph=True, backend=counter, dynamic=True)
    counts = []
    for length, batch in ((9, 4), (6, 4), (9, 6), (17, 2)):
        shapes = ((length, batch, 3, 3), (length, batch, 3), (batch, 3))
        leaves = [torch.randn(*shape, requires_grad=True) for shape in shapes]
        results = [
            [x := f(*leaves), *torch.autograd.grad(x.square().sum(), leaves)]
            for f in (function, solve)
        ]
        assert_close(*results)
        counts.append(counter.frame_count)
    assert counts[0] == counts[-1], "a new size compiled anew"


def test_recurrence_info() -> None:
    def solve(b: Tensor) -> Any:
        return dpcr.linear_recurrence(None, b, segments=9, return_info=True)

    b = torch.randn(9, 2, 3)
    x, info = compiled(solve)(b)
    assert_close(x, solve(b)[0])
    assert int(info.levels) == 4 and info.recomputed.tolist() == [False, False]


@each_network
def test_info(net: nn.Module) -> None:
    x = torch.randn(3, 5)
    compiled_net = compiled(net)
    z, states, info = compiled_net(x, return_states=True, return_info=True)
    expected = net(x, return_info=True)[1]
    assert isinstance(info, dpcr.ChainInfo) and z.shape == (3, 5)
    for ours, theirs in zip(info[:4], expected[:4], strict=True):
        assert torch.equal(ours, theirs)
    assert int(info.levels) == expected.levels and info.plan.segments == expected.plan.segments
    assert info.plan.threads == 0  # of whom runs it, which tracing does not know
    assert_close(compiled_net(x, warm_start=states), net(x, warm_start=states))


def test_function_with_dynamic_sizes() -> None:
    """Number of steps, samples and, with "recompute", of checkpoints."""

    def function(x: Tensor, weight: Tensor) -> Any:
        options = {"memory": "recompute", "return_info": True}
        one, info = dpcr.mlp_chain(x, weight, **options)
        two, more = dpcr.mlp_chain(x, weight, segments=3, **options)
        return one + two, info.sweeps, more.sweeps

    dynamic = compiled(function, dynamic=True)
    for length, batch in ((9, 4), (9, 6), (5, 2)):
        leaves = [torch.randn(batch, 5), torch.randn(length, 5, 5) / 3]
        results = []
        for f in (dynamic, function):
            inputs = [t.clone().requires_grad_() for t in leaves]
            z, *sweeps = f(*inputs)
            results.append([z, *torch.autograd.grad(z.square().sum(), inputs), *sweeps])
        assert_close(results[0][:3], results[1][:3])
        assert all(map(torch.equal, results[0][3:], results[1][3:]))


@each_network
def test_vmap_inside(net: nn.Module) -> None:
    x = torch.randn(4, 3, 5)
    assert_close(compiled(vmap(net))(x), net(x))


@each_network
def test_autocast_inside(net: nn.Module) -> None:
    def function(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x)

    x = torch.randn(3, 5, dtype=torch.bfloat16)
    assert compiled(function)(x).dtype == torch.float32
    assert_close(compiled(function)(x), function(x))


def test_without_native_kernel() -> None:
    """float16 and bfloat16 compile too: the loop, unrolled."""
    net = dpcr.nn.MLPChain(5, 3, dtype=torch.bfloat16)
    x = torch.randn(3, 5, dtype=torch.bfloat16)
    assert_close(compiled(net)(x), net(x))
    assert not graph_calls(net, x)


# ---- what raises --------------------------------------------------------------------------------


@each_network
def test_refused_derivatives_name_the_reason(net: nn.Module) -> None:
    x = torch.randn(3, 5)
    with pytest.raises(Exception, match=r"forward-mode derivatives .* not supported under"):
        compiled(lambda x: jvp(net, (x,), (x,))[1])(x)
    with pytest.raises(Exception, match=r"torch\.func derivatives .* not supported under"):
        compiled(grad(lambda x: net(x).sum()))(x)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(compiled(net)(leaf).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        gradient.sum().backward()


@pytest.mark.parametrize("policy", ["warn", "raise"])
def test_nobody_watches_a_compiled_chain(policy: str) -> None:
    x = torch.randn(3, 5)
    net = dpcr.nn.MLPChain(5, 7, segments=3, on_unconverged=policy)
    with pytest.raises(Exception, match=f'on_unconverged="{policy}" is not supported under torch'):
        compiled(net)(x)
    one = dpcr.nn.MLPChain(5, 7, segments=1, on_unconverged=policy)  # nothing can go wrong
    assert_close(compiled(one)(x), one(x))


@each_network
def test_without_fullgraph_the_refused_run_eagerly(net: nn.Module) -> None:
    x = torch.randn(3, 5)
    for function in (lambda x: jvp(net, (x,), (x,))[1], grad(lambda x: net(x).sum())):
        assert_close(torch.compile(function, backend="aot_eager")(x), function(x))


def test_transforms_around_a_compiled_function() -> None:
    """A graph that was compiled before is not reused where it would drop the derivative."""
    net = dpcr.nn.MLPChain(5, 3)
    x = torch.randn(2, 5)
    function = torch.compile(net, backend="aot_eager")
    assert_close(function(x), net(x))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        tangent = forward_ad.unpack_dual(function(dual)).tangent
    assert_close(tangent, jvp(net, (x,), (x,))[1])
    assert_close(jvp(function, (x,), (x,))[1], tangent)
    expected = grad(lambda x: net(x).sum())(x)
    assert_close(grad(lambda x: function(x).sum())(x), expected)


@each_network
def test_bad_arguments_are_named(net: nn.Module) -> None:
    with pytest.raises(Exception, match="must have shape"):
        compiled(net)(torch.randn(3, 4))
    with pytest.raises(Exception, match="got int32"):
        compiled(net)(torch.ones(3, 5, dtype=torch.int32))


# ---- export -------------------------------------------------------------------------------------


@each_network
@pytest.mark.parametrize("strict", [False, True])
def test_export(net: nn.Module, strict: bool, tmp_path: Path) -> None:
    shapes = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(net, (torch.randn(4, 5),), dynamic_shapes=shapes, strict=strict)
    calls = [n for n in program.graph.nodes if getattr(n.target, "namespace", "") == "deeppcr"]
    assert len(calls) == 1 and calls[0].args[-1] == "nothing"  # no states: a graph for inference
    torch.export.save(program, tmp_path / "net.pt2")
    module = torch.export.load(tmp_path / "net.pt2").module()
    leaves = [torch.randn(9, 5, requires_grad=True), *net.parameters()]
    assert_close(module(leaves[0]), net(leaves[0]))
    # It can be trained all the same.
    theirs = [leaves[0], *module.parameters()]
    assert_close(with_gradients(module, theirs), with_gradients(net, leaves))


# ---- Inductor -----------------------------------------------------------------------------------


class Model(nn.Module):
    """A chain between other layers, as models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 5)
        self.chain = dpcr.nn.ResidualChain(5, 7, norm="rms_norm")
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.chain(self.stem(x).relu()))


@pytest.mark.slow
def test_inductor() -> None:
    net = Model()
    leaves = [torch.randn(3, 6, requires_grad=True), *net.parameters()]
    function = compiled(net, backend="inductor")
    assert_close(with_gradients(function, leaves), with_gradients(net, leaves), factor=1e4)
    A, b = torch.randn(9, 2, 3, 3), torch.randn(9, 2, 3)
    solve = compiled(lambda A, b: dpcr.linear_recurrence(A.mT, b).sin(), backend="inductor")
    assert_close(solve(A, b), dpcr.linear_recurrence(A.mT, b).sin())


@pytest.mark.slow
def test_aot_inductor(tmp_path: Path) -> None:
    """Compiled ahead of time, loaded in a fresh process, equal."""
    net = Model()
    x = torch.randn(4, 6)
    shapes = ({0: torch.export.Dim("batch", min=2)},)
    with torch.no_grad():
        program = torch.export.export(net, (x,), dynamic_shapes=shapes)
        package = torch._inductor.aoti_compile_and_package(
            program, package_path=str(tmp_path / "net.pt2")
        )
        x = torch.randn(9, 6)
        torch.save({"x": x, "y": net(x)}, tmp_path / "data.pt")
    script = (
        "import sys, torch, torch_deeppcr\n"
        "package, data = sys.argv[1], torch.load(sys.argv[2])\n"
        "y = torch._inductor.aoti_load_package(package)(data['x'])\n"
        "torch.testing.assert_close(y, data['y'])\n"
    )
    arguments = [sys.executable, "-c", script, str(package), str(tmp_path / "data.pt")]
    # Elsewhere than here: the source tree, which has no native library, must not be imported.
    subprocess.run(arguments, check=True, timeout=300, cwd=tmp_path)
