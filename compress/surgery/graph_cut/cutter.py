"""Writes the cut graph, node by node: what every rule builds on."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from compress.errors import ModelError
from compress.graph.aten.labels import LabelFlow
from compress.graph.aten.trace import base_name, functional
from compress.graph.labels import Classes
from compress.surgery.graph_cut.addresses import as_slice, find_rows
from compress.surgery.graph_cut.batch import Affine, Batch, Size, Static, value_of
from compress.surgery.graph_cut.layout import Layout, same
from compress.surgery.graph_cut.outcome import Blocked, Rewrite
from compress.surgery.graph_cut.source import source_line
from compress.surgery.graph_cut.state import Conflict, Pick, Slices, State
from compress.surgery.graph_cut.stays import Stays

aten = torch.ops.aten


@dataclass(frozen=True)
class Value:
    """A node of the cut graph.

    Attributes:
        node: the node.
        layout: which entries of the original's tensor it holds.
        sizes: its shape, with the batch size as a variable.
    """

    node: fx.Node
    layout: Layout
    sizes: tuple[Size, ...]


Result = Value | None | tuple["Value | None", ...]
"""What stands for a node of the original: ``None`` where nothing of it stays."""


class Cutter(Stays):
    """Holds both graphs while one is written from the other.

    Args:
        model: the original network.
        flow: its labels, after the walk; ``classes`` the solved ones.
        removed: bool ``[classes]``.
        batch: its trace with the batch size as a variable.
    """

    def __init__(self, model: nn.Module, flow: LabelFlow, classes: Classes, removed: Tensor, batch: Batch):
        super().__init__(flow, classes, removed)
        self.batch = batch
        self.state = State(model, flow.tensors)
        self.graph = fx.Graph()
        self.env: dict[fx.Node, Result] = {}
        self.rewrites: list[Rewrite] = []
        self.notes: list[str] = []
        self.inputs: list[fx.Node] = []
        self._batch_size: fx.Node | None = None

    def block(self, node: fx.Node, why: str) -> Blocked:
        """The refusal to cut what passes ``node``."""
        channels = self.removed_at(node)
        if not channels.classes.numel():
            raise ModelError(f"{source_line(node)}: {why}; this network cannot be returned as a graph.")
        return Blocked(channels, f"{source_line(node)}: {why}")

    def note(self, node: fx.Node, what: str) -> None:
        """Record a change for the report."""
        self.rewrites.append(Rewrite(source_line(node), what, self.removed_at(node)))

    # --- writing nodes -------------------------------------------------------------------------------------------

    def emit(self, like: fx.Node, op: str, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Write a node that stands for ``like``, or for a part of it."""
        node = self.graph.create_node(op, target, args, kwargs, name=like.name)
        node.meta = {key: like.meta[key] for key in ("stack_trace", "nn_module_stack") if key in like.meta}
        return node

    def call(self, like: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Write a call; numbers that depend on the batch size are computed from the input."""
        args, kwargs = tree_map_only(Affine, self.number, (args, kwargs))
        return self.emit(like, "call_function", target, *args, **kwargs)

    def number(self, size: Affine) -> fx.Node:
        """A number that depends on the batch size."""
        if self._batch_size is None:
            with self.graph.inserting_after(self.inputs[-1]):
                self._batch_size = self.graph.call_function(aten.sym_size.int, (self.inputs[0], 0))
        number = self._batch_size
        if size.slope != 1:
            number = self.graph.call_function(operator.mul, (number, size.slope))
        return self.graph.call_function(operator.add, (number, size.intercept)) if size.intercept else number

    def reshape(self, like: fx.Node, node: fx.Node, sizes: Sequence[Size]) -> fx.Node:
        """Write a reshape; a single size that depends on the batch is left to torch."""
        variable = [d for d, size in enumerate(sizes) if isinstance(size, Affine)]
        if len(variable) == 1 and -1 not in sizes and 0 not in sizes:
            sizes = [-1 if d in variable else size for d, size in enumerate(sizes)]
        return self.call(like, aten.reshape.default, node, list(sizes))

    def sizes(self, node: fx.Node, layout: Layout, index: int | None = None) -> list[Size]:
        """The sizes of what stays of a result, with the batch size as a variable."""
        full, sizes = self.batch.shape(node, index), list[Size]()
        for group, count in zip(layout.groups, layout.sizes, strict=True):
            span = full[group.start : group.stop]
            variable = [size for size in span if isinstance(size, Affine)]
            if not variable:
                sizes.append(count)
            elif len(span) == 1 and group.kept is None:
                sizes.append(span[0])
            elif len(variable) == 1:
                sizes.append(variable[0].shared(count))
            else:
                raise Static("two dimensions that depend on the batch are cut as one")
        return sizes

    def add_input(self, node: fx.Node) -> None:
        """An input of the network."""
        self.inputs.append(self.graph.placeholder(node.name))
        self.env[node] = self.held(node, self.inputs[-1])

    def returned(self, node: fx.Node, result: Any) -> Any:
        """What the network returns, which must be whole."""
        if not isinstance(result, fx.Node):
            return result
        value = self.present(node, result)
        if not value.layout.is_whole:
            raise self.block(node, "the network returns these channels")
        return value.node

    def value(self, node: fx.Node) -> Value | None:
        """What stands for an argument."""
        if node not in self.env:  # a parameter, buffer or constant
            layout = self.layout(node)
            self.env[node] = None if layout is None else Value(self._stored(node, layout), layout, layout.sizes)
        value = self.env[node]
        assert not isinstance(value, tuple)
        return value

    def _stored(self, node: fx.Node, layout: Layout) -> fx.Node:
        name = self.flow.trace.tensors[node.name][0]
        try:
            return self.emit(node, *self.state.attribute(name, Slices.of(layout)))
        except Conflict:
            raise self.block(node, f"{name} is read in two different parts") from None

    def present(self, node: fx.Node, argument: fx.Node) -> Value:
        """What stands for an argument of ``node`` of which something must be left."""
        value = self.value(argument)
        if value is None:
            raise self.block(node, f"{base_name(node)} reads a tensor of which no channel stays")
        return value

    def as_it_is(self, node: fx.Node) -> Result:
        """The same operation, in its functional form."""
        args, kwargs = self.batch.arguments(node)
        args, kwargs = tree_map_only(fx.Node, lambda n: self.present(node, n).node, (args, kwargs))
        target = functional(node) if isinstance(node.target, torch._ops.OpOverload) else node.target
        return self.results(node, self.call(node, target, *args, **kwargs))

    def results(self, node: fx.Node, written: fx.Node) -> Result:
        """The values of a written node: one, or one for each of several results."""
        layouts = self.layout(node)
        if not isinstance(layouts, tuple):
            return self.held(node, written)
        return tuple(
            None if layout is None else self.held(node, self.call(node, operator.getitem, written, i), i)
            for i, layout in enumerate(layouts)
        )

    def held(self, node: fx.Node, written: fx.Node, index: int | None = None) -> Value | None:
        """``written`` as what stays of a result."""
        layout = self.layout(node) if index is None else self.layout(node)[index]
        return None if layout is None else Value(written, layout, tuple(self.sizes(node, layout, index)))

    # --- from one layout to another ------------------------------------------------------------------------------

    def narrow(self, node: fx.Node, value: Value, kept: Mapping[int, Tensor | None]) -> Value:
        """``value`` with the positions ``kept`` of each dimension, all of those that are not named, for ``node``."""
        layout = Layout.along(value.layout.shape, kept)
        if value.layout.equals(layout):
            return value
        if not value.layout.is_plain:
            raise self.block(node, f"{base_name(node)} of channels that were cut unevenly")
        written, sizes = value.node, list(value.sizes)
        for dim in range(len(layout.shape)):
            own, wanted = value.layout.kept(dim), layout.kept(dim)
            if same(own, wanted):
                continue
            if wanted is None or (own is not None and not bool(torch.isin(wanted, own).all())):
                raise self.block(node, f"{base_name(node)} needs channels that leave")
            positions = wanted if own is None else torch.searchsorted(own, wanted)
            written = self.pick(node, written, dim, positions, sizes[dim])
            sizes[dim] = positions.numel()
        return Value(written, layout, tuple(sizes))

    def pick(self, like: fx.Node, written: fx.Node, dim: int, positions: Tensor, size: Size) -> fx.Node:
        """Write the choice of positions along a dimension of ``size``: nothing, a slice or an index."""
        if torch.equal(positions, torch.arange(value_of(size))):
            return written
        if isinstance(size, Affine):
            raise Static("channels are cut along a dimension that holds the batch too")
        if (bounds := as_slice(positions)) is not None:
            start, stop, step = bounds
            return self.call(like, aten.slice.Tensor, written, dim, start, stop, step)
        index = positions.to(next(t.device for t in tree_leaves(like.meta["val"]) if isinstance(t, Tensor)))
        return self.emit(like, "call_module", self.state.helper("pick", Pick(dim, index)), written)

    def fit(self, node: fx.Node, value: Value, result: Layout) -> Value:
        """An operand of an elementwise ``node`` with the entries that its result keeps."""
        shift = len(result.shape) - len(value.layout.shape)
        if result.is_plain and value.layout.is_plain:
            own = enumerate(value.layout.shape)
            whole = {d for d, size in own if size == 1 < result.shape[d + shift]}  # broadcast
            kept = {d: result.kept(d + shift) for d in range(len(value.layout.shape)) if d not in whole}
            return self.narrow(node, value, kept)
        if value.layout.equals(result):
            return value
        wanted, sizes = self._aligned(node, value, result)
        return Value(self.gather(node, [value], wanted, sizes), result, tuple(sizes))

    def _aligned(self, node: fx.Node, value: Value, result: Layout) -> tuple[Tensor, list[Size]]:
        """The addresses of an operand as they meet the entries that a packed result keeps, and their sizes."""
        shift = len(result.shape) - len(value.layout.shape)
        full = value.layout.spread(value.layout.addresses())
        full = full.reshape([1] * shift + list(full.shape))
        sizes = self.sizes(node, result)
        for position, group in enumerate(result.groups):
            span = result.shape[group.start : group.stop]
            if math.prod(full.shape[position : position + len(span)]) > 1:
                grown = [*full.shape]
                grown[position : position + len(span)] = span
                full = full.expand(grown)
            full = full.flatten(position, position + len(span) - 1)
            if full.shape[position] > 1 and group.kept is not None:
                full = full.index_select(position, group.kept)
            elif full.shape[position] == 1:
                sizes[position] = 1
        return full, sizes

    def gather(self, node: fx.Node, values: Sequence[Value], wanted: Tensor, sizes: Sequence[Size]) -> fx.Node:
        """Write ``wanted``, addresses within what ``values`` hold one after another, as a pick and a reshape.

        Raises:
            Blocked: the entries do not lie along one dimension.
        """
        start, parts = 0, []
        for value in values:
            parts.append(value.layout.addresses(start))
            start += parts[-1].numel()
        for dim in reversed(range(parts[0].ndim if len(parts) > 1 else 1)):
            if len(parts) > 1 and isinstance(values[0].sizes[dim], Affine):
                continue
            if any(p.ndim != parts[0].ndim for p in parts):  # one channel written into many
                continue
            if any(p.movedim(dim, 0).shape[1:] != parts[0].movedim(dim, 0).shape[1:] for p in parts):
                continue
            source = torch.cat(parts, dim) if len(parts) > 1 else parts[0]
            if (found := find_rows(source, wanted)) is None:
                continue
            written = values[0].node
            if len(parts) > 1:
                written = self.call(node, aten.cat.default, [v.node for v in values], dim)
            along, positions = found
            size = values[0].sizes[along] if source.shape[along] == parts[0].shape[along] else source.shape[along]
            written = self.pick(node, written, along, positions, size)
            picked = [positions.numel() if d == along else s for d, s in enumerate(source.shape)]
            return written if picked == list(wanted.shape) else self.reshape(node, written, sizes)
        raise self.block(node, f"{base_name(node)} moves channels that were cut unevenly along several dimensions")
