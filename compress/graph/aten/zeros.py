"""Constants under reductions and normalisations: what they make of zeros, and of equal values.

A sum over space of a constant other than 0 grows with the input, and a variance of it is 0 only up to rounding: of such
ops only zeros are known. The largest of equal values is that value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from compress.graph.aten.ops import reduced_dims
from compress.graph.aten.trace import base_name, functional
from compress.graph.aten.walk import Value, shape_of
from compress.graph.constants import UNKNOWN, agreed, normalise
from compress.graph.field import Field

if TYPE_CHECKING:
    from compress.graph.aten.constants import ConstantFlow


def zeros_alone(x: Field) -> Field:
    """What is left of constants where anything but 0 may have changed."""
    return Field(torch.where(x.data == 0, x.data, UNKNOWN), x.shape)


def accumulate(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Sum, running sum, norm or deviation of zeros: 0, if the op itself finds so (a variance of one entry is none)."""
    x, shape = args[0], shape_of(node)
    if not isinstance(x, Field) or shape is None:
        return flow.unknown(node, args, kwargs)
    zeros = torch.zeros((), dtype=torch.float64).expand(x.shape)
    if bool((functional(node)(zeros, *args[1:], **kwargs) != 0).any()):
        return flow.unknown(node, args, kwargs)
    dims = reduced_dims(node, x, args, kwargs)
    data = agreed(x.data, dims)
    return zeros_alone(Field(data.squeeze(dims) if len(shape) < len(x.shape) else data, shape))


def extreme(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """The largest, the first few or the sorted of equal values along a dimension; where they were found is unknown."""
    x = args[0]
    if not isinstance(x, Field):
        return flow.unknown(node, args, kwargs)
    if base_name(node) == "topk":
        dims: tuple[int, ...] = ((args[2] if len(args) > 2 else kwargs.get("dim", -1)) % len(x.shape),)
    else:
        dims = reduced_dims(node, x, args, kwargs)
    known = agreed(x.data, dims)
    found = flow.unknown(node, args, kwargs)
    values = found[0] if isinstance(found, tuple) else found
    values = Field(known.squeeze(dims) if len(values.shape) < len(x.shape) else known, values.shape)
    return (values, *found[1:]) if isinstance(found, tuple) else values


def instance_norm(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """InstanceNorm (input, scale, shift, mean, variance, use_input_stats, momentum, eps, ...)."""
    x, scale, shift, mean, variance, own_statistics, _momentum, eps = args[:8]
    if not isinstance(x, Field) or any(isinstance(p, Field) for p in args[1:5]):
        return flow.unknown(node, args, kwargs)
    if not own_statistics:
        return Field(normalise(x.data, scale, shift, mean, variance, eps), x.shape)
    per_channel = (1, -1, *[1] * (len(x.shape) - 2))
    zeros = agreed(x.data, tuple(range(2, len(x.shape)))) == 0
    return Field(_normalised(zeros, _shaped(scale, per_channel), _shaped(shift, per_channel)), x.shape)


def layer_norm(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """LayerNorm (input, normalized_shape, scale, shift, eps, ...); RMSNorm has no shift."""
    x, normalised, scale = (*args, None)[:3]
    shift = args[3] if base_name(node) == "layer_norm" and len(args) > 3 else None
    if not isinstance(x, Field) or isinstance(scale, Field) or isinstance(shift, Field):
        return flow.unknown(node, args, kwargs)
    zeros = agreed(x.data, tuple(range(len(x.shape) - len(normalised), len(x.shape)))) == 0
    return Field(_normalised(zeros, _shaped(scale, None), _shaped(shift, None)), x.shape)


def _shaped(parameter: Tensor | None, shape: Any) -> Tensor | None:
    parameter = None if parameter is None else parameter.double()
    return parameter if parameter is None or shape is None else parameter.reshape(shape)


def _normalised(zeros: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    """What a normalisation by its input's own statistics returns: its shift, for zeros and where its scale is 0."""
    known = zeros if scale is None else zeros | (scale == 0)
    return torch.where(known, torch.zeros((), dtype=torch.float64) if shift is None else shift, UNKNOWN)
