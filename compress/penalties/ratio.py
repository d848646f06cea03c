"""Ratios of norms: what they have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.penalties.base import LayerwisePenalty, normalised, scaled


@dataclass(frozen=True)
class TopSums:
    """Of the ``t`` largest magnitudes ``v_1 >= v_2 >= ...`` of a vector, for every ``t``; float64 ``[..., n]`` each.

    Attributes:
        smallest: ``v_t``.
        count: ``t``.
        mean: their mean.
        spread: the sum of their squared differences from it.
        squares: the sum of their squares.
    """

    smallest: Tensor
    count: Tensor
    mean: Tensor
    spread: Tensor
    squares: Tensor

    @classmethod
    def of(cls, v: Tensor) -> TopSums:
        """The sums of ``v``, sorted from the largest on."""
        count = torch.arange(1, v.shape[-1] + 1, dtype=v.dtype, device=v.device)
        mean, squares = v.cumsum(-1) / count, v.square().cumsum(-1)
        spread = (squares - count * mean.square()).clamp_min(0)
        return cls(v, count.expand_as(v), mean, spread, squares)


@dataclass(frozen=True)
class RatioPenalty(LayerwisePenalty):
    """``strength * f(rho)``, ``rho = ||z||_1 / ||z||_2`` over the vector of one layer; 0 for a vector of zeros.

    ``rho`` lies between 1, where one magnitude is left, and ``sqrt(n)``, where all are equal. It does not depend on
    the vector's scale: small magnitudes are pulled down, large ones pushed up.

    The proximal operator is exact. The minimiser is in the order of ``v``, so that its support is the ``t`` largest
    for some ``t``. There it is proportional to ``v - s`` for a level ``s < v_t`` (stationarity), and its length follows
    from the direction ``y``: ``u = (y.v) y``, at the cost ``(||v||^2 - (y.v)^2) / 2 + m f(rho(y))``. A subclass gives
    the level for every ``t``; the best of them wins, or the vector of zeros where none costs less than ``||v||^2 / 2``.
    """

    @abstractmethod
    def _f(self, rho: Tensor) -> Tensor:
        """The increasing function of the ratio."""

    @abstractmethod
    def _slope(self, rho: Tensor) -> Tensor:
        """Its derivative."""

    @abstractmethod
    def _levels(self, top: TopSums, m: Tensor) -> Tensor:
        """The level ``s`` for every number of survivors, ``[..., n]``; NaN or ``>= v_t`` where there is none."""

    def value(self, z: Tensor) -> Tensor:  # noqa: D102
        z, _ = normalised(z)
        norm = torch.linalg.vector_norm(z, dim=-1)
        return torch.where(norm > 0, self.strength * self._f(z.sum(-1) / norm), norm)

    def subgradient(self, z: Tensor) -> Tensor:
        """``f'(rho) (1 / ||z||_2 - ||z||_1 z / ||z||_2^3)`` times the strength; 0 where ``z = 0``."""
        unit, scale = normalised(z)
        norm = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
        rho = unit.sum(-1, keepdim=True) / norm
        slope = self.strength * self._slope(rho) * (1 - rho * (unit / norm)) / norm / scale
        largest = torch.finfo(z.dtype).max
        return torch.where(z > 0, slope.clamp(-largest, largest), z)

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        """The minimiser, in float64 inside, where sums over a whole layer keep their digits."""
        if not z.shape[-1]:
            return z
        m = scaled(self.strength, step, z).double().unsqueeze(-1)
        v, scale = normalised(z.double())
        unit_m = (m / scale / scale).clamp_max(z.shape[-1])  # from there on nothing survives
        v, places = v.sort(dim=-1, descending=True)
        top = TopSums.of(v)
        survive, level = self._best(top, unit_m)
        w = torch.where(top.count <= survive, v - level, 0.0)
        length = (w * v).sum(-1, keepdim=True) / w.square().sum(-1, keepdim=True).clamp_min(_TINY)
        u = torch.zeros_like(v).scatter(-1, places, w * length * scale)
        return torch.where((z > 0) & (m > 0), u.to(z.dtype), z)

    def _best(self, top: TopSums, m: Tensor) -> tuple[Tensor, Tensor]:
        """How many survive at the least cost, and at which level; ``[..., 1]`` each."""
        s = torch.where(top.count > 1, self._levels(top, m), 0.0)  # a single survivor has no direction to choose
        above = top.mean - s
        w2 = (top.spread + top.count * above.square()).clamp_min(_TINY)
        along2 = (top.spread + top.count * top.mean * above).square() / w2
        gain = along2 / 2 - m * self._f(top.count * above / w2.sqrt())
        gain = torch.where(s < top.smallest, gain, -torch.inf)
        best = gain.argmax(-1, keepdim=True)
        survive = torch.where(gain.gather(-1, best) > 0, best + 1, 0)
        return survive, s.gather(-1, best)


_TINY = torch.finfo(torch.float64).tiny
