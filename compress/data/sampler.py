"""The order of training images and the randomness of augmentation, as pure functions of seed, epoch and step.

Nothing is drawn from a running generator, so training that resumes in the middle of an epoch sees the images and crops
that it would have seen.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

# Uses of randomness that share a seed; the numbers keep their streams apart and must not change.
_STREAMS = {"choice": 1, "order": 2, "augment": 3}


def generator(stream: str, seed: int, epoch: int = 0, step: int = 0, rank: int = 0) -> torch.Generator:
    """A CPU generator that is a pure function of its arguments; all numbers from 0."""
    key = np.random.SeedSequence([_STREAMS[stream], seed, epoch, step, *([rank] if rank else [])])
    high, low = key.generate_state(2, np.uint32).tolist()
    return torch.Generator().manual_seed((high << 32 | low) >> 1)  # manual_seed takes 63 bits


def augment_generator(seed: int, epoch: int, step: int, rank: int = 0) -> torch.Generator:
    """The generator for augmenting batch ``step`` of ``epoch``, or the share of it that process ``rank`` sees."""
    return generator("augment", seed, epoch, step, rank)


def batch_count(n: int, batch_size: int, least: int = 2) -> int:
    """How many batches ``batches`` makes of ``n`` images in an epoch."""
    return len(_sizes(n, batch_size, least))


def batches(n: int, batch_size: int, *, seed: int, epoch: int, start: int = 0, least: int = 2) -> Iterator[Tensor]:
    """The batches of one epoch: a permutation of ``0 .. n-1``, cut.

    The last batch is smaller where ``batch_size`` does not divide ``n``; but a last batch of fewer than ``least``
    images joins the one before it, since BatchNorm cannot train on a single 1x1 image.

    Args:
        n: Number of images.
        batch_size: Images in a batch, at least 1.
        seed: Of the run.
        epoch: From 0; each has its own permutation.
        start: Number of batches to leave out, to continue an interrupted epoch.
        least: Two for each process that a batch is shared among.

    Yields:
        Indices, int64 ``[batch_size]`` (the last: ``least`` to ``batch_size + least - 1``).
    """
    sizes = _sizes(n, batch_size, least)
    order = torch.randperm(n, generator=generator("order", seed, epoch))
    yield from torch.split(order, sizes)[start:]


def _sizes(n: int, batch_size: int, least: int) -> list[int]:
    if n < 1 or batch_size < 1:
        raise ValueError(f"cannot cut {n} images into batches of {batch_size}")
    full, rest = divmod(n, batch_size)
    if 0 < rest < least and full > 0:
        return [batch_size] * (full - 1) + [batch_size + rest]
    return [batch_size] * full + [rest] * (rest > 0)
