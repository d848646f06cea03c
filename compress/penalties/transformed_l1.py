"""Transformed L1: bounded, linear near 0."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.penalties.base import SeparablePenalty, scaled, survivors


@dataclass(frozen=True)
class TransformedL1(SeparablePenalty):
    """``strength * (a+1) z / (a+z)``, ``a > 0``: L0 for ``a -> 0``, L1 for ``a -> infinity``.

    With ``m = step * strength`` the proximal operator is 0 for ``v <= m (a+1) / a`` where ``m <= a^2 / (2 (a+1))``, and
    for ``v <= sqrt(2 m (a+1)) - a/2`` otherwise; above it is

        ``(2/3) (a+v) cos(phi/3) - 2a/3 + v/3``,  ``cos(phi) = 1 - 27 m a (a+1) / (2 (a+v)^3)``

    (Zhang and Xin 2017, "Minimization of transformed l1 penalty"). It is computed as
    ``v - (4/3) (a+v) sin^2(phi/6)``, ``sin^2(phi/2) = 27 m a (a+1) / (4 (a+v)^3)``, which loses no digits.
    """

    a: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shape("a", 0)

    def value(self, z: Tensor) -> Tensor:  # noqa: D102
        return self.strength * (self.a + 1) * (z / (self.a + z))

    def subgradient(self, z: Tensor) -> Tensor:  # noqa: D102
        slope = self.strength * (self.a / (self.a + z)) * ((self.a + 1) / (self.a + z))
        return torch.where(z > 0, slope, z)

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:  # noqa: D102
        a, m = self.a, scaled(self.strength, step, z)
        convex = m <= a / (2 * (a + 1)) * a
        threshold = torch.where(convex, m * ((a + 1) / a), (2 * (a + 1) * m).sqrt() - a / 2)
        sine2 = 27 / 4 * (m / (a + z)) * (a / (a + z)) * ((a + 1) / (a + z))
        sixth = torch.asin(sine2.clamp_max(1).sqrt()) / 3
        u = (z - 4 / 3 * (a + z) * torch.sin(sixth).square()).clamp_min(0)
        return survivors(z, m, z > threshold, u)
