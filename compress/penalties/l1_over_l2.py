"""L1 over L2: how far a layer is from having one magnitude alone, whatever its scale."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from compress.penalties.ratio import RatioPenalty, TopSums

_NEWTON_LIMIT = 60
"""Ten steps are common; near a double root, which no minimum is, each still halves the distance."""


@dataclass(frozen=True)
class L1OverL2(RatioPenalty):
    """``strength * ||z||_1 / ||z||_2`` over the vector of one layer: between 1 and ``sqrt(n)``, and 0 for zeros.

    On filters ``z_g`` are the norms of a layer's filters: the ratio is then the pseudo-norm that drives whole filters
    to 0 while the others grow.

    For the proximal operator let ``r`` be the norm of the result. The best vector of norm ``r`` lies along
    ``(r v - m)_+``, and what is left is to minimise ``r^2 / 2 - ||(r v - m)_+||`` over ``r`` (cf. Tao 2022,
    "Minimization of L1 over L2 for sparse signal recovery with convergence guarantee"). With ``t`` survivors its
    derivative ``r - N'(r)``, ``N(r) = ||r v - m||`` over the ``t`` largest, is convex for ``r > m / v_t`` and not
    negative at ``r = ||v||``: Newton's method falls from there to the largest root, which is the one minimum. The level
    is ``s = m / r``.
    """

    def _f(self, rho: Tensor) -> Tensor:
        return rho

    def _slope(self, rho: Tensor) -> Tensor:
        return torch.ones_like(rho)

    def _levels(self, top: TopSums, m: Tensor) -> Tensor:
        r, lowest = top.squares.sqrt(), m / top.smallest
        bend = m.square() * top.count * top.spread  # N'' N^3
        alive = r > lowest
        for _ in range(_NEWTON_LIMIT):
            above = r * top.mean - m
            norm = (r.square() * top.spread + top.count * above.square()).sqrt()
            excess = r - (r * top.spread + top.count * top.mean * above) / norm
            slope = 1 - bend / norm**3
            move = excess / slope
            alive = alive & (slope > 0) & (r - move > lowest)
            r = torch.where(alive, r - move, r)
            if not bool((alive & (move > 4 * torch.finfo(r.dtype).eps * r)).any()):
                break
        return torch.where(alive, m / r, torch.inf)
