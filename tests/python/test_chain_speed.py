# SPDX-License-Identifier: Apache-2.0
"""benchmarks/chain_speed.py: it verifies before it times, and says what loses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import chain_speed
from speed_report import Cell

TINY = ["--length", "6", "--size", "4,3", "5,1", "--rounds", "2", "--compiled", "none"]


@pytest.fixture(autouse=True)
def own_threads():
    """The benchmark sets one thread for the process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def cell(**changes) -> Cell:
    given = {
        "kind": "MLP",
        "length": 1024,
        "width": 16,
        "batch": 1,
        "run": "forward",
        "seconds": {"eager": [4.0, 3.0, 5.0], "stacked loop": [2.0], "deeppcr": [0.1]},
        "error": {"eager": 1e-6, "stacked loop": 1e-6, "deeppcr": 2e-6},
        "allowed": 1e-5,
    }
    return Cell(**{**given, **changes})


def test_a_run_writes_a_page_and_numbers(tmp_path, capsys):
    assert chain_speed.main([*TINY, "--out", str(tmp_path)]) == 0
    (page,) = tmp_path.glob("chain_speed-*.md")
    assert page.read_text() in capsys.readouterr().out
    numbers = json.loads(page.with_suffix(".json").read_text())
    assert numbers["threads"] == 1 and len(numbers["cells"]) == 2 * 2 * 2
    for each in numbers["cells"]:
        assert set(each["seconds"]) == {"eager", "stacked loop", "deeppcr"}
        assert all(len(seconds) == 2 for seconds in each["seconds"].values())
        assert max(each["error"].values()) < 1e-5


@pytest.mark.parametrize("kind", list(chain_speed.CHAINS))
def test_a_gradient_that_is_a_little_wrong_fails_the_run(tmp_path, monkeypatch, kind):
    """Every output is right, and so is every gradient but one of deeppcr's."""
    make, layer = chain_speed.CHAINS[kind]

    def wrong(width, length):
        chain = make(width, length)
        next(chain.parameters()).register_hook(lambda gradient: gradient * 1.0001)
        return chain

    monkeypatch.setitem(chain_speed.CHAINS, kind, (wrong, layer))
    assert chain_speed.main([*TINY, "--out", str(tmp_path)]) == 1
    (page,) = tmp_path.glob("*.md")
    lines = [line for line in page.read_text().splitlines() if "| forward" in line]
    assert ["WRONG" in line for line in lines] == [kind in line for line in lines]


def test_where_nobody_is_right_nothing_is_verified(tmp_path, monkeypatch):
    kind, (make, _) = next(iter(chain_speed.CHAINS.items()))

    def another(z, weight, bias):
        return chain_speed.mlp_layer(z, 1.01 * weight, bias)

    monkeypatch.setitem(chain_speed.CHAINS, kind, (make, another))
    assert chain_speed.main([*TINY, "--out", str(tmp_path)]) == 1


def test_verdicts():
    assert cell().ratio == 40 and cell().verdict == "claim holds (>= 30 x)"
    slow = {"eager": [1.0], "stacked loop": [0.9], "deeppcr": [0.1]}
    assert cell(seconds=slow).verdict == "CLAIM FAILS (>= 30 x)"
    assert cell(seconds=slow, width=8).verdict == "wins"
    slower = {**slow, "deeppcr": [0.95]}
    assert cell(seconds=slower).verdict == "loses to stacked loop"
    for error in (2e-5, float("nan")):
        assert cell(error={"eager": 1e-6, "deeppcr": error}).verdict == "WRONG"


def test_not_a_number_is_the_largest_error():
    truth = torch.ones(3, 2, dtype=torch.float64)
    result = truth.clone()
    result[1, 0] = float("nan")
    assert chain_speed.relative_error(result, truth) == float("inf")
    assert chain_speed.relative_error(truth, truth) == 0


@pytest.mark.parametrize("line", ["--size 16", "--size 0,1", "--length 0", "--rounds x"])
def test_a_bad_option(line, capsys):
    with pytest.raises(SystemExit) as stop:
        chain_speed.parse(line.split())
    assert stop.value.code == 2 and line.split()[0] in capsys.readouterr().err
