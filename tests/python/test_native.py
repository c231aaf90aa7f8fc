# SPDX-License-Identifier: Apache-2.0
"""Finding the native library, and doing without it: a warning, once, then the same results."""

from __future__ import annotations

import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from cases import SMALL_CHAINS, assert_close, gradients, name_of

import torch_deeppcr as dpcr
from torch_deeppcr import _native


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nothing was loaded yet; what the test loads is forgotten again."""
    monkeypatch.setattr(_native, "devices", frozenset())


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
