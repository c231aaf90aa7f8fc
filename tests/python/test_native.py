# SPDX-License-Identifier: Apache-2.0
"""Finding the native library, and doing without it: a warning, once, then the same results."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from cases import SMALL_CHAINS, Chain, Spy, assert_close, gradients, name_of
from torch._subclasses import FakeTensorMode

import torch_deeppcr as dpcr
from torch_deeppcr import _chain, _native


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing was loaded yet; what the test loads is forgotten again."""
    monkeypatch.setattr(_native, "devices", frozenset())
    monkeypatch.setattr(_native, "missing", {})
    monkeypatch.setattr(torch.version, "cuda", None)


@pytest.mark.usefixtures("forgotten")
def test_every_folder_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable install has two: sources, and what was built."""
    sources, built = tmp_path / "sources", tmp_path / "built"
    (built / "lib").mkdir(parents=True)
    library = built / "lib" / "libdeeppcr_torch.so"
    library.touch()
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _native.load([str(sources), str(built)])
    assert loaded == [library] and _native.native_available()


@pytest.mark.usefixtures("forgotten")
def test_a_missing_library_is_named(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match=r"not installed; building it needs .* pip install"):
        _native.load([str(tmp_path)])
    assert not _native.native_available()


@pytest.mark.usefixtures("forgotten")
def test_a_broken_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libdeeppcr_torch.so").write_text("no library")
    message = r"libdeeppcr_torch\.so does not load: .*(header|too short)"
    with pytest.warns(RuntimeWarning, match=message):
        _native.load([str(tmp_path)])
    assert not _native.native_available()


# ---- the library for CUDA tensors ---------------------------------------------------------------


def install(folder: Path, *names: str) -> None:
    (folder / "lib").mkdir()
    for name in names:
        (folder / "lib" / name).touch()


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("version", [None, "13.0"])
def test_the_cuda_library_is_for_torch_with_cuda(
    version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "libdeeppcr_torch.so", "libdeeppcr_torch_cuda.so")
    loaded: list[str] = []
    monkeypatch.setattr(torch.ops, "load_library", lambda path: loaded.append(path.name))
    monkeypatch.setattr(torch.version, "cuda", version)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _native.load([str(tmp_path)])
    assert loaded == ["libdeeppcr_torch.so", "libdeeppcr_torch_cuda.so"][: 2 if version else 1]
    assert _native.devices == {"cpu", "meta", *(["cuda"] if version else [])}
    assert not _native.missing


@pytest.fixture
def without_cuda_library(forgotten: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """As on a machine whose torch has CUDA, with a package that was built for the CPU."""
    install(tmp_path, "libdeeppcr_torch.so")
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # who has no CUDA tensors need not know
        _native.load([str(tmp_path)])
    return (
        r"no kernels for CUDA tensors.* it is not installed; build it by pip install \. "
        r"-C cmake\.define\.DEEPPCR_CUDA=ON, with nvcc 12\.8"
    )


def test_without_the_cuda_library_cuda_tensors_raise(without_cuda_library: str) -> None:
    """Fake tensors stand for those of a GPU."""
    with FakeTensorMode():
        weight, z = torch.empty(3, 4, 4, device="cuda"), torch.empty(2, 4, device="cuda")
        for call in (
            lambda: dpcr.mlp_chain(z, weight),
            lambda: dpcr.mlp_chain(z, weight, segments=2),
            lambda: dpcr.linear_recurrence(None, weight),
        ):
            with pytest.raises(NotImplementedError, match=without_cuda_library):
                call()
            with dpcr.sequential():
                assert call().device.type == "cuda"
        assert dpcr.mlp_chain(z.bfloat16(), weight.bfloat16()).shape == z.shape
        host = dpcr.mlp_chain(torch.empty(2, 4), torch.empty(3, 4, 4))
        assert host.device.type == "cpu"


@pytest.mark.usefixtures("without_cuda_library")
def test_without_the_cuda_library_models_run_their_modules() -> None:
    linears = [torch.nn.Linear(4, 4, bias=False, device="meta") for _ in range(9)]
    with FakeTensorMode(), torch.no_grad():
        for linear in linears:
            linear.weight = torch.nn.Parameter(torch.empty(4, 4, device="cuda"))
        layers = [layer for linear in linears for layer in (linear, torch.nn.Tanh())]
        net = dpcr.parallelize(torch.nn.Sequential(*layers), segments=2)
        z = torch.empty(2, 4, device="cuda")
        assert net(z).device.type == "cuda"
        with torch.autocast("cuda", torch.bfloat16):
            assert net(z).device.type == "cuda"


@pytest.mark.usefixtures("forgotten")
def test_a_broken_cuda_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "libdeeppcr_torch.so", "libdeeppcr_torch_cuda.so")

    def load(path: Path) -> None:
        if "cuda" in path.name:
            raise OSError("libtorch_cuda.so: cannot open shared object file")

    monkeypatch.setattr(torch.ops, "load_library", load)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    _native.load([str(tmp_path)])
    assert re.search(r"_cuda\.so does not load: libtorch_cuda", _native.missing["cuda"])
    assert _native.devices == {"cpu", "meta"}


def test_what_a_library_does_not_have_is_not_implemented() -> None:
    def fail(sentence: str) -> None:
        raise RuntimeError(sentence)

    with pytest.raises(NotImplementedError, match=r"^no such chain$"):
        _chain.call(fail, f"{_native.UNSUPPORTED}no such chain")
    with pytest.raises(RuntimeError, match=r"^CUDA: out of memory$"):
        _chain.call(fail, "CUDA: out of memory")
    source = Path(__file__).resolve().parents[2] / "shim" / "bridge.h"
    assert f'kUnsupported = "{_native.UNSUPPORTED}"' in source.read_text()


# ---- CUDA tensors without a GPU: shapes, devices, plans -----------------------------------------


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch):
    """As if the CUDA library were loaded; its tensors are fake ones."""
    monkeypatch.setattr(_native, "devices", frozenset({"cpu", "cuda", "meta"}))
    with FakeTensorMode():
        yield


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("chain", SMALL_CHAINS, ids=name_of)
def test_outputs_are_on_the_device_of_the_inputs(chain: Chain) -> None:
    tensors = [None if t is None else torch.empty(t.shape, device="cuda") for t in chain.tensors]
    solver = (2, "dense", "always", 1e-6, 0.0, 10, True, [])
    forward = getattr(torch.ops.deeppcr, chain.kind)
    backward = getattr(torch.ops.deeppcr, f"{chain.kind}_backward")
    for keep in ("nothing", "states", "checkpoints"):
        z, states, info = forward(*tensors, None, *chain.options, *solver, keep)
        assert {t.device.type for t in (z, states, info)} == {"cuda"}
    z0, *parameters = tensors
    needs = [tensor is not None for tensor in tensors]
    arguments = (*parameters, *chain.options, *solver, keep, needs)
    assert {g.device.type for g in backward(z, None, z0, states, *arguments)} == {"cuda"}


@pytest.mark.usefixtures("fake_cuda")
def test_the_recurrence_is_on_the_device_of_its_operands() -> None:
    sizes = ((256, 2, 3, 3), (256, 2, 3), (2, 3))
    A, b, x0 = (torch.empty(size, device="cuda") for size in sizes)
    with Spy() as spy:
        x, info = dpcr.linear_recurrence(A, b, x0, return_info=True)
    assert spy.arguments("linear_recurrence")[0][-1] == 64
    assert x.device.type == info.recomputed.device.type == "cuda" and info.levels == 6
    backward = torch.ops.deeppcr.linear_recurrence_backward
    gradients = backward(x, A, x0, x, "dense", False, 64, True, True)
    assert {g.device.type for g in gradients} == {"cuda"}


@pytest.mark.usefixtures("fake_cuda")
def test_auto_on_cuda_is_a_table() -> None:
    """Known to functions, too."""
    weight = torch.empty(4096, 4, 4, device="cuda")
    with Spy() as spy:
        for batch in (2, 128, 129):
            dpcr.mlp_chain(torch.empty(batch, 4, device="cuda"), weight)
        dpcr.mlp_chain(torch.empty(2, 4, device="cuda"), weight, on_unconverged="ignore")
    assert [arguments[6] for arguments in spy.arguments("mlp")] == [128, 128, 1, 1]


# ---- without the library ------------------------------------------------------------------------


def results() -> dict[str, object]:
    """One value of everything that the package offers."""
    out: dict[str, object] = {}
    for chain in SMALL_CHAINS:
        name = name_of(chain)
        out[f"{name} values"] = chain.run(return_states=True)
        out[f"{name} gradients"] = gradients(chain.run, chain.present)
        out[f"{name} hessian"] = torch.func.hessian(lambda *t, c=chain: c.run(*t).sum())(
            *chain.present
        )
        out[f"{name} jvp"] = torch.func.jvp(chain.run, *(tuple(chain.present),) * 2)
        many = torch.stack([chain.present[0], -chain.present[0]])
        rest = chain.present[1:]
        out[f"{name} vmap"] = torch.vmap(lambda z, c=chain, r=rest: c.run(z, *r))(many)
    torch.manual_seed(0)
    A, b = torch.randn(9, 2, 3, 3, dtype=torch.float64), torch.randn(9, 2, 3, dtype=torch.float64)
    out["recurrence"] = dpcr.linear_recurrence(A, b, b[0], reverse=True, segments=4)
    out["recurrence gradients"] = gradients(dpcr.linear_recurrence, [A, b, b[0]])
    out["recomputed"] = dpcr.linear_recurrence(A, b, return_info=True)[1].recomputed.double()
    net = dpcr.nn.ResidualChain(4, 3, norm="layer_norm", dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64)
    out["module"] = net(x)
    out["compiled"] = torch.compile(net, fullgraph=True, backend="aot_eager")(x)
    out["exported"] = torch.export.export(net, (x,)).module()(x)
    with torch.autocast("cpu", torch.bfloat16):
        out["autocast"] = net.float()(x.bfloat16())
    return out


WITHOUT_LIBRARY = """
import importlib.util, sys, warnings
import torch

