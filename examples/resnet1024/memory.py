# SPDX-License-Identifier: Apache-2.0
"""The most memory that this process takes from a given moment on."""

from __future__ import annotations

import contextlib
import resource
import sys
from pathlib import Path

import torch


class PeakMemory:
    """Bytes above what is held at the moment of construction.

    On a GPU what PyTorch's allocator hands out; on the CPU resident memory, as the operating
    system counts it: all of the process, so a compiler that runs inside it counts too.  Linux can
    forget an earlier peak; elsewhere the earlier peak is the baseline.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats(device)
        elif sys.platform == "linux":
            # Refused: then the baseline is an earlier peak, and the difference at worst too small.
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")
        self.baseline = self.now()

    def now(self) -> int:
        if self.device != "cpu":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "linux":
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return 1024 * int(line.split()[1])
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def peak(self) -> int:
        return max(0, self.now() - self.baseline)
