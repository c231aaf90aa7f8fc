# SPDX-License-Identifier: Apache-2.0
"""Markers, the GPU, and one thread for every test: results must not depend on the load."""

from collections.abc import Iterator

import pytest
import torch

from torch_deeppcr import _native


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "slow: takes more than a few seconds (Inductor, AOTInductor)"
    )
    config.addinivalue_line("markers", "cuda: needs a GPU, and is skipped where there is none")
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    reason = "PyTorch has no CUDA" if torch.version.cuda is None else "there is no GPU"
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """What the GPU's kernels say that they do not have is skipped, with their reason."""
    try:
        return (yield)
    except _native.Unsupported as error:
        if item.get_closest_marker("cuda"):
            pytest.skip(str(error))
        raise


@pytest.fixture
def device() -> torch.device:
    """The GPU, of tests marked "cuda"."""
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fresh_dynamo(request: pytest.FixtureRequest):
    """Compiled functions of one test must not count as recompilations of the next."""
    yield
    if "compile" in request.node.path.name:
        torch._dynamo.reset()
