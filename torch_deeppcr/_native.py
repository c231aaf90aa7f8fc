# SPDX-License-Identifier: Apache-2.0
"""Finds and loads the native libraries, which register ``torch.ops.deeppcr.*``.

There are two, plain shared objects beside the package, in ``lib/``: one with the schemas and the
CPU kernels, and one with the CUDA kernels, which is looked for only where PyTorch has CUDA.
Loading it starts nothing on a GPU.  An editable install spreads the package over two folders
(sources here, what was built there), so every entry of the package's ``__path__`` is searched.

Where there is no library, or it does not load, the package still works: it runs PyTorch's own loop
and says so once, when it is imported.  Where only the CUDA one is missing, CUDA tensors of the
dtypes that it is for raise NotImplementedError, because a loop on a GPU is what nobody wants
unasked; `torch_deeppcr.sequential` asks for it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

_CPU = "libdeeppcr_torch.*"
_CUDA = "libdeeppcr_torch_cuda.*"
_BUILD_CUDA = "pip install . -C cmake.define.DEEPPCR_CUDA=ON, with nvcc 12.8 or newer"

#: What kernels take.
DTYPES = (torch.float32, torch.float64)

#: Device types with native kernels.  "meta" stands for shapes alone (fake kernels).
devices: frozenset[str] = frozenset()
#: Device types that should have kernels, and why they have not.
missing: dict[str, str] = {}

#: How a RuntimeError of the library begins that means NotImplementedError: ``shim/bridge.h``.
UNSUPPORTED = "deeppcr: not implemented: "


class Unsupported(NotImplementedError):
    """The kernels of a device do not have what a chain asks for."""


def native_available() -> bool:
    """Whether the native library is loaded; without it every function runs PyTorch's own loop."""
    return bool(devices)


def load(folders: Iterable[str]) -> None:
    """Loads the libraries from ``lib/`` in the first of ``folders`` that has them, or warns."""
    global devices
    folders = list(folders)
    reason = _load(_CPU, folders, "building it needs a C and a C++ compiler: pip install .")
    if reason:
        warnings.warn(
            "torch_deeppcr runs PyTorch's own loop (same results, slow) because its native library "
            f"is missing: {reason}",
            RuntimeWarning,
            stacklevel=3,
        )
        return
    devices = frozenset({"cpu", "meta"})
    if torch.version.cuda is None:
        return
    reason = _load(_CUDA, folders, f"build it by {_BUILD_CUDA}")
    if reason:
        missing["cuda"] = (
            f"torch_deeppcr has no kernels for CUDA tensors, because its CUDA library is missing: "
            f"{reason}; inside of torch_deeppcr.sequential() PyTorch's own loop runs"
        )
    else:
        devices |= {"cuda"}


def refuse(tensor: Tensor) -> None:
    """NotImplementedError where a kernel should be and is not."""
    reason = missing.get(tensor.device.type)
    if reason is not None and tensor.dtype in DTYPES:
        raise NotImplementedError(reason)


def explain(error: RuntimeError) -> None:
    """Raises `Unsupported` where that is what an error of the library means."""
    _, found, sentence = str(error).partition(UNSUPPORTED)
    if found:
        raise Unsupported(sentence) from None


def _load(pattern: str, folders: Iterable[str], build: str) -> str:
    """Why there is no library of this name; empty where it is loaded now."""
    reason = f"it is not installed; {build}"
    for path in (path for folder in folders for path in sorted(Path(folder, "lib").glob(pattern))):
        try:
            torch.ops.load_library(path)
        except OSError as error:
            reason = f"{path} does not load: {error.__cause__ or error}"
        else:
            return ""
    return reason
