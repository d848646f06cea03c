"""The constant flow over an ATen graph: one visible table, op -> rule.

Only ops that are known to let NaN ("unknown") through are executed; every other op makes its result unknown. So a
missing rule loses a channel, never the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from compress.graph import constants
from compress.graph.aten.labels import conv_arguments, is_padded
from compress.graph.aten.trace import Trace, functional
from compress.graph.aten.walk import Value, Walk, execute, map_result, shape_of
from compress.graph.field import Field


class ConstantFlow(Walk):
    """Runs the graph on values; ``env[node]`` is a float64 ``Field`` (or a tuple) with NaN for unknown."""

    def __init__(self, trace: Trace):
        super().__init__(trace)
        self.rules = RULES

    def placeholder(self, node: fx.Node) -> Value:  # noqa: D102
        if node.name in self.trace.tensors:
            return self.trace.tensors[node.name][1]
        return self.unknown(node, (), {})

    def unknown(self, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
        """The result depends on the input, as far as we can tell."""
        return map_result(node, lambda shape: Field.uniform(constants.UNKNOWN, shape, torch.float64))


Rule = Callable[[ConstantFlow, fx.Node, tuple[Value, ...], dict[str, Value]], Value]


def move(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Execute the op itself."""
    if any(isinstance(a, Tensor) for a in torch.utils._pytree.tree_leaves((args, kwargs))):
        return flow.unknown(node, args, kwargs)
    return execute(node, args, kwargs)


