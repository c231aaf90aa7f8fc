# SPDX-License-Identifier: Apache-2.0
"""`linear_recurrence`: which blocks a shape means, and strides that are read without a copy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Problem, Spy, assert_close, gradients
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import torch_deeppcr as dpcr
from torch_deeppcr import reference

F64 = torch.float64

# ---- which blocks a shape means -----------------------------------------------------------------

L, B, W = 5, 3, 4
READINGS = [
    ((L, B, W, W), (L, B, W), None, "dense"),
    ((L, 1, W, W), (L, B, W), None, "dense"),
    ((L, B, W), (L, B, W), None, "diagonal"),
    ((L, 1, W), (L, B, W), None, "diagonal"),
    ((L, B, 1), (L, B, W), None, "scalar"),
    ((L, 1, 1), (L, B, W), None, "scalar"),
    (None, (L, B, W), None, "identity"),
    ((L, W, W), (L, B, W), "dense", "dense"),
    ((L, W, W), (L, W, W), "dense", "dense"),
    ((L, W, W), (L, W, W), "diagonal", "diagonal"),
    ((L, 1, 1), (L, B, 1), None, "scalar"),
    ((L, 1, 1), (L, 1, 1), None, "scalar"),
    ((L, 1, 1), (L, 1, 1), "dense", "dense"),
    ((L, B, 1), (L, B, 1), "diagonal", "diagonal"),
    ((L, 1, 1), (L, 1, W), "scalar", "scalar"),
]


@pytest.mark.parametrize(("shape", "b_shape", "blocks", "meaning"), READINGS)
def test_shapes_are_read(shape, b_shape, blocks, meaning) -> None:
    A = None if shape is None else torch.randn(*shape, dtype=F64)
    b = torch.randn(*b_shape, dtype=F64)
    with Spy() as spy:
        x = dpcr.linear_recurrence(A, b, blocks=blocks)
    assert spy.calls[0][1][3] == meaning
    if meaning == "dense" and A.dim() == 3:
        A = A[:, None]
    assert_close(x, reference.linear_recurrence(A, b, None, meaning, False))


REFUSED = [
    ((L, W, W), (L, W, W), None, "may hold diagonal blocks"),  # B = w
    ((L, W, W), (L, B, W), None, r"A\[:, None\]"),
    ((L, W, W), (L, 1, W), None, r"A\[:, None\]"),
    ((L, B, W), (L, B, W), "dense", "A must have shape"),
    ((L, B, W, W), (L, B, W), "diagonal", "A must have shape"),
    ((L, B, W), (L, B, W), "scalar", "A must have shape"),
    ((L, 2, W), (L, B, W), None, "A must have shape"),
    ((L, B, 2), (L, B, W), None, "A must have shape"),
    ((L - 1, B, W), (L, B, W), None, "A must have shape"),
    ((L, B, W, W - 1), (L, B, W), None, "A must have shape"),
    ((W, W), (L, B, W), None, "A must have 3 or 4 dimensions"),
    ((1, L, B, W, W), (L, B, W), None, "A must have 3 or 4 dimensions"),
    ((L, B, W, W), (L, W), None, "b must have shape"),
    ((L, B, W), (L, B, W), "identity", "A must be None"),
    ((L, B, W), (L, B, W), "banded", "blocks must be one of"),
]


@pytest.mark.parametrize(("shape", "b_shape", "blocks", "message"), REFUSED)
def test_shapes_are_refused(shape, b_shape, blocks, message) -> None:
    with pytest.raises(ValueError, match=message):
        dpcr.linear_recurrence(torch.randn(*shape), torch.randn(*b_shape), blocks=blocks)


def test_missing_blocks_are_refused() -> None:
    with pytest.raises(TypeError, match="A must be a tensor"):
        dpcr.linear_recurrence(None, torch.randn(L, B, W), blocks="dense")


# ---- strides ------------------------------------------------------------------------------------


def copies(function: Any) -> list[str]:
    """Names of PyTorch's copying operators that run inside."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        function()
    copying = {"aten::copy_", "aten::clone", "aten::contiguous", "aten::_to_copy"}
    return [event.name for event in recorded.events() if event.name in copying]


@pytest.mark.parametrize("blocks", ["dense", "diagonal", "scalar"])
def test_batch_first_operands_are_not_copied(blocks: str) -> None:
    A, b, x0 = Problem(blocks, 6, 3, 4).tensors()
    expected = dpcr.linear_recurrence(A, b, x0, blocks=blocks)
    batch_first = [t.transpose(0, 1).contiguous() for t in (A, b)]  # (B, L, ...), as users have
    views = [t.transpose(0, 1) for t in batch_first]
    assert not views[1].is_contiguous()
    results = []
    assert not copies(lambda: results.append(dpcr.linear_recurrence(*views, x0, blocks=blocks)))
    assert torch.equal(results[0], expected)


def test_transposed_blocks_are_not_copied() -> None:
    A, b, x0 = Problem("dense", 6, 3, 4).tensors()
    expected = dpcr.linear_recurrence(A.mT.contiguous(), b, x0)
    results = []
    assert not copies(lambda: results.append(dpcr.linear_recurrence(A.mT, b, x0)))
    assert_close(results[0], expected)  # rows and columns may be added up in another order
    assert copies(lambda: A.mT.contiguous())  # the probe sees copies


@pytest.mark.parametrize("blocks", ["dense", "diagonal", "scalar"])
def test_any_stride_gives_the_same(blocks: str) -> None:
    A, b, x0 = Problem(blocks, 6, 3, 4).tensors()

    def spread(t: Tensor) -> Tensor:  # no unit stride anywhere
        return torch.stack([t, t], dim=-1)[..., 0]

    strided = [spread(t) for t in (A, b, x0)]
    for function in (
        lambda *t: dpcr.linear_recurrence(*t, blocks=blocks),
        lambda *t: dpcr.linear_recurrence(*t, blocks=blocks, segments=6, reverse=True),
    ):
        assert torch.equal(function(*strided), function(A, b, x0))
        assert_close(gradients(function, strided), gradients(function, [A, b, x0]))
