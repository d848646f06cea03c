"""The operations of a network in a form that can be compared with those of a compact network.

A compact network must run the same operations on the same numbers: ``x * C**-0.5``, a pooling window of ``C // 2`` or a
table ``torch.tensor(1 / C)`` runs with fewer channels too, and computes something else. Sizes alone may follow the
channels, and only where labels tell whether they do so rightly: in ops that move data, along dimensions of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from compress.graph.aten.labels import LabelFlow, channels, place
from compress.graph.aten.ops import REDUCTIONS, UNCHANGED
from compress.graph.aten.trace import Trace, base_name
from compress.graph.aten.walk import fields_in
from compress.graph.channels import Operation, Pick
from compress.graph.field import Field
from compress.graph.labels import NEUTRAL, Classes
from compress.graph.nested import leaves

SIZES = frozenset(("size", "sizes", "shape", "split_size", "split_sizes", "repeats", "groups"))
"""Arguments (by their names in ATen's schemas) that may follow the number of channels: labels, or the shape of the
result, show what they do."""


def operations(
    traced: Trace, labels: LabelFlow, classes: Classes, registered: Collection[str]
) -> tuple[Operation, ...]:
    """Every operation of a traced network, in order.

    Args:
        traced: the network.
        labels: the finished walk on labels.
        classes: their classes.
        registered: state names of what modules hold; other tensors were made in ``forward``.
    """
    nodes = [node for node in traced.graph.nodes if node.op == "call_function"]
    position = {node: i for i, node in enumerate(nodes)}
    made = {key: tensor for key, (name, tensor) in traced.tensors.items() if name not in registered}

    def operation(node: fx.Node) -> Operation:
        numbers = list(_numbers(node, labels.env))
        return Operation(
            name=str(node.target),
            where=place(node),
            numbers=tuple(number for number, _ in numbers),
            sizes=frozenset(i for i, (_, follows) in enumerate(numbers) if follows),
            made=_made(node, made),
            reads=tuple(position[source] for source in node.all_input_nodes if source in position),
            classes=_held(labels.env[node], classes),
            pick=_pick(node, labels.env, classes, traced),
        )

    return tuple(map(operation, nodes))


def _held(value: Any, classes: Classes) -> Tensor:
    held = [classes.of(field.data).flatten() for field in fields_in(value)]
    found = torch.unique(torch.cat(held)) if held else torch.empty(0, dtype=torch.int64)
    return found[found >= 0]


def _pick(node: fx.Node, env: Mapping[fx.Node, Any], classes: Classes, traced: Trace) -> Pick | None:
    """See ``Pick``; ``None`` for other operations, and where a network that was cut wrongly has no such channels."""
    op = _PICKING.get(base_name(node))
    source = env.get(node.args[0]) if op is not None and isinstance(node.args[0], fx.Node) else None
    if op is None or not isinstance(source, Field):
        return None
    given = dict(_arguments(node))
    if isinstance(index := given.get("index"), fx.Node):
        _, found = traced.tensors.get(index.name, ("", None))
        given["index"] = None if found is None else found.cpu()
    dim = given["dim"] % len(source.shape)
    entering = channels(source, dim)
    if entering is None or given.get("index", 0) is None:
        return None
    arguments = {argument.name: given[argument.name] for argument in op._schema.arguments}
    try:
        taken = op(**(arguments | {"self": torch.arange(source.shape[dim]), "dim": 0}))
    except IndexError:
        return None
    return Pick(classes.of(entering), tuple(t.reshape(-1) for t in leaves(taken)))


_ATEN = torch.ops.aten

_PICKING: dict[str, torch._ops.OpOverload] = {
    "select": _ATEN.select.int,
    "select_scatter": _ATEN.select.int,
    "slice": _ATEN.slice.Tensor,
    "slice_scatter": _ATEN.slice.Tensor,
    "narrow": _ATEN.narrow.default,
    "index_select": _ATEN.index_select.default,
    "chunk": _ATEN.chunk.default,
    "split": _ATEN.split.Tensor,
    "split_with_sizes": _ATEN.split_with_sizes.default,
    "unbind": _ATEN.unbind.int,
}
"""Op -> the one that says, of the numbers of all channels, which it takes."""


def _made(node: fx.Node, made: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Tensors made in ``forward`` that the operation reads; those that index channels are the labels' affair."""
    if base_name(node) in _INDEXING or base_name(node) in UNCHANGED.split():
        return ()
    sources = (_source(node) for node in node.all_input_nodes)
    return tuple(made[source.name] for source in sources if source.name in made)


def _source(node: fx.Node) -> fx.Node:
    """What a node is a copy of."""
    while base_name(node) in UNCHANGED.split() and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


_INDEXING = frozenset(("index", "index_select"))


def _numbers(node: fx.Node, env: Mapping[fx.Node, Any]) -> Iterator[tuple[float, bool]]:
    """Each number among the arguments, and the shape of the result; and whether it may follow the channels."""
    name = base_name(node)
    if name.startswith("_assert"):
        return
    source = node.args[0] if node.args else None
    field = env.get(source) if isinstance(source, fx.Node) else None
    for argument, value in _arguments(node):
        numbers = [leaf for leaf in leaves(value) if isinstance(leaf, (int, float))]
        along = _ALONG.get((name, argument))
        dims = along(node, len(numbers)) if along is not None else [None] * len(numbers)
        for number, dim in zip(numbers, dims, strict=True):
            varies = dim is not None and isinstance(field, Field) and field.varies(dim)
            yield float(number), argument in SIZES or varies
    if name in _REDUCING and isinstance(field, Field) and _is_created(field):
        yield from ((float(size), False) for size in field.shape)  # how many were made is in the result
    result = env[node]
    if isinstance(result, Field):
        created = _is_created(result)
        for dim, size in enumerate(result.shape):
            yield float(size), created or result.varies(dim)


def _is_created(field: Field) -> bool:
    """Whether a tensor was made in ``forward``, and holds no channels yet."""
    return bool((field.data == NEUTRAL).all())


_REDUCING = frozenset((*REDUCTIONS.split(), "softmax", "_softmax", "log_softmax", "_log_softmax", "cumsum"))


def _arguments(node: fx.Node) -> Iterator[tuple[str, Any]]:
    """Name and value of each argument, also of those left out of the graph since they have their default."""
    if not isinstance(node.target, torch._ops.OpOverload):
        yield from (("", value) for value in (*node.args, *node.kwargs.values()))
        return
    for i, argument in enumerate(node.target._schema.arguments):
        given = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name, argument.default_value)
        yield argument.name, given


def _one(node: fx.Node, count: int) -> list[int | None]:
    """The dimension that the op works along."""
    return [dict(_arguments(node))["dim"]] * count


def _each(node: fx.Node, count: int) -> list[int | None]:
    """A dimension for each number; none where the op works on all of them in a row."""
    dims = leaves(dict(_arguments(node))["dims"])
    return [*dims] if len(dims) == count else [None] * count


def _padded(_node: fx.Node, count: int) -> list[int | None]:
    """Amounts of padding: two for each dimension, the last one first."""
    return [-1 - i // 2 for i in range(count)]


_ALONG: dict[tuple[str, str], Callable[[fx.Node, int], list[int | None]]] = {
    ("slice", "start"): _one,
    ("slice", "end"): _one,
    ("narrow", "start"): _one,
    ("narrow", "length"): _one,
    ("select", "index"): _one,
    ("slice_scatter", "start"): _one,
    ("slice_scatter", "end"): _one,
    ("select_scatter", "index"): _one,
    ("roll", "shifts"): _each,
    ("pad", "pad"): _padded,
    ("constant_pad_nd", "pad"): _padded,
}
"""(Op, argument) -> the dimensions that its numbers belong to: they may follow the channels along such a dimension."""
