"""Sparse group lasso: L1 on every weight and L2 on every group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from compress.errors import ConfigError
from compress.penalties.base import GroupwisePenalty, SeparablePenalty
from compress.penalties.l1 import L1, GroupLasso


@dataclass(frozen=True)
class SparseGroupLasso(GroupwisePenalty):
    """``strength * (l1_share * ||w_g||_1 + (1 - l1_share) * ||w_g||_2)`` for every group.

    The norms are weighted by the square root of the group's size, as in group lasso, unless told otherwise; the weights
    are not (Simon et al. 2013, "A sparse-group lasso"). The proximal operator is soft thresholding of every weight,
    then the group lasso's of what is left (Friedman, Hastie and Tibshirani 2010). It stays exact with a step for every
    coordinate, ``sum_i (u_i - w_i)^2 / (2 eta_i)``: the optimality conditions are those of the group lasso for the
    soft-thresholded weights.
    """

    default_group_weights: ClassVar[str] = "sqrt-size"

    l1_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.l1_share <= 1:
            raise ConfigError(f"SparseGroupLasso: l1_share: got {self.l1_share:g}, expected a number from 0 to 1.")

    @property
    def on_weights(self) -> SeparablePenalty:
        """L1 on every weight."""
        return L1(self.strength * self.l1_share)

    @property
    def on_norms(self) -> SeparablePenalty:
        """Group lasso on the norms."""
        return GroupLasso(self.strength * (1 - self.l1_share))
