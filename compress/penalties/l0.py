"""L0: the number of nonzero magnitudes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.penalties.base import Penalty


@dataclass(frozen=True)
class L0(Penalty):
    """``strength`` for each magnitude that is not zero.

    The proximal operator is hard thresholding: keeping ``v`` costs ``step * strength``, dropping it costs ``v^2 / 2``,
    so that ``v`` survives iff ``v > sqrt(2 * step * strength)`` (Blumensath and Davies 2008, "Iterative thresholding
    for sparse approximations", with the 1/2 of our convention). Survivors are not shrunk. Its derivative is zero
    wherever it exists: L0 acts through the proximal step alone.
    """

    pulls: ClassVar[bool] = False

    def value(self, z: Tensor) -> Tensor:  # noqa: D102
        return self.strength * (z > 0).to(z.dtype)

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:  # noqa: D102
        threshold = torch.sqrt(torch.as_tensor(2.0 * self.strength * step, dtype=z.dtype, device=z.device))
        return torch.where(z <= threshold, torch.zeros_like(z), z)  # in this order NaN stays NaN, and is seen

    def subgradient(self, z: Tensor) -> Tensor:  # noqa: D102
        return torch.zeros_like(z)
