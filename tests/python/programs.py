# SPDX-License-Identifier: Apache-2.0
"""Imports the programs of benchmarks/, which are no package."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def imported(*names: str) -> list:
    """Modules of the benchmarks.  Both they and the demo have a module `contenders`: neither shall
    find the other's."""

    def forget() -> dict:
        kept = [name for name in sys.modules if name.split(".")[0] == "contenders"]
        return {name: sys.modules.pop(name) for name in kept}

    others = forget()
    sys.path.insert(0, str(BENCHMARKS))
    try:
        found = [importlib.import_module(name) for name in names]
        found[0].contenders.everyone()  # imports them all, and remembers them
        return found
    finally:
        sys.path.remove(str(BENCHMARKS))
        forget()
        sys.modules.update(others)
