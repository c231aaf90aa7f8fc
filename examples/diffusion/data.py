# SPDX-License-Identifier: Apache-2.0
"""scikit-learn's 1,797 digits, in the two spaces in which they are learned.

pixels: 64 numbers in [-1, 1].  latent: the first 8 principal components, each of variance 1, which
`Space.decode` turns back into pixels; what a latent diffusion model does, with a linear decoder.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SIDE = 8
PIXELS = SIDE * SIDE
COMPONENTS = 8


class DataError(Exception):
    """The data cannot be had; the message is one sentence for the user."""


@dataclass(frozen=True)
class Space:
    """data (N, w); a point z is the image ``mean + z @ basis`` in pixels."""

    name: str
    data: Tensor
    mean: Tensor  # (64)
    basis: Tensor  # (w, 64)

    @property
    def width(self) -> int:
        return self.data.shape[1]

    def decode(self, points: Tensor) -> Tensor:
        """(N, w) -> pixels (N, 64), in [-1, 1] but for what a model gets wrong."""
        return self.mean + points @ self.basis


def digits() -> tuple[Tensor, Tensor]:
    """Images (N, 64) in [-1, 1] and labels (N)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).float() / 8 - 1, torch.from_numpy(labels).long()


def spaces(images: Tensor) -> dict[str, Space]:
    """By name, both from images (N, 64)."""
    mean = images.mean(0)
    _, scale, directions = torch.linalg.svd(images - mean, full_matrices=False)
    deviation = scale[:COMPONENTS, None] / (len(images) - 1) ** 0.5
    basis = directions[:COMPONENTS] * deviation
    latent = (images - mean) @ directions[:COMPONENTS].T / deviation[:, 0]
    pixels = Space("pixels", images, torch.zeros(PIXELS), torch.eye(PIXELS))
    return {"latent": Space("latent", latent, mean, basis), "pixels": pixels}
