"""Log-sum: the logarithm of magnitudes, unbounded but slower than any power."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.penalties.base import SeparablePenalty, scaled, survivors


@dataclass(frozen=True)
class LogSum(SeparablePenalty):
    """``strength * log(1 + z / eps)``, ``eps > 0`` (Candes, Wakin and Boyd 2008, reweighted L1).

    With ``m = step * strength`` a minimum above 0 solves ``(v - u) (u + eps) = m``; the larger root is

        ``u = ((v - eps) + sqrt((v + eps)^2 - 4m)) / 2 = v - 2m / (v + eps + sqrt((v + eps)^2 - 4m))``

    (Gong et al. 2013, "A general iterative shrinkage and thresholding algorithm"). Where ``m <= eps^2`` the objective
    is convex, and ``u`` is the minimum iff ``v > m / eps``. Where ``m > eps^2`` there may be two minima, 0 and ``u``,
    and no closed form tells the threshold: ``u`` wins iff it costs less, ``u^2 / 2 - u v + m log(1 + u / eps) < 0``.
    """

    eps: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shape("eps", 0)

    def value(self, z: Tensor) -> Tensor:  # noqa: D102
        return self.strength * torch.log1p(z / self.eps)

    def subgradient(self, z: Tensor) -> Tensor:  # noqa: D102
        return torch.where(z > 0, self.strength / (self.eps + z), z)

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:  # noqa: D102
        eps, m = self.eps, scaled(self.strength, step, z)
        total = z + eps
        discriminant = 1 - 4 * (m / total) / total
        u = (z - 2 * (m / total) / (1 + discriminant.clamp_min(0).sqrt())).clamp_min(0)
        cheaper = u * (u / 2 - z) + m * torch.log1p(u / eps) < 0
        alive = torch.where(m <= eps * eps, z > m / eps, (discriminant >= 0) & cheaper)
        return survivors(z, m, alive, u)
