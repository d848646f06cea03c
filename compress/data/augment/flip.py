"""Random mirroring."""

from __future__ import annotations

import torch
from torch import Tensor


def random_flip(images: Tensor, flip: bool, generator: torch.Generator) -> Tensor:
    """Mirror each image ``[N, C, H, W]`` left to right with probability 1/2; without ``flip`` none."""
    if not flip:
        return images
    mirrored = torch.rand(len(images), generator=generator).to(images.device) < 0.5
    return torch.where(mirrored[:, None, None, None], images.flip(3), images)
