"""Cutout (DeVries and Taylor 2017, arXiv 1708.04552): a random square of each image is erased."""

from __future__ import annotations

import torch
from torch import Tensor


def cutout(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Set a square of each image to 0, which in normalised images is the mean of the training images.

    The square's centre is any pixel with the same probability, so that part of the square may lie outside; it covers
    ``centre - side // 2`` to ``centre - side // 2 + side - 1`` in both directions.

    Args:
        images: Normalised, ``[N, C, H, W]``.
        side: Pixels; 0 leaves the images as they are.
        generator: On the CPU.
    """
    if side == 0:
        return images
    n, _, height, width = images.shape
    rows, columns = (_covered(n, length, side, generator).to(images.device) for length in (height, width))
    return images.masked_fill((rows[:, :, None] & columns[:, None, :]).unsqueeze(1), 0.0)


def _covered(n: int, length: int, side: int, generator: torch.Generator) -> Tensor:
    """Which rows (or columns) the squares cover: bool ``[n, length]``."""
    first = torch.randint(length, (n, 1), generator=generator) - side // 2
    place = torch.arange(length)
    return (place >= first) & (place < first + side)
