# SPDX-License-Identifier: Apache-2.0
"""What graphs and transforms make of parallelized models: tried out, written into README.md.

    python tests/python/combinations.py --write       tries all and rewrites the table
    pytest tests/python/test_combinations.py          tries all; fails where README says otherwise

A cell is "works" (the result is that of the plain model), or the error and its first sentence.
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import assert_close
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import torch_deeppcr as dpcr

README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- combinations: begin -->", "<!-- combinations: end -->"
FACES = {"per layer": False, "stacked": True}

INPUT = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


def plain_model() -> nn.Module:
    torch.manual_seed(0)
    modules: list[nn.Module] = [nn.Linear(4, 6)]
    for _ in range(8):
        modules += [nn.Linear(6, 6), nn.Tanh()]
    return nn.Sequential(*modules, nn.Linear(6, 2))


def models(stack: bool) -> tuple[nn.Module, nn.Module]:
    plain = plain_model()
    net = dpcr.parallelize(copy.deepcopy(plain), stack=stack)
    assert dpcr.report(net).chains[0].stacked == stack
    return net, plain


def with_gradients(function: Callable[[Tensor], Tensor], input: Tensor) -> list[Tensor]:
    leaf = input.clone().requires_grad_()
    output = function(leaf)
    return [output, *torch.autograd.grad(output.square().sum(), leaf)]


def compiled(function: Any, **options: Any) -> Any:
    torch._dynamo.reset()
    return torch.compile(function, fullgraph=True, **options)


# ---- the combinations ---------------------------------------------------------------------------


def eager(stack: bool) -> None:
    net, plain = models(stack)
    assert_close(with_gradients(net, INPUT), with_gradients(plain, INPUT))


def compile_training(stack: bool) -> None:
    net, plain = models(stack)
    function = compiled(net)
    assert_close(with_gradients(function, INPUT), with_gradients(plain, INPUT))
    loss = function(INPUT).square().sum()
    loss.backward()
    plain(INPUT).square().sum().backward()
    assert_close(net[0].weight.grad, plain[0].weight.grad)


def compile_dynamic_batch(stack: bool) -> None:
    net, plain = models(stack)
    counter = CompileCounterWithBackend("aot_eager")
    function = compiled(net, backend=counter, dynamic=True)
    counts = []
    for batch in (5, 7, 300, 31):
        input = torch.randn(batch, 4)
        assert_close(with_gradients(function, input), with_gradients(plain, input))
        counts.append(counter.frame_count)
    assert len(set(counts)) == 1, f"compiled after each batch: {counts}"


def compile_segments(stack: bool) -> None:
    net, plain = models(stack)
    dpcr.parallelize(net, stack=stack, segments=4)
    assert_close(with_gradients(compiled(net), INPUT), with_gradients(plain, INPUT))


def compile_sequential(stack: bool) -> None:
    net, plain = models(stack)
    function = compiled(net, backend="aot_eager")
    function(INPUT)
    with dpcr.sequential():
        assert_close(function(INPUT), plain(INPUT))


def export(stack: bool) -> None:
    net, plain = models(stack)
    batch = torch.export.Dim("batch", min=1, max=1000)
    program = torch.export.export(net, (INPUT,), dynamic_shapes=({0: batch},))
    assert any("deeppcr" in str(node.target) for node in program.graph.nodes)
    for input in (INPUT, torch.randn(9, 4)):
        assert_close(program.module()(input), plain(input))


LOAD = """
import sys, torch, torch_deeppcr
model = torch._inductor.aoti_load_package(sys.argv[1])
input, expected = torch.load(sys.argv[2])
torch.testing.assert_close(model(input), expected)
"""


def aot_inductor(stack: bool) -> None:
    net, plain = models(stack)
    program = torch.export.export(net.eval(), (INPUT,))
    with tempfile.TemporaryDirectory() as folder:
        package, tensors = f"{folder}/net.pt2", f"{folder}/tensors.pt"
        torch._inductor.aoti_compile_and_package(program, package_path=package)
        torch.save((INPUT, plain(INPUT).detach()), tensors)
        # Elsewhere: from the repository python -c would import the sources, without the library.
        subprocess.run([sys.executable, "-c", LOAD, package, tensors], check=True, cwd=folder)


def vmap_inputs(stack: bool) -> None:
    net, plain = models(stack)
    inputs = torch.randn(3, 5, 4)
    assert_close(torch.vmap(net)(inputs), plain(inputs))


def vmap_ensemble(stack: bool) -> None:
    nets, plains = zip(*(models(stack) for _ in range(3)), strict=True)
    parameters, buffers = torch.func.stack_module_state(list(nets))

    def one(parameters: Any, buffers: Any) -> Tensor:
        return torch.func.functional_call(nets[0], (parameters, buffers), (INPUT,))

    expected = torch.stack([plain(INPUT) for plain in plains])
    assert_close(torch.vmap(one)(parameters, buffers), expected)


def func_derivatives(stack: bool) -> None:
    net, plain = models(stack)
    for transform in (torch.func.jacrev, torch.func.jacfwd):
        assert_close(transform(net)(INPUT), transform(plain)(INPUT))


def double_backward(stack: bool) -> None:
    net, plain = models(stack)
    assert_close(_penalty(net), _penalty(plain))


def _penalty(function: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = INPUT.clone().requires_grad_()
    gradient = torch.autograd.grad(function(leaf).square().sum(), leaf, create_graph=True)[0]
    return torch.autograd.grad(gradient.square().sum(), leaf)[0]


def compiled_double_backward(stack: bool) -> None:
    _penalty(compiled(models(stack)[0]))


def compiled_func_grad(stack: bool) -> None:
    net, _ = models(stack)
    compiled(torch.func.grad(lambda x: net(x).sum()), backend="aot_eager")(INPUT)


def compiled_jvp(stack: bool) -> None:
    net, _ = models(stack)
    compiled(lambda x: torch.func.jvp(net, (x,), (x,)), backend="aot_eager")(INPUT)


COMBINATIONS: dict[str, Callable[[bool], None]] = {
    "eager, forward and backward": eager,
    "`torch.compile(fullgraph=True)`, forward and backward": compile_training,
    "the same, batches of any size without recompilation": compile_dynamic_batch,
    "the same, `segments=4`": compile_segments,
    "the same, inside of `dpcr.sequential()`": compile_sequential,
    "`torch.export`, dynamic batch": export,
    "AOTInductor, loaded in a fresh process": aot_inductor,
    "`torch.vmap` over inputs": vmap_inputs,
    "`torch.vmap` over models (`stack_module_state`)": vmap_ensemble,
    "`torch.func.jacrev`, `jacfwd`": func_derivatives,
    "double backward": double_backward,
    "double backward under `torch.compile`": compiled_double_backward,
    "`torch.compile(torch.func.grad(f), fullgraph=True)`": compiled_func_grad,
    "`torch.compile` of `torch.func.jvp`": compiled_jvp,
}


def outcome(combination: Callable[[bool], None], stack: bool) -> str:
    try:
        combination(stack)
    except (AssertionError, subprocess.CalledProcessError):
        raise
    except Exception as error:
        return f"raises: {_sentence(error)}"
    return "works"


def _sentence(error: BaseException) -> str:
    """The first sentence of the innermost cause that says something of its own."""
    text = str(error)
    found = re.search(r"(?:NotImplementedError|RuntimeError)\(?[:'\"]+ ?([^\n]+)", text)
    line = found[1] if found else text.strip().splitlines()[0]
    return re.split(r"(?<=[a-z)])[.:;] |['\"]\)", line)[0].strip()


def table() -> str:
    lines = ["| | " + " | ".join(FACES) + " |", "|---|" + "---|" * len(FACES)]
    for name, combination in COMBINATIONS.items():
        cells = [outcome(combination, stack) for stack in FACES.values()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        print(lines[-1], file=sys.stderr)
    return "\n".join(lines)


def documented() -> dict[str, list[str]]:
    """name -> cells of the table in README.md."""
    text = README.read_text().split(BEGIN)[1].split(END)[0]
    rows = [line.strip("| ").split(" | ") for line in text.strip().splitlines()[2:]]
    return {row[0]: row[1:] for row in rows}


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(__doc__)
    assert dpcr.native_available()
    torch.set_num_threads(1)
    before, _, rest = README.read_text().partition(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}")
