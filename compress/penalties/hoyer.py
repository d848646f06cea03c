"""Hoyer-square: the square of L1 over L2, a smooth count of the magnitudes that matter."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from compress.penalties.ratio import RatioPenalty, TopSums


@dataclass(frozen=True)
class Hoyer(RatioPenalty):
    """``strength * (||z||_1 / ||z||_2)^2`` over the vector of one layer: between 1 and ``n``, and 0 for zeros.

    A layer of ``k`` equal magnitudes, the others 0, has the value ``strength * k``: like L0, with a derivative (Yang,
    Wen and Li 2020, "DeepHoyer: learning sparser neural network with differentiable scale-invariant sparsity
    measures").

    For the proximal operator, ``(y.v)^2 / 2 - m (1.y)^2`` is to be maximised over unit vectors ``y >= 0``: on ``t``
    survivors a quadratic form of rank 2 with one positive eigenvalue, whose eigenvector lies along ``v - s`` with the
    smaller root ``s`` of

        ``V1 s^2 - (V2 + 2 m t) s + 2 m V1 = 0``,  ``V1 = sum v``,  ``V2 = sum v^2`` over the ``t`` largest.
    """

    def _f(self, rho: Tensor) -> Tensor:
        return rho.square()

    def _slope(self, rho: Tensor) -> Tensor:
        return 2 * rho

    def _levels(self, top: TopSums, m: Tensor) -> Tensor:
        v1, b = top.count * top.mean, top.squares + 2 * m * top.count
        # b^2 - 8 m V1^2 as a sum of what is not negative
        root = ((top.squares - 2 * m * top.count).square() + 8 * m * top.count * top.spread).sqrt()
        return 4 * m * v1 / (b + root)
