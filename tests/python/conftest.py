# SPDX-License-Identifier: Apache-2.0
"""One thread for every test, so that results do not depend on the machine's load; markers."""

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "slow: takes more than a few seconds (Inductor, AOTInductor)"
    )
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _fresh_dynamo(request: pytest.FixtureRequest):
    """Compiled functions of one test must not count as recompilations of the next."""
    yield
    if "compile" in request.node.path.name:
        torch._dynamo.reset()
