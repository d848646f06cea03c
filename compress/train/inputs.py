"""From a split's images to what a model takes: on the device, changed at random or not, normalised."""

from __future__ import annotations

import torch
from torch import Tensor

from compress.data import Data, Split
from compress.data.augment import normalise, random_crop, random_flip
from compress.data.sampler import augment_generator
from compress.train.config import AugmentSection


class Inputs:
    """Makes batches.

    Args:
        data: Gives the mean and standard deviation of its training images.
        augment: Random changes for ``augmented``.
        seed: Of these changes.
        device: Where batches are made.
    """

    def __init__(self, data: Data, augment: AugmentSection, *, seed: int, device: torch.device) -> None:
        self.device = device
        self._mean = data.mean
        self._std = data.std
        self._augment = augment
        self._seed = seed

    def plain(self, split: Split, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Images as they are: float32 ``[n, C, H, W]``, and labels int64 ``[n]``."""
        images = split.images(indices).to(self.device)
        return normalise(images, self._mean, self._std), split.labels[indices].to(self.device)

    def augmented(self, split: Split, indices: Tensor, *, epoch: int, step: int) -> tuple[Tensor, Tensor]:
        """Images changed at random; the changes are a pure function of seed, ``epoch`` and ``step``."""
        generator = augment_generator(self._seed, epoch, step)
        images = random_crop(split.images(indices).to(self.device), self._augment.pad, generator)
        if self._augment.flip:
            images = random_flip(images, generator)
        return normalise(images, self._mean, self._std), split.labels[indices].to(self.device)
