# SPDX-License-Identifier: Apache-2.0
"""benchmarks/gpu.py, on the CPU, and on a device that only pretends to be a GPU."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import json
import re
import time
import types
from pathlib import Path

import pytest
import torch
from programs import imported

from torch_deeppcr import _planner

gpu, gpu_grid, gpu_page, limits, plots, problems, record, tune = imported(
    "gpu", "gpu_grid", "gpu_page", "limits", "plots", "problems", "record", "tune"
)
BENCHMARKS = Path(gpu.__file__).resolve().parent
EVERYONE = gpu.everyone()
EAGER = next(each for each in EVERYONE if each.name == "eager")
SMALL = "--rounds 2 --compiled none".split()


@pytest.fixture(autouse=True)
def small_programs(monkeypatch):
    """The threads stay as they were, and the device's limits are not measured for long."""
    monkeypatch.setattr(limits, "product_rate", lambda *_: 1e9)
    threads = torch.get_num_threads()
    donated = torch._functorch.config.donated_buffer
    yield
    torch._functorch.config.donated_buffer = donated
    torch.set_num_threads(threads)


@pytest.fixture
def run(tmp_path):
    """Runs the program; its exit status, record and page."""

    def call(*given: str, device: str = "cpu") -> tuple[int, record.Record, str]:
        status = gpu.main([*SMALL, "--device", device, "--out", str(tmp_path), *given])
        (numbers,) = tmp_path.glob("*.json")
        found = record.Record.from_json(numbers.read_text(encoding="utf-8"))
        return status, found, numbers.with_suffix(".md").read_text(encoding="utf-8")

    return call


class Wrong(type(EAGER)):
    name = "a wrong one"

    def prepare(self, problem):
        run = super().prepare(problem)
        right = run.results
        run.results = lambda: [result * 1.01 for result in right()]
        return run


class Failing(type(EAGER)):
    name = "a failing one"

    def prepare(self, problem):
        raise RuntimeError("CUDA error: no luck\nat all")


def with_another(monkeypatch, another) -> None:
    monkeypatch.setattr(gpu, "everyone", lambda: [*EVERYONE, another])


# ---- a run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["normal", "prenorm"])
def test_every_pass_of_a_chain_is_verified_timed_and_written(run, kind):
    status, found, text = run("--problem", f"{kind},12,4,2")
    assert status == 0 and not found.faults()
    assert [cell.run for cell in found.cells] == list(gpu_grid.ALL)
    ours = ["deeppcr", "deeppcr S=1", "deeppcr S=8", "deeppcr S=L"]
    for cell in found.cells:
        assert list(cell.entries) == ["eager", "stacked loop", *ours]
        assert all(map(cell.is_right, cell.entries)) and cell.own < 1e-4
        assert all(len(entry.seconds) == 2 for entry in cell.entries.values())
        assert cell.absent["CUDA graph"] == "needs a GPU" and "deeppcr S=16" in cell.absent
        assert cell.entries["deeppcr S=8"].notes["segments"] == 8
        assert cell.entries["deeppcr S=8"].notes["sweeps"] > 1
    assert set(found.limits) == {"copy", "read", "matmul", "launch"}
    assert {"device", "torch", "commit", "seconds"} <= set(found.setting)
    heads = ["## Ratios, wall time", "## Where it loses", "## Limits", "## Segments"]
    assert all(head in text for head in heads) and "on the device" not in text.split("## ")[1]


def test_a_recurrence_has_nothing_to_be_trained(run):
    status, found, text = run("--problem", "dense,9,3,2", "diagonal,9,3,2")
    assert status == 0
    assert [cell.run for cell in found.cells] == 2 * ["forward", "backward", "forward+backward"]
    assert "chains only" not in text.split("## Who did not run")[0]


def test_a_record_renders_the_same_page_and_a_picture(run, tmp_path):
    _, found, text = run("--problem", "normal,10,4,1", "normal,20,4,1", "normal,20,3,1")
    assert record.Record.from_json(found.to_json()) == found
    (numbers,) = tmp_path.glob("*.json")
    for path in (*tmp_path.glob("*.md"), *tmp_path.glob("*.png")):
        path.unlink()
    assert gpu.main(["--render", str(numbers)]) == 0
    assert next(tmp_path.glob("*.md")).read_text() == text
    assert bool(list(tmp_path.glob("*.png"))) == (plots.Figure is not None)


