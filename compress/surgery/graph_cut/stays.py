"""Which entries of every tensor of a network stay, from labels and a decision."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from compress.graph.aten import labels
from compress.graph.aten.labels import Computed, LabelFlow, Parameter
from compress.graph.aten.trace import base_name
from compress.graph.field import Field
from compress.graph.labels import Classes
from compress.surgery.graph_cut.layout import FREE, KEPT, REMOVED, Layout, kept_mask
from compress.surgery.graph_cut.outcome import Channels

POINTWISE = frozenset(name for name, rule in labels.RULES.items() if rule is labels.meet)
"""Elementwise operations."""

_FILLED = "pad constant_pad_nd zeros ones full new_zeros new_ones new_full zeros_like ones_like full_like zero fill"
FILLED = frozenset(_FILLED.split())
"""Operations that make up channels with the same number everywhere."""

LIKE = frozenset(("zeros_like", "ones_like", "full_like", "zero", "fill"))
"""Those that take their shape from another tensor."""


class Stays:
    """Answers for every node of a trace.

    Args:
        flow: the labels of the trace, after the walk.
        classes: the solved labels.
        removed: bool ``[classes]``.
    """

    def __init__(self, flow: LabelFlow, classes: Classes, removed: Tensor):
        self.flow, self.classes, self.removed = flow, classes, removed
        self._layouts: dict[fx.Node, Any] = {}

    def layout(self, node: fx.Node) -> Any:
        """The layout of a node's result, ``None`` where nothing stays; a tuple for several results."""
        if node not in self._layouts:
            value = self.flow.env[node]
            if isinstance(value, (tuple, list)):
                self._layouts[node] = tuple(self._layout(v, _shape(node, i)) for i, v in enumerate(value))
            elif base_name(node) in FILLED and isinstance(value, Field):
                self._layouts[node] = self._with_users(node, value)
            else:
                self._layouts[node] = self._layout(value, _shape(node))
        return self._layouts[node]

    def _layout(self, value: object, shape: tuple[int, ...]) -> Layout | None:
        if isinstance(value, Parameter):
            return self._parameter_layout(value)
        if isinstance(value, (Field, Computed)):
            return Layout.of(self._state(value), shape)
        return Layout.whole(shape)

    def _with_users(self, node: fx.Node, field: Field) -> Any:
        """Padded or created channels go where all elementwise operations that read them lose the channel."""
        state = self._state(field)
        layout = Layout.of(state, field.shape)
        users = [self.layout(user) for user in node.users if base_name(user) in POINTWISE]
        if not users and base_name(node) in LIKE and isinstance(node.args[0], fx.Node):
            return self.layout(node.args[0])  # it goes where it came from: into a part of a tensor
        if layout is None or len(users) < len(node.users) or not all(u and u.is_plain for u in (*users, layout)):
            return layout
        kept = {}
        for dim, size in enumerate(layout.shape):
            keep = torch.zeros(size, dtype=torch.bool)
            for user in users:
                behind = dim - len(layout.shape) + len(user.shape)
                rows = user.kept(behind)
                keep[slice(None) if rows is None or user.shape[behind] != size else rows] = True
            tied = (state != FREE).movedim(dim, 0).reshape(state.shape[dim], -1).any(1).expand(size)
            keep = (keep & ~tied) | (tied & kept_mask(layout.kept(dim), size))
            kept[dim] = keep.nonzero().flatten()
        return Layout.along(layout.shape, kept) if all(rows.numel() for rows in kept.values()) else layout

    def _parameter_layout(self, parameter: Parameter) -> Layout | None:
        kept = {}
        for dim, classes in self.classes.parameters.get(parameter.name, {}).items():
            if classes.numel() == parameter.shape[dim]:  # else it counts through the groups of a convolution
                kept[dim] = (~self.removed[classes]).nonzero().flatten()
        if any(not rows.numel() for rows in kept.values()):
            return None
        layout = Layout.along(parameter.shape, kept)
        if parameter.moved is None or layout.is_whole:
            return layout if parameter.moved is None else Layout.whole(parameter.moved.shape)
        present = layout.spread(layout.addresses()).flatten() >= 0
        state = torch.where(present[parameter.moved], KEPT, REMOVED)
        return Layout.of(Field.of(state).data, state.shape)

    def _state(self, value: Field | Computed) -> Tensor:
        """``KEPT``, ``FREE`` or ``REMOVED``, of size 1 along dimensions without differences."""
        data = self.classes.of((value if isinstance(value, Field) else value.labels).data)
        return torch.where(data < 0, FREE, torch.where(self.removed[data.clamp_min(0)], REMOVED, KEPT))

    def is_whole(self, node: fx.Node) -> bool:
        """Whether everything that a node reads and returns stays."""
        found = [self.layout(n) for n in (node, *node.all_input_nodes)]
        layouts = [one for some in found for one in (some if isinstance(some, tuple) else (some,))]
        return all(layout is not None and layout.is_whole for layout in layouts)

    def removed_at(self, node: fx.Node) -> Channels:
        """The removed channels among a node's results and arguments."""
        found = [torch.empty(0, dtype=torch.int64)]
        for value in tree_leaves([self.flow.env[n] for n in (node, *node.all_input_nodes)]):
            if isinstance(value, Parameter):
                found += self.classes.parameters.get(value.name, {}).values()
            elif isinstance(value, (Field, Computed)):
                found.append(self.classes.of((value if isinstance(value, Field) else value.labels).data).flatten())
        present = torch.unique(torch.cat(found))
        present = present[present >= 0]
        return Channels(present[self.removed[present]], self.classes)


def _shape(node: fx.Node, index: int | None = None) -> tuple[int, ...]:
    """The original shape of a node's result."""
    value = node.meta.get("val")
    value = value[index] if index is not None and value is not None else value
    return tuple(int(size) for size in value.shape) if isinstance(value, Tensor) else ()
