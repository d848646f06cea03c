"""Units: the classes of channels that leave together.

A class is a unit of its own, except in grouped convolutions: there as many channels must leave each group, so that a
unit takes one from every group, the least important of each first. Where the groups of several convolutions cut across
each other (a channel shuffle between them), it takes one class from every cell of that grid.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, product

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor


@dataclass(frozen=True)
class Units:
    """What may leave, piece by piece.

    Attributes:
        of_class: int64 ``[classes]``, the unit of each class; -1 for classes that stay.
        score: float64 ``[units]``, the mean over the unit's classes.
        highest: float64 ``[units]``, the largest among them.
        layer: int64 ``[units]``, see ``layers_of``.
    """

    of_class: Tensor
    score: Tensor
    highest: Tensor
    layer: Tensor

    def __len__(self) -> int:
        return self.score.numel()

    @property
    def largest(self) -> int:
        """Classes in the largest unit."""
        return int(torch.bincount(self.of_class[self.of_class >= 0]).max()) if len(self) else 0

    def members(self, units: Sequence[int]) -> Tensor:
        """Bool ``[classes]``: the classes of ``units``."""
        chosen = torch.zeros(len(self) + 1, dtype=torch.bool)  # the last entry stands for -1
        chosen[torch.tensor(units, dtype=torch.int64)] = True
        return chosen[self.of_class]


def find_units(scores: Tensor, layers: Tensor, partitions: Sequence[Tensor]) -> Units:
    """The units of the classes that have a score.

    Args:
        scores: float64 ``[classes]``, NaN for classes that must stay.
        layers: int64 ``[classes]``.
        partitions: int64 ``[groups, channels per group]`` classes, of each side of each grouped convolution.
    """
    of_class = torch.full(scores.shape, -1, dtype=torch.int64)
    single = ~scores.isnan()
    count = 0
    for connected in _connected(partitions, len(scores)):
        single[torch.cat([p.flatten() for p in connected])] = False
        for unit in _balanced(scores, connected):
            of_class[unit] = count
            count += 1
    of_class[single] = torch.arange(count, count + int(single.sum()))
    inside = of_class >= 0
    units, found = of_class[inside], scores[inside]
    size = int(of_class.max()) + 1 if len(of_class) else 0
    empty = torch.zeros(size, dtype=torch.float64)
    layer = torch.zeros(size, dtype=torch.int64)
    layer[units] = layers[inside]
    return Units(
        of_class,
        empty.index_add(0, units, found) / torch.bincount(units, minlength=size),
        empty.scatter_reduce(0, units, found, "amax"),
        layer,
    )


def in_blocks(units: Units, rows: Sequence[Tensor], round_to: int) -> Units:
    """Units put together, so that what leaves a layer with one of them is a multiple of ``round_to`` channels.

    Units of the same layers are taken in the order of their scores. Where widths are no multiples, the first block is
    another: it brings all layers that share channels down to multiples at once. Units that fill no block stay.

    Args:
        units: what may leave.
        rows: int64 ``[channels]`` for each layer, the classes of the outputs that it has now.
        round_to: channels of a block.
    """
    if round_to == 1 or not len(units):
        return units
    taken: list[dict[int, int]] = [{} for _ in range(len(units))]  # unit -> layer -> channels that it takes there
    for row, classes in enumerate(rows):
        inside = units.of_class[classes]
        for unit, count in zip(*torch.unique(inside[inside >= 0], return_counts=True), strict=True):
            taken[int(unit)][row] = int(count)
    cells: dict[_Places, list[int]] = {}
    for unit in torch.argsort(units.score, stable=True).tolist():
        cells.setdefault(tuple(taken[unit].items()), []).append(unit)
    over = [len(row) % round_to for row in rows]
    blocks: list[list[list[int]]] = []  # each of parts of several cells
    for together in _sharing(list(cells)):
        first = _first(together, [len(cells[places]) for places in together], over, round_to)
        if any(first):
            blocks.append([cells[places][:n] for places, n in zip(together, first, strict=True) if n])
        for places, n in zip(together, first, strict=True):
            size, members = _period(places, round_to), cells[places]
            blocks += [[members[start : start + size]] for start in range(n, len(members) - size + 1, size)]
    block_of = torch.full((len(units) + 1,), -1, dtype=torch.int64)  # the last entry stands for -1
    for block, parts in enumerate(blocks):
        block_of[[unit for part in parts for unit in part]] = block
    scores = [min(float(units.score[part].mean()) for part in parts) for parts in blocks]
    return _of_units(units, block_of[:-1], block_of[units.of_class], torch.tensor(scores, dtype=torch.float64))


_Places = tuple[tuple[int, int], ...]
"""The layers of a unit, and how many channels it takes in each."""


def _period(places: _Places, round_to: int) -> int:
    """How many units leave whole blocks in all of their layers."""
    return math.lcm(*(round_to // math.gcd(round_to, channels) for _, channels in places))


def _sharing(cells: list[_Places]) -> list[list[_Places]]:
    """Cells that have layers in common, together."""
    rows: dict[int, list[int]] = {}
    for position, places in enumerate(cells):
        for row, _ in places:
            rows.setdefault(row, []).append(position)
    found: dict[int, list[_Places]] = {}
    for cell, together in zip(cells, layers_of([torch.tensor(r) for r in rows.values()], len(cells)), strict=True):
        found.setdefault(int(together), []).append(cell)
    return list(found.values())


COMBINATIONS = 10_000
"""First blocks that are tried."""


def _first(cells: list[_Places], sizes: list[int], over: list[int], round_to: int) -> list[int]:
    """How many units of each cell leave first, so that all their layers have multiples; all 0 where that can't be."""
    alone = Counter(row for places in cells for row, _ in places)
    options = []
    for places, size in zip(cells, sizes, strict=True):
        own = [(row, channels) for row, channels in places if alone[row] == 1]
        counts = range(min(_period(places, round_to), size + 1))
        options.append([n for n in counts if all((over[row] - n * channels) % round_to == 0 for row, channels in own)])
    for chosen in islice(product(*options), COMBINATIONS):
        left = dict(enumerate(over))
        for places, n in zip(cells, chosen, strict=True):
            for row, channels in places:
                left[row] -= n * channels
        if all(rest % round_to == 0 for row, rest in left.items() if alone[row]):
            return list(chosen)
    return [0] * len(cells)


