"""Labels that meet belong together: elementwise ops, and what other rules need of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from compress.graph.aten.labels.values import Computed, Parameter, place
from compress.graph.aten.trace import base_name
from compress.graph.aten.walk import Value, fields_in, shape_of
from compress.graph.field import Field
from compress.graph.labels import NEUTRAL, collapse

if TYPE_CHECKING:
    from compress.graph.aten.labels.flow import LabelFlow


def meet(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Elementwise: labels that meet belong together.

    A tensor that is broadcast along a dimension in which the other's labels vary (a spatial attention map, say) is no
    channel of the result; the channel it comes from is pinned. A channel that meets padding or a created tensor counts
    as sized: the number of channels may stand in ``forward``.
    """
    shape = shape_of(node)
    operands = (*args, *kwargs.values())
    fields = fields_in(operands)
    parameters = [a for a in operands if isinstance(a, (Parameter, Computed))]
    if shape is None or not (fields or parameters):
        return flow.unknown(node, args, kwargs)
    owned = [labels_of_parameter(flow, p, fields, shape) for p in parameters]
    if None in owned:
        return flow.refuse(node, args, kwargs, f"a parameter enters {base_name(node)} along several dimensions")
    result = unified(flow, node, [*fields, *(f for f in owned if f is not None)], shape)
    return result if fields else Computed(result)


def glu(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Gated linear unit: one half of the channels times the sigmoid of the other."""
    x, dim = (*args, -1)[:2]
    if not isinstance(x, Field):
        return flow.unknown(node, args, kwargs)
    flow.sized.append(x.data)
    value, gate = (Field.of(half) for half in x.full().chunk(2, dim))
    return unified(flow, node, [value, gate], value.shape)


def labels_of_parameter(
    flow: LabelFlow, parameter: Parameter | Computed, others: list[Field], shape: tuple[int, ...]
) -> Field | None:
    """The labels that a parameter brings to an elementwise operation with ``others``.

    Its dimension of channels is the one along which the others' labels vary, or along which it is broadcast over them.
    Among parameters alone it is the only one that is larger than 1. Its other dimensions (the tokens of a position
    embedding, say) stay as they are.

    Returns:
        The labels; ``None`` where no single dimension is that of channels.
    """
    if isinstance(parameter, Computed):
        field = parameter.labels
        along = [d for d in range(len(field.shape)) if field.varies(d)]
        if all(_are_channels(d - len(field.shape), others, shape) for d in along):
            return field
        flow.book.pin(field.data, "a computed parameter that is not along channels")
        return Field.uniform(NEUTRAL, field.shape, torch.int64)
    found: list[Field] = []
    size = tuple(parameter.addresses().shape)
    for dim in range(len(parameter.shape)):
        if parameter.shape[dim] > 1:
            where = Field.of(parameter.coordinates(dim))
            along = [d for d in range(len(size)) if where.varies(d)]
            if any(_are_channels(d - len(size), others, shape) for d in along):
                own = flow.book.parameter(parameter.name, dim, parameter.shape[dim])
                if len(along) > 1:
                    return None
                found.append(Field(own[where.data], size))
    if not found:
        return Field.uniform(NEUTRAL, size, torch.int64)
    return found[0] if len(found) == 1 else None


def _are_channels(dim: int, others: list[Field], shape: tuple[int, ...]) -> bool:
    """Whether labels vary along ``dim`` (negative) of a result, or could: nothing else has that dimension."""
    present = [field for field in others if len(field.shape) >= -dim]
    return any(field.varies(dim) for field in present) or all(field.shape[dim] != shape[dim] for field in present)


def unified(flow: LabelFlow, node: fx.Node, fields: list[Field], shape: tuple[int, ...]) -> Field:
    """The labels of a result, of the given shape, in which those of several fields meet; they belong together."""
    ndim = len(shape)
    aligned = [f.data.reshape([1] * (ndim - len(f.shape)) + list(f.data.shape)) for f in fields]
    sizes = [[1] * (ndim - len(f.shape)) + list(f.shape) for f in fields]
    varying = [max(data.shape[d] for data in aligned) > 1 for d in range(ndim)]
    result: Tensor | None = None
    for data, size in zip(aligned, sizes, strict=True):
        if any(varying[d] and size[d] == 1 and shape[d] > 1 for d in range(ndim)):
            flow.book.pin(data, f"broadcast over channels by {base_name(node)} (at {place(node)})")
            continue
        if result is None:
            result = data
        else:
            flow.book.unify(result, data)
            one, other = torch.broadcast_tensors(result, data)  # type: ignore[no-untyped-call]
            if math.prod(size) > 1:
                flow.sized.append(torch.where(one < 0, other, one)[(one < 0) != (other < 0)])
            result = torch.where(one >= 0, one, other)
    if result is None:
        return Field.uniform(NEUTRAL, shape, torch.int64)
    return Field(result, shape)


def unify_along(flow: LabelFlow, x: Field, dims: tuple[int, ...]) -> Tensor:
    """Note that labels along ``dims`` belong together; one of each is returned, of size 1 there."""
    first = x.data.amax(dims, keepdim=True) if dims else x.data  # neutral ones give way
    flow.book.unify(x.data, first)
    return first


def channels(x: Field, dim: int) -> Tensor | None:
    """The label of each channel along ``dim``, ``[C]``; ``None`` where channels vary over other dimensions."""
    dim %= len(x.shape)
    data = collapse(x.data, tuple(d for d in range(len(x.shape)) if d != dim))
    return None if data is None else data.reshape(-1).expand(x.shape[dim])
