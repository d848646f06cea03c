"""L0: the number of nonzero magnitudes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.penalties.base import SeparablePenalty, scaled, survivors


@dataclass(frozen=True)
class L0(SeparablePenalty):
    """``strength`` for each magnitude that is not zero.

    The proximal operator is hard thresholding: keeping ``v`` costs ``step * strength``, dropping it costs ``v^2 / 2``,
    so that ``v`` survives iff ``v > sqrt(2 * step * strength)`` (Blumensath and Davies 2008, "Iterative thresholding
    for sparse approximations", with the 1/2 of our convention). Survivors are not shrunk. Its derivative is zero
    wherever it exists: L0 acts through the proximal step alone.
    """

    pulls: ClassVar[bool] = False

    def value(self, z: Tensor) -> Tensor:  # noqa: D102
        return torch.where(z > 0, self.strength, z)

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:  # noqa: D102
        m = scaled(self.strength, step, z)
        return survivors(z, m, z > (2 * m).sqrt(), z)

    def subgradient(self, z: Tensor) -> Tensor:  # noqa: D102
        return z * 0
