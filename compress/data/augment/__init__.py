"""Random changes of whole batches of training images, on the images' device; no loop over images.

A new change is one file here, one line in the table of its kind, and its key in ``compress.train.config``'s
``AugmentSection``. Each takes a number from there, and does nothing (and draws nothing) where that is 0.

Random numbers come from a CPU generator whatever the images' device, so a run draws the same changes everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.data.augment.colour import random_brightness, random_contrast, random_hue, random_saturation
from compress.data.augment.crop import random_crop
from compress.data.augment.cutout import cutout
from compress.data.augment.flip import random_flip
from compress.data.augment.mixup import mixup
from compress.data.normalise import normalise
from compress.errors import ConfigError

Change = Callable[[Tensor, Any, torch.Generator], Tensor]
"""Images ``[N, C, H, W]``, how much, a CPU generator -> images of the same shape."""

Mixture = Callable[[Tensor, Tensor, Any, torch.Generator], tuple[Tensor, Tensor]]
"""Images, shares of classes ``[N, classes]``, how much, a CPU generator -> both anew."""

PIXEL_CHANGES: dict[str, Change] = {
    "pad": random_crop,
    "flip": random_flip,
    "brightness": random_brightness,
    "contrast": random_contrast,
    "saturation": random_saturation,
    "hue": random_hue,
}
"""On pixels from 0 to 255, in this order."""

CHANGES: dict[str, Change] = {"cutout": cutout}
"""On normalised images, then."""

MIXTURES: dict[str, Mixture] = {"mixup": mixup}
"""On normalised images and their labels, last."""

COLOUR_KEYS = ("saturation", "hue")
"""What grey images do not have."""


class Augmentation:
    """Pixels to normalised images, changed at random.

    Args:
        amounts: How much, by key of the three tables; what is absent or 0 is left out.
        mean: Of each channel, in units where 255 is 1.
        std: Likewise.
        image_shape: Channels, height, width.
        classes: Number of classes.

    Raises:
        ConfigError: Such images cannot be changed so.
    """

    def __init__(
        self,
        amounts: Mapping[str, float],
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_shape: tuple[int, int, int],
        classes: int,
    ) -> None:
        self._amounts = {key: amount for key, amount in amounts.items() if amount}
        self._mean = mean
        self._std = std
        self._classes = classes
        self._check(image_shape)

    def __call__(self, images: Tensor, labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change one batch.

        Args:
            images: uint8 ``[N, C, H, W]``.
            labels: int64 ``[N]``, on the same device.
            generator: On the CPU; the changes are a function of its state.

        Returns:
            Normalised images, float32 ``[N, C, H, W]``; the labels as they were, or, where images are mixed, the share
            of each class, float32 ``[N, classes]``.
        """
        images = self._changed(images, PIXEL_CHANGES, generator)
        images = self._changed(normalise(images, self._mean, self._std), CHANGES, generator)
        mixtures = [key for key in MIXTURES if key in self._amounts]
        if not mixtures:
            return images, labels
        targets = F.one_hot(labels, self._classes).to(images.dtype)
        for key in mixtures:
            images, targets = MIXTURES[key](images, targets, self._amounts[key], generator)
        return images, targets

    def _changed(self, images: Tensor, table: Mapping[str, Change], generator: torch.Generator) -> Tensor:
        for key, change in table.items():
            if key in self._amounts:
                images = change(images, self._amounts[key], generator)
        return images

    def _check(self, image_shape: tuple[int, int, int]) -> None:
        channels, *size = image_shape
        colour = [f"data.augment.{key}" for key in COLOUR_KEYS if key in self._amounts]
        if colour and channels != 3:
            raise ConfigError(f"{', '.join(colour)}: images of {channels} channels have no colour; leave it out")
        side = self._amounts.get("cutout", 0)
        if side >= min(size):
            raise ConfigError(
                f"data.augment.cutout: a square of {side} pixels would erase whole images of {size[0]}x{size[1]} "
                f"pixels; expected less than {min(size)}"
            )
