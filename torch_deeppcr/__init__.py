# SPDX-License-Identifier: Apache-2.0
"""Deep chains of equal-width steps, and linear recurrences, as one PyTorch operator each.

    import torch_deeppcr as dpcr

    net = dpcr.nn.MLPChain(width=16, depth=1024)
    x = dpcr.linear_recurrence(A, b)

    net = dpcr.parallelize(net)              # your own model, in place

`dpcr.reference` holds the same computations as plain PyTorch loops.
"""

from . import _native

_native.load(__path__)

if _native.native_available():
    from . import _ops

    _ops.register()

from . import _flops, nn, reference  # noqa: E402
from ._native import native_available  # noqa: E402
from ._plan import ChainInfo, ConvergenceError, ConvergenceWarning, Plan, Status  # noqa: E402
from ._switch import sequential  # noqa: E402
from .functional import (  # noqa: E402
    RecurrenceInfo,
    denoise_chain,
    euler_chain,
    layers_chain,
    linear_recurrence,
    mlp_chain,
    residual_chain,
)
from .parallel import (  # noqa: E402
    Report,
    parallelize,
    register_block,
    report,
    steps,
    unparallelize,
)
from .sampling import Schedule, parallel_sampling, sample  # noqa: E402

if _native.native_available():
    _flops.register()

__all__ = [
    "ChainInfo",
    "ConvergenceError",
    "ConvergenceWarning",
    "Plan",
    "RecurrenceInfo",
    "Report",
    "Schedule",
    "Status",
    "denoise_chain",
    "euler_chain",
    "layers_chain",
    "linear_recurrence",
    "mlp_chain",
    "native_available",
    "nn",
    "parallel_sampling",
    "parallelize",
    "reference",
    "register_block",
    "report",
    "residual_chain",
    "sample",
    "sequential",
    "steps",
    "unparallelize",
]