def test_a_training_step_changes_the_parameters(monkeypatch):
    sgd, given = torch.optim.SGD, []

    def faster(parameters, rate):
        given.extend(parameters)
        return sgd(parameters, 0.5)

    monkeypatch.setattr(torch.optim, "SGD", faster)
    run = EAGER.prepare(problems.Problem("normal", 5, 3, 2, problems.STEP))
    before = [parameter.detach().clone() for parameter in given]
    run.call()
    assert len(given) == 2 * 5
    for parameter, old in zip(given, before, strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.5 * parameter.grad)


# ---- wrong, failing, out of time ----------------------------------------------------------------


def test_a_wrong_contender_is_told_and_not_timed(run, monkeypatch):
    with_another(monkeypatch, Wrong())
    status, found, text = run("--problem", "normal,6,4,3")
    assert status == 1 and len(found.faults()) == len(gpu_grid.ALL)
    for cell in found.cells:
        assert not cell.is_right(Wrong.name) and not cell.entries[Wrong.name].seconds
        assert cell.entries["deeppcr"].seconds
    assert "a wrong one is WRONG" in text.split("## Faults")[1]


def test_a_failing_contender_is_told_and_the_others_go_on(run, monkeypatch):
    with_another(monkeypatch, Failing())
    status, found, text = run("--problem", "normal,6,4,3")
    assert status == 1 and all("deeppcr" in cell.timed for cell in found.cells)
    assert "a failing one failed: RuntimeError: CUDA error: no luck" in text
    status, *_ = run("--problem", "normal,6,4,3", "--contender", "eager", "deeppcr")
    assert status == 0


def test_what_is_not_reached_is_listed(run):
    status, found, text = run("--seconds", "0", "--problem", "normal,6,4,3")
    assert status == 0 and not found.cells and len(found.unreached) == 4
    assert "L=6, w=4, B=3, backward" in text.split("## Not reached")[1]


@pytest.mark.parametrize(
    "line", ["--problem normal,16", "--problem none,1,1,1", "--rounds 0", "--without nobody"]
)
def test_a_bad_option(line, capsys):
    with pytest.raises(SystemExit) as stop:
        gpu.parse(line.split())
    assert stop.value.code == 2 and "error" in capsys.readouterr().err


def test_the_grid_starts_with_what_says_most():
    order = [gpu_grid.size_of(problem) for problem in gpu_grid.grid(False)]
    assert order[0] == ("normal", 1024, 4, 1) and order[4] == ("normal", 1024, 16, 1)
    assert ("prenorm", 1024, 2, 1) not in order
    everything = [(gpu_grid.size_of(p), p.run) for p in gpu_grid.grid(True)]
    assert len(set(everything)) == len(everything)
    for length in (1024, *gpu_grid.LENGTHS):
        for width in gpu_grid.WIDTHS:
            assert all(("normal", length, width, batch) in order for batch in gpu_grid.BATCHES)
    assert {1024, *gpu_grid.LENGTHS} == {64, 256, 1024, 4096, 16384}
    assert set(gpu_grid.WIDTHS) == {2, 4, 8, 16, 32, 64, 128} and gpu_grid.BATCHES == (1, 16, 256)


def test_recurrences_are_in_the_grid_as_far_as_they_fit():
    few, all_of_them = (
        {gpu_grid.size_of(p) for p in gpu_grid.grid(full)} for full in (False, True)
    )
    assert {("dense", 1024, 16, 1), ("dense", 16384, 4, 16), ("diagonal", 1024, 64, 256)} <= few
    assert ("dense", 64, 128, 16) in all_of_them and ("diagonal", 16384, 128, 16) in all_of_them
    assert ("dense", 16384, 128, 256) not in all_of_them
    for kind, length, width, batch in all_of_them:
        if kind in gpu_grid.RECURRENCES:
            assert length * batch * width ** (2 if kind == "dense" else 1) <= gpu_grid.BLOCKS


# ---- a device that pretends ---------------------------------------------------------------------


class Event:
    def __init__(self, enable_timing: bool) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: Event) -> float:
        return 1e3 * (end.at - self.at)


