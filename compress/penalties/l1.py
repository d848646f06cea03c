"""L1: the sum of magnitudes, and group lasso, its form on group norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.penalties.base import SeparablePenalty


@dataclass(frozen=True)
class L1(SeparablePenalty):
    """``strength * z``; the proximal operator is soft thresholding, ``max(z - step * strength, 0)``.

    Source: Daubechies, Defrise and De Mol 2004. On group norms this is the group lasso with equal group weights.
    """

    def value(self, z: Tensor) -> Tensor:  # noqa: D102
        return self.strength * z

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:  # noqa: D102
        return torch.clamp_min(z - self.strength * step, 0.0)

    def subgradient(self, z: Tensor) -> Tensor:  # noqa: D102
        return torch.where(z > 0, self.strength, z)


@dataclass(frozen=True)
class GroupLasso(L1):
    """L1 on group norms, each weighted by the square root of the group's size.

    ``sum_g sqrt(p_g) * ||w_g||_2`` (Yuan and Lin 2006): the weights make groups of different size equally likely to
    vanish under noise. On groups of one weight it is plain L1.
    """

    default_group_weights: ClassVar[str] = "sqrt-size"
