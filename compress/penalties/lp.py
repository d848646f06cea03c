"""Lp with 0 < p < 1: between L0 and L1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.penalties.base import SeparablePenalty, scaled, survivors

_NEWTON_LIMIT = 60
"""Five steps reach rounding error for p up to 3/4; p = 0.999 takes about ten."""


@dataclass(frozen=True)
class Lp(SeparablePenalty):
    """``strength * z^p``.

    With ``m = step * strength`` the proximal operator is 0 for ``v <= b + m p b^(p-1)``,
    ``b = (2m (1-p))^(1/(2-p))``, and else the larger root of ``u - v + m p u^(p-1) = 0`` (Marjanovic and Solo 2012,
    "On lq optimization and matrix completion"). Everything is homogeneous: in ``x = u / v`` and ``mu = m / v^(2-p)``
    the equation is ``x - 1 + mu p x^(p-1) = 0``, the threshold is a number that depends on ``p`` alone, and a root
    that survives is at least ``2(1-p)/(2-p)``.

    The roots for ``p = 1/2`` (Xu et al. 2012) and ``p = 2/3`` (Cao, Sun and Xu 2013) are closed forms; any other ``p``
    takes Newton's method. The derivative ``p z^(p-1)`` has no bound near 0, so that as a subgradient the penalty makes
    small weights jump; the proximal step has no such trouble.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shape("p", 0, 1)

    def value(self, z: Tensor) -> Tensor:  # noqa: D102
        return self.strength * z**self.p

    def subgradient(self, z: Tensor) -> Tensor:  # noqa: D102
        largest = torch.finfo(z.dtype).max
        slope = self.strength * self.p * (z ** (self.p - 1)).clamp_max(largest)
        return torch.where(z > 0, slope.clamp_max(largest), z)

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:  # noqa: D102
        m = scaled(self.strength, step, z)
        mu = m / z * z ** (self.p - 1)
        threshold = (2 * (1 - self.p) / (2 - self.p)) ** (2 - self.p) / (2 * (1 - self.p))
        root = _ROOTS.get(self.p, _newton)
        return survivors(z, m, mu < threshold, z * root(mu.clamp_max(threshold), self.p))


def _half(mu: Tensor, _p: float) -> Tensor:
    """``(2/3) (1 + cos(2 pi / 3 - 2 phi / 3))``, ``cos(phi) = (mu/4) 3^(3/2)``, as a difference from 1."""
    psi = torch.asin(mu * (3**1.5 / 4)) / 3
    return 1 - 4 / 3 * torch.sin(torch.pi / 3 + psi) * torch.sin(psi)


def _two_thirds(mu: Tensor, _p: float) -> Tensor:
    """``((A + sqrt(2/A - A^2)) / 2)^3``, ``A^2 = (4/3) sqrt(2 mu) cosh(phi / 3)``, ``cosh(phi) = 27/16 (2 mu)^(-3/2)``.

    The hyperbolic cosine is written out as ``(t + 1/t) / 2`` and multiplied by ``sqrt(2 mu)``, so that a small ``mu``
    overflows nowhere.
    """
    t = (27 / 16 + ((27 / 16) ** 2 - (2 * mu) ** 3).clamp_min(0).sqrt()) ** (1 / 3)
    a = (2 / 3 * (t + 2 * mu / t)).sqrt()
    return ((a + (2 / a - a * a).clamp_min(0).sqrt()) / 2) ** 3


def _newton(mu: Tensor, p: float) -> Tensor:
    """Newton's method from ``x = 1`` on ``f(x) = x - 1 + mu p x^(p-1)``, elementwise.

    ``f`` is convex, ``f(1) >= 0``, and ``f' >= 1 - p/2`` between the root and 1: the iterates fall to the root without
    passing it.
    """
    lowest = 2 * (1 - p) / (2 - p)
    x = torch.ones_like(mu)
    for _ in range(_NEWTON_LIMIT):
        slope = mu * p * x ** (p - 1)
        move = (x - 1 + slope) / (1 - (1 - p) * slope / x)
        x = (x - move).clamp_min(lowest)
        if not bool((move > 2 * torch.finfo(x.dtype).eps * x).any()):
            break
    return x


_ROOTS: dict[float, Callable[[Tensor, float], Tensor]] = {1 / 2: _half, 2 / 3: _two_thirds}
"""p -> closed form of the larger root; it holds for exactly this number."""
