"""Seeded choice of images with every class in its share."""

import torch
from torch import Tensor

from compress.data.sampler import generator


def stratified_choice(labels: Tensor, count: int, *, seed: int) -> Tensor:
    """Choose ``count`` of N images, each class in proportion to its size.

    A class gets ``count * size / N``, rounded down; what is left goes to the largest remainders (the Hamilton method),
    the lower class first among equals.

    Args:
        labels: Class indices, int64 ``[N]``.
        count: How many to choose, 0 to N.
        seed: The choice is a pure function of it.

    Returns:
        Indices into ``labels``, ascending, int64 ``[count]``.
    """
    n = len(labels)
    if not 0 <= count <= n:
        raise ValueError(f"cannot choose {count} of {n} images")
    if n == 0:
        return torch.empty(0, dtype=torch.int64)
    sizes = torch.bincount(labels)
    quota = sizes * count // n
    by_remainder = (sizes * count % n).argsort(descending=True, stable=True)
    quota[by_remainder[: count - int(quota.sum())]] += 1

    shuffled = torch.randperm(n, generator=generator("choice", seed))
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    class_of = labels[by_class]
    rank_in_class = torch.arange(n) - (sizes.cumsum(0) - sizes)[class_of]
    return by_class[rank_in_class < quota[class_of]].sort().values


def complement(indices: Tensor, n: int) -> Tensor:
    """Those of ``0 .. n-1`` that ``indices`` leaves out, ascending, int64."""
    left = torch.ones(n, dtype=torch.bool)
    left[indices] = False
    return left.nonzero().squeeze(1)
