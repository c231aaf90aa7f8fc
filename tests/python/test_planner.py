# SPDX-License-Identifier: Apache-2.0
"""The planner of "auto": the cost model, what is assumed, what is learnt, and when it lets go."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from cases import Chain, Spy, assert_close
from cases import gradients as gradients_of
from torch.func import grad, vmap

import torch_deeppcr as dpcr
from torch_deeppcr import _planner, _solve
from torch_deeppcr._kinds import Options
from torch_deeppcr._planner import (
    FEWEST_THREADS,
    LANES,
    MARGIN,
    START,
    TILE,
    Planner,
    Problem,
    Sweeps,
    cost,
)

L, W = 4096, 4


def problem(**changes: Any) -> Problem:
    values = {"length": L, "batch": 1, "width": W, "dtype": torch.float32, "refresh": "adaptive"}
    return Problem(**{**values, "threads": 64, "gradients": False, **changes})


def report(*sweeps: float, tangents: float = 1.0, status: int = 0) -> torch.Tensor:
    info = torch.zeros(6, len(sweeps), dtype=torch.float64)
    info[0], info[1], info[2] = torch.tensor(sweeps), tangents, status
    return info


@pytest.fixture
def many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the planner sees it; the kernels have one."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)


# ---- the model ----------------------------------------------------------------------------------


def test_cost_of_one_segment() -> None:
    """Tiles of samples are what can run in parallel."""
    one = Sweeps(1, 0, True)
    step = 1 + 1 / LANES
    assert cost(problem(), 1, one) == L * step
    tile = cost(problem(batch=TILE), 1, one)
    assert tile == L * (1 + TILE / LANES)
    assert cost(problem(batch=2 * TILE), 1, one) == tile / 2
    assert cost(problem(batch=2 * TILE, threads=1), 1, one) == tile
    assert cost(problem(batch=10**6), 1, one) == tile / 64
    assert cost(problem(gradients=True), 1, one) == 3 * L * step


def test_cost_of_many_segments() -> None:
    few, more, tangent = Sweeps(4, 0, True), Sweeps(8, 0, True), Sweeps(4, 1, True)
    step = 1 + 1 / LANES
    assert cost(problem(), 64, few) == 4 * (L + 128) * step / 64 + 4 * START
    assert (
        cost(problem(), 16, few) == 4 * (L + 32) * step / 16 + 4 * START
    )  # not more than S at once
    assert cost(problem(), 64, more) == 2 * cost(problem(), 64, few)
    # Tangents are w columns a sample, in the steps and in the products of maps.
    extra = cost(problem(), 64, tangent) - cost(problem(), 64, few)
    assert extra == pytest.approx((L + 64) * W / LANES / 64)
    wide = problem(width=8 * W)
    assert cost(wide, 64, tangent) - cost(wide, 64, few) == pytest.approx(8 * extra)
    back = cost(problem(gradients=True), 64, few) - cost(problem(), 64, few)
    assert back == pytest.approx(extra + 2 * L * step / 64 + START)
    picard = problem(gradients=True, refresh=None)
    back = cost(picard, 64, few) - cost(problem(), 64, few)
    assert back == pytest.approx(4 * 2 * L * step / 64 + 4 * START)


def test_few_threads_cannot_win() -> None:
    """The shortcut agrees with the model, for every shape."""
    for threads in range(1, FEWEST_THREADS):
        for width in (1, 4, 64):
            for batch in (1, 32, 1000):
                for gradients in (False, True):
                    for refresh in (None, "adaptive"):
                        given = problem(
                            threads=threads,
                            width=width,
                            batch=batch,
                            gradients=gradients,
                            refresh=refresh,
                        )
                        assert Planner().choose(given).segments == 1


# ---- taking and leaving -------------------------------------------------------------------------


def test_it_is_taken_where_it_pays() -> None:
    choice = Planner().choose(problem())
    assert choice.segments > 1
    assert "64 threads" in choice.why and "4 sweeps" in choice.why and "assumed" in choice.why
    for given in (
        problem(threads=2),
        problem(width=512),
        problem(batch=10**4),
        problem(length=1),
        problem(length=256),
    ):
        choice = Planner().choose(given)
        assert choice.segments == 1 and choice.max_sweeps is None, given
        assert choice.why.startswith("segments=1: ")
    # An eager refresh is dearer; Jacobians that are not computed cost nothing.
    assert Planner().choose(problem(width=512, refresh=None)).segments > 1


def test_without_jacobians_more_sweeps_are_assumed() -> None:
    planner, given = Planner(), problem(refresh=None)
    assert planner.expected(given, 8).total == 8  # then every segment is exact
    assert planner.expected(given, 64).total == planner.expected(given, 512).total > 10
    assert planner.expected(problem(), 64).total == 4


def test_sweeps_seen_keep_it_or_end_it() -> None:
    planner, given = Planner(), problem()
    first = planner.choose(given)
    planner.learn(given, first.segments, report(5, 5))
    kept = planner.choose(given)
    assert kept.segments == first.segments and "5 sweeps" in kept.why and "seen" in kept.why
    planner.learn(given, first.segments, report(200, 300, tangents=150))
    assert planner.choose(given).segments != first.segments
    assert planner.choose(problem(batch=2)).segments > 1  # another shape is another matter
    planner.learn(given, first.segments, report(5))  # and back
    assert planner.choose(given).segments == first.segments
    assert Planner().choose(problem(refresh="always", width=128)).segments == 1
    assert Planner().choose(problem(width=128)).segments > 1


def test_a_chain_that_never_converges_is_given_up() -> None:
    """After so many attempts as there are powers of two, at a bounded cost each."""
    planner, given, tried = Planner(), problem(), []
    while (choice := planner.choose(given)).segments > 1:
        tried.append(choice.segments)
        every_sweep = Sweeps(choice.max_sweeps, choice.max_sweeps, True)
        assert cost(given, choice.segments, every_sweep) <= 5 * cost(given, 1, every_sweep)
        planner.learn(given, choice.segments, report(choice.max_sweeps, status=1))
    assert len(set(tried)) == len(tried) <= math.log2(L)
    assert planner.choose(given).segments == 1


def test_sweeps_of_fewer_segments_are_a_lower_bound() -> None:
    planner, given = Planner(), problem()
    planner.learn(given, 8, report(9, tangents=3))
    assert planner.expected(given, 8) == Sweeps(9, 3, True)
    assert planner.expected(given, 64) == Sweeps(9, 3, False)
    assert planner.expected(given, 4).total < 9


def test_one_bad_sample_spoils_a_plan() -> None:
    planner, given = Planner(), problem(batch=2)
    info = report(5, 5)
    info[2, 1] = 1
    planner.learn(given, 64, info)
    assert planner.expected(given, 64).total == math.inf


def test_margin() -> None:
    planner, given = Planner(), problem()
    best = planner.choose(given)
    sweeps = planner.expected(given, best.segments)
    assert cost(given, best.segments, sweeps) * MARGIN <= cost(given, 1, sweeps)


# ---- in a module --------------------------------------------------------------------------------


def info_of(net: torch.nn.Module, x: torch.Tensor) -> dpcr.ChainInfo:
    return net(x, return_info=True)[1]


def test_with_the_threads_that_there_are() -> None:
    info = info_of(dpcr.nn.MLPChain(W, L), torch.randn(1, W))
    assert info.plan.segments == 1 and info.why.startswith("segments=1: ")


@pytest.mark.usefixtures("many_threads")
def test_a_module_remembers() -> None:
    """A contracting chain goes on in parallel; a chaotic one is left after some calls."""
    x = torch.randn(1, W)
    easy = dpcr.nn.MLPChain(W, L)
    first, later = info_of(easy, x), [info_of(easy, x) for _ in range(3)][-1]
    assert first.plan.segments > 1 and "assumed" in first.why
    assert later.plan.segments > 1 and "seen" in later.why
    assert_close(easy(x), easy.to_sequential()(x))
    x = torch.randn(1, 8)
    hard = dpcr.nn.MLPChain(8, L)
    with torch.no_grad():
        hard.weight.mul_(5)
    expected = dpcr.mlp_chain(x, hard.weight, hard.bias)
    segments = []
    for _ in range(20):
        with torch.no_grad():
            z, info = hard(x, return_info=True)
        assert torch.equal(z, expected)
        segments.append(info.plan.segments)
    assert segments[0] > 1 and set(segments[10:]) == {1}


@pytest.mark.usefixtures("many_threads")
def test_the_memory_is_the_modules_own() -> None:
    net = dpcr.nn.MLPChain(W, L)
    x = torch.randn(1, W)
    keys = set(net.state_dict())
    info_of(net, x)
    assert set(net.state_dict()) == keys
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert "seen" in info_of(twin, x).why
        assert twin._planner is not net._planner
    function = dpcr.mlp_chain(x, net.weight, net.bias, return_info=True)[1]
    assert function.plan.segments == 1 and "a function remembers no sweeps" in function.why


@pytest.mark.usefixtures("many_threads")
def test_where_auto_is_one() -> None:
    x = torch.randn(1, W)
    net = dpcr.nn.MLPChain(W, L)
    assert info_of(net, x).plan.segments > 1
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    assert info_of(compiled, x).plan.segments == 1
    seen = []

    def look(x: torch.Tensor) -> torch.Tensor:
        z, info = net(x, return_info=True)
        seen.append(info)
        return z.sum()

    grad(look)(x)
    vmap(look)(x[None])
    assert [info.plan.segments for info in seen] == [1, 1]
    assert all("torch.func" in info.why for info in seen)
    half = copy.deepcopy(net).bfloat16()
    assert info_of(half, x.bfloat16()).plan.segments == 1
    for policy in ("warn", "raise", "ignore"):
        strict = dpcr.nn.MLPChain(W, L, on_unconverged=policy)
        info = info_of(strict, x)
        assert info.plan.segments == 1 and "on_unconverged='sequential'" in info.why
    for shape in ((0, W), (1, 0)):
        empty = dpcr.nn.MLPChain(shape[1], L)
        assert info_of(empty, torch.randn(*shape)).plan.segments == 1


@pytest.mark.usefixtures("many_threads")
def test_training_with_a_plan() -> None:
    """Gradients of the plan that was chosen, and the plan's own limit of sweeps."""
    net = dpcr.nn.MLPChain(W, L, dtype=torch.float64)
    x = torch.randn(3, W, dtype=torch.float64)
    z, info = net(x, return_info=True)
    assert info.plan.segments > 1 and "training" in info.why
    assert f"at most {info.plan.max_sweeps} sweeps" in info.why
    z.square().sum().backward()
    plain = net.to_sequential()
    plain(x).square().sum().backward()
    expected = torch.stack([layer.weight.grad for layer in plain[::2]])
    assert_close(net.weight.grad, expected)
    limited = dpcr.nn.MLPChain(W, L, max_sweeps=17)
    assert info_of(limited, x.float()).plan.max_sweeps == 17


