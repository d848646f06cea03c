"""Allocation: which units leave for a given target, least important first."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from compress.errors import ConfigError
from compress.pruning.cost import Ledger
from compress.pruning.units import Units


class UnreachableError(ConfigError):
    """No choice of whole units comes near enough to the target.

    Attributes:
        nearest: the cost that comes nearest among those that were found.
    """

    def __init__(self, nearest: float) -> None:
        super().__init__(f"the nearest cost is {nearest:,.0f}")
        self.nearest = nearest


def ranks(units: Units) -> Tensor:
    """Each unit's place in its layer, float64 ``[units]`` in (0, 1): 0.5 divides a layer into halves.

    Used instead of scores where every layer is to lose the same share.
    """
    places = torch.empty(len(units), dtype=torch.float64)
    for layer in torch.unique(units.layer):
        own = (units.layer == layer).nonzero().flatten()
        order = own[torch.argsort(units.score[own], stable=True)]
        places[order] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
    return places


def below(limit: float, values: Tensor, ledger: Ledger) -> list[int]:
    """The units whose value (float64 ``[units]``) is below ``limit``, as far as layers keep their floors."""
    removed = []
    for unit in _rising(values):
        if not values[unit] < limit:
            break
        if ledger.allows(unit):
            ledger.remove(unit)
            removed.append(unit)
    return removed


def down_to(goal: float, tolerance: float, values: Tensor, ledger: Ledger) -> list[int]:
    """Units in the order of their values (float64 ``[units]``) until the cost is nearest to ``goal``.

    A unit whose removal would overshoot by more than ``tolerance`` is passed over where a later, cheaper one comes
    nearer; if none does, it leaves and others come back.

    Raises:
        UnreachableError: no cost that was found is within ``tolerance`` of ``goal``; the ledger is left anywhere.
    """
    removed: list[int] = []
    passed: list[int] = []
    nearest = ledger.total
    for unit in _rising(values):
        if not ledger.allows(unit):
            continue
        excess, after = ledger.total - goal, ledger.without(unit)
        nearest = min(nearest, after, key=lambda cost: abs(cost - goal))
        if after < goal and excess <= min(tolerance, goal - after):
            return removed
        if after >= goal - tolerance:
            ledger.remove(unit)
            removed.append(unit)
            if after < goal:
                return removed
        else:
            passed.append(unit)
    if ledger.total - goal <= tolerance:
        return removed
    for unit in filter(ledger.allows, passed):
        ledger.remove(unit)
        kept = _give_back(goal, tolerance, removed, ledger)
        if kept is not None:
            return [*kept, unit]
        ledger.restore(unit)
    raise UnreachableError(nearest)


def _give_back(goal: float, tolerance: float, removed: Sequence[int], ledger: Ledger) -> list[int] | None:
    """Take back the most important of ``removed`` until the cost is near enough; ``None``, and none taken, if never."""
    back: list[int] = []
    for unit in reversed(removed):
        if ledger.total >= goal - tolerance:
            break
        ledger.restore(unit)
        if ledger.total <= goal + tolerance:
            back.append(unit)
        else:
            ledger.remove(unit)
    if abs(ledger.total - goal) <= tolerance:
        return [unit for unit in removed if unit not in set(back)]
    for unit in back:
        ledger.remove(unit)
    return None


def _rising(values: Tensor) -> Iterable[int]:
    order: list[int] = torch.argsort(values, stable=True).tolist()
    return order
