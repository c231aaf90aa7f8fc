# SPDX-License-Identifier: Apache-2.0
"""`sequential`: runs every chain as PyTorch's own loop for a while, to compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_depth = 0


@contextmanager
def sequential() -> Iterator[None]:
    """Inside ``with dpcr.sequential():`` every chain runs PyTorch's own loop.

    Functions and modules with stacked parameters run the loops of `torch_deeppcr.reference`; what
    `torch_deeppcr.parallelize` changed calls its modules one after another, as `nn.Sequential`
    does.  It holds for the whole process, and can be nested.
    """
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def sequential_wanted() -> bool:
    return _depth > 0
