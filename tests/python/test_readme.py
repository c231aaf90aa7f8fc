# SPDX-License-Identifier: Apache-2.0
"""The Python of README.md runs as it stands, from the first block to the last."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
import torch

from torch_deeppcr.parallel import reading

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture
def process_group():
    """For the snippet with DDP: a group of one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_snippets(process_group, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(reading, "_described", {})
    snippets = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(snippets) >= 9
    names: dict[str, object] = {"__name__": "readme"}
    for snippet in snippets:
        exec(compile(snippet, "README.md", "exec"), names)
    shown = capsys.readouterr().out
    assert "1-1000: a chain of 500 steps, kind mlp, width 16, parameters stacked" in shown
    assert "torch.Size([8, 16])" in shown
