# SPDX-License-Identifier: Apache-2.0
"""Who takes part: every module of this folder whose name has no leading underscore.

To add a contender, add a file with a tuple CONTENDERS of objects of the class below; nothing else
has to know.  What cannot be imported or prepared is listed with the reason, never left out.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from problems import Problem
from torch import Tensor


@dataclass
class Run:
    """A contender made ready for one problem."""

    call: Callable[[], object]
    """One pass, complete when it returns (on a GPU: when the device is idle)."""
    results: Callable[[], list[Tensor]]
    """Does the pass once more and returns what `Problem.plain` returns."""
    notes: Callable[[], dict[str, Any]] = field(default=dict)
    """What is worth telling: "sweeps", "why"; called once, not timed."""
    read: Callable[[Any], list[Tensor]] | None = None
    """Makes results of what `call` returned; contenders in PyTorch have it."""


class Contender:
    name: str
    """As in the tables; unique."""
    title: str
    """One sentence."""
    ours = False
    compiles = False
    """Its first call takes seconds to minutes: takes part only where the suite says so."""
    always_right = True
    """False where the method itself may fail: a wrong result is then shown, but is no failure."""

    def cannot(self, problem: Problem) -> str:
        """Why it does not take part, or ""."""
        return ""

    def gflop(self, problem: Problem) -> float:
        """Of one sweep, where that may be too much to be timed; 0 is always admitted."""
        return 0.0

    def prepare(self, problem: Problem) -> Run:
        raise NotImplementedError


@dataclass
class Missing(Contender):
    """Stands for a module that cannot be imported."""

    name: str
    title: str

    def cannot(self, problem: Problem) -> str:
        return self.title


@functools.cache
def everyone() -> list[Contender]:
    """All contenders, by the names of their modules."""
    found: list[Contender] = []
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda each: each.name):
        if module.name.startswith("_"):
            continue
        try:
            found += importlib.import_module(f"{__name__}.{module.name}").CONTENDERS
        except ImportError as reason:
            found.append(Missing(module.name, f"cannot be imported: {reason}"))
    names = [each.name for each in found]
    assert len(set(names)) == len(names), f"two contenders have one name: {names}"
    return found


def newton_gflop(problem: Problem, segments: int) -> float:
    """A Newton sweep with dense Jacobians: 2 w^3 for each step and each of S log2 S products."""
    levels = max(1, segments - 1).bit_length()
    products = problem.length + segments * levels
    return 2e-9 * problem.batch * problem.width**3 * products
