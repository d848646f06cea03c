"""Normalisation of whole batches."""

from collections.abc import Sequence

import torch
from torch import Tensor

# One grey level: a channel that hardly varies is not blown up, a constant one is not divided by zero.
MIN_STD = 1 / 255


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """``(images / 255 - mean) / std`` by channel.

    Args:
        images: ``[N, C, H, W]``, from 0 to 255: uint8, or float32 where colours were changed.
        mean: By channel, in units where 255 is 1.
        std: Likewise; at least ``MIN_STD`` is used.

    Returns:
        float32 ``[N, C, H, W]``, on the images' device.
    """
    scale = 1 / torch.tensor(std, dtype=torch.float64).clamp_min(MIN_STD)
    shift = torch.tensor(mean, dtype=torch.float64) * scale
    per_channel = (torch.stack([scale / 255, shift]).float()[:, :, None, None]).to(images.device)
    return images.float() * per_channel[0] - per_channel[1]
