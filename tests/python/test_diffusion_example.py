# SPDX-License-Identifier: Apache-2.0
"""The example in examples/diffusion: its samplers, its distance, its promises, the whole program.

The whole program runs with tiny sizes; the second part of it is skipped where diffusers is missing.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import torch_deeppcr as dpcr

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
pytest.importorskip("matplotlib", reason="the example draws")

DEMO = Path(__file__).resolve().parents[2] / "examples" / "diffusion"


def modules() -> SimpleNamespace:
    """The example's modules.  Other examples have some of the same names, so these are not left in
    sys.modules."""
    names = [path.stem for path in DEMO.glob("*.py")]
    others = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    sys.path.insert(0, str(DEMO))
    try:
        return SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    finally:
        sys.path.remove(str(DEMO))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(others)


ex = modules()
SIZES = {"hidden": 12, "layers": 1}


@pytest.fixture(scope="module")
def spaces():
    images, _ = ex.data.digits()
    return ex.data.spaces(images)


def chain(spaces, name="latent", sampler="DDIM", length=12):
    space = spaces[name]
    model = ex.training.build(space, SIZES, 0).eval()
    return ex.methods.Chain(space, sampler, ex.schedules.SAMPLERS[sampler](length), model)


# ---- data, samplers, distance -------------------------------------------------------------------


def test_both_spaces_decode_to_images(spaces):
    images, labels = ex.data.digits()
    assert images.shape == (1797, 64) and images.min() == -1 and images.max() == 1
    assert labels.bincount().min() > 150
    assert torch.equal(spaces["pixels"].decode(spaces["pixels"].data), images)
    latent = spaces["latent"]
    assert latent.width == 8 and torch.allclose(latent.data.std(0), torch.ones(8), atol=1e-4)
    assert torch.allclose(latent.data.mean(0), torch.zeros(8), atol=1e-4)
    kept = 1 - (latent.decode(latent.data) - images).var() / (images - images.mean(0)).var()
    assert 0.6 < kept < 0.8


@pytest.mark.parametrize("length", [1000, 50])
@pytest.mark.parametrize("name", ["DDIM", "DDPM"])
def test_samplers_are_those_of_diffusers(name, length):
    diffusers = pytest.importorskip("diffusers", reason="its schedulers are the yardstick")
    scheduler = getattr(diffusers, f"{name}Scheduler")(clip_sample=False)
    scheduler.set_timesteps(1000)
    schedule = ex.schedules.SAMPLERS[name](1000)
    assert torch.equal(schedule.timesteps, scheduler.timesteps)
    x, out = torch.randn(2, 5, 3, dtype=torch.float64).unbind()
    coefficients, scales = ex.loops.table(schedule)
    for step in (0, 1, 500, 998, 999):
        t, variance = scheduler.timesteps[step], 0.0
        if name == "DDPM":
            variance = float(scheduler._get_variance(t)) ** 0.5 if t > 0 else 0.0
            stepped = scheduler.step(out, t, x, generator=torch.Generator().manual_seed(1))
            drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
            expected = stepped.prev_sample - variance * drawn * (t > 0)
        else:
            expected = scheduler.step(out, t, x).prev_sample
        a, c = coefficients[step]
        torch.testing.assert_close(a * x + c * out, expected, rtol=1e-3, atol=1e-4)
        assert scales[step] == pytest.approx(variance, rel=1e-2, abs=1e-9)
    few = ex.schedules.SAMPLERS[name](length)
    assert len(few) == length and few.timesteps[0] == 999 and few.timesteps[-1] == 0


def test_a_perfect_model_of_one_point_gives_it_back():
    """If all data is one point x, the noise in x_t is known, and both samplers end at x."""
    point = torch.tensor([0.3, -0.7])
    bars = ex.schedules.bars()

    def perfect(x, t):
        bar = bars[t].float()
        return (x - bar.sqrt() * point) / (1 - bar).sqrt()

    for sampler in ex.schedules.SAMPLERS.values():
        schedule = sampler(100)
        latents = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
        noise = torch.randn(100, 4, 2, generator=torch.Generator().manual_seed(1))
        end = ex.loops.everyday(perfect, schedule, latents, noise)[-1]
        assert torch.allclose(end, point.expand(4, 2), atol=1e-3)


def test_frechet_distance_of_gaussians_is_the_formula():
    frechet = ex.quality.frechet
    a = (torch.tensor([0.0, 0.0]).double(), torch.diag(torch.tensor([1.0, 4.0])).double())
    b = (torch.tensor([3.0, 0.0]).double(), torch.diag(torch.tensor([9.0, 1.0])).double())
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet(a, b) == pytest.approx(9 + 4 + 1) == pytest.approx(frechet(b, a))


def test_the_judge_tells_noise_from_digits():
    images, labels = ex.data.digits()
    judge = ex.quality.Judge(images, labels, seed=0, steps=150)
    assert judge.accuracy > 0.9
    noise = torch.rand(300, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert judge.distance(images[::5]) < 0.2 * judge.distance(noise)


# ---- training -----------------------------------------------------------------------------------


def test_it_learns_and_keeps_what_it_learned(spaces, tmp_path):
    space = spaces["latent"]
    kept, told = {**SIZES, "train": 150, "seed": 0}, []

    def run(options, path=tmp_path / "x.pt"):
        model = ex.training.build(space, SIZES, 0)
        return ex.training.trained(model, space.data, options, path, told.append, name="latent")

    made = run(kept)
    assert made.loss < 0.8 and not made.loaded and "loss" in told[-1]
    again = run(kept)
    assert again.loaded and again.loss == made.loss and "trained before" in told[-1]
    pairs = zip(made.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not run({**kept, "train": 3}).loaded
    (tmp_path / "x.pt").write_bytes(b"no checkpoint")
    assert not run({**kept, "train": 3}).loaded


# ---- methods ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", ["DDIM", "DDPM"])
@pytest.mark.parametrize("space", ["latent", "pixels"])
@torch.no_grad()
def test_every_method_samples_what_the_loop_does(spaces, space, sampler, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    ex.loops.compiled_group.cache_clear()
    task = chain(spaces, space, sampler, length=23)  # groups of the best loop do not divide it
    draw = ex.measure.draw(task, 1, seed=3)
    truth = ex.methods.LOOP.sample(task, draw).samples
    for method in ex.methods.METHODS.values():
        outcome = method.sample(task, draw)
        assert ex.measure.differences(outcome.samples, truth)[0] < 1e-4, method.title
        assert outcome.calls > 0 and outcome.rows > 0
    ex.loops.compiled_group.cache_clear()


def test_differences_are_relative_and_infinite_where_undefined():
    truth = torch.tensor([[3.0, -4.0]])
    largest, rms = ex.measure.differences(truth + torch.tensor([[0.0, 0.4]]), truth)
    assert largest == pytest.approx(0.1) and rms == pytest.approx(0.08)
    assert ex.measure.differences(truth * float("nan"), truth) == (float("inf"), float("inf"))


def test_a_method_that_fails_has_its_reason_in_the_table(spaces):
    class Broken(ex.methods.Method):
        def sample(self, chain, draw):
            raise RuntimeError("out of luck\nand a trace")

    task = chain(spaces)
    draw = ex.measure.draw(task, 1, seed=0)
    result = ex.measure.verify(Broken("broken", "a broken one"), task, draw, draw, None)
    assert result.failure == "RuntimeError: out of luck"
    assert set(ex.report.row(result)[1:]) == {"-"}
    both = ex.measure.ChainResult(task, {"broken": result}, [])
    assert not ex.promises.ran([both]).kept and "out of luck" in ex.report.failures(both)[0]


# ---- promises -----------------------------------------------------------------------------------


def made(spaces, name="latent", largest=1e-6, distance=1.0, ratio=50.0, sweeps=5):
    """Made-up results of a chain, DDIM."""
    result, methods = ex.measure.Result, ex.methods
    one = methods.Outcome(torch.zeros(1, 8), sweeps, sweeps, 100)
    results = {"loop": result(methods.LOOP, one=one, many=one, distance=1.0, ratios=[1.0])}
    for method in (methods.AUTO, methods.PAPER, methods.DIAGONAL):
        results[method.name] = result(
            method, one=one, many=one, distance=distance, ratios=[ratio], largest=largest
        )
    return ex.measure.ChainResult(chain(spaces, name), results, [1.1, 1.2])


def broken(made, seconds=100.0, unet=None):
    found = ex.promises.promises([made], unet or ex.unet.UNetResult("-"), seconds)
    return "\n".join(promise.sentence for promise in found if not promise.kept)


def test_promises_that_hold(spaces):
    assert broken(made(spaces)) == "" and broken(made(spaces, "pixels")) == ""


@pytest.mark.parametrize(
    ("name", "changed", "word"),
    [
        ("latent", {"largest": 2e-4}, "differ from the loop's"),
        ("latent", {"largest": float("inf")}, "differ from the loop's"),
        ("pixels", {"distance": 1.3}, "Frechet"),
        ("latent", {"ratio": 29.0}, "at least 30"),
        ("latent", {"sweeps": 7}, "7 sweeps, at most 6"),
        ("pixels", {"sweeps": 13}, "13 sweeps, at most 12"),
    ],
)
def test_promises_that_do_not(spaces, name, changed, word):
    assert word in broken(made(spaces, name, **changed))


def test_promises_about_training_and_images(spaces):
    assert "at most 180" in broken(made(spaces), seconds=181)
    row = ex.unet.Row("far", 1.0, 1.0, torch.zeros(1, 64), 0, 0, 1, 1, "", largest=1e-3)
    assert "UNet" in broken(made(spaces), unet=ex.unet.UNetResult(rows=[row]))


# ---- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("--steps 9", "--steps"),
        ("--steps 1001", "--steps"),
        ("--steps many", "--steps"),
        ("--batch 1", "--batch"),
        ("--rounds 0", "--rounds"),
        ("--unet-steps 3", "--unet-steps"),
        ("--seed -1", "--seed"),
        (f"--out {__file__}", "--out"),
        ("--verbose", "--verbose"),
    ],
)
def test_a_bad_option_gets_one_sentence(capsys, line, word):
    with pytest.raises(SystemExit) as stop:
        ex.options.parse(line.split())
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.err.count("\n") == 1 and word in said.err


def test_options():
    Options, parse = ex.options.Options, ex.options.parse
    assert parse([]) == Options() and parse(["--out", "x"]).is_default()
    quick = parse("--quick --steps 30".split())
    assert quick.steps == 30 and quick.rounds == 1 and not quick.is_default()
    assert not parse(["--no-unet"]).unet and not parse(["--no-compiler"]).compiler
    assert dataclasses.asdict(Options())["threads"] == 1


# ---- the whole program --------------------------------------------------------------------------

TINY = "--quick --steps 12 --train 10 --no-compiler".split()


def program(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEMO / "demo.py"), *TINY, "--out", str(out), *more]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_run_writes_tables_pictures_and_numbers(tmp_path):
    done = program(tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    table = (tmp_path / "table.md").read_text()
    assert table.strip() in done.stdout and "FAIL" not in table
    for space in ("latent", "pixels"):
        for sampler in ("DDIM", "DDPM"):
            assert f"### {space}, {sampler}, L = 12" in table
    plain = [m.title for m in ex.methods.METHODS.values() if not m.compiles]
    for title in (*ex.report.HEAD, *plain):
        assert f" {title} " in table
    numbers = json.loads((tmp_path / "results.json").read_text())
    methods = numbers["chains"]["latent, DDPM"]["methods"]
    assert methods["loop"]["one"]["calls"] == 12 and methods["paper"]["one"]["sweeps"] > 1
    assert set(numbers["errors_by_sweep"]["pixels, DDIM"]["native"]) == set(ex.curves.JACOBIANS)
    pictures = ["samples", "sweeps"]
    if importlib.util.find_spec("diffusers") is not None:
        pictures.append("unet")
        first, *parallel = numbers["unet"]["rows"]
        assert (first["calls"], first["rows"]) == (8, 16)  # 8 steps of 2 images
        assert all(row["rows"] >= 16 and row["why"] for row in parallel)
        assert "parallel_sampling, diagonal" in table and "Break-even with 1 image" in table
    for picture in pictures:
        assert (tmp_path / f"{picture}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "latent: training step 10 of 10" in done.stderr


def test_without_diffusers_the_second_part_says_so(monkeypatch, spaces, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    options = ex.options.Options(out=tmp_path)
    skipped = ex.unet.second_part(options, spaces["pixels"].data, None, lambda sentence: None)
    assert skipped.missing == "diffusers is not installed: pip install diffusers"
    assert "Skipped: diffusers is not installed" in "\n".join(ex.report.second(skipped, options))


def test_without_scikit_learn_there_is_a_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert ex.demo.main(["--quick", "--out", str(tmp_path)]) == 2
    assert "scikit-learn, which is not installed" in capsys.readouterr().err


def test_a_broken_promise_is_exit_status_1(monkeypatch, capsys, spaces, tmp_path):
    """A native operator that is a little wrong."""
    right = dpcr.nn.Denoiser.denoise

    def wrong(self, *args, **kwargs):
        out = right(self, *args, **kwargs)
        return (out[0] * 1.001, *out[1:]) if isinstance(out, tuple) else out * 1.001

    monkeypatch.setattr(dpcr.nn.Denoiser, "denoise", wrong)
    monkeypatch.setattr(ex.demo, "spaces", lambda images: {"latent": spaces["latent"]})
    threads = torch.get_num_threads()
    assert ex.demo.main([*TINY, "--no-unet", "--out", str(tmp_path)]) == 1
    torch.set_num_threads(threads)
    said = capsys.readouterr().out
    assert "FAIL  latent, DDIM: samples differ" in said and "Skipped: --no-unet." in said
