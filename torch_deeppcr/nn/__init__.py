# SPDX-License-Identifier: Apache-2.0
"""Chains as modules, their parameters stacked over the steps."""

from ._block import ResidualBlock
from ._euler import EulerChain
from ._layers import LayersChain
from ._mlp import MLPChain
from ._residual import ResidualChain

__all__ = ["EulerChain", "LayersChain", "MLPChain", "ResidualBlock", "ResidualChain"]
