# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the native library, which registers ``torch.ops.deeppcr.*``.

The library is a plain shared object beside the package, in ``lib/``.  An editable install spreads
the package over two folders (sources here, what was built there), so every entry of the package's
``__path__`` is searched.  Where there is no library, or it does not load, the package still works:
it runs PyTorch's own loop and says so once, when it is imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import torch

_PATTERN = "libdeeppcr_torch.*"

#: Device types with native kernels.  "meta" stands for shapes alone (fake kernels).
devices: frozenset[str] = frozenset()


def native_available() -> bool:
    """Whether the native library is loaded; without it every function runs PyTorch's own loop."""
    return bool(devices)


def load(folders: Iterable[str]) -> None:
    """Loads the library from ``lib/`` in the first of ``folders`` that has it, or warns."""
    global devices
    candidates = [path for folder in folders for path in sorted(Path(folder, "lib").glob(_PATTERN))]
    reason = "it is not installed; building it needs a C and a C++ compiler: pip install ."
    for path in candidates:
        try:
            torch.ops.load_library(path)
        except OSError as error:
            reason = f"{path} does not load: {error.__cause__ or error}"
        else:
            devices = frozenset({"cpu", "meta"})
            return
    warnings.warn(
        "torch_deeppcr runs PyTorch's own loop (same results, slow) because its native library is "
        f"missing: {reason}",
        RuntimeWarning,
        stacklevel=3,
    )