# ---- CUDA: a table ------------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [_planner.CUDA_CHAINS, _planner.CUDA_BACK, _planner.CUDA_DENSE])
def test_rows_of_the_cuda_tables(rows: tuple[_planner.CudaRow, ...]) -> None:
    for row in rows:
        for width in {row.width, row.width - 1}:
            assert _planner.cuda_segments(rows, 2**14, row.batch, width) == row.segments
            assert _planner.cuda_segments(rows, 2**14, row.batch + 1, width) == 1
            assert _planner.cuda_segments(rows, row.length - 1, 1, width) == 1
        shortest = _planner.cuda_segments(rows, row.length, 1, row.width)
        assert shortest == min(row.segments, row.length // _planner.SHORTEST_SEGMENT)
    assert _planner.cuda_segments(rows, 2**14, 1, rows[-1].width + 1) == 1


def test_recurrences_on_cuda() -> None:
    assert _planner.cuda_recurrence(4096, 1, 4, "dense") == 1024
    assert _planner.cuda_recurrence(4096, 2**12, 5, "diagonal") == 1
    assert _planner.cuda_recurrence(4096, 2**12, 4, "diagonal") == 1024


def test_chains_on_cuda() -> None:
    """Backward, which is linear, is cut where forward is not; sweeps have a limit."""
    choice = _planner.cuda_choice(1024, 1, 4)
    assert (choice.segments, choice.back, choice.max_sweeps) == (1, 256, None)
    choice = _planner.cuda_choice(4096, 1, 4)
    assert (choice.segments, choice.back, choice.max_sweeps) == (128, 256, 16)
    choice = _planner.cuda_choice(16384, 1, 8)
    assert (choice.segments, choice.back, choice.max_sweeps) == (64, 128, 16)
    one = _planner.cuda_choice(9, 1, 1)
    assert (one.segments, one.back, one.max_sweeps) == (1, 1, None)
    assert _planner.cuda_choice(1024, 1, 17) == one
    assert _planner.cuda_choice(4096, 1, 4, measured=False) == one


def test_backward_has_segments_of_its_own_where_states_are_kept() -> None:
    """The gradients are the same, for rounding."""
    options = Options((), (4, "dense"), back=8)
    assert options.backward("states").solver == (8, "dense")
    assert options.backward("checkpoints") is options
    assert options._replace(back=0).backward("states").solver == (4, "dense")
    chain = Chain("mlp", 32, 3, 4, solver={"segments": 4})
    with pytest.MonkeyPatch.context() as patch:
        choose = _solve._choose

        def chosen(*arguments: Any) -> Any:
            problem, choice = choose(*arguments)
            return problem, choice._replace(back=8)

        patch.setattr(_solve, "_choose", chosen)
        with Spy() as spy:
            ours = gradients_of(chain.run, chain.present)
    assert [a[8] for a in spy.arguments("mlp_backward")] == [8]
    assert_close(ours, gradients_of(chain.run, chain.present))


def test_modules_on_cuda_have_a_limit_of_their_own() -> None:
    small, large = 2**10, 2**12
    assert _planner.native_pays(100, small, 1, False, False, cuda=True)
    assert not _planner.native_pays(100, large, 2**10, False, True, cuda=True)
    assert not _planner.native_pays(3, small, 1, False, True, cuda=True)
    assert not _planner.native_pays(100, _planner.CUDA_WIDEST + 1, 1, False, True, cuda=True)
