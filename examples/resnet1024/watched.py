# SPDX-License-Identifier: Apache-2.0
"""A residual chain that keeps the reports of its solves, and the numbers drawn from a report."""

from __future__ import annotations

import torch
from torch.func import functional_call

import torch_deeppcr as dpcr


class Watched(dpcr.nn.ResidualChain):
    """Keeps the `ChainInfo` of the last forward pass with gradients in `info`.

    Without gradients it walks, by the module `walking`, an equal chain of one segment: an accuracy
    takes passes over 1,000 images, and those are not the training that is compared.
    """

    info: dpcr.ChainInfo | None = None

    def walked_by(self, walking: dpcr.nn.ResidualChain) -> Watched:
        self.walking = [walking]  # in a list: not a submodule, its own parameters are never read
        return self

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return functional_call(self.walking[0], dict(self.named_parameters()), input)
        z, self.info = super().forward(input, return_info=True)
        return z


def summary(info: dpcr.ChainInfo) -> dict[str, float]:
    """Of the samples of a solve.  Sweeps with tangents are a mean: a part of the segments counts
    as that part of a sweep."""
    return {
        "sweeps": info.sweeps.double().median().item(),
        "mean_sweeps": info.sweeps.double().mean().item(),
        "most_sweeps": info.sweeps.max().item(),
        "tangent_sweeps": info.tangent_sweeps.double().mean().item(),
        "flops": info.flops.sum().item(),
        "levels": int(info.levels),
        "unconverged": int((info.status != 0).sum()),
    }
