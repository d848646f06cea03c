"""Ops that move data, create it or leave it as it is: the very op is executed on the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from compress.graph.aten.labels.meeting import labels_of_parameter, unified
from compress.graph.aten.labels.values import Computed, Parameter, has_parameters, is_plain
from compress.graph.aten.ops import (
    SLICES,
    named,
    reads_bits,
)
from compress.graph.aten.trace import base_name
from compress.graph.aten.walk import Value, execute, fields_in, map_result, shape_of
from compress.graph.field import Field
from compress.graph.labels import NEUTRAL
from compress.graph.nested import leaves, map_only

if TYPE_CHECKING:
    from compress.graph.aten.labels.flow import LabelFlow


_SIZED = (
    "view reshape _unsafe_view expand split split_with_sizes chunk unbind unflatten repeat pixel_shuffle "
    "channel_shuffle slice_scatter select_scatter"
)


SIZED = frozenset(_SIZED.split())
"""Ops whose arguments may hold a number of channels that ``forward`` wrote as a literal, or that need a multiple."""


LIKE_ANOTHER: dict[str, Callable[..., Tensor]] = {
    **named(Tensor.reshape, "view_as reshape_as"),
    "expand_as": Tensor.expand,
}
"""Ops that take the shape of another tensor -> what they do with it."""


JOINING = frozenset(("cat", "stack"))


WRITING = frozenset(("slice_scatter", "select_scatter"))
"""Ops that put a part into a tensor; whatever is written, a position goes on belonging to its channel."""


def move(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Execute the op itself on the labels."""
    if base_name(node) in SIZED or cuts_channels(node, args):
        flow.sized.extend(field.data for field in fields_in(args, kwargs))
    if reads_bits(args):
        return flow.unknown(node, args, kwargs)
    if base_name(node) in LIKE_ANOTHER:
        return _like_another(flow, node, args, kwargs)
    if base_name(node) in JOINING and fields_in(args):
        return execute(node, (_joined(flow, node, args[0], (*args[1:], 0)[0]), *args[1:]), kwargs)
    if has_parameters(args, kwargs):
        return _move_parameter(flow, node, args, kwargs)
    return execute(node, args, kwargs)


def _like_another(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """The other tensor gives a shape and nothing else."""
    x, take, shape = args[0], LIKE_ANOTHER[base_name(node)], shape_of(node)
    if isinstance(x, Field):
        return Field.of(take(x.full(), shape))
    if isinstance(x, Parameter):
        return Parameter(x.name, x.shape, take(x.addresses(), shape))
    return flow.unknown(node, args, kwargs)


def _joined(flow: LabelFlow, node: fx.Node, parts: Sequence[Value], dim: int) -> list[Value]:
    """The parts of a concatenation, where a parameter (a class token) takes the labels of what it is put beside."""
    field = next(part for part in parts if isinstance(part, Field))
    joined: list[Value] = []
    for part in parts:
        if isinstance(part, Field):
            joined.append(part)
            continue
        size = part.labels.shape if isinstance(part, Computed) else tuple(part.addresses().shape)
        beside = field.full() if base_name(node) == "stack" else field.full().narrow(dim, 0, 1)
        others = [Field.of(beside.expand(size))]
        own = labels_of_parameter(flow, part, others, size)
        if own is None or field.varies(dim):
            flow.refuse(node, (part, field), {}, f"a parameter enters {base_name(node)} directly")
        joined.append(unified(flow, node, [*others, *([] if own is None else [own])], size))
    return joined


def _move_parameter(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Move the addresses of a parameter, or the labels of what is computed from parameters."""
    operands = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, (Field, Parameter, Computed))]
    first, others = operands[0], operands[1:]
    if base_name(node) in WRITING and is_plain(first) and len(first.shape) == 1 and all(map(_is_neutral, others)):
        return Computed(Field(flow.book.parameter(first.name, 0, first.shape[0]), first.shape))
    if len(operands) > 1:
        return flow.refuse(node, args, kwargs, f"a parameter enters {base_name(node)} directly")
    (moved,) = operands
    if not isinstance(moved, Parameter):
        args, kwargs = map_only(Computed, lambda c: c.labels, (args, kwargs))
        return map_only(Field, Computed, execute(node, args, kwargs))
    args, kwargs = map_only(Parameter, lambda p: Field(p.addresses(), tuple(p.addresses().shape)), (args, kwargs))
    return map_only(Field, lambda f: Parameter(moved.name, moved.shape, f.full()), execute(node, args, kwargs))


def _is_neutral(value: Value) -> bool:
    return isinstance(value, Field) and bool((value.data == NEUTRAL).all())


def cuts_channels(node: fx.Node, args: tuple[Value, ...]) -> bool:
    """Whether a slice is one of channels: ``y[:, :, ::2, ::2]`` holds no number of them."""
    if base_name(node) not in SLICES or not isinstance(args[0], Field):
        return False
    dim = args[1] if len(args) > 1 else 0
    return args[0].varies(dim) and shape_of(node) != args[0].shape


def move_as_float(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """The same for ops that know no integers."""
    if has_parameters(args, kwargs):
        return flow.unknown(node, args, kwargs)
    return execute(node, args, kwargs, through=torch.float64)


def pad(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Constant padding is neutral; reflected and repeated borders carry the labels they copy."""
    if has_parameters(args, kwargs):
        return flow.unknown(node, args, kwargs)
    mode = args[2] if len(args) > 2 else kwargs.get("mode", "constant")
    if mode == "constant":
        return execute(node, (args[0], args[1], "constant", NEUTRAL), {})
    return execute(node, args, kwargs, through=torch.float64)


def constant_pad(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """The same under its functional name."""
    if has_parameters(args, kwargs):
        return flow.unknown(node, args, kwargs)
    return execute(node, (args[0], args[1], NEUTRAL), {})


def index(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Pick by a list of positions that is part of the network: executed, since nobody changes it."""
    x = args[0]
    positions = [leaf for leaf in leaves(args[1:]) if isinstance(leaf, (Field, Parameter, Computed))]
    if not isinstance(x, (Field, Parameter)) or not all(isinstance(p, Parameter) for p in positions):
        return flow.unknown(node, args, kwargs)

    def value(parameter: Parameter) -> Tensor:
        return flow.tensors[parameter.name].cpu().flatten()[parameter.addresses()]

    rest = map_only(Parameter, value, args[1:])
    if isinstance(x, Field):
        flow.sized.append(x.data)
        try:
            return execute(node, (x, *rest), kwargs)
        except (IndexError, RuntimeError):  # fewer channels than the list was made for
            return flow.refuse(node, args, kwargs, f"{base_name(node)} reads channels that are not there")
    moved = execute(node, (Field(x.addresses(), tuple(x.addresses().shape)), *rest), kwargs)
    return Parameter(x.name, x.shape, moved.full())


def same(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """The op changes no channel."""
    return args[0] if isinstance(args[0], (Field, Parameter, Computed)) else flow.unknown(node, args, kwargs)


def getitem(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """One of several results."""
    return args[0][args[1]] if isinstance(args[0], (tuple, list)) else flow.unknown(node, args, kwargs)


def neutral(_flow: LabelFlow, node: fx.Node, _args: tuple[Value, ...], _kwargs: dict[str, Value]) -> Value:
    """Created tensors belong to no channel."""
    return map_result(node, lambda shape: Field.uniform(NEUTRAL, shape, torch.int64))
