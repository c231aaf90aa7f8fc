# SPDX-License-Identifier: Apache-2.0
"""`linear_recurrence`: values, segments, gradients."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from cases import Problem, Spy, assert_close, gradients, present, scale_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import torch_deeppcr as dpcr
from torch_deeppcr import reference

BLOCKS = ("dense", "diagonal", "scalar", "identity")
F64 = torch.float64


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    length = draw(st.sampled_from([0, 1, 2, 3, 7, 31, 32, 33, 100]))
    return Problem(
        draw(st.sampled_from(BLOCKS)),
        length,
        draw(st.sampled_from([0, 1, 2, 3, 9, 33])),
        draw(st.sampled_from([0, 1, 2, 3, 4, 5, 8, 16, 17])),
        shared=draw(st.booleans()),
        start=draw(st.booleans()),
        reverse=draw(st.booleans()),
        segments=draw(st.integers(1, max(length, 1))),
        growth=draw(st.sampled_from([0.3, 0.9, 1.1])),
        seed=draw(st.integers(0, 2**16)),
    )


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(problems())
def test_agrees_with_the_loop(problem: Problem) -> None:
    tensors = problem.tensors()
    # Cyclic reduction multiplies blocks, so its roundings may grow where the states shrink again.
    factor = 1e4 if problem.segments == 1 else 1e6
    assert_close(problem.run(*tensors), problem.loop(*tensors), factor=factor)
    ours = gradients(*present(problem.run, tensors))
    assert_close(ours, gradients(*present(problem.loop, tensors)), factor=factor)


@pytest.mark.parametrize("segments", [1, 5, 64])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_float32_is_as_accurate_as_the_loop(blocks: str, segments: int) -> None:
    problem = Problem(blocks, 64, 5, 6, segments=segments)
    tensors = problem.tensors(torch.float32)
    exact = problem.loop(*(None if t is None else t.double() for t in tensors))
    ours, loop = (scale_of(f(*tensors) - exact) for f in (problem.run, problem.loop))
    assert ours <= 10 * loop + 20 * torch.finfo(torch.float32).eps * scale_of(exact)


@pytest.mark.parametrize("blocks", BLOCKS)
def test_segments_and_levels(blocks: str) -> None:
    """S segments take ceil(log2 S) levels, for L a power of two or not."""
    for length in (1, 31, 32, 33):
        problem = Problem(blocks, length, 2, 3)
        tensors = problem.tensors()
        expected = problem.loop(*tensors)
        for segments in sorted({1, 2, 3, length // 2 + 1, length} & set(range(1, length + 1))):
            problem.segments = segments
            x, info = problem.run(*tensors, return_info=True)
            assert_close(x, expected, factor=1e5)
            assert info.levels == math.ceil(math.log2(segments))
            assert type(info.levels) is int
            assert info.recomputed.shape == (2,) and info.recomputed.dtype == torch.bool


def test_auto_is_the_plain_loop() -> None:
    A, b, x0 = Problem("dense", 20, 2, 3).tensors()
    x, info = dpcr.linear_recurrence(A, b, x0, return_info=True)
    assert info.levels == 0 and not info.recomputed.any()
    assert torch.equal(x, dpcr.linear_recurrence(A, b, x0, segments=1))


def test_overflowing_products_are_recomputed() -> None:
    """Growing blocks, then a zero block: products overflow, the loop does not."""
    A = torch.full((400, 3, 1), 10.0)
    A[200] = 0.0
    b = torch.zeros(400, 3, 1)
    b[:, 1] = 1e-30  # overflows in the loop too
    b[:, 2] = 0.0
    x, info = dpcr.linear_recurrence(A, b, segments=400, return_info=True)
    expected = reference.linear_recurrence(A, b, None, "scalar", False)
    assert torch.equal(x[:, 0], expected[:, 0]) and bool(info.recomputed[0])
    assert torch.equal(x.isfinite(), expected.isfinite())


def test_not_a_number_stays_in_its_sample() -> None:
    for segments in (1, 4, 16):
        problem = Problem("dense", 16, 3, 4, segments=segments)
        A, b, x0 = problem.tensors()
        clean = problem.run(A, b, x0)
        b[7, 1, 2] = float("nan")
        x = problem.run(A, b, x0)
        assert torch.equal(x[:, [0, 2]], clean[:, [0, 2]])
        assert torch.equal(x.isnan(), problem.loop(A, b, x0).isnan())


def test_first_block_is_not_read_without_start() -> None:
    for reverse in (False, True):
        A, b, _ = Problem("dense", 5, 2, 3).tensors()
        A[-1 if reverse else 0] = float("nan")
        x = dpcr.linear_recurrence(A, b, reverse=reverse)
        assert x.isfinite().all()
        assert_close(x, reference.linear_recurrence(A, b, None, "dense", reverse))


def test_identity_blocks_are_a_cumulative_sum() -> None:
    b = torch.randn(9, 2, 3, dtype=F64)
    assert_close(dpcr.linear_recurrence(None, b), b.cumsum(0))
    assert_close(dpcr.linear_recurrence(None, b, reverse=True), b.flip(0).cumsum(0).flip(0))


def test_linearity_and_adjoint() -> None:
    """<c, S b> = <S^T c, b>, the transposed system having the blocks A_{l+1}^T and running back."""
    A, b, _ = Problem("dense", 12, 3, 4).tensors()
    c = torch.randn_like(b)
    shifted = torch.cat([A[1:], torch.zeros_like(A[:1])]).mT
    left = (c * dpcr.linear_recurrence(A, b)).sum()
    right = (dpcr.linear_recurrence(shifted, c, reverse=True) * b).sum()
    assert_close(left, right)
    twice = dpcr.linear_recurrence(A, 2 * b)
    assert torch.equal(twice, 2 * dpcr.linear_recurrence(A, b))


# ---- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("blocks", BLOCKS)
def test_gradcheck(blocks: str, shared: bool, reverse: bool) -> None:
    problem = Problem(blocks, 3, 2, 2, shared=shared, reverse=reverse, segments=3)
    function, leaves = present(problem.run, problem.tensors())
    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(
        function, leaves, check_forward_ad=True, check_batched_grad=True
    )
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True)


def test_derivatives_of_derivatives_need_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    A, b, x0 = (t.requires_grad_() for t in Problem("dense", 4, 2, 3).tensors())

    def refuse(*_: Any) -> None:
        raise AssertionError("the plain loop ran")

    monkeypatch.setattr(reference, "linear_recurrence", refuse)
    x = dpcr.linear_recurrence(A, b, x0)
    (gA,) = torch.autograd.grad(x.square().sum(), A, create_graph=True)
    (ggA,) = torch.autograd.grad(gA.square().sum(), A, create_graph=True)
    ggA.sum().backward()
    assert x0.grad.abs().sum() > 0


def test_unneeded_gradients_are_not_computed() -> None:
    for needed in ("A", "b", "x0"):
        tensors = dict(zip(("A", "b", "x0"), Problem("dense", 4, 2, 3).tensors(), strict=True))
        tensors[needed].requires_grad_()
        x = dpcr.linear_recurrence(**tensors)
        saved = x.grad_fn.saved_tensors
        assert (saved[2] is not None) == (needed == "A")  # the states serve gA alone
        with Spy() as spy:
            x.sum().backward()
        (arguments,) = spy.arguments("linear_recurrence_backward")
        assert arguments[7:] == (needed == "A", needed == "x0")
        assert all((t.grad is not None) == (name == needed) for name, t in tensors.items())


def test_no_steps() -> None:
    for blocks in BLOCKS:
        tensors = Problem(blocks, 0, 2, 3).tensors()
        function, leaves = present(Problem(blocks, 0, 2, 3).run, tensors)
        leaves = [leaf.requires_grad_() for leaf in leaves]
        x = function(*leaves)
        assert x.shape == (0, 2, 3)
        for gradient, leaf in zip(torch.autograd.grad(x.sum(), leaves), leaves, strict=True):
            assert torch.equal(gradient, torch.zeros_like(leaf))


def test_threads_have_workspaces_of_their_own() -> None:
    """Which grow with what a thread solves, and are not given back: smaller ones come after."""
    problems = [Problem("dense", length, 2, 8, segments=length) for length in (9, 900, 40, 5000)]
    tensors = [problem.tensors() for problem in problems]
    expected = [p.run(*given) for p, given in zip(problems, tensors, strict=True)]

    def solve(index: int) -> bool:
        return torch.equal(problems[index % 4].run(*tensors[index % 4]), expected[index % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(solve, range(200)))
