"""Operations that only move entries, from ATen to ONNX: what a cut writes in the place of an operation of the file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from torch import fx

from compress.graph.aten.ops import named
from compress.graph.aten.trace import base_name
from compress.surgery.graph_cut.state import Pick
from compress.surgery.onnx_cut.shapes import Sizes

if TYPE_CHECKING:
    from compress.surgery.onnx_cut.writer import Writer

Rule = Callable[["Writer", str, onnx.NodeProto, fx.Node, str], None]

END = np.iinfo(np.int64).max

SIZED: dict[str, int] = {"Reshape": 1, "Expand": 1, "Split": 1, "Resize": 3}
"""Operations of the file whose sizes follow the channels -> which input holds them."""

SELF_SIZED = frozenset(("Flatten", "DepthToSpace", "SpaceToDepth"))
"""Operations of the file that hold no number of channels, whatever torch's counterpart does."""


class Unwritable(Exception):  # noqa: N818 - a message to the caller, who keeps the channels
    """Why a cut operation can't be said in ONNX.

    Attributes:
        path: the operation's.
        reason: why.
    """

    def __init__(self, path: str, reason: str):
        super().__init__(reason)
        self.path, self.reason = path, reason


def resized(writer: Writer, path: str, proto: onnx.NodeProto, before: fx.Node, after: fx.Node) -> str:
    """The sizes that an operation of the file must be given now, as the name of a value.

    A size that depends on the size of the network's input is left to the file's own arithmetic, or to -1.

    Args:
        writer: the writer.
        path: the operation's.
        proto: the operation of the file.
        before: what it was in the trace.
        after: what it is now.
    """
    position, stem = SIZED[proto.op_type], f"{proto.output[0]}_sizes"
    raw, moving = _sizes_given(writer, path, proto)
    if proto.op_type == "Split":
        if any(moving):
            raise Unwritable(path, "its sizes follow the size of the network's input")
        return writer.builder.numbers([int(writer.concrete(size)) for size in _split_sizes(_split_of(after))], stem)
    new, old = writer.shapes.of(after), [int(size) for size in before.meta["val"].shape]
    entering: Sizes = writer.shapes.of(after.all_input_nodes[0])
    is_reshape = proto.op_type == "Reshape"
    if not is_reshape:
        missing = len(new) - len(raw)
        raw, moving = [1] * missing + raw, [False] * missing + moving
    if len(raw) != len(new):
        raise Unwritable(path, "a tensor of another rank")
    now = writer.number(proto.input[position])
    if now is not None and len(now) == len(new) and all(_fits(int(n), i, new, entering) for i, n in enumerate(now)):
        return str(proto.input[position])
    sizes: list[int | None] = []
    for i, (size, moves) in enumerate(zip(raw, moving, strict=True)):
        if is_reshape and (size == -1 or (size == 0 and _fits(0, i, new, entering))):
            sizes.append(size)
        elif moves:
            own = new[i] == old[i] and now is not None and len(now) == len(new) and now[i] == new[i]
            sizes.append(None if own else -1)
        else:
            stays = new[i] == old[i] and size > 0
            sizes.append(size if stays else -1 if writer.shapes.varies(after, i) else new[i])
    if is_reshape and sizes.count(None) == 1 and -1 not in sizes:
        sizes[sizes.index(None)] = -1
    if sizes.count(-1) > is_reshape:
        raise Unwritable(path, "several of its sizes follow channels and the size of the network's input")
    fixed = writer.builder.numbers([0 if size is None else size for size in sizes], stem)
    if None not in sizes:
        return fixed
    mask = writer.builder.store(np.array([size is None for size in sizes]), writer.builder.free(f"{stem}_of_input"))
    return writer.builder.node("Where", [mask, proto.input[position], fixed], writer.builder.free(stem))


