"""SCAD, the smoothly clipped absolute deviation: L1, then a parabola, then constant."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.penalties.base import SeparablePenalty, scaled, survivors


@dataclass(frozen=True)
class SCAD(SeparablePenalty):
    """``s z`` up to ``s``, ``(2 a s z - z^2 - s^2) / (2 (a-1))`` up to ``a s``, then ``s^2 (a+1) / 2``.

    ``s`` is the strength, ``a > 2``. As with MCP the strength sets the reach, too: nothing above ``a s`` is pulled.

    The proximal operator (Fan and Li 2001, "Variable selection via nonconcave penalized likelihood", there for step 1)
    is for ``a > 1 + step``: ``max(v - step s, 0)`` up to ``v = (1 + step) s``, then
    ``((a-1) v - a step s) / (a - 1 - step)`` up to ``v = a s``, then ``v``. For ``a <= 1 + step`` the objective is
    concave along the parabola, which so holds no minimum: the better of ``max(v - step s, 0)`` and ``v`` wins.
    """

    a: float = 3.7

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_shape("a", 2)

    def value(self, z: Tensor) -> Tensor:  # noqa: D102
        s, a = self.strength, self.a
        inside = z.clamp_max(a * s)
        parabola = s * inside - (inside - s).clamp_min(0).square() / (2 * (a - 1))
        return torch.where(z < s, s * z, parabola)

    def subgradient(self, z: Tensor) -> Tensor:  # noqa: D102
        s, a = self.strength, self.a
        return torch.where(z > 0, ((a * s - z) / (a - 1)).clamp(0, s), z)

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:  # noqa: D102
        s, a, m = self.strength, self.a, scaled(self.strength, step, z)
        step = scaled(1.0, step, z)
        soft = (z - m).clamp_min(0)
        parabola = torch.minimum(((a - 1) * z - a * m) / (a - 1 - step), z)
        smooth = torch.where(z < s + m, soft, torch.where(z < a * s, parabola, z))
        saved = step * (self.value(z) - self.value(soft))
        jump = torch.where((z - soft).square() / 2 < saved, soft, z)
        u = torch.where(a > 1 + step, smooth, jump)
        return survivors(z, m, u > 0, u)
