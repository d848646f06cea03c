"""From a split's images to what a model takes: on the device, changed at random or not, normalised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from compress.data import Data, Split
from compress.data.augment import Augmentation
from compress.data.normalise import normalise
from compress.data.sampler import augment_generator
from compress.data.storage import read
from compress.train.config import AugmentSection


class Inputs:
    """Makes batches.

    Args:
        data: Gives the mean and standard deviation of its training images.
        augment: Random changes for ``augmented``.
        seed: Of these changes.
        device: Where batches are made.
        workers: Processes that read ahead what is not in memory.
        rank: Of this process among those that train together; each draws changes of its own.

    Raises:
        ConfigError: Such images cannot be changed so.
    """

    def __init__(
        self,
        data: Data,
        augment: AugmentSection,
        *,
        seed: int,
        device: torch.device,
        workers: int = 0,
        rank: int = 0,
    ) -> None:
        self.device = device
        self._workers = workers
        self._mean = data.mean
        self._std = data.std
        self._augmentation = Augmentation(
            augment.model_dump(),
            mean=data.mean,
            std=data.std,
            image_shape=data.image_shape,
            classes=len(data.classes),
        )
        self._seed = seed
        self._rank = rank

    def plain(self, split: Split, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images as they are: float32 ``[n, C, H, W]``, and labels int64 ``[n]``."""
        return next(self.plain_batches(split, [indices], workers=0))

    def plain_batches(
        self, split: Split, batches: Sequence[Tensor], *, workers: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What ``plain`` gives for the indices of each batch."""
        for images, labels in self._read(split, batches, self._workers if workers is None else workers):
            yield normalise(images, self._mean, self._std), labels

    def augmented(
        self, split: Split, batches: Sequence[Tensor], *, epoch: int, start: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images changed at random; the changes are a pure function of seed, ``epoch`` and a batch's number.

        Args:
            split: Where the images are.
            batches: Indices, int64 ``[n]`` each.
            epoch: From 0.
            start: The first batch's number.

        Yields:
            Images, float32 ``[n, C, H, W]``, and labels: int64 ``[n]``, or, where images are mixed, the share of each
            class, float32 ``[n, classes]``.
        """
        for step, (images, labels) in enumerate(self._read(split, batches, self._workers), start):
            yield self._augmentation(images, labels, augment_generator(self._seed, epoch, step, self._rank))

    def _read(self, split: Split, batches: Sequence[Tensor], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        for indices, images in zip(batches, read(split, batches, workers=workers), strict=True):
            yield images.to(self.device), split.labels[indices].to(self.device)