@pytest.fixture
def pretends(monkeypatch):
    """torch.cuda, as far as it is called, for tensors of the device "cpu:0"; a graph is one whose
    replays leave what was recorded, and take a second."""
    stream = types.SimpleNamespace(wait_stream=lambda _: None)
    facts = types.SimpleNamespace(multi_processor_count=1, total_memory=2**30)
    values = {
        "Event": Event,
        "Stream": lambda: stream,
        "CUDAGraph": lambda: types.SimpleNamespace(replay=lambda: None),
        "current_stream": lambda: stream,
        "current_device": lambda: 0,
        "set_stream": lambda _: None,
        "graph_pool_handle": lambda: (0, 1),
        "stream": lambda _: contextlib.nullcontext(),
        "graph": lambda *_, **__: contextlib.nullcontext(),
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
        "set_sync_debug_mode": lambda _: None,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 0,
        "max_memory_allocated": lambda: 2**20,
        "get_device_name": lambda _: "Pretender 1",
        "get_device_properties": lambda _: facts,
    }
    for name, value in values.items():
        monkeypatch.setattr(torch.cuda, name, value)
    turns = gpu.turns

    def timed(*given):
        measured = turns(*given)
        return {n: [1.0] * len(s) if "replayed" in n else s for n, s in measured.items()}

    monkeypatch.setattr(gpu, "turns", timed)
    monkeypatch.setattr(limits, "copy_rate", lambda *_: 1e9)
    return monkeypatch


def test_ours_are_replayed_and_the_others_timed_by_events(run, pretends):
    status, found, text = run("--problem", "normal,12,4,2", "dense,9,3,2", device="cpu:0")
    assert status == 0 and found.setting["device"] == "Pretender 1"
    for cell in found.cells:
        assert "CUDA graph" in cell.timed
        for name, entry in cell.entries.items():
            assert entry.device_by == ("graph" if name.startswith("deeppcr") else "events")
            assert len(entry.device) == len(entry.seconds) == 2
            assert entry.memory == 2**20
        # One replay stands for several calls.
        assert cell.entries["deeppcr"].device == 2 * [1 / gpu.REPLAYS]
    assert "## Ratios, time on the device" in text and "ms on the device" in text
    assert "kernel" in found.limits


def test_heavy_problems_are_measured_one_contender_at_a_time(run, pretends):
    pretends.setattr(gpu, "HEAVY", 0)
    status, found, _ = run("--problem", "normal,6,4,1", device="cpu:0")
    assert status == 0
    for cell in found.cells:
        assert all(entry.seconds and entry.device for entry in cell.entries.values())
        assert cell.entries["deeppcr"].device == 2 * [1.0]


def test_what_cannot_be_captured_is_timed_by_events(run, pretends):
    @contextlib.contextmanager
    def failing(*_, stream, **__):
        try:
            raise RuntimeError("called a synchronizing CUDA operation\nsomewhere")
        finally:
            raise RuntimeError("the capture failed")

    pretends.setattr(torch.cuda, "graph", failing)
    pretends.setattr(limits, "measured", lambda _: {})
    status, found, text = run("--problem", "normal,6,4,1", device="cpu:0")
    entry = found.cells[0].entries["deeppcr"]
    assert entry.device_by == "events" and entry.device
    says = "RuntimeError: called a synchronizing CUDA operation"
    assert status == 1 and found.cells[0].failed == {"CUDA graph": says}
    assert entry.notes["not replayed"] == says
    assert f"deeppcr, 4 cells: {says}" in text.split("## Not in a CUDA graph")[1]


def test_a_wrong_replay_is_a_fault(run, pretends):
    captured = gpu.captured

    def spoiled(*given):
        run = captured(*given)
        right = run.results
        run.results = lambda: [2 * result for result in right()]
        return run

    pretends.setattr(gpu, "captured", spoiled)
    status, found, _ = run("--problem", "normal,6,4,1", device="cpu:0")
    assert status == 1
    assert "the replayed result is WRONG" in found.cells[0].failed["deeppcr, in a CUDA graph"]


def test_a_lost_device_ends_the_run_and_keeps_the_record(run, pretends):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    class Deadly(Failing):
        def prepare(self, problem):
            if problem.run == "backward":
                pretends.setattr(torch.cuda, "synchronize", lost)
            return super().prepare(problem)

    with_another(pretends, Deadly())
    given = ["--problem", "normal,6,4,1", "normal,7,4,1"]
    status, found, text = run(*given, device="cpu:0")
    assert status == 1 and [cell.run for cell in found.cells] == ["forward", "backward"]
    assert found.cells[0].timed and len(found.unreached) == 6
    assert "the device is lost" in text and "a failing one: RuntimeError: CUDA error" in text


