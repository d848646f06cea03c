"""The type check: which channels meet in a compact network, held against its original.

The compact network is captured anew. A shuffle or chunk of unevenly cut channels runs without an error and mixes the
wrong ones; here it shows.
"""

from __future__ import annotations

from itertools import zip_longest

import torch
from torch import Tensor

from compress.graph import ChannelGraph
from compress.graph.channels import Operation
from compress.surgery.plan import Plan


def changed_operations(original: ChannelGraph, compact: ChannelGraph, plan: Plan) -> tuple[int, ...]:
    """Operations of the original that have other numbers in the compact network: their positions.

    The index in front of a BatchNorm, which the plan put there, is passed over, and so is what differs behind one that
    differs: its sizes follow. Where even the sequence of operations differs, the first difference ends the list.
    """
    changed: list[int] = []
    following: set[int] = set()
    for position, (before, after) in enumerate(zip_longest(original.operations, _operations(compact, plan))):
        if before is not None and after is not None and before.same(after):
            continue
        if before is None or after is None or before.name != after.name:
            changed.append(min(position, len(original.operations) - 1))
            break
        if following.isdisjoint(before.reads):
            changed.append(position)
        following.add(position)
    return tuple(changed)


def _operations(compact: ChannelGraph, plan: Plan) -> list[Operation]:
    """Those of a compact network, but for the indices that the plan put there."""
    put = "aten.index_select.default"
    return [op for op in compact.operations if not (op.name == put and op.where in plan.selections)]


def mixed_channels(original: ChannelGraph, compact: ChannelGraph, plan: Plan) -> Tensor:
    """Classes of the original whose channels meet others in the compact network, or no longer meet each other.

    Every index of every parameter of the compact network comes from a known class of the original. Its classes must
    group the indices as the original's do: where they are coarser the wrong channels meet, where they are finer a
    single channel is broadcast over many.

    Returns:
        Bool ``[classes of the original]``.
    """
    source, target, conflict = _same_indices(original, compact, plan)
    conflict[source[_several(source, target) | _several(target, source)]] = True
    return conflict


def displaced_channels(original: ChannelGraph, compact: ChannelGraph, plan: Plan, removed: Tensor) -> Tensor:
    """Classes that an operation holds in one network alone, though they are in both, or takes other channels of.

    ``x[:, 1]`` is another channel where the first one was cut. The networks run the same operations, and
    ``mixed_channels`` has found none.

    Args:
        original: the graph of the original.
        compact: that of the compact network.
        plan: what made it.
        removed: bool ``[classes of the original]``.

    Returns:
        Bool ``[classes of the original]``.
    """
    source, target, displaced = _same_indices(original, compact, plan)
    origin = torch.full((compact.classes.count,), -1)
    origin[target] = source
    present = torch.zeros_like(displaced)
    present[source] = True
    for before, after in zip(original.operations, _operations(compact, plan), strict=True):
        expected, got = torch.zeros_like(present), torch.zeros_like(present)
        expected[before.classes] = True
        found = origin[after.classes]
        got[found[found >= 0]] = True
        displaced |= (expected & present) ^ got
        if before.pick is not None and after.pick is not None:
            displaced[before.pick.displaced(after.pick, removed)] = True
    return displaced


def _same_indices(original: ChannelGraph, compact: ChannelGraph, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """The class of each index that both networks have, in the one and in the other; and a bool ``[classes]``.

    It marks those of parameters that are not of the planned size.
    """
    conflict = torch.zeros(original.classes.count, dtype=torch.bool)
    before, after = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    for name, dims in original.classes.parameters.items():
        for dim, classes in dims.items():
            now = compact.classes.parameters.get(name, {}).get(dim)
            kept = plan.parameters.get(name)
            if kept is not None and dim in kept.indices:
                classes = classes[torch.tensor(kept.indices[dim], dtype=torch.int64)]
            if now is None and classes.numel() == 1:
                continue  # a single entry reads as one for all, and there is only one to read it
            if now is None or now.numel() != classes.numel():
                conflict[classes] = True
            else:
                before.append(classes)
                after.append(now)
    if len(original.selections) != len(compact.selections):
        return torch.cat(before), torch.cat(after), torch.ones_like(conflict)
    for selection, selected in zip(original.selections, compact.selections, strict=True):
        kept = plan.parameters.get(selection.mean)
        before.append(selection.inputs if kept is None else selection.inputs[torch.tensor(kept.indices[0])])
        after.append(selected.inputs)
    return torch.cat(before), torch.cat(after), conflict


def _several(values: Tensor, keys: Tensor) -> Tensor:
    """Bool: where the key of an entry occurs with more than one value."""
    if not keys.numel():
        return torch.empty(0, dtype=torch.bool)
    size = int(keys.max()) + 1
    low = torch.full((size,), int(values.max()) + 1).scatter_reduce(0, keys, values, "amin")
    high = torch.full((size,), -1).scatter_reduce(0, keys, values, "amax")
    return (low != high)[keys]
