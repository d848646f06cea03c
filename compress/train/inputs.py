"""From a split's images to what a model takes: on the device, changed at random or not, normalised."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.data import Data, Split
from compress.data.augment import Augmentation
from compress.data.normalise import normalise
from compress.data.sampler import augment_generator
from compress.train.config import AugmentSection


class Inputs:
    """Makes batches.

    Args:
        data: Gives the mean and standard deviation of its training images.
        augment: Random changes for ``augmented``.
        seed: Of these changes.
        device: Where batches are made.

    Raises:
        ConfigError: Such images cannot be changed so.
    """

    def __init__(self, data: Data, augment: AugmentSection, *, seed: int, device: torch.device) -> None:
        self.device = device
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

    def plain(self, split: Split, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images as they are: float32 ``[n, C, H, W]``, and labels int64 ``[n]``."""
        images = split.images(indices).to(self.device)
        return normalise(images, self._mean, self._std), split.labels[indices].to(self.device)

    def augmented(self, split: Split, indices: Tensor, *, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Images changed at random; the changes are a pure function of seed, ``epoch`` and ``step``.

        Returns:
            Images, float32 ``[n, C, H, W]``, and labels: int64 ``[n]``, or, where images are mixed, the share of each
            class, float32 ``[n, classes]``.
        """
        images, labels = split.images(indices).to(self.device), split.labels[indices].to(self.device)
        return self._augmentation(images, labels, augment_generator(self._seed, epoch, step))
