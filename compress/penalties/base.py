"""What every penalty is: a function of magnitudes, with its proximal operator and its derivative.

A penalty acts on magnitudes ``z >= 0``: ``|w|`` for single weights, the Euclidean norm for groups, ``|gamma|`` for
BatchNorm scales. Structure comes from the group (see ``compress.groups``), so no penalty has a second, grouped class.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from compress.errors import ConfigError


@dataclass(frozen=True)
class Penalty(ABC):
    """A separable penalty ``strength * penalty(z)`` on magnitudes ``z >= 0``.

    The proximal operator is the one of the convention with the 1/2::

        prox(v, step) = argmin_u  (u - v)^2 / 2 + step * strength * penalty(u)

    Tensors of any shape; ``step`` is a number or a tensor that broadcasts against ``v``. Nothing is changed in place.
    """

    strength: float

    default_group_weights: ClassVar[str] = "none"
    """How groups of different size are weighted unless the caller says otherwise (see ``compress.groups``)."""

    pulls: ClassVar[bool] = True
    """Whether the derivative moves anything; a penalty whose derivative is 0 acts through its proximal step alone."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength) or self.strength < 0:
            raise ConfigError(
                f"penalty strength: got {self.strength}, expected a finite number >= 0 (0 switches the penalty off)."
            )

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """``strength * penalty(z)``, elementwise; same shape as ``z``."""

    @abstractmethod
    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        """The minimiser's magnitude for each magnitude ``z``; exact zeros below the penalty's threshold."""

    @abstractmethod
    def subgradient(self, z: Tensor) -> Tensor:
        """The derivative of ``value`` at ``z``; an element of the subdifferential (0 for z = 0) where there is none."""
