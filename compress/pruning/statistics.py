"""BatchNorm statistics: estimated anew where the channels in front of them have changed."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.errors import ConfigError


def has_statistics(model: nn.Module) -> bool:
    """Whether the network has a BatchNorm with running statistics."""
    return bool(_norms(model))


@torch.no_grad()
def recalibrate_(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every BatchNorm by their plain average over ``batches``.

    No weight changes, and every module's training mode is restored. A channel that is dead because its weights, scale
    and shift are zero stays exactly dead: its statistics reach nothing.

    Args:
        model: the network.
        batches: inputs on its device, each of two samples or more.

    Raises:
        ConfigError: the network has no BatchNorm with running statistics, or there is no batch.
    """
    norms = _norms(model)
    if not norms:
        raise ConfigError(f"this {type(model).__name__} has no BatchNorm with running statistics to re-estimate")
    remaining = iter(batches)
    first = next(remaining, None)
    if first is None:
        raise ConfigError("BatchNorm statistics need at least one batch")
    modes = [(module, module.training) for module in model.modules()]
    momenta = [(norm, norm.momentum) for norm in norms]
    model.eval()  # dropout stays off
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the average over all batches, each alike
            norm.train()
        for batch in chain((first,), remaining):
            model(batch)
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
        for module, training in modes:
            module.training = training


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
