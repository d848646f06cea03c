"""Mixup (Zhang et al. 2018, arXiv 1710.09412): images and their labels are mixed in pairs."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def mixup(images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``share * x + (1 - share) * x[partners]`` for images and targets alike; a step is a mixture of two batches.

    The share is drawn from ``Beta(alpha, alpha)`` once a batch, as in the authors' code; partners are a random
    permutation of the batch.

    Args:
        images: ``[N, C, H, W]``, floating point.
        targets: Share of each class, ``[N, classes]``.
        alpha: Above 0: the greater, the nearer is the share to 1/2. 0 mixes nothing.
        generator: On the CPU.
    """
    if not alpha:
        return images, targets
    # Torch has no public way to draw from a Beta distribution with a generator of its own.
    seed = int(torch.randint(2**63 - 1, (), generator=generator))
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    partners = torch.randperm(len(images), generator=generator).to(images.device)
    return images[partners].lerp(images, share), targets[partners].lerp(targets, share)