def _sizes_given(writer: Writer, path: str, proto: onnx.NodeProto) -> tuple[list[int], list[bool]]:
    """What an operation is given for its sizes in the file, and which of them follow the network's input."""
    position = SIZED[proto.op_type]
    given = writer.statics.get(path, {}).get(position)
    if given is None:
        return [], []
    moving = np.broadcast_to(np.asarray(writer.moving.get(path, {}).get(position, False)), given.shape)
    return [int(size) for size in given], [bool(moves) for moves in moving]


def _fits(size: int, i: int, wanted: Sequence[int], entering: Sequence[int]) -> bool:
    """Whether a size of a Reshape gives the wanted one: itself, the rest, or a copy of what enters."""
    return size in (-1, wanted[i]) or (size == 0 and i < len(entering) and entering[i] == wanted[i])


def _split_of(node: fx.Node) -> fx.Node:
    return node.args[0] if _is_item(node) and isinstance(node.args[0], fx.Node) else node


def _is_item(node: fx.Node) -> bool:
    return base_name(node) == "getitem"


def _split_sizes(node: fx.Node) -> Sequence[Any]:
    sizes: Any = node.args[1]
    return sizes if isinstance(sizes, (list, tuple)) else [sizes]


# --- operations of the cut graph -------------------------------------------------------------------------------------


def _bounds_given(
    writer: Writer, path: str, proto: onnx.NodeProto, x: fx.Node, dim: int, taken: slice
) -> tuple[int, int] | None:
    """Where a Slice of the file takes the same of a dimension: its own bounds, which hold at other sizes too."""
    if proto.op_type != "Slice":
        return None
    given, shape = writer.statics.get(path, {}), writer.shapes.of(x)
    ndim, size = len(shape), shape[dim]
    starts, ends = given[1].tolist(), given[2].tolist()
    axes = given[3].tolist() if 3 in given else range(len(starts))
    steps = given[4].tolist() if 4 in given else [1] * len(starts)
    wanted = range(*taken.indices(size))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        is_here = axis % ndim == dim % ndim and step > 0
        if is_here and range(*slice(start, end, step).indices(size)) == wanted:
            return start, end
    return None


def slice_(writer: Writer, path: str, proto: onnx.NodeProto, node: fx.Node, name: str) -> None:
    """Slice: ``slice(x, dim, start, end, step)``."""
    defaults = (None, 0, 0, END, 1)
    given: tuple[Any, ...] = (*node.args, *defaults[len(node.args) :])
    x, (dim, start, end, step) = given[0], map(writer.concrete, given[1:])
    start, end = start or 0, END if end is None else end
    size = writer.shapes.of(x)[dim]
    own = _bounds_given(writer, path, proto, x, dim, slice(start, end, step))
    start, end = own or (start, END if end >= size else end)  # the end, at any size
    numbers = (start, end, dim, step)
    parts = ("starts", "ends", "axes", "steps")
    inputs = [writer.builder.numbers([n], f"{name}_{part}") for n, part in zip(numbers, parts, strict=True)]
    writer.builder.node("Slice", [writer.name(path, x), *inputs], name)


def pick(writer: Writer, path: str, _proto: onnx.NodeProto, node: fx.Node, name: str) -> None:
    """Channels by their numbers."""
    module, (x,) = writer.module(node), node.args
    assert isinstance(module, Pick)
    assert isinstance(x, fx.Node)
    positions = writer.builder.numbers(module.index.tolist(), f"{name}_positions")
    writer.builder.node("Gather", [writer.name(path, x), positions], name, axis=module.dim)


def view(writer: Writer, path: str, proto: onnx.NodeProto, node: fx.Node, name: str) -> None:
    """Reshape: where the file has a reshape in this place, its own sizes are the pattern."""
    source = node.args[0]
    assert isinstance(source, fx.Node)
    entering: Sizes = writer.shapes.of(source)
    if proto.op_type == "Reshape" and name == proto.output[0]:
        sizes = resized(writer, path, proto, writer.values[proto.output[0]], node)
    else:
        shape = writer.shapes.of(node)
        copied = [d for d in range(len(shape)) if d < len(entering) and shape[d] == entering[d] > 0]
        wanted = [0 if d in copied else -1 if writer.shapes.varies(node, d) else shape[d] for d in range(len(shape))]
        if wanted.count(-1) > 1:
            raise Unwritable(path, "several of its sizes follow the size of the network's input")
        sizes = writer.builder.numbers(wanted, f"{name}_sizes")
    writer.builder.node("Reshape", [writer.name(path, source), sizes], name)


