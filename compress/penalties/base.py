"""What every penalty is: a function of magnitudes, with its proximal operator and its derivative.

A penalty acts on magnitudes ``z >= 0``: ``|w|`` for single weights, the Euclidean norm for groups, ``|gamma|`` for
BatchNorm scales. Structure comes from the group (see ``compress.groups``), so no penalty has a second, grouped class.
Penalties differ in how much of the network they must see at once:

====================== ==========================================================================================
``SeparablePenalty``   one magnitude: a sum over magnitudes, each by itself; almost all penalties
``LayerwisePenalty``   all magnitudes of one layer: a ratio of norms, say
``GroupwisePenalty``   the weights inside a group, besides the group's norm
====================== ==========================================================================================
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from compress.errors import ConfigError


@dataclass(frozen=True)
class Penalty(ABC):
    """A penalty ``strength * penalty(z)`` on magnitudes ``z >= 0``.

    The proximal operator is the one of the convention with the 1/2::

        prox(v, step) = argmin_u  ||u - v||^2 / 2 + step * strength * penalty(u)

    Nothing is changed in place. Results are finite for finite magnitudes; NaN stays NaN, and is seen.
    """

    strength: float

    default_group_weights: ClassVar[str] = "none"
    """How groups of different size are weighted unless the caller says otherwise (see ``compress.optim``)."""

    pulls: ClassVar[bool] = True
    """Whether the derivative moves anything; a penalty whose derivative is 0 acts through its proximal step alone."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.strength) or self.strength < 0:
            raise ConfigError(
                f"penalty strength: got {self.strength}, expected a finite number >= 0 (0 switches the penalty off)."
            )

    @classmethod
    def shape_parameters(cls) -> dict[str, float]:
        """The numbers besides the strength, with their defaults."""
        return {field.name: field.default for field in dataclasses.fields(cls) if isinstance(field.default, float)}

    @property
    def on_weights(self) -> SeparablePenalty | None:
        """The part that acts on every single weight of a group, if there is one."""
        return None

    @property
    def on_norms(self) -> SeparablePenalty | LayerwisePenalty:
        """The part that acts on the norms of groups."""
        assert isinstance(self, SeparablePenalty | LayerwisePenalty)
        return self

    @property
    def parts(self) -> tuple[SeparablePenalty | LayerwisePenalty, ...]:
        """What acts on weights that are groups by themselves, in this order."""
        return (self.on_norms,) if self.on_weights is None else (self.on_weights, self.on_norms)

    @abstractmethod
    def value(self, z: Tensor) -> Tensor:
        """``strength * penalty(z)``; 0 at 0."""

    @abstractmethod
    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        """The minimiser's magnitudes for the magnitudes ``z``, same shape; exact zeros below the threshold."""

    @abstractmethod
    def subgradient(self, z: Tensor) -> Tensor:
        """The derivative of ``value`` by each magnitude, same shape as ``z``; 0 where ``z = 0``.

        As a function of a weight most penalties have a kink at 0, whose subdifferential holds 0.
        """

    def _check_shape(self, name: str, low: float, high: float = math.inf) -> None:
        """Refuse a shape parameter that is not strictly between ``low`` and ``high``."""
        value = getattr(self, name)
        if not low < value < high:
            limit = f"above {low:g}" if high == math.inf else f"above {low:g} and below {high:g}"
            raise ConfigError(f"{type(self).__name__}: {name}: got {value:g}, expected a finite number {limit}.")


@dataclass(frozen=True)
class SeparablePenalty(Penalty):
    """A sum over magnitudes: all methods work elementwise, on tensors of any shape.

    ``step`` is a number or a tensor that broadcasts against ``z``. No magnitude grows, and none overtakes another.
    """


@dataclass(frozen=True)
class LayerwisePenalty(Penalty):
    """A penalty on the magnitudes of a whole layer, which lie along the last dimension: ``z`` is ``[..., n]``.

    ``value`` is ``[...]``. ``step`` is a number, or a tensor ``[...]`` with one for each vector.
    """


@dataclass(frozen=True)
class GroupwisePenalty(Penalty):
    """A penalty on the weights of a group and on its norm: ``on_weights(w) + on_norms(||w||_2)``.

    In its own methods ``z`` is ``[..., n]``, the magnitudes of the weights of one group along the last dimension;
    ``value`` is ``[...]``, and ``step`` a number or a tensor ``[...]``. In training the two parts are applied one after
    the other by ``compress.optim``, ``on_weights`` first.
    """

    def value(self, z: Tensor) -> Tensor:  # noqa: D102
        assert self.on_weights is not None
        return self.on_weights.value(z).sum(-1) + self.on_norms.value(norms(z).squeeze(-1))

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:  # noqa: D102
        assert self.on_weights is not None
        step = torch.as_tensor(step, dtype=z.dtype, device=z.device).unsqueeze(-1)
        u = self.on_weights.prox(z, step)
        norm = norms(u)
        return torch.where(norm > 0, u * (self.on_norms.prox(norm, step) / norm), u)

    def subgradient(self, z: Tensor) -> Tensor:  # noqa: D102
        assert self.on_weights is not None
        norm = norms(z)
        direction = torch.where(norm > 0, z / norm, z)
        return self.on_weights.subgradient(z) + self.on_norms.subgradient(norm) * direction


def normalised(z: Tensor) -> tuple[Tensor, Tensor]:
    """``z`` over its largest entry, and that entry ``[..., 1]``, so that no square over- or underflows."""
    if not z.shape[-1]:
        return z, z.new_ones((*z.shape[:-1], 1))
    scale = z.amax(-1, keepdim=True).clamp_min(torch.finfo(z.dtype).tiny)
    return z / scale, scale


def norms(z: Tensor) -> Tensor:
    """Euclidean norms of vectors ``[..., n]``: ``[..., 1]``."""
    unit, scale = normalised(z)
    norm: Tensor = torch.linalg.vector_norm(unit, dim=-1, keepdim=True)
    return norm * scale


def scaled(strength: float, step: Tensor | float, z: Tensor) -> Tensor:
    """``m = step * strength`` as a tensor of the type of ``z``, on its device."""
    return torch.as_tensor(step, dtype=z.dtype, device=z.device) * strength


def survivors(z: Tensor, m: Tensor, alive: Tensor, u: Tensor) -> Tensor:
    """``u`` where ``alive``, else exact 0; where ``m`` is 0 nothing moves, and a magnitude that is 0 or NaN stays."""
    return torch.where((z > 0) & (m > 0), torch.where(alive, u, 0.0), z)
