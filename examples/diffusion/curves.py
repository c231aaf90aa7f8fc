# SPDX-License-Identifier: Apache-2.0
"""How the error falls, sweep by sweep, for each linearisation of a step.

native: the largest error of all states x_1..x_L after j sweeps of the operator with S = L, which
stops there.  any model: the error of x_L after each sweep of `dpcr.sample`.  Both over the largest
number of the loop's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import loops
import torch
from measure import differences
from methods import Chain, Draw
from torch import Tensor

import torch_deeppcr as dpcr

JACOBIANS = ("dense", "diagonal", "scalar", "identity")
SHOWN = 60
"""Sweeps that a curve has at most."""


class Curves(NamedTuple):
    """jacobian -> errors after 1, 2, ... sweeps."""

    native: dict[str, list[float]]
    any_model: dict[str, list[float]]


@torch.no_grad()
def curves(chain: Chain, draw: Draw, tell: Callable[[str], object]) -> Curves:
    truth = loops.everyday(chain.model, chain.schedule, draw.latents, draw.noise)
    found = Curves({}, {})
    for jacobian in JACOBIANS:
        tell(f"{chain.name}: sweep by sweep, {jacobian}")
        found.native[jacobian] = native(chain, draw, jacobian, truth)
        found.any_model[jacobian] = any_model(chain, draw, jacobian, truth[-1])
    return found


def native(chain: Chain, draw: Draw, jacobian: str, truth: Tensor) -> list[float]:
    errors: list[float] = []
    for most in range(1, SHOWN + 1):
        _, states, info = chain.model.denoise(
            draw.latents,
            chain.schedule,
            draw.noise,
            return_states=True,
            return_info=True,
            segments=chain.length,
            jacobian=jacobian,
            refresh="always",
            max_sweeps=most,
            on_unconverged="ignore",
        )
        if int(info.sweeps.max()) < most:  # it had converged before
            break
        errors.append(differences(states, truth)[0])
    return errors


def any_model(chain: Chain, draw: Draw, jacobian: str, last: Tensor) -> list[float]:
    errors: list[float] = []
    dpcr.sample(
        chain.model,
        chain.schedule,
        draw.latents,
        generator=draw.generator(),
        plan="parallel",
        jacobian=jacobian,
        preview=lambda sweep, latents: errors.append(differences(latents, last)[0]),
    )
    return errors[:SHOWN]