# ---- times against segments, and what a page says -----------------------------------------------


@pytest.fixture
def tuned(tmp_path, monkeypatch):
    def call(device: str) -> dict:
        problem = [problems.Problem("normal", 12, 3, 2, run) for run in ("forward", "backward")]
        monkeypatch.setattr(tune, "grid", lambda kind: problem)
        given = [*SMALL, "--device", device, "--out", str(tmp_path), "--tune", "60"]
        assert gpu.main(given) == 0
        (numbers,) = tmp_path.glob("tune-*.json")
        return json.loads(numbers.read_text(), parse_constant=pytest.fail)

    return call


def test_times_against_segments(tuned):
    found = tuned("cpu")
    assert {row["segments"] for row in found["rows"]} == {1, 4, 8, 12}
    assert {row["pass"] for row in found["rows"]} == {"forward", "backward"}
    keys = {"length", "width", "batch", "seconds", "by", "sweeps", "tangent sweeps", "error"}
    assert all(keys <= set(row) and row["by"] == "wall" for row in found["rows"])
    assert found["absent"][0]["deeppcr S=512"] == "too short to be cut so"
    assert not found["faults"] and not found["unreached"]


def test_times_against_segments_on_a_device(tuned, pretends):
    assert all(row["by"] == "graph" for row in tuned("cpu:0")["rows"])


