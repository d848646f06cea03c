"""Normalisations, reductions and poolings: what may be computed over a dimension, and what only within a channel."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import fx

from compress.graph.aten.labels.meeting import channels, meet, unify_along
from compress.graph.aten.labels.values import Computed, Parameter, Selection
from compress.graph.aten.ops import (
    reduced_dims,
    spatial_dims,
)
from compress.graph.aten.trace import base_name
from compress.graph.aten.walk import Value, map_result
from compress.graph.field import Field
from compress.graph.labels import collapse

if TYPE_CHECKING:
    from compress.graph.aten.labels.flow import LabelFlow


def batch_norm(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Each channel on its own: scale, shift and statistics belong to it."""
    x = args[0]
    if isinstance(x, (Parameter, Computed)):
        return flow.refuse(node, args, kwargs, "a weight is standardised: a statistic over the inputs of each filter")
    inputs = channels(x, 1) if isinstance(x, Field) else None
    if inputs is None:
        return flow.refuse(node, args, kwargs, f"channels of this {base_name(node)}'s input vary over space")
    mean = args[3]
    if isinstance(mean, Parameter) and mean.name in flow.select:
        outputs = flow.book.fresh(inputs.numel())
        entries = math.prod(x.shape) // inputs.numel()
        flow.selections.append(Selection(mean.name, inputs, outputs, entries))
        x, inputs = Field.along(outputs, 1, x.shape), outputs
    for parameter in args[1:5]:
        flow.own(parameter, 0, inputs)
    return (x, None, None) if isinstance(node.meta.get("val"), (tuple, list)) else x


def prelu(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """One slope a channel belongs to that channel; a single shared slope to none."""
    x, slope = args
    if not isinstance(x, Field) or not isinstance(slope, Parameter):
        return flow.unknown(node, args, kwargs)
    if slope.shape != (1,) or slope.name in flow.channelwise:
        inputs = channels(x, 1)
        if inputs is None:
            return flow.refuse(node, args, kwargs, "channels of this PReLU's input vary over space")
        flow.own(slope, 0, inputs)
    return x


def softmax(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Softmax: harmless along a dimension in which labels are the same, and where channels leave it as a whole."""
    x = args[0]
    if isinstance(x, Field) and (not x.varies(args[1]) or _is_partial(x, (args[1] % len(x.shape),))):
        unify_along(flow, x, (args[1] % len(x.shape),))
        return x
    return over_channels(flow, node, args, kwargs)


def layer_norm(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Normalisation over the last dimensions: harmless where these are height and width, and hold no channels."""
    x, normalised = args[:2]
    if not isinstance(x, Field) or any(x.varies(-1 - d) for d in range(len(normalised))):
        return over_channels(flow, node, args, kwargs)
    return (x, None, None) if isinstance(node.meta.get("val"), (tuple, list)) else x


def over_channels(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """LayerNorm, GroupNorm, softmax: a statistic over channels changes when one leaves, even a dead one."""
    return flow.refuse(node, args, kwargs, f"{base_name(node)}: a statistic over channels")


def reduce(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Mean, sum, largest, norm: harmless along dimensions in which the labels are the same.

    Over some of the dimensions that hold channels (the branches of split attention) it is an elementwise sum: what is
    summed belongs together.
    """
    x = args[0]
    if len(args) > 1 and isinstance(args[1], (Field, Parameter, Computed)):
        return meet(flow, node, args, kwargs)  # the larger of two tensors
    if not isinstance(x, Field):
        return flow.unknown(node, args, kwargs)
    dims = reduced_dims(node, x, args, kwargs)
    data = collapse(x.data, dims)
    if data is None and _is_partial(x, dims):
        flow.sized.append(x.data)
        data = unify_along(flow, x, dims)
    if data is None:
        return flow.refuse(node, args, kwargs, f"{base_name(node)} over channels")
    return map_result(node, lambda shape: Field(data.squeeze(dims) if len(shape) < len(x.shape) else data, shape))


def pool(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Windows of a pooling or an interpolation stay within a channel."""
    x = args[0]
    if not isinstance(x, Field):
        return flow.unknown(node, args, kwargs)
    data = collapse(x.data, tuple(spatial_dims(node, x)))
    if data is None:
        return flow.refuse(node, args, kwargs, f"channels of the input of {base_name(node)} vary over space")
    return map_result(node, lambda shape: Field(data, shape))


def _is_partial(x: Field, dims: tuple[int, ...]) -> bool:
    """Whether channels vary along other dimensions too: along ``dims`` are those that leave together."""
    return any(x.varies(d) for d in range(1, len(x.shape)) if d not in dims)
