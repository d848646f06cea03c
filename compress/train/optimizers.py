"""Optimizers by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from compress.train.config import OptimizerSection


@dataclass(frozen=True)
class OptimizerKind:
    """How an optimizer is made, and the momentum it has unless the recipe says otherwise.

    Attributes:
        make: From parameters and ``lr``, ``weight_decay`` and, where there is one, ``momentum``.
        default_momentum: None where the optimizer has no such number.
    """

    make: Callable[..., torch.optim.Optimizer]
    default_momentum: float | None


OPTIMIZERS: dict[str, OptimizerKind] = {
    "sgd": OptimizerKind(torch.optim.SGD, default_momentum=0.9),
    "rmsprop": OptimizerKind(torch.optim.RMSprop, default_momentum=0.0),
    "adam": OptimizerKind(torch.optim.Adam, default_momentum=None),
    "adamw": OptimizerKind(torch.optim.AdamW, default_momentum=None),
}


def build_optimizer(model: nn.Module, section: OptimizerSection) -> torch.optim.Optimizer:
    """The section's optimizer over all parameters of ``model``."""
    kind = OPTIMIZERS[section.name]
    momentum = section.momentum if section.momentum is not None else kind.default_momentum
    extra = {} if momentum is None else {"momentum": momentum}
    return kind.make(model.parameters(), lr=section.lr, weight_decay=section.weight_decay, **extra)
