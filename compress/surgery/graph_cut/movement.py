"""Operations that only move entries: rewritten, and proved on addresses.

Every entry that stays gets an address. The original operation is executed on the addresses: that says which entry the
cut network must have where. Then the operation with its new sizes is executed on what is left: if it puts every address
in its place, it is written; else a pick along one dimension stands in for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from compress.graph.aten.labels import Parameter
from compress.graph.aten.ops import MOVEMENT_OF_FLOATS, named, reads_bits
from compress.graph.aten.trace import base_name, functional
from compress.surgery.graph_cut.batch import Affine, value_of
from compress.surgery.graph_cut.cutter import Cutter, Result, Value, aten
from compress.surgery.graph_cut.layout import ABSENT, Layout, kept_mask, told

PADDING = -1
"""The address of an entry that padding makes up."""

Call = tuple[Any, list[Any]]
"""A target and its arguments, with nodes of the original and with sizes that may depend on the batch."""


def move(cutter: Cutter, node: fx.Node) -> Result:
    """The same operation with other sizes, or picks."""
    operands = [n for n in tree_leaves((node.args, node.kwargs)) if isinstance(n, fx.Node)]
    values = {n: value for n in operands if (value := cutter.value(n)) is not None}
    layouts = {n: value.layout for n, value in values.items()}
    original = functional(node), [*cutter.batch.arguments(node)[0]]
    if all(layout.is_plain for layout in layouts.values()) and len(values) == len(set(operands)):
        rewritten = RESIZE.get(base_name(node), _as_it_is)(cutter, node, *original)
        if rewritten is not None and _is_proved(cutter, node, original, rewritten, layouts):
            return _write(cutter, node, original, rewritten, values)
    expected = _tensors(_run(node, original, _addresses(layouts, operands)))
    return _picks(cutter, node, expected, list(values.values()))


def view(cutter: Cutter, node: fx.Node) -> Result:
    """A view of a tensor that may lie otherwise in memory than in the original: a reshape."""
    if reads_bits(node.args):
        return cutter.as_it_is(node)
    if not cutter.is_whole(node):
        return move(cutter, node)
    source, sizes = cutter.batch.arguments(node)[0]
    return cutter.held(node, cutter.reshape(node, cutter.present(node, source).node, sizes))


def index(cutter: Cutter, node: fx.Node) -> Result:
    """Picks by a list of positions that is part of the network: as it is where no channel moves, else other picks."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    value = cutter.present(node, source)
    target, arguments = functional(node), [*cutter.batch.arguments(node)[0]]
    full = {source: value.layout.spread(value.layout.addresses())}
    for position in tree_leaves(arguments[1:]):
        if isinstance(position, fx.Node):
            parameter = cutter.flow.env[position]
            assert isinstance(parameter, Parameter)  # else the labels are pinned
            full[position] = cutter.flow.tensors[parameter.name].cpu().flatten()[parameter.addresses()]
    expected, layout = _run(node, (target, arguments), full), cutter.layout(node)
    if layout is not None and layout.is_plain and value.layout.is_plain:
        with contextlib.suppress(IndexError, RuntimeError):  # positions that are not there any more
            got = _run(node, (target, arguments), full | {source: value.layout.addresses()})
            if torch.equal(layout.pick(expected), got):
                return cutter.as_it_is(node)
    return _picks(cutter, node, [expected], [value])


def _addresses(layouts: dict[fx.Node, Layout], operands: Sequence[fx.Node]) -> dict[fx.Node, Tensor]:
    """The address of every entry at its place in the original tensors."""
    compact = _compact(layouts)
    return {
        n: layouts[n].spread(compact[n]) if n in layouts else torch.full([int(s) for s in n.meta["val"].shape], ABSENT)
        for n in operands
    }


def _compact(layouts: dict[fx.Node, Layout]) -> dict[fx.Node, Tensor]:
    """The address of every entry in the cut tensors: one range after another."""
    compact, start = {}, 0
    for node, layout in layouts.items():
        compact[node] = layout.addresses(start)
        start += compact[node].numel()
    return compact


