"""What a criterion is, and how scores of layers of different kinds are made comparable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.groups import Groups

Batch = tuple[Tensor, Tensor]
"""Normalised images ``[N, C, H, W]`` and labels int64 ``[N]``, on the model's device."""

Score = Callable[[nn.Module, Groups, Iterable[Batch]], Tensor]
"""The importance of each coupled group, ``[count]``, not negative; NaN for groups that the criterion cannot judge."""


@dataclass(frozen=True)
class Criterion:
    """A way to judge channels.

    Attributes:
        score: computes the scores; the model comes back as it was.
        normalise: the name in ``NORMALISATIONS`` that suits it best.
        reads_images: whether it needs batches.
    """

    score: Score
    normalise: str
    reads_images: bool = False


def _none(scores: Tensor, _sizes: Tensor, _layers: Tensor) -> Tensor:
    return scores


def _size(scores: Tensor, sizes: Tensor, _layers: Tensor) -> Tensor:
    return scores / sizes.sqrt()


def _layer(scores: Tensor, _sizes: Tensor, layers: Tensor) -> Tensor:
    known = ~scores.isnan()
    sums, counts = (torch.zeros(int(layers.max()) + 1, dtype=scores.dtype) for _ in range(2))
    sums.index_add_(0, layers[known], scores[known])
    counts.index_add_(0, layers[known], torch.ones_like(scores[known]))
    means = torch.where(sums > 0, sums / counts, 1.0)  # a layer that is all zero stays so
    return scores / means[layers]


NORMALISATIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"none": _none, "size": _size, "layer": _layer}
"""Name -> from scores, sizes and layers (int64), each ``[count]``, to comparable scores: as they are; divided by the
root of the group's number of weights, which makes of a norm the root mean square; relative to the mean of the layer."""
