"""Augmentation and normalisation of whole batches; no loop over images.

Random numbers come from a CPU generator whatever the images' device, so a run draws the same crops everywhere.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# One grey level: a channel that hardly varies is not blown up, a constant one is not divided by zero.
MIN_STD = 1 / 255


def random_crop(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Pad each side by ``pad`` zeros (black) and cut the original size at a random place, another for each image.

    Args:
        images: ``[N, C, H, W]``, any dtype.
        pad: Pixels, from 0.
        generator: On the CPU.

    Returns:
        ``[N, C, H, W]``; for ``pad`` 0 the images themselves.
    """
    if pad == 0:
        return images
    n, _, height, width = images.shape
    places = torch.randint(2 * pad + 1, (2, n), generator=generator).to(images.device)
    # A view of every possible cut, [N, C, rows, columns, H, W]; indexing copies one for each image.
    cuts = F.pad(images, (pad, pad, pad, pad)).unfold(2, height, 1).unfold(3, width, 1)
    return cuts[torch.arange(n, device=images.device), :, places[0], places[1]]


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image ``[N, C, H, W]`` left to right with probability 1/2."""
    flip = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(3), images)


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(images / 255 - mean) / std`` by channel.

    Args:
        images: uint8 ``[N, C, H, W]``.
        mean: By channel, in units where 255 is 1.
        std: Likewise; at least ``MIN_STD`` is used.

    Returns:
        float32 ``[N, C, H, W]``, on the images' device.
    """
    scale = 1 / torch.tensor(std, dtype=torch.float64).clamp_min(MIN_STD)
    shift = torch.tensor(mean, dtype=torch.float64) * scale
    per_channel = (torch.stack([scale / 255, shift]).float()[:, :, None, None]).to(images.device)
    return images.float() * per_channel[0] - per_channel[1]