def _run(node: fx.Node, call: Call, tensors: dict[fx.Node, Tensor]) -> Any:
    """Execute an operation on addresses, at the traced batch size."""
    target, arguments = call
    name = base_name(node)
    arguments = tree_map_only(Affine, value_of, arguments)
    if name in PADS:
        mode = "constant" if name == "constant_pad_nd" else (*arguments, "constant")[2]
        if mode == "constant":
            target, arguments = aten.constant_pad_nd.default, [*arguments[:2], PADDING]
    floats = name in FLOATS or target is aten.pad.default
    arguments = tree_map_only(fx.Node, lambda n: tensors[n].double() if floats else tensors[n], arguments)
    if name in VIEWS:
        target = aten.reshape.default
    result = target(*arguments, **node.kwargs)
    return tree_map_only(Tensor, lambda t: t.long(), result) if floats else result


def _tensors(result: Any) -> list[Tensor]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _is_proved(cutter: Cutter, node: fx.Node, original: Call, rewritten: Call, layouts: dict[fx.Node, Layout]) -> bool:
    """Whether the rewritten operation puts every address where the original one does."""
    results = cutter.layout(node)
    after = list(results) if isinstance(results, tuple) else [results]
    if any(layout is None or not layout.is_plain for layout in after):
        return False
    idle = _idle_dims(node, [*layouts.values(), *after])
    layouts = {n: layout.thinned(idle) for n, layout in layouts.items()}
    expected = _tensors(_run(node, original, _addresses(layouts, list(layouts))))
    try:
        got = _tensors(_run(node, rewritten, _compact(layouts)))
    except (RuntimeError, IndexError):  # the operation does not take what is left
        return False
    return len(got) == len(expected) and all(
        torch.equal(layout.thinned(idle).pick(full), own)
        for layout, full, own in zip(after, expected, got, strict=True)
    )


def _idle_dims(node: fx.Node, layouts: Sequence[Layout]) -> frozenset[int]:
    """Dimensions along which an operation treats all positions alike and nothing leaves: one position will do.

    Only for operations on one dimension that keep the others. Images are large, and what moves along their channels
    shows at a single pixel.
    """
    name = base_name(node)
    if name not in ALONG:
        return frozenset()
    acted: Any = node.args[ALONG[name]] if len(node.args) > ALONG[name] else node.kwargs.get("dim", 0)
    ndim = len(layouts[0].shape)
    return frozenset(d for d in range(ndim) if d != acted % ndim and all(layout.kept(d) is None for layout in layouts))


def _write(cutter: Cutter, node: fx.Node, original: Call, rewritten: Call, values: dict[fx.Node, Value]) -> Result:
    target, arguments = tree_map_only(fx.Node, lambda n: values[n].node, rewritten)
    if rewritten[0] is not original[0] or tree_leaves(rewritten[1]) != tree_leaves(original[1]):
        cutter.note(node, f"{base_name(node)} with other sizes: {told(cutter.layout(node))}")
    if base_name(node) in VIEWS:
        return cutter.held(node, cutter.reshape(node, arguments[0], arguments[1]))
    return cutter.results(node, cutter.call(node, target, *arguments, **node.kwargs))


def _picks(cutter: Cutter, node: fx.Node, expected: list[Tensor], values: list[Value]) -> Result:
    """Each result on its own, as a pick of what stays."""
    layouts = cutter.layout(node)
    several = isinstance(layouts, tuple)
    results: list[Value | None] = []
    before = len(cutter.graph.nodes)
    for position, (layout, full) in enumerate(zip(layouts if several else (layouts,), expected, strict=True)):
        if layout is None:
            results.append(None)
            continue
        wanted, number = layout.pick(full), position if several else None
        if bool((wanted == ABSENT).any()):
            raise cutter.block(node, f"{base_name(node)} needs channels that leave")
        written = cutter.gather(node, values, wanted, cutter.sizes(node, layout, number))
        results.append(cutter.held(node, written, number))
    if len(cutter.graph.nodes) > before:  # else the very tensor goes on, taken in another way
        cutter.note(node, f"{base_name(node)} as a choice of channels: {told(layouts)}")
    return tuple(results) if several else results[0]


# --- new sizes -------------------------------------------------------------------------------------------------------


def _as_it_is(_cutter: Cutter, _node: fx.Node, target: Any, arguments: list[Any]) -> Call | None:
    return target, arguments


def _view(cutter: Cutter, node: fx.Node, target: Any, arguments: list[Any]) -> Call | None:
    """view(x, sizes), expand(x, sizes): -1 stays."""
    layout = cutter.layout(node)
    if layout is None or not layout.is_plain or len(arguments[1]) != len(layout.shape):
        return None
    sizes = cutter.sizes(node, layout)
    new = [given if given == -1 else size for given, size in zip(arguments[1], sizes, strict=True)]
    return target, [arguments[0], new, *arguments[2:]]


