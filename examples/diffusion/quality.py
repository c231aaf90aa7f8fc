# SPDX-License-Identifier: Apache-2.0
"""How good samples are: their Frechet distance to the digits, in the features of a classifier.

    d^2 = |m - m'|^2 + trace(C + C' - 2 (C C')^(1/2))

with mean m and covariance C of the features (Heusel et al. 2017, arXiv 1706.08500), here 16 numbers
from a network that was trained on the same digits.  Only distances within one run compare.
"""

from __future__ import annotations

import torch
from data import PIXELS
from torch import Tensor, nn

FEATURES = 16
STEPS = 600


class Judge:
    """A small classifier, trained when it is made, and the statistics of the digits in it."""

    def __init__(self, images: Tensor, labels: Tensor, seed: int, steps: int = STEPS) -> None:
        torch.manual_seed(seed)
        self.features = nn.Sequential(
            nn.Linear(PIXELS, 64), nn.SiLU(), nn.Linear(64, FEATURES), nn.Tanh()
        )
        head = nn.Linear(FEATURES, int(labels.max()) + 1)
        net = nn.Sequential(self.features, head)
        optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, fused=True)
        random = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            some = torch.randint(len(images), (128,), generator=random)
            loss = nn.functional.cross_entropy(net(images[some]), labels[some])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        with torch.no_grad():
            self.accuracy = float((net(images).argmax(1) == labels).float().mean())
        self.digits = self._moments(images)
        half = torch.randperm(len(images), generator=random)
        self.floor = frechet(self._moments(images[half[::2]]), self._moments(images[half[1::2]]))

    def distance(self, pixels: Tensor) -> float:
        """d^2 of samples (N, 64) to all digits."""
        return frechet(self._moments(pixels), self.digits)

    @torch.no_grad()
    def _moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(pixels.clamp(-1, 1)).double()
        return features.mean(0), torch.cov(features.T)


def frechet(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> float:
    (mean, cov), (other_mean, other_cov) = a, b
    values, vectors = torch.linalg.eigh(cov)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    # the eigenvalues of C C' are those of C^(1/2) C' C^(1/2), which is symmetric
    cross = torch.linalg.eigvalsh(root @ other_cov @ root).clamp(min=0).sqrt().sum()
    trace = cov.trace() + other_cov.trace() - 2 * cross
    return float((mean - other_mean).square().sum() + trace)
