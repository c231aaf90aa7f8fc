# SPDX-License-Identifier: Apache-2.0
"""Checks that a block computes what its description says, by running both once."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .._plan import solver_of
from .._solve import Call
from .._switch import sequential
from .reading import Unit
from .steps import RUN, Step, locate, stack_rows

_SAMPLES = 3
#: Largest difference relative to the largest value.
_TOLERANCE = {
    torch.float64: 1e-6,  # a block may compute constants in float32
    torch.float32: 1e-4,
    torch.float16: 3e-2,
    torch.bfloat16: 1e-1,
}


class Verifier:
    """Remembers what it has seen, so that every block is run once.

    Each block is run with its own parameters, and the first of its kind also as a copy with random
    ones: parameters that start at zero would hide what a description gets wrong.
    """

    def __init__(self) -> None:
        self._blocks: set[tuple[int, Any]] = set()
        self._kinds: set[tuple[type, Any]] = set()

    def check(self, unit: Unit) -> None:
        """ValueError where block and description differ."""
        block, step = unit.modules[0], unit.step
        assert step is not None
        key = (id(block), step.traits())
        if key in self._blocks:
            return
        kind = (type(block), step.traits())
        if kind not in self._kinds:
            _compare(*_random_copy(block, step), "with random parameters")
        tensor = step.slots()[0].read()
        if tensor.device.type in ("cpu", "cuda") and tensor.dtype in _TOLERANCE:
            _compare(block, step, "")
        self._blocks.add(key)
        self._kinds.add(kind)


def _random_copy(block: nn.Module, step: Step) -> tuple[nn.Module, Step]:
    names = {id(module): name for name, module in block.named_modules()}
    twin = copy.deepcopy(block)
    twin = (twin.to_empty(device="cpu") if _on_meta(block) else twin.cpu()).double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in twin.parameters():
            scale = max(parameter.shape[-1], 1) ** -0.5 if parameter.dim() > 1 else 1.0
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))

    def move(slot: Any) -> Any:
        return slot._replace(owner=twin.get_submodule(names[id(slot.owner)]))

    rows = tuple(row and tuple(map(move, row)) for row in step.rows)
    return twin, locate(Step(step.kind, step.options, rows), twin)


def _on_meta(block: nn.Module) -> bool:
    return any(parameter.is_meta for parameter in block.parameters())


def _compare(block: nn.Module, step: Step, how: str) -> None:
    weight = step.slots()[0].read()
    generator = torch.Generator().manual_seed(1)
    input = torch.randn(_SAMPLES, step.width, generator=generator, dtype=torch.float64)
    input = input.to(weight)
    with torch.no_grad(), torch.random.fork_rng(devices=cuda_devices(weight)):
        actual = _in_eval_mode(block, input.clone())
        expected = _described(step, input)
    if not isinstance(actual, Tensor) or actual.shape != expected.shape:
        what = tuple(actual.shape) if isinstance(actual, Tensor) else type(actual).__name__
        raise ValueError(f"the block maps {tuple(input.shape)} to {what}, a step keeps the shape")
    scale = expected.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    difference = float((actual - expected).abs().max() / scale)
    if not difference <= _TOLERANCE[weight.dtype]:
        raise ValueError(
            f"what it says is not what the block's forward computes: {how + ' ' if how else ''}"
            f"they differ by {difference:.1e} relative to the largest value"
        )


def cuda_devices(*tensors: object) -> list[torch.device]:
    """Whose random state running a module on these may change, besides the CPU's."""
    return list({t.device for t in tensors if isinstance(t, Tensor) and t.is_cuda})


def _in_eval_mode(block: nn.Module, input: Tensor) -> Any:
    modes = [(module, module.training) for module in block.modules()]
    try:
        for module, _ in modes:
            module.training = False
        return block(input)
    finally:
        for module, mode in modes:
            module.training = mode


def _described(step: Step, input: Tensor) -> Tensor:
    """By the plain loop."""
    columns = [None if row is None else [slot.read() for slot in row] for row in step.rows]
    call = Call(False, None, False, solver_of({}))
    with sequential():
        return RUN[step.kind.name](call, input, stack_rows(step, columns), *step.options)
