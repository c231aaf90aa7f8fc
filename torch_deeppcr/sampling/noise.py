# SPDX-License-Identifier: Apache-2.0
"""A loop's noise, drawn ahead of it: the same numbers, in the same order, from the same generator.

As in diffusers, a list of generators has one for each sample, and a generator of the CPU draws
there for whatever device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = torch.Generator | Sequence[torch.Generator] | None


def check(generator: object, batch: int) -> Generators:
    """The argument, a generator, None, or a list with one for each sample."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if not isinstance(generator, (list, tuple)) or not all(
        isinstance(one, torch.Generator) for one in generator
    ):
        raise TypeError(
            "generator must be a torch.Generator, a list of them or None, "
            f"got {type(generator).__name__}"
        )
    if len(generator) not in (1, batch):
        raise ValueError(
            f"generator must have one for each of {batch} samples, got {len(generator)}"
        )
    return generator[0] if len(generator) == 1 else generator


def draw(
    shape: tuple[int, ...], generator: Generators, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Standard normal numbers (B, ...), as the loop of a scheduler draws them for one step."""
    if isinstance(generator, Sequence):
        one = (1, *shape[1:])
        return torch.cat([draw(one, each, dtype, device) for each in generator])
    where = device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=dtype, device=where).to(device)


def copies(generator: Generators, device: torch.device) -> Generators:
    """Generators that draw what these will, without touching them; None is the device's own."""
    if isinstance(generator, Sequence):
        return [_copy(each) for each in generator]
    if generator is not None:
        return _copy(generator)
    fresh = torch.Generator(device)
    if device.type == "cuda":
        fresh.set_state(torch.cuda.get_rng_state(device))
    else:
        fresh.set_state(torch.get_rng_state())
    return fresh


def _copy(generator: torch.Generator) -> torch.Generator:
    fresh = torch.Generator(generator.device)
    fresh.set_state(generator.get_state())
    return fresh
