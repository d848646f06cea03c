"""Allocation: which units leave for a given target, least important first."""

from __future__ import annotations

import heapq
from itertools import count

import torch
from torch import Tensor

from compress.errors import ConfigError
from compress.pruning.cost import Ledger
from compress.pruning.units import Units

EXPANSIONS = 1000
"""States that the search for a reachable cost looks at, beyond the straight way: enough for all combinations of a
network of a few small layers; large networks, whose channels are small change, end after a handful."""


class UnreachableError(ConfigError):
    """No choice of whole units comes near enough to the target.

    Attributes:
        nearest: the cost that comes nearest among those that were found.
        least: the cost with all units gone that may leave.
    """

    def __init__(self, nearest: float, least: float) -> None:
        super().__init__(f"the nearest cost is {nearest:,.0f}, the least {least:,.0f}")
        self.nearest = nearest
        self.least = least


def ranks(units: Units) -> Tensor:
    """Each unit's place among the channels of its layer, float64 ``[units]`` in (0, 1): 0.5 divides it into halves.

    Used instead of scores where every layer is to lose the same share.
    """
    places = torch.empty(len(units), dtype=torch.float64)
    sizes = torch.bincount(units.of_class[units.of_class >= 0], minlength=len(units)).double()
    for layer in torch.unique(units.layer):
        own = (units.layer == layer).nonzero().flatten()
        order = own[torch.argsort(units.score[own], stable=True)]
        places[order] = (sizes[order].cumsum(0) - sizes[order] / 2) / sizes[own].sum()
    return places


def below(limit: float, values: Tensor, ledger: Ledger) -> list[int]:
    """The units whose value (float64 ``[units]``) is below ``limit``, as far as layers keep their floors."""
    removed = []
    for unit in torch.argsort(values, stable=True).tolist():
        if values[unit] < limit and ledger.allows(unit):
            ledger.remove(unit)
            removed.append(unit)
    return removed


def down_to(goal: float, tolerance: float, values: Tensor, layers: Tensor, ledger: Ledger) -> list[int]:
    """Units in the order of their values until the cost is nearest to ``goal``.

    Where that is not near enough, layers give or take back units until it is. Within a layer the least important always
    leave first.

    Args:
        goal: the cost to come down to.
        tolerance: how far from it the result may be.
        values: float64 ``[units]``.
        layers: int64 ``[units]``.
        ledger: of the network before; it is left with the units gone.

    Raises:
        UnreachableError: no cost that was found is near enough; the ledger is left anywhere.
    """
    search = _Search(values, layers, ledger)
    search.walk(goal)
    found = search.nearest(goal, tolerance)
    if found is None:
        nearest = search.best_cost
        search.walk(-torch.inf)
        raise UnreachableError(nearest, ledger.total)
    return found


class _Search:
    """Units by layer, each layer's least important first, and how many of each have left."""

    def __init__(self, values: Tensor, layers: Tensor, ledger: Ledger) -> None:
        self.ledger = ledger
        self.order: list[int] = torch.argsort(values, stable=True).tolist()
        self.layer: list[int] = layers.tolist()
        self.queues: dict[int, list[int]] = {}
        for unit in self.order:
            self.queues.setdefault(self.layer[unit], []).append(unit)
        self.gone = dict.fromkeys(self.queues, 0)
        self.best_cost = ledger.total

    def next(self, layer: int) -> int | None:
        """The unit of ``layer`` that would leave next; ``None`` if the rest must stay."""
        queue, gone = self.queues[layer], self.gone[layer]
        return queue[gone] if gone < len(queue) and self.ledger.allows(queue[gone]) else None

    def move(self, layer: int, step: int) -> None:
        """Let the next unit of ``layer`` leave (1), or take its last one back (-1)."""
        if step > 0:
            self.ledger.remove(self.queues[layer][self.gone[layer]])
        else:
            self.ledger.restore(self.queues[layer][self.gone[layer] - 1])
        self.gone[layer] += step

    def walk(self, goal: float) -> None:
        """Strictly by importance, to the cost nearest to ``goal``."""
        for unit in self.order:
            layer = self.layer[unit]
            if self.next(layer) == unit:
                before = self.ledger.total
                self.move(layer, 1)
                if self.ledger.total <= goal:
                    if before - goal < goal - self.ledger.total:
                        self.move(layer, -1)
                    return

    def nearest(self, goal: float, tolerance: float) -> list[int] | None:
        """Best first from the present state, one unit of one layer at a time: the units that are gone at the end."""
        start = tuple(self.gone.values())
        seen, ticket = {start}, count()
        states = [(abs(self.ledger.total - goal), next(ticket), start)]
        self.best_cost = self.ledger.total
        for _ in range(EXPANSIONS):
            if not states:
                return None
            miss, _, state = heapq.heappop(states)
            self._go_to(state)
            if miss <= tolerance:
                return [unit for layer, queue in self.queues.items() for unit in queue[: self.gone[layer]]]
            if miss < abs(self.best_cost - goal):
                self.best_cost = self.ledger.total
            for place, (layer, gone) in enumerate(self.gone.items()):
                steps = [1] * (self.next(layer) is not None) + [-1] * (gone > 0)
                for step in steps:
                    beside = (*state[:place], gone + step, *state[place + 1 :])
                    if beside not in seen:
                        seen.add(beside)
                        self.move(layer, step)
                        heapq.heappush(states, (abs(self.ledger.total - goal), next(ticket), beside))
                        self.move(layer, -step)
        return None

    def _go_to(self, state: tuple[int, ...]) -> None:
        for layer, gone in zip(self.queues, state, strict=True):
            while self.gone[layer] != gone:
                self.move(layer, 1 if gone > self.gone[layer] else -1)
