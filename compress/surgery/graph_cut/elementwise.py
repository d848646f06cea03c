"""Operations that keep channels apart: their operands must hold what their result keeps, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map_only

from compress.graph.aten.ops import reduced_dims, spatial_dims
from compress.graph.aten.trace import base_name, functional
from compress.surgery.graph_cut.cutter import Cutter, Result
from compress.surgery.graph_cut.layout import kept_mask, kept_where, told

Rule = Callable[[Cutter, fx.Node], Result]


def whole(cutter: Cutter, node: fx.Node) -> Result:
    """An operation that we cannot cut: everything that it reads and returns must be there."""
    if not cutter.is_whole(node):
        raise cutter.block(node, f"{base_name(node)} cannot lose channels in a graph")
    return cutter.as_it_is(node)


def unchanged(cutter: Cutter, node: fx.Node) -> Result:
    """A name for its argument."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return cutter.value(source)


def getitem(cutter: Cutter, node: fx.Node) -> Result:
    """One of several results."""
    source, position = node.args
    assert isinstance(source, fx.Node)
    results = cutter.env[source]
    assert isinstance(results, tuple)
    assert isinstance(position, int)
    return results[position]


def pointwise(cutter: Cutter, node: fx.Node) -> Result:
    """Elementwise: every operand loses what the result loses."""
    layout = cutter.layout(node)
    args, kwargs = tree_map_only(
        fx.Node, lambda n: cutter.fit(node, cutter.present(node, n), layout).node, cutter.batch.arguments(node)
    )
    return cutter.held(node, cutter.call(node, functional(node), *args, **kwargs))


def created(cutter: Cutter, node: fx.Node) -> Result:
    """zeros(sizes), full(sizes, value), new_zeros(x, sizes): as large as what stays."""
    layout, (args, kwargs) = cutter.layout(node), cutter.batch.arguments(node)
    where = next(i for i, a in enumerate(args) if isinstance(a, (list, tuple)))
    args = (*args[:where], cutter.sizes(node, layout), *args[where + 1 :])
    if not layout.is_whole:
        cutter.note(node, f"{base_name(node)} with other sizes: {told(layout)}")
    args = tree_map_only(fx.Node, lambda n: cutter.present(node, n).node, args)
    return cutter.held(node, cutter.call(node, functional(node), *args, **kwargs))


def copied(cutter: Cutter, node: fx.Node) -> Result:
    """A copy, or another order in memory: of dimensions that are taken as one, none."""
    layout = cutter.layout(node)
    return pointwise(cutter, node) if layout.is_plain else unchanged(cutter, node)


def along(acted: Callable[[Cutter, fx.Node], Iterable[int]]) -> Rule:
    """The rule of an operation on some dimensions of its first argument, for channels along the others.

    Args:
        acted: the dimensions that the operation works on, not negative.
    """

    def rule(cutter: Cutter, node: fx.Node) -> Result:
        source, layouts = node.args[0], cutter.layout(node)
        assert isinstance(source, fx.Node)
        layout, value = layouts[0] if isinstance(layouts, tuple) else layouts, cutter.present(node, source)
        others = [n for n in node.all_input_nodes if n is not source]
        if not all(cutter.layout(n).is_whole for n in others) or not (layout.is_plain and value.layout.is_plain):
            raise cutter.block(node, f"{base_name(node)} of channels that were cut unevenly")
        within = set(acted(cutter, node))
        passed = [d for d in range(len(value.layout.shape)) if d not in within]
        same_rank = len(layout.shape) == len(value.layout.shape)
        kept = {d: layout.kept(d if same_rank else i) for i, d in enumerate(passed)}
        return _with_source(cutter, node, kept)

    return rule


def _with_source(cutter: Cutter, node: fx.Node, kept: dict[int, Any]) -> Result:
    """The operation, on the positions ``kept`` of its first argument."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    first = cutter.narrow(node, cutter.present(node, source), kept)
    args, kwargs = cutter.batch.arguments(node)
    args, kwargs = tree_map_only(
        fx.Node, lambda n: first.node if n is source else cutter.present(node, n).node, (args, kwargs)
    )
    return cutter.results(node, cutter.call(node, functional(node), *args, **kwargs))


def windows(cutter: Cutter, node: fx.Node) -> Iterable[int]:
    """Poolings and interpolations work on height and width."""
    return spatial_dims(node, _field(cutter, node))


def reduced(cutter: Cutter, node: fx.Node) -> Iterable[int]:
    """Mean, sum, largest: the dimensions that they name."""
    return reduced_dims(node, _field(cutter, node), node.args, node.kwargs)


def reduce(cutter: Cutter, node: fx.Node) -> Result:
    """A reduction, or the larger of two tensors."""
    two = len(node.args) > 1 and isinstance(node.args[1], fx.Node)
    return pointwise(cutter, node) if two else along(reduced)(cutter, node)


def named_dim(cutter: Cutter, node: fx.Node) -> Iterable[int]:
    """softmax(x, dim)."""
    dim = node.args[1]
    assert isinstance(dim, int)
    return (dim % len(_field(cutter, node).shape),)


def normalised_dims(cutter: Cutter, node: fx.Node) -> Iterable[int]:
    """layer_norm(x, normalized_shape, ...): the last dimensions."""
    ndim, shape = len(_field(cutter, node).shape), node.args[1]
    assert isinstance(shape, (list, tuple))
    return range(ndim - len(shape), ndim)


def _field(cutter: Cutter, node: fx.Node) -> Any:
    source = node.args[0]
    assert isinstance(source, fx.Node)
    return cutter.flow.env[source]


def instance_norm(cutter: Cutter, node: fx.Node) -> Result:
    """Each channel on its own, with parameters that are cut like it."""
    layout, written = cutter.layout(node), list[Any](node.args)
    for position, argument in enumerate(node.args):
        if isinstance(argument, fx.Node):
            value, kept = cutter.present(node, argument), {0: layout.kept(1)}
            value = cutter.narrow(node, value, kept) if position else cutter.fit(node, value, layout)
            written[position] = value.node
    return cutter.held(node, cutter.call(node, functional(node), *written, **node.kwargs))


def embedding(cutter: Cutter, node: fx.Node) -> Result:
    """A table whose vectors are shorter."""
    layout = cutter.layout(node)
    return _with_source(cutter, node, {1: layout.kept(len(layout.shape) - 1)})


def glu(cutter: Cutter, node: fx.Node) -> Result:
    """Gated linear unit: the halves of ``x`` lose the same channels."""
    layout, (_, dim) = cutter.layout(node), (*node.args, -1)[:2]
    assert isinstance(dim, int)
    kept = {d: layout.kept(d) for d in range(len(layout.shape))}
    half = kept_mask(kept[dim % len(layout.shape)], layout.shape[dim])
    kept[dim % len(layout.shape)] = kept_where(torch.cat([half, half]))
    return _with_source(cutter, node, kept)