package, tests, out = sys.argv[1:]
init = package + "/__init__.py"
from_file = importlib.util.spec_from_file_location
spec = from_file("torch_deeppcr", init, submodule_search_locations=[package])
dpcr = sys.modules["torch_deeppcr"] = importlib.util.module_from_spec(spec)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    spec.loader.exec_module(dpcr)
caught = [warning for warning in caught if warning.category is RuntimeWarning]
assert len(caught) == 1, caught
assert "torch_deeppcr runs PyTorch's own loop" in str(caught[0].message)
assert caught[0].filename == "<string>", caught[0].filename  # the line that imports
assert not dpcr.native_available() and not hasattr(torch.ops.deeppcr, "mlp")

sys.path.insert(0, tests)
from test_native import results

with warnings.catch_warnings():
    warnings.simplefilter("error", RuntimeWarning)  # said once, never again
    torch.save(results(), out)
"""


def test_without_the_library_the_results_are_the_same(tmp_path: Path) -> None:
    """The package copied without its lib/ folder, in a process of its own."""
    package = tmp_path / "torch_deeppcr"
    source = Path(dpcr.__file__).parent
    shutil.copytree(source, package, ignore=shutil.ignore_patterns("lib", "__pycache__"))
    out, tests = tmp_path / "results.pt", Path(__file__).parent
    arguments = [sys.executable, "-c", WITHOUT_LIBRARY, str(package), str(tests), str(out)]
    subprocess.run(arguments, check=True, timeout=300, cwd=tmp_path)
    theirs, ours = torch.load(out, weights_only=True), results()
    assert theirs.keys() == ours.keys()
    for name, value in ours.items():
        assert_close(value, theirs[name])
