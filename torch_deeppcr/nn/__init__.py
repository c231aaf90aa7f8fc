# SPDX-License-Identifier: Apache-2.0
"""Chains as modules: with parameters stacked over the steps, or around modules of their own."""

from ._block import ResidualBlock
from ._denoiser import Denoiser
from ._euler import EulerChain
from ._layers import LayersChain
from ._mlp import MLPChain
from ._residual import ResidualChain

# Last: it reads the blocks above.
from ..parallel.containers import ParallelModuleList, ParallelSequential  # isort: skip

__all__ = [
    "Denoiser",
    "EulerChain",
    "LayersChain",
    "MLPChain",
    "ParallelModuleList",
    "ParallelSequential",
    "ResidualBlock",
    "ResidualChain",
]
