"""A split: labelled images of one size, read by index.

``TensorSplit`` holds its images; ``ResizedSplit`` and ``FileSplit`` (in ``folder``) make theirs when asked, and
``storage.in_memory`` turns them into the first kind where they fit.
"""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_IMAGES = 1024  # images handled at once when a whole split is walked


class Split(Protocol):
    """Labelled images of one size. ``labels``: int64 ``[N]``; ``image_shape``: channels, height, width."""

    @property
    def labels(self) -> Tensor:
        """Class indices, int64 ``[N]``."""
        ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        ...

    def __len__(self) -> int: ...

    def images(self, indices: Tensor) -> Tensor:
        """The images at ``indices`` (int64 ``[n]``): uint8 ``[n, C, H, W]``."""
        ...

    def subset(self, indices: Tensor) -> "Split":
        """The split of the images at ``indices`` (int64 ``[n]``), in that order."""
        ...


class TensorSplit:
    """Images held in memory: uint8 ``[N, C, H, W]``."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or labels.shape != images.shape[:1]:
            raise ValueError(f"images {images.dtype} {list(images.shape)} do not go with labels {list(labels.shape)}")
        self._images = images
        self.labels = labels.to(torch.int64)
        self.image_shape = (images.shape[1], images.shape[2], images.shape[3])

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        """See ``Split.images``."""
        return self._images[indices]

    def subset(self, indices: Tensor) -> "TensorSplit":
        """See ``Split.subset``; copies the images."""
        return TensorSplit(self._images[indices], self.labels[indices])


class ResizedSplit:
    """Another split's images, scaled bilinearly (with antialiasing when made smaller) to ``image_size`` squared."""

    def __init__(self, split: Split, image_size: int) -> None:
        self._split = split
        self.labels = split.labels
        self.image_shape = (split.image_shape[0], image_size, image_size)

    def __len__(self) -> int:
        return len(self._split)

    def images(self, indices: Tensor) -> Tensor:
        """See ``Split.images``."""
        images = self._split.images(indices).float()
        scaled = F.interpolate(images, size=self.image_shape[1:], mode="bilinear", align_corners=False, antialias=True)
        return scaled.round().clamp(0, 255).to(torch.uint8)

    def subset(self, indices: Tensor) -> "ResizedSplit":
        """See ``Split.subset``."""
        return ResizedSplit(self._split.subset(indices), self.image_shape[1])


def resized(split: Split, image_size: int | None) -> Split:
    """``split`` itself where its images have that size already, or none is asked for."""
    if image_size is None or split.image_shape[1:] == (image_size, image_size):
        return split
    return ResizedSplit(split, image_size)


def channel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, in units where 255 is 1.

    Sums are taken in whole numbers, so the result does not depend on the order or size of the chunks.
    """
    channels, height, width = split.image_shape
    total = torch.zeros(channels, dtype=torch.int64)
    total_of_squares = torch.zeros(channels, dtype=torch.int64)
    for indices in chunks(split):
        images = split.images(indices).to(torch.int32)
        total += images.sum((0, 2, 3), dtype=torch.int64)
        total_of_squares += images.square().sum((0, 2, 3), dtype=torch.int64)
    n = len(split) * height * width
    mean = tuple(s / n / 255 for s in total.tolist())
    # n * sum(x^2) - sum(x)^2 in Python's unbounded integers: no cancellation.
    variances = [(n * q - s * s) / (n * n) for s, q in zip(total.tolist(), total_of_squares.tolist(), strict=True)]
    return mean, tuple(variance**0.5 / 255 for variance in variances)


def chunks(split: Split) -> Iterator[Tensor]:
    """The indices of all images, ``CHUNK_IMAGES`` at a time."""
    yield from torch.split(torch.arange(len(split)), CHUNK_IMAGES)
