"""Random crop of the padded image (as in He et al. 2015, arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
