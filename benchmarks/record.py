# SPDX-License-Identifier: Apache-2.0
"""What was measured, with what, and what it says: the JSON file and everything read from it."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import statistics
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

BASELINE, OURS = "eager", "deeppcr"


@dataclass
class Entry:
    """One contender in one cell."""

    error: float | None
    """Relative, against fp64; None where it is not a number, or of the wrong shape."""
    allowed: float
    """The largest error that is right."""
    first_call: float
    """Seconds to prepare and run it once: compilation."""
    seconds: list[float] = field(default_factory=list)
    """Per call, of every round; empty for a wrong contender, which is not timed."""
    device: list[float] = field(default_factory=list)
    """Per call, on the device; where it was measured apart."""
    device_by: str = ""
    """How: "graph", replayed, or "events", with the gaps between launches."""
    memory: int | None = None
    """Bytes that one call takes; None: not known."""
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        if len(self.seconds) < 2:
            return self.median, self.median
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return low, high


@dataclass
class Cell:
    """One problem: who ran it, and why the others did not."""

    kind: str
    length: int
    width: int
    batch: int
    run: str
    own: float
    """The error of the plain loop in float32."""
    entries: dict[str, Entry] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    """Contender -> why it does not take part."""
    failed: dict[str, str] = field(default_factory=dict)
    """Contender -> the error that it ended with."""

    def is_right(self, name: str) -> bool:
        entry = self.entries[name]
        return entry.error is not None and entry.error <= entry.allowed

    @property
    def timed(self) -> list[str]:
        return [name for name, entry in self.entries.items() if entry.seconds]

    def ratio(self, slower: str, faster: str) -> float | None:
        """Time of the one over time of the other, None where one was not timed."""
        if slower not in self.timed or faster not in self.timed:
            return None
        return self.entries[slower].median / self.entries[faster].median

    def best_rival(self, ours: list[str]) -> str | None:
        rivals = [name for name in self.timed if name not in ours]
        return min(rivals, key=lambda name: self.entries[name].median, default=None)

    def verdict(self, mine: str, ours: list[str]) -> str:
        """Of one of our contenders against the fastest of the others."""
        if mine in self.failed:
            return "**FAILED**"
        if mine not in self.entries:
            return "-"
        if not self.is_right(mine):
            return "**WRONG**"
        rival = self.best_rival(ours)
        if rival is None:
            return "alone"
        (low, high), (least, most) = (self.entries[n].quartiles for n in (mine, rival))
        if low <= most and least <= high:
            return f"level with {rival}"
        won = self.entries[mine].median < self.entries[rival].median
        return f"wins against {rival}" if won else f"**loses to {rival}**"


@dataclass
class Record:
    """A whole run.  contenders: name -> title, ours, compiles, always_right."""

    setting: dict[str, Any]
    contenders: dict[str, dict[str, Any]]
    cells: list[Cell] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)
    """Of the device, measured: "copy", bytes/s; "matmul", flop/s in float32; ..."""
    unreached: list[str] = field(default_factory=list)
    """Problems that there was no time for."""
    errors: list[str] = field(default_factory=list)
    """Of the run itself, not of a contender."""

    @property
    def ours(self) -> list[str]:
        return [name for name, facts in self.contenders.items() if facts["ours"]]

    def on_device(self) -> Record:
        """The same record with the times on the device in place of wall time."""
        cells = []
        for cell in self.cells:
            entries = {
                name: dataclasses.replace(entry, seconds=entry.device)
                for name, entry in cell.entries.items()
            }
            cells.append(dataclasses.replace(cell, entries=entries))
        return dataclasses.replace(self, cells=cells)

    def faults(self) -> list[str]:
        """Results that are wrong and should not be, and contenders that ended with an error."""
        found = list(self.errors)
        for cell in self.cells:
            size = f"{cell.kind}, L={cell.length}, w={cell.width}, B={cell.batch}, {cell.run}"
            found += [f"{size}: {name} failed: {why}" for name, why in cell.failed.items()]
            for name, entry in cell.entries.items():
                if not cell.is_right(name) and self.contenders[name]["always_right"]:
                    found.append(f"{size}: {name} is WRONG: {entry.error}, not <= {entry.allowed}")
        return found

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        given = json.loads(text)
        for cell in given["cells"]:
            cell["entries"] = {name: Entry(**entry) for name, entry in cell["entries"].items()}
        given["cells"] = [Cell(**cell) for cell in given["cells"]]
        return cls(**given)


# ---- with what ----------------------------------------------------------------------------------


def setting(device: str) -> dict[str, Any]:
    """Device, how busy it is, versions and commit."""
    found = {
        "device": device_name(device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "load before": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "torch threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    packages = ["torch-deeppcr", "jax"]
    if device != "cpu":
        facts = torch.cuda.get_device_properties(device)
        found["processors"] = facts.multi_processor_count
        found["GiB"] = round(facts.total_memory / 2**30, 1)
        found["CUDA"] = torch.version.cuda
        packages.append("triton")
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return {**found, "commit": commit()}


def device_name(device: str) -> str:
    if device != "cpu":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def commit() -> str:
    """Of the sources that this file lies in, with "+" if they differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def file_stem(program: str, device: str) -> str:
    """PROGRAM-DEVICE, for the files of a record."""
    return f"{program}-{slug(device)}"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
