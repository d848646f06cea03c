"""BatchNorm scale: what a normalised channel is multiplied by says how much of it arrives.

``score_g = mean |gamma|`` over the BatchNorms that the channel passes (Liu et al., Learning efficient convolutional
networks through network slimming, 2017). It means most after training that drives scales to zero.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.errors import ConfigError
from compress.groups import Groups
from compress.pruning.criterion import Batch, Criterion


@torch.no_grad()
def score(model: nn.Module, groups: Groups, _batches: Iterable[Batch]) -> Tensor:
    """The mean absolute scale of every group, ``[count]``; NaN for groups without BatchNorm.

    Raises:
        ConfigError: no group has a BatchNorm with a scale.
    """
    scales = {id(module.weight) for module in model.modules() if isinstance(module, _BatchNorm)}
    slices = tuple(part for part in groups.slices if id(part.parameter) in scales)
    if not slices:
        raise ConfigError(
            f"criterion bn-scale: no channel of this {type(model).__name__} passes a BatchNorm with a scale; "
            "use another criterion: magnitude, taylor"
        )
    only = dataclasses.replace(groups, slices=slices)
    return only.gather(lambda part: part.parameter.detach().abs()) / only.sizes()


BN_SCALE = Criterion(score, normalise="none")
