"""Layers and products that mix channels: convolutions, linear layers, attention, embeddings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from compress.graph.aten.labels.meeting import channels, labels_of_parameter, unified, unify_along
from compress.graph.aten.labels.values import (
    Computed,
    Contraction,
    Parameter,
    has_parameters,
    is_plain,
    of_activation,
    place,
)
from compress.graph.aten.ops import (
    as_result,
    conv_arguments,
    conv_transposed_arguments,
    einsum_letters,
    is_padded,
    summed_dims,
)
from compress.graph.aten.trace import base_name
from compress.graph.aten.walk import Value, shape_of
from compress.graph.field import Field

if TYPE_CHECKING:
    from compress.graph.aten.labels.flow import LabelFlow


def conv(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Convolution: mixes inputs into fresh outputs, group by group; depthwise: each output is its input channel."""
    x, weight, bias, _stride, padding, _dilation, groups = conv_arguments(args)
    kernel = weight.shape[2:] if isinstance(weight, Parameter) else ()
    padded = is_padded(padding, kernel)
    return _convolve(flow, node, args, kwargs, (x, weight, bias), groups, padded=padded, transposed=False)


def conv_transposed(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Transposed convolution: the weight is ``[in, out / groups, *kernel]``; inner and border outputs differ."""
    x, weight, bias, _stride, _padding, _output_padding, groups, _dilation = conv_transposed_arguments(args)
    return _convolve(flow, node, args, kwargs, (x, weight, bias), groups, padded=True, transposed=True)


def _convolve(
    flow: LabelFlow,
    node: fx.Node,
    args: tuple[Value, ...],
    kwargs: dict[str, Value],
    operands: tuple[Value, Value, Value],
    groups: int,
    *,
    padded: bool,
    transposed: bool,
) -> Value:
    x, weight, bias = operands
    x, shape = of_activation(x), shape_of(node)
    if not isinstance(x, Field) or not is_plain(weight) or shape is None:
        return flow.refuse(node, args, kwargs, "the weight of this convolution is computed")
    channel_dim = 1 - len(weight.shape)
    inputs = channels(x, channel_dim)
    if inputs is None:
        slides = not x.varies(channel_dim) and math.prod(weight.shape[2:]) > 1
        why = "slides over channels, each result reads neighbours" if slides else "reads channels that vary over space"
        return flow.refuse(node, args, kwargs, f"{base_name(node)} {why}")
    outputs = flow.book.parameter(weight.name, int(transposed), shape[channel_dim])
    if groups > 1:
        flow.groups[weight.name] = groups
    if groups == inputs.numel() and (groups > 1 or weight.name in flow.channelwise):
        flow.book.unify(outputs, inputs.repeat_interleave(outputs.numel() // groups))
        if transposed:  # both dimensions of the weight are channels
            flow.own(weight, 0, inputs)
    else:
        _contract(flow, node, inputs, weight, bias, padded=padded, groups=groups, transposed=transposed)
    flow.own(bias, 0, outputs)
    return Field.along(outputs, channel_dim % len(shape), shape)


def linear(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Linear layer on the last dimension."""
    x, weight, bias = (*args, None)[:3]
    x, shape = of_activation(x), shape_of(node)
    if not isinstance(x, Field) or not is_plain(weight) or shape is None:
        return flow.refuse(node, args, kwargs, "the weight of this linear layer is computed")
    inputs = channels(x, -1)
    if inputs is None:
        return flow.refuse(node, args, kwargs, "features of this linear layer's input vary over other dimensions")
    _contract(flow, node, inputs, weight, bias, padded=False)
    outputs = flow.book.parameter(weight.name, 0, weight.shape[0])
    flow.own(bias, 0, outputs)
    return Field.along(outputs, len(shape) - 1, shape)


def _contract(
    flow: LabelFlow,
    node: fx.Node,
    inputs: Tensor,
    weight: Parameter,
    bias: Value,
    *,
    padded: bool,
    groups: int = 1,
    transposed: bool = False,
) -> None:
    kind = (groups, transposed)
    if any((c.groups, c.transposed) != kind for c in flow.contractions if c.weight == weight.name):
        reason = f"{weight.name} is used in layers of different kinds (at {place(node)})"
        flow.pin_parameter(weight, reason)
        flow.book.pin(inputs, reason)
        flow.mixed.add(weight.name)
        return
    flow.own(weight, int(not transposed), inputs)
    name = bias.name if isinstance(bias, Parameter) else None
    flow.contractions.append(Contraction(node, weight.name, name, padded, groups, transposed))


def embedding(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """A table of vectors: its second dimension is that of channels."""
    weight, shape = args[0], shape_of(node)
    if not is_plain(weight) or shape is None:
        return flow.refuse(node, args, kwargs, "the table of this embedding is computed")
    return Field.along(flow.book.parameter(weight.name, 1, weight.shape[1]), len(shape) - 1, shape)


def product(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Products with a parameter that is no layer's, or that add something too."""
    factor = "with a parameter" if has_parameters(args, kwargs) else "of activations"
    return flow.refuse(node, args, kwargs, f"{base_name(node)}: a product {factor}")


def matrix_product(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Products of two activations, ``[..., n, k] @ [..., k, m]``: all that one result reads belongs together with it.

    In attention these are the channels of one head, which can only leave as a whole. A matrix of parameters on the
    right is the weight of a linear layer, ``[in, out]``.
    """
    a, b = args[:2]
    if isinstance(a, Field) and is_plain(b) and len(b.shape) == 2 and len(a.shape) > 1:
        return _mixed(flow, node, a, b)
    if not (isinstance(a, Field) and isinstance(b, Field)) or min(len(a.shape), len(b.shape)) < 2:
        return product(flow, node, args, kwargs)
    return _multiplied(flow, node, a, b)


def _mixed(flow: LabelFlow, node: fx.Node, x: Field, weight: Parameter) -> Value:
    inputs, shape = channels(x, -1), (*x.shape[:-1], weight.shape[1])
    if inputs is None:
        return flow.refuse(
            node, (x, weight), {}, "features that a matrix of parameters reads vary over other dimensions"
        )
    _contract(flow, node, inputs, weight, None, padded=False, transposed=True)
    return Field.along(flow.book.parameter(weight.name, 1, weight.shape[1]), len(shape) - 1, shape)


def einsum(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Einstein sum (equation, (a, b)): the same for products of two activations over named dimensions."""
    letters, shape = einsum_letters(args[0]), shape_of(node)
    if letters is None or shape is None or len(args[1]) != 2 or not all(isinstance(x, Field) for x in args[1]):
        return product(flow, node, args, kwargs)
    *inner, out = letters
    factors = []
    for own, x in zip(inner, args[1], strict=True):
        flow.book.explain(x.data, _whole_head(node))
        data = as_result(unify_along(flow, x, summed_dims(own, out)), own, out)
        factors.append(Field(data, shape))
    return unified(flow, node, factors, shape)


def attention(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """scaled_dot_product_attention (query, key, value, mask, ...): two products of matrices and a softmax.

    Its own scale follows the size of a head, which stays: a head leaves as a whole.
    """
    query, key, value, mask = (*args, kwargs.get("attn_mask"))[:4]
    own = all(isinstance(x, Field) and len(x.shape) > 2 for x in (query, key, value))
    if not own or kwargs.get("enable_gqa") or len(args) > 7:
        return product(flow, node, args, kwargs)
    turned = Field(key.data.transpose(-1, -2), (*key.shape[:-2], key.shape[-1], key.shape[-2]))
    scores = _multiplied(flow, node, query, turned)
    if isinstance(mask, (Parameter, Computed)):
        mask = labels_of_parameter(flow, mask, [scores], scores.shape)
        if mask is None:
            return product(flow, node, args, kwargs)
    if isinstance(mask, Field):
        scores = unified(flow, node, [scores, mask], scores.shape)
    return _multiplied(flow, node, scores, value)


def _multiplied(flow: LabelFlow, node: fx.Node, a: Field, b: Field) -> Field:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    n, m = a.shape[-2], b.shape[-1]
    for field in (a, b):
        flow.book.explain(field.data, _whole_head(node))
    left = Field(unify_along(flow, a, (-1,)), (*a.shape[:-1], m))
    right = Field(unify_along(flow, b, (-2,)), (*b.shape[:-2], n, m))
    return unified(flow, node, [left, right], (*batch, n, m))


def _whole_head(node: fx.Node) -> str:
    return f"leaves only with what {base_name(node)} multiplies it with: a whole attention head (at {place(node)})"
