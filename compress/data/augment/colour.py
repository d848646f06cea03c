"""Colour jitter: brightness, contrast, saturation and hue, each by its own random amount for each image.

Formulas are those of torchvision's ``transforms.v2.functional.adjust_*`` on floating-point images, which a test holds;
values run from 0 to 255 here, and what leaves that range is clipped. Images of one channel are grey: they have neither
saturation nor hue. Results are not rounded to whole grey levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

WHITE = 255.0
LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in a grey image (ITU-R BT.601, rounded as in torchvision and Pillow)."""


def random_brightness(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """``adjust_brightness`` with a factor from ``1 - amount`` (at least 0) to ``1 + amount``, uniformly."""
    return adjust_brightness(images, _factors(images, amount, generator)) if amount else images


def random_contrast(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """``adjust_contrast`` with a factor as in ``random_brightness``."""
    return adjust_contrast(images, _factors(images, amount, generator)) if amount else images


def random_saturation(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """``adjust_saturation`` with a factor as in ``random_brightness``."""
    return adjust_saturation(images, _factors(images, amount, generator)) if amount else images


def random_hue(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    """``adjust_hue`` with a turn from ``-amount`` to ``amount``, uniformly."""
    if not amount:
        return images
    turns = (2 * torch.rand(len(images), generator=generator) - 1) * amount
    return adjust_hue(images, turns.to(images.device))


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """``factor * image``: 0 is black, 1 the image itself.

    Args:
        images: ``[N, C, H, W]``, C 1 or 3, from 0 to 255, of any dtype.
        factors: ``[N]``, from 0.

    Returns:
        Floating-point images of the same shape.
    """
    return (_real(images) * _by_image(factors)).clamp(0, WHITE)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """``factor * image + (1 - factor) * mean``, the mean that of the grey image; else as ``adjust_brightness``."""
    images = _real(images)
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """``factor * image + (1 - factor) * grey``; otherwise as ``adjust_brightness``."""
    images = _real(images)
    return _blend(images, _grey(images), factors)


def adjust_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue of images ``[N, 3, H, W]`` by ``turns`` ``[N]`` (1 is the whole circle).

    With the hue ``h`` in sixths of the circle, value ``v`` and chroma ``c = max - min``, each channel becomes
    ``v - c * clamp(min(k, 4 - k), 0, 1)``, ``k = (n + h) mod 6``, where ``n`` is 5, 3 and 1 for red, green and blue.
    """
    images = _real(images)
    red, green, blue = images.unbind(1)
    value, chroma = images.amax(1), images.amax(1) - images.amin(1)
    scale = torch.where(chroma == 0, 1.0, chroma)
    after_green = torch.where(value == green, 2 + (blue - red) / scale, 4 + (red - green) / scale)
    hue = torch.where(value == red, (green - blue) / scale, after_green) + 6 * turns[:, None, None]
    places = torch.tensor([5.0, 3.0, 1.0], dtype=images.dtype, device=images.device)[:, None, None]
    k = (places + hue.unsqueeze(1)).remainder(6)
    return value.unsqueeze(1) - chroma.unsqueeze(1) * torch.minimum(k, 4 - k).clamp(0, 1)


def _factors(images: Tensor, amount: float, generator: torch.Generator) -> Tensor:
    low, high = max(0.0, 1 - amount), 1 + amount
    return (low + (high - low) * torch.rand(len(images), generator=generator)).to(images.device)


def _real(images: Tensor) -> Tensor:
    return images if images.is_floating_point() else images.float()


def _by_image(factors: Tensor) -> Tensor:
    return factors[:, None, None, None]


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    share = _by_image(factors)
    return (share * images + (1 - share) * others).clamp(0, WHITE)


def _grey(images: Tensor) -> Tensor:
    """``[N, 1, H, W]``."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue).unsqueeze(1)