def _unflatten(cutter: Cutter, node: fx.Node, target: Any, arguments: list[Any]) -> Call | None:
    """unflatten(x, dim, sizes)."""
    layout = cutter.layout(node)
    if layout is None or not layout.is_plain:
        return None
    x, dim, given = arguments
    start = dim % len(x.meta["val"].shape)
    sizes = cutter.sizes(node, layout)[start : start + len(given)]
    return target, [x, dim, [g if g == -1 else size for g, size in zip(given, sizes, strict=True)]]


def _split(cutter: Cutter, node: fx.Node, target: Any, arguments: list[Any]) -> Call | None:
    """split(x, size, dim), chunk(x, pieces, dim): as they are if the pieces still come out right, else by sizes."""
    layouts = cutter.layout(node)
    if any(layout is None or not layout.is_plain for layout in layouts):
        return None
    dim: Any = arguments[2] if len(arguments) > 2 else node.kwargs.get("dim", 0)
    if cutter.present(node, arguments[0]).layout.kept(dim) is None:
        return target, arguments
    return aten.split_with_sizes.default, [arguments[0], [layout.sizes[dim] for layout in layouts], dim]


def _pad(cutter: Cutter, node: fx.Node, target: Any, arguments: list[Any]) -> Call | None:
    """pad(x, (before, after) of each dimension from the last one on, ...): as much as stays before and behind."""
    layout = cutter.layout(node)
    if layout is None or not layout.is_plain:
        return None
    x, given = arguments[:2]
    amounts = list(given)
    for pair in range(len(given) // 2):
        dim = len(layout.shape) - 1 - pair
        before, inner = given[2 * pair], int(x.meta["val"].shape[dim])
        if layout.kept(dim) is not None and before >= 0 and given[2 * pair + 1] >= 0:
            stays = kept_mask(layout.kept(dim), layout.shape[dim])
            amounts[2 * pair] = int(stays[:before].sum())
            amounts[2 * pair + 1] = int(stays[before + inner :].sum())
    return target, [x, amounts, *arguments[2:]]


def _select(cutter: Cutter, node: fx.Node, target: Any, arguments: list[Any]) -> Call | None:
    """select(x, dim, index): the same position among those that stay."""
    x, dim, index = arguments
    layout = cutter.present(node, x).layout
    if not layout.is_plain or layout.kept(dim) is None:
        return target, arguments
    return target, [x, dim, _left_of(layout, dim, index)]


def _scatter(cutter: Cutter, node: fx.Node, target: Any, arguments: list[Any]) -> Call | None:
    """select_scatter(x, part, dim, index), slice_scatter(x, part, dim, start, end): into what is left of the places."""
    layout = cutter.layout(node)
    if layout is None or not layout.is_plain or len(arguments) < 4 or layout.kept(arguments[2]) is None:
        return target, arguments
    x, part, dim, first, *others = arguments
    if base_name(node) == "select_scatter":
        return target, [x, part, dim, _left_of(layout, dim, first)]
    start, end, step = slice(first, *(*others, None)[:2]).indices(layout.shape[dim])
    return target, [x, part, dim, _left_of(layout, dim, start), _left_of(layout, dim, end), step]


def _left_of(layout: Layout, dim: int, position: int) -> int:
    """How many positions stay in front of one."""
    size = layout.shape[dim]
    front = position if position in (0, size) else position % size
    return int(kept_mask(layout.kept(dim), size)[:front].sum())


RESIZE: dict[str, Callable[[Cutter, fx.Node, Any, list[Any]], Call | None]] = {
    **named(_view, "view reshape _unsafe_view expand"),
    "unflatten": _unflatten,
    **named(_split, "split split_with_sizes chunk"),
    **named(_pad, "pad constant_pad_nd"),
    "select": _select,
    **named(_scatter, "select_scatter slice_scatter"),
}
"""Op -> its arguments for cut tensors. What is not here keeps its own."""

ALONG = {"cat": 1, "split": 2, "split_with_sizes": 2, "chunk": 2, "slice": 1, "narrow": 1, "slice_scatter": 2}
"""Operations along one dimension -> which argument names it."""

VIEWS = frozenset(("view", "reshape", "_unsafe_view"))
"""Written as a reshape: memory may lie otherwise than in the original."""

PADS = frozenset(("pad", "constant_pad_nd"))
FLOATS = frozenset(MOVEMENT_OF_FLOATS.split())
