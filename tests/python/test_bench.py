# SPDX-License-Identifier: Apache-2.0
"""The harness in benchmarks/: it verifies before it times, says what loses and who is missing."""

from __future__ import annotations

import importlib
import json
import math
import sys

import pytest
import torch
from programs import imported

bench, calls, dropin, page, problems, record, sweeps, timing = imported(
    "bench", "calls", "dropin", "page", "problems", "record", "sweeps", "timing"
)
EVERYONE = {each.name: each for each in bench.contenders.everyone()}
TINY = "--rounds 2 --compiled none --device cpu".split()


@pytest.fixture(autouse=True)
def own_threads():
    """The programs set one thread for the process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path):
    """Runs the program on one problem; its exit status, record and page."""

    def call(problem: str, *names: str) -> tuple[int, record.Record, str]:
        given = [*TINY, "--problem", problem, "--out", str(tmp_path), "--contender", *names]
        status = bench.main(given)
        (numbers,) = tmp_path.glob("bench-*.json")
        text = numbers.read_text(encoding="utf-8")
        return status, record.Record.from_json(text), numbers.with_suffix(".md").read_text()

    return call


def cell(**changes) -> record.Cell:
    """eager 4 s, stacked loop 2 s, deeppcr 1 s; all right."""
    entries = {
        "eager": record.Entry(1e-6, 1e-5, 0.1, [4.0, 3.9, 4.1]),
        "stacked loop": record.Entry(1e-6, 1e-5, 0.1, [2.0, 1.9, 2.1]),
        "deeppcr": record.Entry(2e-6, 1e-5, 0.1, [1.0, 0.9, 1.1]),
    }
    entries |= changes.pop("entries", {})
    given = {"kind": "mlp", "length": 1024, "width": 16, "batch": 1, "run": "forward"}
    return record.Cell(**{**given, "own": 1e-6, "entries": entries, **changes})


# ---- a run --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "problem", ["mlp,33,4,3", "residual,33,3,1", "prenorm,33,4,2", "layers,33,4,2"]
)
def test_chains_are_verified_timed_and_written(run, problem):
    ours = [name for name, contender in EVERYONE.items() if contender.ours]
    status, found, text = run(problem, "eager", "stacked loop", *ours)
    assert status == 0 and len(found.cells) == 2
    for each in found.cells:
        keeps = each.run != "forward"
        assert set(each.absent) == (set() if keeps else {"deeppcr recompute"})
        assert {*each.entries, *each.absent} == {"eager", "stacked loop", *ours}
        assert all(len(entry.seconds) == 2 for entry in each.entries.values())
        assert all(map(each.is_right, each.entries)) and each.own < 1e-5
        assert each.entries["deeppcr S=L"].notes["sweeps"] > 1
    assert {"device", "torch", "torch-deeppcr", "commit"} <= set(found.setting)
    assert "## Ratios" in text and "deeppcr S=L" in text


@pytest.mark.parametrize("problem", ["dense,33,3,2", "diagonal,33,3,2"])
def test_recurrences_are_verified_and_timed(run, problem):
    names = ["eager", "C loop", "deeppcr S=1", "deeppcr S=L"]
    status, found, _ = run(problem, *names)
    assert status == 0
    forward, train = found.cells
    assert {*forward.entries, *forward.absent} == set(names)
    assert train.absent["C loop"] == "it has no backward" and "eager" in train.entries


@pytest.mark.parametrize(
    "problem", ["mlp,9,3,2", "prenorm,9,3,2", "layers,9,4,2", "dense,9,3,2", "diagonal,9,3,2"]
)
def test_the_rivals_in_jax_are_right(run, problem):
    pytest.importorskip("jax")
    names = [name for name in EVERYONE if name.startswith("JAX")]
    status, found, _ = run(problem, *names)
    assert status == 0
    for each in found.cells:
        assert len(each.entries) >= 2 and all(map(each.is_right, each.entries))


def test_json_round_trips_and_renders_the_same_page(run, tmp_path):
    _, found, text = run("mlp,6,4,3", "eager", "deeppcr")
    assert record.Record.from_json(found.to_json()) == found
    (numbers,) = tmp_path.glob("*.json")
    next(tmp_path.glob("*.md")).unlink()
    assert bench.main(["--render", str(numbers)]) == 0
    assert next(tmp_path.glob("*.md")).read_text() == text


# ---- wrong, failing and missing contenders ------------------------------------------------------


class Wrong(type(EVERYONE["eager"])):
    """Its output is right, and so is every gradient but one, which is a little wrong."""

    name = "a wrong one"

    def prepare(self, problem):
        run = super().prepare(problem)
        right = run.results

        def results():
            output, *gradients = right()
            return [output, *(g * 1.001 for g in gradients[:1]), *gradients[1:]]

        run.results = results
        return run


@pytest.mark.parametrize("always_right", [True, False])
def test_a_wrong_gradient_is_found(run, monkeypatch, always_right):
    wrong = Wrong()
    wrong.always_right = always_right
    monkeypatch.setattr(bench.contenders, "everyone", lambda: [*EVERYONE.values(), wrong])
    status, found, text = run("mlp,6,4,3", "eager", "deeppcr", wrong.name)
    forward, train = found.cells
    assert status == (1 if always_right else 0)
    assert forward.is_right(wrong.name) and forward.entries[wrong.name].seconds
    assert not train.is_right(wrong.name) and not train.entries[wrong.name].seconds
    assert text.count("**WRONG**") == 1 and ("## Faults" in text) == always_right


def test_a_contender_that_fails_is_listed_and_fails_the_run(run, monkeypatch):
    class Failing(Wrong):
        name = "a failing one"

        def prepare(self, problem):
            raise RuntimeError("no luck\nat all")

    monkeypatch.setattr(bench.contenders, "everyone", lambda: [*EVERYONE.values(), Failing()])
    status, found, text = run("mlp,6,4,3", "eager", "deeppcr", "a failing one")
    assert status == 1 and "eager" in found.cells[0].entries
    assert "a failing one **failed**: RuntimeError: no luck" in text


def test_a_contender_that_cannot_be_imported_is_listed(run, monkeypatch):
    load = importlib.import_module

    def broken(name):
        if name.endswith("c_loop"):
            raise ImportError("no such thing")
        return load(name)

    with monkeypatch.context() as patched:
        patched.setattr(bench.contenders.importlib, "import_module", broken)
        patched.setitem(sys.modules, "contenders", bench.contenders)
        found = bench.contenders.everyone.__wrapped__()
        for name in [name for name in sys.modules if name.startswith("contenders.")]:
            del sys.modules[name]
    (missing,) = (each for each in found if each.name == "c_loop")
    monkeypatch.setattr(bench.contenders, "everyone", lambda: [EVERYONE["eager"], missing])
    _, _, text = run("mlp,6,4,3", "eager", "c_loop")
    assert "| c_loop | cannot be imported: no such thing | 2 of 2 |" in text


def test_who_does_not_fit_says_why(run):
    _, found, text = run("mlp,6,4,3", "eager", "C loop", "CUDA graph", "16 compiled")
    assert set(found.cells[0].absent) == {"C loop", "CUDA graph", "16 compiled"}
    assert "| CUDA graph | needs a GPU | 2 of 2 |" in text


# ---- what a record says -------------------------------------------------------------------------


def test_verdicts():
    ours = ["deeppcr"]
    assert cell().verdict("deeppcr", ours) == "wins against stacked loop"
    slow = record.Entry(1e-6, 1e-5, 0.1, [3.0, 3.1, 2.9])
    assert cell(entries={"deeppcr": slow}).verdict("deeppcr", ours) == "**loses to stacked loop**"
    level = record.Entry(1e-6, 1e-5, 0.1, [2.0, 2.1, 2.2])
    assert cell(entries={"deeppcr": level}).verdict("deeppcr", ours) == "level with stacked loop"
    for error in (2e-5, None):
        wrong = record.Entry(error, 1e-5, 0.1)
        assert cell(entries={"deeppcr": wrong}).verdict("deeppcr", ours) == "**WRONG**"
    assert cell(failed={"deeppcr": "RuntimeError"}).verdict("deeppcr", ours) == "**FAILED**"


def test_losing_ratios_are_bold_and_claims_are_held():
    facts = {"title": "", "ours": False, "compiles": False, "always_right": True}
    known = {name: {**facts, "ours": name == "deeppcr"} for name in cell().entries}
    slow = record.Entry(1e-6, 1e-5, 0.1, [8.0, 8.0, 8.0])
    text = page.page(record.Record({}, known, [cell(entries={"deeppcr": slow})]))
    assert "| **0.5** | - | **0.25** | **loses to stacked loop** | - |" in text
    claims = [line for line in text.splitlines() if "**FAIL**" in line]
    assert len(claims) == 1 and claims[0].endswith(": 0.5")
    fast = record.Entry(1e-6, 1e-5, 0.1, [0.01, 0.01, 0.01])
    text = page.page(record.Record({}, known, [cell(entries={"deeppcr": fast})]))
    assert "**FAIL**" not in text and "- pass: deeppcr at least 100 times" in text


def test_every_cell_is_held_to_the_rival_and_to_the_limits():
    facts = {"title": "", "compiles": False, "always_right": True}
    known = {name: {**facts, "ours": name == "deeppcr"} for name in ("deeppcr", "JAX scan")}

    def entry(seconds: float) -> record.Entry:
        return record.Entry(1e-6, 1e-5, 0.1, [seconds] * 3)

    def claims(limits: dict[str, float], *pairs: tuple[float, float]) -> str:
        cells = [
            cell(width=64, batch=256, entries={"deeppcr": entry(ours), "JAX scan": entry(rival)})
            for ours, rival in pairs
        ]
        return "\n".join(page.claims(record.Record({}, known, cells, limits=limits)))

    assert "pass: faster than JAX scan" in claims({}, (1.0, 1.4))
    slower = claims({}, (1.0, 1.4), (1.0, 1.2), (6e-5, 5e-5))
    assert "**FAIL**: faster than JAX scan" in slower and "1 cells, 1 more under 75 us" in slower
    assert slower.count("missed") == 1 and slower.endswith(": 1.20 of 1.3")
    work = 2.0 * 1024 * 64**2 * 256  # what the rival does at four fifths of the limit
    limits = {"matmul": work / 1.2 / 0.8, "read": 1e30}
    near = claims(limits, (1.0, 1.2))
    assert "pass: faster than JAX scan" in near
    assert "pass: at least 75% of the limit" in near and near.count(": 96%") == 1
    assert "**FAIL**: at least 75% of the limit" in claims(limits, (2.0, 2.6))


def test_what_is_not_a_number_or_of_another_shape_is_infinitely_wrong():
    truth = [torch.ones(3, 2, dtype=torch.float64)]
    result = truth[0].clone()
    result[1, 0] = float("nan")
    assert problems.error([result], truth) == math.inf
    assert problems.error([truth[0][:2]], truth) == math.inf
    assert problems.error(truth, truth) == 0


def test_slow_contenders_take_part_in_fewer_rounds():
    calls = {"quick": lambda: None, "slow": lambda: torch.zeros(10**6).exp().sum()}
    seconds = timing.in_turns(calls, "cpu", rounds=5, budget=1e-9)
    assert {name: len(each) for name, each in seconds.items()} == {"quick": 3, "slow": 3}
    assert len(timing.in_turns(calls, "cpu", rounds=5, budget=60.0)["slow"]) == 5


@pytest.mark.parametrize(
    "line",
    """--problem mlp,16; --problem none,1,1,1; --problem mlp,0,1,1; --rounds 0; --contender nobody
    """.strip().split("; "),
)
def test_a_bad_option(line, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.parse(line.split())
    assert stop.value.code == 2 and line.split()[0] in capsys.readouterr().err


# ---- the tables of sweeps -----------------------------------------------------------------------


CONTRACTING, NORMED = "MLP tanh, gain 1", "pre-norm residual ReLU, scale 1"


def test_the_tables_of_sweeps_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(sweeps, "WIDTHS", (3,))
    monkeypatch.setattr(sweeps, "WIDE", 5)
    status = sweeps.main(["--length", "32", "--out", str(tmp_path)])
    (numbers,) = tmp_path.glob("sweeps-*.json")
    found = json.loads(numbers.read_text(), parse_constant=pytest.fail)
    text = numbers.with_suffix(".md").read_text()
    assert status == (0 if all(check["passed"] for check in found["checks"]) else 1)
    assert len(found["cells"]) == 10 * (5 * 2 + 1) + 5 * 5 + 2 * (5 + 1)
    assert all(check["line"] in text for check in found["checks"])
    for curve in found["curves"]:
        counts = [point["sweeps"] for point in curve["points"]]
        assert counts == sorted(set(counts))
        assert min(point["error"] for point in curve["points"]) < 1e-3


def row(chain: str, always: tuple[int, int], adaptive: tuple[int, int], error: float = 1.0) -> list:
    """One place: (sweeps, tangent sweeps) by both rules."""
    pairs = {"always": always, "adaptive": adaptive}
    return [
        sweeps.Cell(chain, 4, 64, rule, [count], [tangents], [0], [error], [False])
        for rule, (count, tangents) in pairs.items()
    ]


def test_checks_of_the_tables():
    good = [row(CONTRACTING, (8, 7), (10, 3)), row(NORMED, (9, 8), (9, 4))]
    assert all(check.passed for check in sweeps.checks(good))

    def failing(*rows: list) -> list[str]:
        return [check.line() for check in sweeps.checks([*good, *rows]) if not check.passed]

    (line,) = failing(row(CONTRACTING, (8, 7), (12, 3)))
    assert "1.4 times the sweeps" in line and "S=64 adaptive 1.50" in line
    (line,) = failing(row(NORMED, (8, 7), (8, 4)))
    assert "tangent sweeps" in line and "0.57" in line
    assert not failing(row("residual tanh, scale 1", (8, 7), (8, 7)))  # neither of the two groups
    for error in (11.0, None):
        (line,) = failing(row(NORMED, (9, 8), (9, 4), error))
        assert "not bit-equal" in line


def test_what_does_not_converge_has_checks_of_its_own():
    def failing(chain: str, equal: bool) -> list[str]:
        hopeless = row(chain, (9, 8), (30, 29))
        hopeless[1].status, hopeless[1].as_one_segment = [1], [equal]
        good = [row(each, (9, 8), (9, 4)) for each in (CONTRACTING, NORMED)]
        outcome = sweeps.checks([*good, hopeless])
        return [check.line() for check in outcome if not check.passed]

    assert not failing("MLP tanh, gain 1.5 (chaotic)", equal=True)
    (line,) = failing("MLP tanh, gain 1.5 (chaotic)", equal=False)
    assert "bit-equal" in line
    (line,) = failing(NORMED, equal=True)
    assert "adaptive converges wherever" in line and "not: pre-norm" in line


def test_dropin_verifies_and_says_what_it_saw(tmp_path, monkeypatch, capsys):
    small = {"LENGTH": 20, "BLOCKS": 20, "WIDE": 8, "measure_setup": lambda: {"nothing": 1.0}}
    for name, value in small.items():
        monkeypatch.setattr(dropin, name, value)
    assert dropin.main(["--out", str(tmp_path)]) == 0
    (text,) = (path.read_text() for path in tmp_path.glob("dropin-*.md"))
    rows = [line for line in text.splitlines() if line.startswith("| training step, ")]
    assert len(rows) == len(dropin.OPTIMIZERS) and all(" ms (" in row for row in rows)
    (numbers,) = (json.loads(path.read_text()) for path in tmp_path.glob("dropin-*.json"))
    assert list(numbers["wide"]) == ["B = 1, forward", "B = 1, forward + backward"]

    forward = dropin.dpcr.nn.MLPChain.forward
    monkeypatch.setattr(dropin.dpcr.nn.MLPChain, "forward", lambda *a: 1.1 * forward(*a))
    assert dropin.main(["--out", str(tmp_path)]) == 1
    assert "WRONG MLPChain is wrong by 1.0e-01" in capsys.readouterr().err


def test_the_plan_is_held_to_the_best_of_our_plans():
    def line(own: float, other: float) -> str:
        entries = {
            "deeppcr": record.Entry(0.0, 1.0, 0.0, [own]),
            "deeppcr S=1": record.Entry(0.0, 1.0, 0.0, [other]),
        }
        cell = record.Cell("mlp", 8, 4, 1, "forward", 0.0, entries)
        facts = {"title": "", "ours": True, "compiles": False, "always_right": True}
        return page.BestPlan(1.15, 5e-6).line(
            record.Record({}, dict.fromkeys(entries, facts), [cell])
        )

    assert line(1.1e-3, 1e-3).startswith("pass") and line(1.4e-5, 1e-5).startswith("pass")
    assert line(1e-3, 2e-3).startswith("pass")
    assert line(1.2e-3, 1e-3).startswith("**FAIL**") and "1.20 times deeppcr S=1" in line(
        1.2e-3, 1e-3
    )


def test_calls_are_those_that_it_names(tmp_path, monkeypatch):
    monkeypatch.setattr(calls, "ROUNDS", 3)
    assert calls.main(["--out", str(tmp_path)]) == 0
    (numbers,) = (json.loads(path.read_text()) for path in tmp_path.glob("calls-*.json"))
    assert all(s > 0 for times in numbers["seconds"].values() for s in times.values())
    (text,) = (path.read_text() for path in tmp_path.glob("calls-*.md"))
    assert text.count("| MLPChain |") == 3 and text.count("| nn.Linear |") == 3
    chain, z = calls.dpcr.nn.MLPChain(4, 2), torch.randn(1, 4)
    calls.training(calls.nothing(chain), z, list(chain.parameters()))()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in chain.parameters())
