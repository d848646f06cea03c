"""Magnitude: a channel whose weights are small does little.

``score_g = ||w_g||_2``, over all that the channel owns: its filters in every layer that is coupled, with their biases,
BatchNorm scales and shifts (Li et al., Pruning filters for efficient ConvNets, 2017, there with filters alone and the
l1 norm). Norms of layers of different width are not comparable as they are; by default each is taken relative to the
mean of its layer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from compress.groups import Groups
from compress.pruning.criterion import Batch, Criterion


@torch.no_grad()
def score(_model: nn.Module, groups: Groups, _batches: Iterable[Batch]) -> Tensor:
    """The norm of every group, ``[count]``."""
    return groups.squared_norms().sqrt()


MAGNITUDE = Criterion(score, normalise="layer")