def _of_units(units: Units, block_of: Tensor, of_class: Tensor, score: Tensor) -> Units:
    inside = block_of >= 0
    blocks = block_of[inside]
    return Units(
        of_class,
        score,
        torch.zeros_like(score).scatter_reduce(0, blocks, units.highest[inside], "amax", include_self=False),
        torch.zeros(len(score), dtype=torch.int64).index_copy(0, blocks, units.layer[inside]),
    )


def layers_of(out_slices: Sequence[Tensor], count: int) -> Tensor:
    """Which classes are channels of the same layer, through everything that couples layers: int64 ``[count]``.

    Args:
        out_slices: for each layer, the classes of its output channels.
        count: number of classes.
    """
    pairs = torch.cat([torch.stack((c[:1].expand(len(c)), c)) for c in out_slices] or [torch.empty(2, 0)], dim=1)
    return _components(pairs.long(), count)


def _components(pairs: Tensor, count: int) -> Tensor:
    one, other = pairs.numpy()
    matrix = coo_array((torch.ones(len(one)).numpy(), (one, other)), shape=(count, count))
    return torch.from_numpy(connected_components(matrix, directed=False)[1]).long()


def _connected(partitions: Sequence[Tensor], count: int) -> list[list[Tensor]]:
    """Partitions that share classes, together."""
    component = layers_of([p.flatten() for p in partitions], count)
    found: dict[int, list[Tensor]] = {}
    for partition in partitions:
        together = found.setdefault(int(component[partition[0, 0]]), [])
        if not any(torch.equal(partition, other) for other in together):
            together.append(partition)
    return list(found.values())


def _balanced(scores: Tensor, partitions: Sequence[Tensor]) -> list[Tensor]:
    """Units that take equally many channels from each row of each partition; none where that cannot be.

    Classes with the same place in all partitions form a cell; the n-th unit takes the n-th least important of each.
    """
    places: dict[int, list[tuple[int, int]]] = {}
    for index, partition in enumerate(partitions):
        for row, classes in enumerate(partition.tolist()):
            for cls in classes:
                places.setdefault(cls, []).append((index, row))
    cells: dict[tuple[tuple[int, int], ...], list[int]] = {}
    for cls, where in places.items():
        cells.setdefault(tuple(where), []).append(cls)
    taken = Counter(place for where in cells for place in where)
    if any(len({taken[index, row] for row in range(len(p))}) > 1 for index, p in enumerate(partitions)):
        return []
    ranked = [sorted((c for c in cell if not scores[c].isnan()), key=scores.__getitem__) for cell in cells.values()]
    return [torch.tensor(unit) for unit in zip(*ranked, strict=False)]