def cat(writer: Writer, path: str, _proto: onnx.NodeProto, node: fx.Node, name: str) -> None:
    """Concat: ``cat(tensors, dim)``."""
    parts: Any = node.args[0]
    dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    writer.builder.node("Concat", [writer.name(path, part) for part in parts], name, axis=dim)


def permute(writer: Writer, path: str, _proto: onnx.NodeProto, node: fx.Node, name: str) -> None:
    """Transpose: ``permute(x, dims)``."""
    source, dims = node.args[:2]
    assert isinstance(source, fx.Node)
    assert isinstance(dims, (list, tuple))
    ndim = len(dims)
    order = [d % ndim for d in dims if isinstance(d, int)]
    writer.builder.node("Transpose", [writer.name(path, source)], name, perm=order)


def split(writer: Writer, path: str, _proto: onnx.NodeProto, node: fx.Node, name: str) -> None:
    """Split: its results are named by the items taken from it."""
    source, dim = node.args[0], (node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0))
    assert isinstance(source, fx.Node)
    sizes = [int(writer.concrete(size)) for size in _split_sizes(node)]
    outputs = [writer.builder.free(f"{name}_{i}") for i in range(len(sizes))]
    given = writer.builder.numbers(sizes, f"{name}_sizes")
    writer.builder.nodes.append(
        onnx.helper.make_node("Split", [writer.name(path, source), given], outputs, name=f"{name}/Split", axis=dim)
    )
    for user in node.users:
        if _is_item(user) and isinstance(user.args[1], int):
            writer.names[user] = outputs[user.args[1]]


def item(_writer: Writer, _path: str, _proto: onnx.NodeProto, _node: fx.Node, _name: str) -> None:
    """One of several results, named already."""


def select(writer: Writer, path: str, _proto: onnx.NodeProto, node: fx.Node, name: str) -> None:
    """Gather of one: ``select(x, dim, index)``."""
    source, dim, index = node.args
    assert isinstance(source, fx.Node)
    position = writer.builder.store(
        np.array(writer.concrete(index), dtype=np.int64), writer.builder.free(f"{name}_index")
    )
    writer.builder.node("Gather", [writer.name(path, source), position], name, axis=dim)


def pad(writer: Writer, path: str, _proto: onnx.NodeProto, node: fx.Node, name: str) -> None:
    """Pad with zeros: ``pad(x, amounts, mode, value)``."""
    args: tuple[Any, ...] = node.args
    mode = args[2] if len(args) > 2 and isinstance(args[2], str) else "constant"
    value = next((a for a in args[2:] if isinstance(a, (int, float))), node.kwargs.get("value")) or 0.0
    if mode != "constant" or value:
        raise Unwritable(path, "padding of channels")
    ndim, amounts = len(writer.shapes.of(args[0])), [writer.concrete(a) for a in args[1]]
    amounts += [0] * (2 * ndim - len(amounts))
    pads = [amounts[2 * (ndim - 1 - d)] for d in range(ndim)] + [amounts[2 * (ndim - 1 - d) + 1] for d in range(ndim)]
    writer.builder.node("Pad", [writer.name(path, args[0]), writer.builder.numbers(pads, f"{name}_pads")], name)


EMIT: dict[str, Rule] = {
    "slice": slice_,
    "Pick": pick,
    **named(view, "view reshape _unsafe_view"),
    "cat": cat,
    "permute": permute,
    "split_with_sizes": split,
    "getitem": item,
    "select": select,
    **named(pad, "pad constant_pad_nd"),
}
"""Operation of the cut graph -> how ONNX says it."""
