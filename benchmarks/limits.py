# SPDX-License-Identifier: Apache-2.0
"""What a device can do at best, measured; and the least that a problem asks of it.

Work counts matrix products alone, and every weight once: a forward pass reads it, backward reads
it and writes its gradient, SGD reads both and writes it.  Weights that fit the L2 cache stay there
from call to call, for every contender, so that more than the memory's bandwidth can be reached.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from problems import BACKWARD, FORWARD, KINDS, STEP, TRAIN
from record import Cell

FLOPS = {FORWARD: 1, BACKWARD: 2, TRAIN: 3, STEP: 3}
BYTES = {FORWARD: 1, BACKWARD: 2, TRAIN: 3, STEP: 6}
"""Times the forward pass, times the weights."""
CHAINED = 1000
"""Small kernels in a row, each of which needs the one before."""


def flop(cell: Cell) -> float:
    """Of the loop: what Newton's method does besides does not count as work."""
    return 2.0 * elements(cell) * (cell.batch if is_chain(cell) else 1) * FLOPS[cell.run]


def least_bytes(cell: Cell) -> float:
    """float32; states do not count."""
    return 4.0 * elements(cell) * BYTES[cell.run]


def share(cell: Cell, name: str, limits: dict[str, float]) -> float | None:
    """Of what the device can do: the larger of its flop/s and its read bytes/s, if measured; more
    than 1 of the bandwidth where weights stay in a cache."""
    if name not in cell.timed or not {"matmul", "read"} <= set(limits):
        return None
    seconds = cell.entries[name].median
    return max(flop(cell) / limits["matmul"], least_bytes(cell) / limits["read"]) / seconds


def elements(cell: Cell) -> int:
    """Of the weights of a chain, of the blocks of a recurrence."""
    if cell.kind == "diagonal":
        return cell.length * cell.batch * cell.width
    matrices = cell.length * cell.width**2 * KINDS[cell.kind].matrices
    return matrices if is_chain(cell) else matrices * cell.batch


def is_chain(cell: Cell) -> bool:
    return KINDS[cell.kind].step is not None


def measured(device: str) -> dict[str, float]:
    """copy: bytes/s, read and written.  read: bytes/s of a sum over more than any cache holds.
    matmul: flop/s in float32.  launch: seconds of wall time for a small kernel among many.  kernel:
    seconds for one of a chain of them in a CUDA graph."""
    on_gpu = device != "cpu"
    found = {
        "copy": copy_rate(2**28 if on_gpu else 2**20, device),
        "read": read_rate(2**28 if on_gpu else 2**26, device),
        "matmul": product_rate(8192 if on_gpu else 512, device),
    }
    small = torch.zeros(32, device=device)

    def chain() -> None:
        for _ in range(CHAINED):
            small.add_(1)

    found["launch"] = seconds(chain, device) / CHAINED
    if on_gpu:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            chain()
        found["kernel"] = seconds(graph.replay, device) / CHAINED
        torch.cuda.empty_cache()
    return found


def copy_rate(count: int, device: str) -> float:
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    return 2.0 * source.nbytes / seconds(lambda: target.copy_(source), device)


def read_rate(count: int, device: str) -> float:
    source = torch.ones(count, device=device)
    return source.nbytes / seconds(source.sum, device)


def product_rate(size: int, device: str) -> float:
    a, b = torch.randn(2, size, size, device=device)
    c = torch.empty_like(a)
    return 2.0 * size**3 / seconds(lambda: torch.mm(a, b, out=c), device)


def seconds(call: Callable[[], object], device: str) -> float:
    """The least of a few, wall time until the device is idle: a limit is what was once reached."""
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return min(times[1:])