def test_the_best_of_a_tuned_record(tuned, tmp_path, capsys):
    tuned("cpu")
    (path,) = tmp_path.glob("tune-*.json")
    found = json.loads(path.read_text())
    times = {1: 4.0, 4: 1.0, 8: 1.04, 12: 1.2}
    for row in found["rows"]:
        row["seconds"] = 1e-6 * times[row["segments"]]
    path.write_text(json.dumps(found))
    capsys.readouterr()
    assert gpu.main(["--best", str(path)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:7] == ["kind", "pass", "w", "B", "L", "us", "S"]
    assert [line.split() for line in lines] == [
        ["normal", run, "3", "2", "12", "1", "4", "4.00", "4,", "8"]
        for run in ("backward", "forward")
    ]


def test_the_planner_names_its_record():
    named = re.findall(r"results/tune-[\w-]+\.json", inspect.getsource(_planner))
    assert named and all((BENCHMARKS / name).is_file() for name in named)


def drawn(record_, tmp_path, monkeypatch):
    """The figure of a record, and the name of its file."""
    figures = []
    save = plots.save

    def keep(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    name = plots.against_length(record_, tmp_path / "a.png")
    return (figures[0], name) if figures else (None, name)


def synthetic(on_device: bool) -> record.Record:
    """Time in microseconds: L times the contender's place, doubled by w = 8; half of it on the
    device."""
    names = list(plots.LINES)
    cells = []
    for width, length, run in itertools.product((4, 8), (1024, 64, 16384), ("forward", "backward")):
        entries = {}
        for place, name in enumerate(names, 1):
            if name == "deeppcr S=L" and length == 16384:
                continue
            wall = 1e-6 * place * length * width / 4
            device = [wall / 2] * 3 if on_device else []
            entries[name] = record.Entry(1e-6, 1e-5, 0.1, [wall] * 3, device)
        cells.append(record.Cell("normal", length, width, 1, run, 1e-6, entries))
    cells.append(record.Cell("normal", 64, 4, 16, "forward", 1e-6, dict(cells[2].entries)))
    cells.append(record.Cell("dense", 64, 16, 1, "forward", 1e-6, dict(cells[2].entries)))
    cells.append(record.Cell("mlp", 64, 32, 1, "forward", 1e-6, dict(cells[2].entries)))
    facts = {"title": "", "compiles": False, "always_right": True}
    known = {name: {**facts, "ours": name.startswith("deeppcr")} for name in names}
    return record.Record({}, known, cells, {"copy": 1e9, "matmul": 1e9})


@pytest.mark.skipif(plots.Figure is None, reason="matplotlib is not installed")
@pytest.mark.parametrize("on_device", [True, False])
def test_the_picture_has_a_curve_for_each_contender(on_device, tmp_path, monkeypatch):
    """A panel for each width and pass of the kind that has most; one sample; log-log."""
    figure, name = drawn(synthetic(on_device), tmp_path, monkeypatch)
    assert name == "a.png" and (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"w = {w}, {run}" for run in ("forward", "backward") for w in (4, 8)]
    factor = 0.5 if on_device else 1.0
    for axes, width in zip(figure.axes, (4, 8, 4, 8), strict=True):
        assert axes.get_xscale() == axes.get_yscale() == "log"
        curves = {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}
        assert list(curves) == list(plots.LINES)
        for place, (name, points) in enumerate(curves.items(), 1):
            lengths = (64, 1024) if name == "deeppcr S=L" else (64, 1024, 16384)
            times = [factor * place * length * width / 4 for length in lengths]
            assert points == [pytest.approx(pair) for pair in zip(lengths, times, strict=True)]
    says = "on the device" if on_device else "wall time"
    assert figure.axes[0].get_ylabel() == f"microseconds, {says}"


def test_no_picture_of_recurrences_alone(tmp_path, monkeypatch):
    only = synthetic(True)
    only.cells = [cell for cell in only.cells if cell.kind == "dense"]
    assert drawn(only, tmp_path, monkeypatch) == (None, None)


def test_what_was_achieved_is_held_to_the_limits():
    """Bandwidth and rate of the fastest of ours: 64 x 4 x 4 weights in 32 us on the device."""
    text = gpu_page.achieved(gpu_page.on_one_clock(synthetic(True)))
    (line,) = [each for each in text.splitlines() if "| 64 | 4 | 1 | forward |" in each]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    seconds = 3 * 64e-6 / 2  # S=1 is the third
    assert cells[5] == "deeppcr S=1" and float(cells[6]) == pytest.approx(1e6 * seconds, rel=1e-2)
    assert float(cells[8]) == pytest.approx(1e-9 * 4 * 64 * 16 / seconds, rel=1e-2)
    assert float(cells[9]) == pytest.approx(100 * 4 * 64 * 16 / seconds / 1e9, rel=5e-2)
    assert float(cells[10]) == pytest.approx(1e-12 * 2 * 64 * 16 / seconds, rel=1e-2)


def test_losses_are_told():
    def entry(wall: float, device: float) -> record.Entry:
        return record.Entry(1e-6, 1e-5, 0.1, [wall] * 3, [device] * 3, "graph")

    entries = {
        "eager": entry(9.0, 9.0),
        "CUDA graph": entry(2.0, 1.5),
        "deeppcr": entry(3.0, 1.0),
        "deeppcr S=8": entry(3.1, 0.5),
    }
    facts = {"title": "", "compiles": False, "always_right": True}
    known = {name: {**facts, "ours": name.startswith("deeppcr")} for name in entries}
    cell = record.Cell("normal", 16, 4, 1, "forward", 1e-6, entries)
    found = record.Record({}, known, [cell], {"copy": 1e9, "matmul": 1e9})
    (wall,) = gpu_page.losses(found, "wall time")
    assert wall.endswith("wall time: CUDA graph is 1.5 times faster")
    (device,) = gpu_page.losses(found.on_device(), "device time")
    assert device.endswith("the plan is 2 times slower than deeppcr S=8")
    text = gpu_page.page(found, None)
    assert wall in text and device in text and "| **0.667** |" in text
    assert "wall time, CUDA graph / ours: 0.667" in gpu_page.summary(found)[1]


def test_work_and_bytes():
    cell = record.Cell("prenorm", 10, 4, 3, "training step", 1e-6)
    assert limits.flop(cell) == 3 * 2 * 10 * 3 * 2 * 16
    assert limits.least_bytes(cell) == 6 * 4 * 10 * 2 * 16
    blocks = record.Cell("dense", 10, 4, 3, "forward", 1e-6)
    assert limits.flop(blocks) == 2 * 10 * 3 * 16 and limits.least_bytes(blocks) == 4 * 10 * 3 * 16
    assert limits.elements(record.Cell("diagonal", 10, 4, 3, "forward", 1e-6)) == 120


def test_errors_of_what_has_vanished():
    tiny = [torch.full((2, 3), 1e-40, dtype=torch.float64)]
    assert problems.error([torch.zeros(2, 3)], tiny) < 1e-9
    assert problems.error([torch.ones(2, 3)], tiny) > 1
