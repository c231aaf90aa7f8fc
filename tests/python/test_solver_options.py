# SPDX-License-Identifier: Apache-2.0
"""What the options of the solver accept and refuse, the same for every function and module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import Chain, assert_close
from torch import nn

import torch_deeppcr as dpcr

Z, W, B = torch.randn(2, 4), torch.randn(3, 4, 4), torch.randn(3, 4)
W1, B1, W2 = torch.randn(3, 5, 4), torch.randn(3, 5), torch.randn(3, 4, 5)
NAN, INF = float("nan"), float("inf")

# For three steps.
BAD_SOLVER = [
    *(("segments", value, ValueError) for value in (0, -1, 4, "many")),
    *(("segments", value, TypeError) for value in (True, 2.0, None, [2], torch.ones(()))),
    *(("jacobian", value, ValueError) for value in ("full", None, 1, ["dense"], "DENSE")),
    *(("refresh", value, ValueError) for value in ("never", None, True)),
    *(("rtol", value, ValueError) for value in (0.0, -1e-3, NAN, INF)),
    *(("rtol", value, TypeError) for value in (True, "1e-3", torch.ones(()))),
    *(("atol", value, ValueError) for value in (-1e-3, NAN, INF)),
    *(("atol", value, TypeError) for value in (False, None, "0")),
    ("max_sweeps", -1, ValueError),
    *(("max_sweeps", value, TypeError) for value in (3.0, True, "3", INF)),
    *(("on_unconverged", value, ValueError) for value in ("explode", None, True)),
    *(("memory", value, ValueError) for value in ("none", None, 0)),
    ("return_info", 1, TypeError),
    ("segmentz", 3, TypeError),
]


@pytest.mark.parametrize(("option", "value", "error"), BAD_SOLVER)
def test_bad_solver_options(option: str, value: Any, error: type[Exception]) -> None:
    given = {option: value}
    calls = [
        lambda: dpcr.mlp_chain(Z, W, **given),
        lambda: dpcr.residual_chain(Z, W1, B1, W2, B, **given),
    ]
    if option != "return_info":
        plain = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
        calls += [
            lambda: dpcr.nn.MLPChain(4, 3, **given),
            lambda: dpcr.nn.ResidualChain(4, 3, **given),
            lambda: dpcr.nn.MLPChain.from_sequential(plain, **given),
        ]
    for call in calls:
        with pytest.raises(error, match=option):
            call()


def test_good_solver_options() -> None:
    for options in (
        {"segments": 3, "rtol": 1, "atol": 0, "max_sweeps": 0},
        {"segments": "auto", "jacobian": "auto", "rtol": None, "max_sweeps": None},
    ):
        assert dpcr.mlp_chain(Z, W, **options).shape == Z.shape
        assert dpcr.nn.MLPChain(4, 3, **options)(Z).shape == Z.shape


def test_checked_again_where_the_length_is_known() -> None:
    """A function's options may be equal to those of an earlier, longer chain."""
    assert dpcr.mlp_chain(Z, W, segments=3).shape == Z.shape
    with pytest.raises(ValueError, match=r"segments must be in 1\.\.L = 1\.\.2, got 3"):
        dpcr.mlp_chain(Z, W[:2], segments=3)
    assert dpcr.mlp_chain(Z, W[:1], segments=1).shape == Z.shape
    with pytest.raises(TypeError, match="segments"):
        dpcr.mlp_chain(Z, W[:1], segments=True)  # equal to 1, and remembered apart from it


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_loop_has_no_solver(dtype: torch.dtype) -> None:
    """Options are checked, then PyTorch's loop runs whatever they say, and the info tells."""
    chain = Chain("mlp", 6, 2, 4).to(dtype)
    plain, info = chain.run(segments=3, max_sweeps=0, memory="recompute", return_info=True)
    assert torch.equal(plain, chain.loop())
    name = str(dtype)
    assert info.why == f"PyTorch's loop: there is no native kernel for {name} on cpu"
    assert info.plan.segments == 1 and info.levels == 0
    assert info.sweeps.tolist() == [1, 1] and info.status.tolist() == [0, 0]
    assert info.flops.tolist() == [6 * 2 * 4 * 4] * 2
    with pytest.raises(ValueError, match="segments"):
        chain.run(segments=7)
    guess = torch.zeros(6, 2, 4, dtype=dtype)
    assert torch.equal(chain.run(segments=3, warm_start=guess), plain)


def test_warm_start_under_autocast() -> None:
    chain = Chain("mlp", 6, 2, 4).to(torch.bfloat16)
    guess = torch.zeros(6, 2, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        z, info = chain.run(segments=3, warm_start=guess, return_info=True)
    assert z.dtype == torch.float32 and info.plan.segments == 3
    assert_close(z, chain.to(torch.float32).loop())


@pytest.mark.parametrize("memory", ["states", "recompute"])
def test_meta_tensors_through_newton(memory: str) -> None:
    net = dpcr.nn.MLPChain(4, 6, segments=3, memory=memory, on_unconverged="raise", device="meta")
    x = torch.empty(2, 5, 4, device="meta", requires_grad=True)
    z, states, info = net(x, return_states=True, return_info=True)
    assert z.is_meta and states.shape == (6, 2, 5, 4)
    assert info.sweeps.is_meta and info.sweeps.shape == (2, 5) and info.levels.shape == ()
    net(x, warm_start=states).sum().backward()
    assert net.weight.grad.is_meta