def same(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """The op changes no value."""
    return args[0] if isinstance(args[0], Field) else flow.unknown(node, args, kwargs)


def getitem(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """One of several results."""
    return args[0][args[1]] if isinstance(args[0], (tuple, list)) else flow.unknown(node, args, kwargs)


def pointwise(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Execute an elementwise op that keeps NaN, on what varies."""
    return _elementwise(flow, node, args, kwargs, functional(node))


def product(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """A gate that is 0, or a channel that is 0 under an unknown gate, gives 0."""

    def multiply(a: Any, b: Any) -> Tensor:
        return constants.absorbing_product(*(torch.as_tensor(v, dtype=torch.float64) for v in (a, b)))

    return _elementwise(flow, node, args, kwargs, multiply)


def _elementwise(
    flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value], op: Callable[..., Tensor]
) -> Value:
    shape = shape_of(node)
    if shape is None:
        return flow.unknown(node, args, kwargs)
    args, kwargs = tree_map_only(Field, lambda f: f.data, (args, kwargs))
    args, kwargs = tree_map_only(Tensor, lambda t: t.double(), (args, kwargs))
    data = op(*args, **kwargs)
    data = torch.where(data.isfinite(), data, constants.UNKNOWN)
    return Field(data.reshape([1] * (len(shape) - data.ndim) + list(data.shape)), shape)


def conv(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Known outputs of a convolution; in other groupings than 1 and depthwise nothing is concluded."""
    x, weight, bias, _stride, padding, _dilation, groups = conv_arguments(args)
    shape = shape_of(node)
    dim = 1 - weight.ndim if isinstance(weight, Tensor) else 0
    if not isinstance(x, Field) or not isinstance(weight, Tensor) or shape is None or isinstance(bias, Field):
        return flow.unknown(node, args, kwargs)
    inputs = channel_constants(x, dim)
    padded = is_padded(padding, tuple(weight.shape[2:]))
    if groups == 1:
        known = constants.contract(weight, bias, inputs, padded=padded)
    elif weight.shape[1] == 1 and groups == inputs.numel():
        known = constants.contract_depthwise(weight, bias, inputs, padded=padded)
    else:
        return flow.unknown(node, args, kwargs)
    return Field.along(known, dim % len(shape), shape)


def linear(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Known outputs of a linear layer."""
    x, weight, bias = (*args, None)[:3]
    shape = shape_of(node)
    if not isinstance(x, Field) or not isinstance(weight, Tensor) or shape is None or isinstance(bias, Field):
        return flow.unknown(node, args, kwargs)
    known = constants.contract(weight, bias, channel_constants(x, -1), padded=False)
    return Field.along(known, len(shape) - 1, shape)


def channel_constants(x: Field, dim: int) -> Tensor:
    """The constant of each channel along ``dim``; NaN for one that varies over space or tokens. Float64 ``[C]``."""
    moved = x.data.movedim(dim, 0).flatten(1)
    constant = (moved == moved[:, :1]).all(1)  # NaN differs from itself: unknown stays unknown
    return torch.where(constant, moved[:, 0], constants.UNKNOWN).expand(x.shape[dim])


def batch_norm(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Affine in each channel; a scale of 0 leaves the shift."""
    several = isinstance(node.meta.get("val"), (tuple, list))
    x, scale, shift, mean, variance = args[:5]
    training, eps = (False, args[6]) if several else (args[5], args[7])
    if not isinstance(x, Field) or training or not isinstance(mean, Tensor):
        return flow.unknown(node, args, kwargs)
    y = Field(constants.normalise(x.data, scale, shift, mean, variance, eps), x.shape)
    return (y, None, None) if several else y


def prelu(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """A slope for negative values."""
    x, slope = args
    if not isinstance(x, Field) or not isinstance(slope, Tensor):
        return flow.unknown(node, args, kwargs)
    slope = slope.double() if slope.numel() == 1 else slope.double().reshape([1, -1, *[1] * (len(x.shape) - 2)])
    return Field(torch.where(x.data >= 0, x.data, x.data * slope), x.shape)


def reduce(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Means over constants; executed on what varies only when the mean of equal values is that value."""
    x, shape = args[0], shape_of(node)
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    if not isinstance(x, Field) or shape is None or dims is None:
        return flow.unknown(node, args, kwargs)
    dims = [d % len(x.shape) for d in ([dims] if isinstance(dims, int) else dims)]
    if any(x.varies(d) for d in dims):
        return flow.unknown(node, args, kwargs)
    return Field(x.data.squeeze(tuple(dims)) if len(shape) < len(x.shape) else x.data, shape)


def pool(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Pooling of a spatially constant channel: itself. Max pooling ignores its padding."""
    x = args[0]
    if not isinstance(x, Field) or any(x.varies(d) for d in range(2, len(x.shape))):
        return flow.unknown(node, args, kwargs)
    return map_result(node, lambda shape: Field(x.data, shape))


def avg_pool(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Average pooling (input, kernel, stride, padding, ...): where padding may be counted only 0 survives."""
    padding = args[3] if len(args) > 3 else 0
    if not is_padded(padding, ()):
        return pool(flow, node, args, kwargs)
    pooled = pool(flow, node, args, kwargs)
    return Field(torch.where(pooled.data == 0, pooled.data, constants.UNKNOWN), pooled.shape)


def _named(rule: Rule, ops: str) -> dict[str, Rule]:
    return dict.fromkeys(ops.split(), rule)


RULES: dict[str, Rule] = {
    **_named(
        move,
        "view reshape _unsafe_view permute transpose t cat stack split split_with_sizes chunk unbind slice select narrow "
        "flatten unflatten unsqueeze squeeze expand repeat repeat_interleave roll flip pixel_shuffle pixel_unshuffle "
        "diagonal upsample_nearest1d upsample_nearest2d upsample_nearest3d channel_shuffle pad constant_pad_nd movedim swapaxes",
    ),
    "getitem": getitem,
    **_named(same, "contiguous clone dropout feature_dropout alpha_dropout alias detach lift_fresh lift_fresh_copy"),
    **_named(
        pointwise,
        "relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid hardsigmoid hardswish hardtanh tanh softplus "
        "logsigmoid log_sigmoid tanhshrink exp expm1 log log1p sqrt rsqrt abs neg square reciprocal clamp clamp_min clamp_max "
        "sin cos erf add sub rsub div",
    ),
    "mul": product,
    **_named(conv, "conv1d conv2d conv3d"),
    "linear": linear,
    **_named(batch_norm, "batch_norm _native_batch_norm_legit_no_training"),
    "prelu": prelu,
    "mean": reduce,
    **_named(
        pool,
        "max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
        "_adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d",
    ),
    **_named(avg_pool, "avg_pool1d avg_pool2d avg_pool3d"),
}
"""Op -> rule. What is not here gives unknown."""
