"""MCP, the minimax concave penalty: L1 near 0, constant from ``a * strength`` on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.penalties.base import SeparablePenalty, scaled, survivors


@dataclass(frozen=True)
class MCP(SeparablePenalty):
    """``s z - z^2 / (2a)`` up to ``z = a s``, then ``a s^2 / 2``; ``s`` is the strength, ``a > 0``.

    The strength is no mere factor: it is the slope at 0 and sets the reach ``a s`` too. With ``s = 1e-4`` and ``a = 3``
    nothing above 3e-4 feels the penalty.

    The proximal operator (Zhang 2010, "Nearly unbiased variable selection under minimax concave penalty") is for
    ``step < a``: 0 for ``v <= step s``, ``(v - step s) / (1 - step/a)`` up to ``v = a s``, then ``v``. For
    ``step >= a`` the objective is concave wherever the penalty acts, so that 0 or ``v`` wins: hard thresholding at
    ``s sqrt(a step)``.
    """

    a: float = 3.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shape("a", 0)

    def value(self, z: Tensor) -> Tensor:  # noqa: D102
        inside = z.clamp_max(self.a * self.strength)
        return inside * (self.strength - inside / (2 * self.a))

    def subgradient(self, z: Tensor) -> Tensor:  # noqa: D102
        return torch.where(z > 0, (self.strength - z / self.a).clamp_min(0), z)

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:  # noqa: D102
        s, a, m = self.strength, self.a, scaled(self.strength, step, z)
        step = scaled(1.0, step, z)
        convex = step < a
        threshold = torch.where(convex, m, s * (math.sqrt(a) * step.sqrt()))
        shrunk = torch.minimum((z - m) / (1 - step / a), z)
        return survivors(z, m, z > threshold, torch.where(convex & (z < a * s), shrunk, z))
