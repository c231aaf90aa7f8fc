# SPDX-License-Identifier: Apache-2.0
"""Seconds and bytes of a call, for contenders in turns."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import random
import sys
import time
import timeit
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch

BLOCK_SECONDS = 4e-3
"""A timed block takes at least so long, or is one call."""
FEWEST_ROUNDS = 3

Call = Callable[[], object]


class Timer(Protocol):
    """timeit.Timer's face."""

    def timeit(self, number: int) -> float:
        """Seconds of so many calls."""


class WallTimer:
    """Python included: from the first call until the device is idle.

    On a GPU it also keeps, in `on_device`, what events say of the same block: the time from the
    device's first work to its last, gaps where it waited for Python included.  Per call.
    """

    def __init__(self, call: Call, device: str) -> None:
        self.call = call
        self.device = device
        self.on_device: list[float] = []

    def timeit(self, number: int) -> float:
        collects = gc.isenabled()
        gc.disable()  # as timeit does
        try:
            return self._on_cpu(number) if self.device == "cpu" else self._on_gpu(number)
        finally:
            if collects:
                gc.enable()

    def _on_cpu(self, number: int) -> float:
        begin = time.perf_counter()
        for _ in range(number):
            self.call()
        return time.perf_counter() - begin

    def _on_gpu(self, number: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin = time.perf_counter()
        start.record()
        for _ in range(number):
            self.call()
        end.record()
        torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        self.on_device.append(1e-3 * start.elapsed_time(end) / number)
        return seconds


class EventTimer:
    """timeit.Timer's face over CUDA events: only the end of a block is awaited."""

    def __init__(self, call: Call) -> None:
        self.call = call

    def timeit(self, number: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(number):
            self.call()
        end.record()
        end.synchronize()
        return 1e-3 * start.elapsed_time(end)


def in_turns(
    calls: dict[str, Call], device: str, rounds: int, budget: float
) -> dict[str, list[float]]:
    """Seconds per call: one number for each round and contender; on a GPU by events."""
    make = timeit.Timer if device == "cpu" else EventTimer
    return turns({name: make(call) for name, call in calls.items()}, rounds, budget)


def turns(timers: Mapping[str, Timer], rounds: int, budget: float) -> dict[str, list[float]]:
    """Seconds per call: one number for each round and timer.

    A busy machine is busy for all, because every round times all of them; each in another order,
    because whoever comes next finds the caches of the one before.  A contender that needs more than
    `budget` seconds for all rounds takes part in fewer, but in at least FEWEST_ROUNDS.
    """
    numbers, most = {}, {}
    for name, timer in timers.items():
        timer.timeit(1)  # warm up
        once = timer.timeit(1)
        numbers[name] = max(1, round(BLOCK_SECONDS / max(once, 1e-9)))
        affordable = int(budget / max(once, BLOCK_SECONDS))
        most[name] = min(rounds, max(FEWEST_ROUNDS, affordable))
    seconds: dict[str, list[float]] = {name: [] for name in timers}
    order, shuffle = list(timers), random.Random(0).shuffle
    for turn in range(rounds):
        shuffle(order)
        for name in order:
            if turn < most[name]:
                seconds[name].append(timers[name].timeit(numbers[name]) / numbers[name])
    return seconds


def peak_memory(call: Call, device: str) -> int | None:
    """Bytes that one call takes on top of what is held before it, None where nobody can tell.

    On a GPU what PyTorch's allocator hands out.  On Linux resident memory as the kernel counts it,
    in steps of some pages, after free memory was given back; memory that an allocator of its own
    keeps for later (JAX) is not seen.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    if sys.platform != "linux":
        return None
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget earlier peaks
        before = status("VmRSS")
        call()
        return max(0, status("VmHWM") - before)
    return None


def status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}")
