"""The constant flow over an ATen graph: one visible table, op -> rule.

Only ops that are known to let NaN ("unknown") through are executed; every other op makes its result unknown. So a
missing rule loses a channel, never the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from compress.graph import constants
from compress.graph.aten.branches import softmax, total
from compress.graph.aten.ops import (
    AVERAGE_POOLING,
    BATCH_NORM,
    CONVOLUTION,
    CONVOLUTION_TRANSPOSED,
    MOVEMENT,
    MOVEMENT_OF_FLOATS,
    SLICES,
    UNCHANGED,
    WINDOWS,
    conv_arguments,
    conv_transposed_arguments,
    is_padded,
    named,
    pooling_arguments,
    reads_bits,
    reduced_dims,
    spatial_dims,
)
from compress.graph.aten.products import attention, einsum, matrix_product
from compress.graph.aten.trace import DROPOUT, Trace, base_name, functional
from compress.graph.aten.walk import Value, Walk, execute, fields_in, map_result, shape_of
from compress.graph.aten.zeros import accumulate, extreme, instance_norm, layer_norm, zeros_alone
from compress.graph.field import Field
from compress.graph.labels import NEUTRAL
from compress.graph.nested import leaves, map_only

SMALL = 1 << 16
"""Entries of the largest parameter that is moved as it is: scales and shifts are followed, filters are not."""


class ConstantFlow(Walk):
    """Runs the graph on values; ``env[node]`` is a float64 ``Field`` (or a tuple) with NaN for unknown.

    At the end ``constant_output`` tells whether every output of the network is known. ``lost`` holds where channels
    ceased to be constant, and why.
    """

    def __init__(self, trace: Trace, labels: Mapping[fx.Node, Value] | None = None):
        super().__init__(trace)
        self.rules = RULES
        self.labels = labels or {}
        self.constant_output = False
        self.lost: list[tuple[fx.Node, Tensor, str]] = []

    def lose(self, node: fx.Node, before: Tensor, after: Tensor, why: str) -> None:
        """Note which channels were constant before an operation and are not behind it: float64 ``[channels]`` each."""
        gone = ~before.isnan() & after.isnan()
        if bool(gone.any()):
            self.lost.append((node, gone, why))

    def placeholder(self, node: fx.Node) -> Value:  # noqa: D102
        if node.name in self.trace.tensors and node.name not in self.trace.written:
            return self.trace.tensors[node.name][1].cpu()
        return self.unknown(node, (), {})

    def output(self, node: fx.Node) -> None:  # noqa: D102
        results = fields_in(map_only(fx.Node, self.env.__getitem__, node.args))
        self.constant_output = bool(results) and not any(bool(field.data.isnan().any()) for field in results)

    def unknown(self, node: fx.Node, _args: tuple[Value, ...], _kwargs: dict[str, Value]) -> Value:
        """The result depends on the input, as far as we can tell."""
        return map_result(node, lambda shape: Field.uniform(constants.UNKNOWN, shape, torch.float64))


Rule = Callable[[ConstantFlow, fx.Node, tuple[Value, ...], dict[str, Value]], Value]


def move(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Execute the op itself."""
    parameters = [a for a in leaves((args, kwargs)) if isinstance(a, Tensor)]
    whole = bool(parameters) and all(_is_small(p) and not p.is_floating_point() for p in parameters)
    # Positions; but of a slice another size may take another part.
    if whole and not fields_in((args, kwargs)) and base_name(node) not in SLICES:
        return functional(node)(*args, **kwargs)
    if reads_bits(args) or any(not _is_small(p) or not p.is_floating_point() for p in parameters):
        return flow.unknown(node, args, kwargs)
    args, kwargs = map_only(Tensor, lambda p: Field.of(p.double()), (args, kwargs))
    if any(0 in field.shape for field in fields_in(args)):  # it may hold something at another input size
        return zeros_alone(execute(node, args, kwargs))
    result = execute(node, args, kwargs)
    return flow.unknown(node, args, kwargs) if _crops(flow, node, args, result) else result


def _is_small(parameter: Tensor) -> bool:
    return parameter.numel() <= SMALL


def _crops(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], result: Value) -> bool:
    """Whether entries of a table are left out that differ over space: at another input size others might be."""
    if base_name(node) not in SLICES or not isinstance(args[0], Field) or not isinstance(result, Field):
        return False
    labels = flow.labels.get(node.args[0]) if isinstance(node.args[0], fx.Node) else None
    if isinstance(labels, Field) and not bool((labels.data == NEUTRAL).all()):
        return False  # an activation: what is constant in it is so relative to its borders
    rank = len(args[0].shape)
    dim = (args[1] if len(args) > 1 else 0) % rank
    over_space = dim > 1 or dim < rank - 1  # positions [1, L, C] are cut along 1; a bias [C] along its channels
    return over_space and args[0].varies(dim) and result.shape != args[0].shape


def scatter(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """A part written into a tensor: executed; where it covers the whole now, it may not at another input size."""
    base, part = as_field(args[0]), as_field(args[1])
    if not isinstance(base, Field) or not isinstance(part, Field):
        return flow.unknown(node, args, kwargs)
    written = move(flow, node, (base, part, *args[2:]), kwargs)
    if not isinstance(written, Field) or math.prod(part.shape) < math.prod(base.shape):
        return written
    return Field(torch.where(written.data == base.data, written.data, constants.UNKNOWN), written.shape)


def created(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """A tensor of one number, in the precision that it is made in."""
    value, result = CREATED[base_name(node)], node.meta["val"]
    number = args[value] if isinstance(value, int) else value
    if not isinstance(number, (int, float)) or not result.dtype.is_floating_point:
        return flow.unknown(node, args, kwargs)
    rounded = float(torch.full((), number, dtype=result.dtype))
    return Field.uniform(rounded if math.isfinite(rounded) else constants.UNKNOWN, result.shape, torch.float64)


def cast(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Another precision, or the same: whole numbers follow other arithmetic, and are unknown."""
    x, source = args[0], node.args[0]
    if not isinstance(x, Field) or not isinstance(source, fx.Node):
        return flow.unknown(node, args, kwargs)
    before, after = source.meta["val"].dtype, node.meta["val"].dtype
    if before == after:
        return x
    if not (before.is_floating_point and after.is_floating_point):
        return flow.unknown(node, args, kwargs)
    data = x.data.to(after).double()
    return Field(torch.where(data.isfinite(), data, constants.UNKNOWN), x.shape)


def index(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Pick by a list of positions that is part of the network."""
    if not isinstance(args[0], Field) or fields_in(args[1:], kwargs):
        return flow.unknown(node, args, kwargs)
    try:
        return execute(node, args, kwargs)
    except (IndexError, RuntimeError):  # fewer channels than the list was made for
        return flow.unknown(node, args, kwargs)


def same(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """The op changes no value."""
    return args[0] if isinstance(args[0], (Field, Tensor)) else flow.unknown(node, args, kwargs)


def dropout(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Dropout (input, p, train) changes no value, unless ``forward`` insists on it in evaluation mode too."""
    return flow.unknown(node, args, kwargs) if args[2] else same(flow, node, args, kwargs)


def getitem(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """One of several results."""
    return args[0][args[1]] if isinstance(args[0], (tuple, list)) else flow.unknown(node, args, kwargs)


def pointwise(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Execute an elementwise op that keeps NaN, on what varies."""
    return _elementwise(flow, node, args, kwargs, functional(node))


def masked(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """where(mask, x, other) and masked_fill(x, mask, number), with a mask that is part of the network."""
    mask, x, other = args if base_name(node) == "where" else (args[1], args[2], args[0])
    x, other = as_field(x), as_field(other)
    shape = shape_of(node)
    fixed = isinstance(mask, Tensor) and mask.dtype == torch.bool and _is_small(mask)
    if shape is None or not fixed or not all(isinstance(value, (Field, int, float)) for value in (x, other)):
        return flow.unknown(node, args, kwargs)
    one, two = (v.data if isinstance(v, Field) else torch.tensor(float(v), dtype=torch.float64) for v in (x, other))
    data = torch.where(mask, one, two)
    data = torch.where(data.isfinite(), data, constants.UNKNOWN)
    return Field(data.reshape([1] * (len(shape) - data.ndim) + list(data.shape)), shape)


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
    every = leaves((args, kwargs))
    if any(isinstance(leaf, complex) or (isinstance(leaf, Tensor) and not leaf.is_floating_point()) for leaf in every):
        return flow.unknown(node, args, kwargs)  # True + True is True
    args, kwargs = map_only(Field, lambda f: f.data, (args, kwargs))
    args, kwargs = map_only(Tensor, lambda t: t.double(), (args, kwargs))
    data = op(*args, **kwargs)
    data = torch.where(data.isfinite(), data, constants.UNKNOWN)
    return Field(data.reshape([1] * (len(shape) - data.ndim) + list(data.shape)), shape)


def conv(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], _kwargs: dict[str, Value]) -> Value:
    """Known outputs of a convolution."""
    x, weight, bias, _stride, padding, _dilation, groups = conv_arguments(args)
    bordered = isinstance(weight, (Tensor, Field)) and is_padded(padding, tuple(weight.shape[2:]))
    return _convolve(flow, node, (x, weight, bias), groups, bordered=bordered, transposed=False)


def conv_transposed(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], _kwargs: dict[str, Value]) -> Value:
    """Known outputs of a transposed convolution: how many taps an output sees depends on its place."""
    x, weight, bias, _stride, _padding, _output_padding, groups, _dilation = conv_transposed_arguments(args)
    return _convolve(flow, node, (x, weight, bias), groups, bordered=True, transposed=True)


def _convolve(
    flow: ConstantFlow,
    node: fx.Node,
    operands: tuple[Value, Value, Value],
    groups: int,
    *,
    bordered: bool,
    transposed: bool,
) -> Value:
    x, weight, bias = operands
    x, shape = as_field(x), shape_of(node)
    weight, bias = as_tensor(weight), as_tensor(bias)
    if not isinstance(x, Field) or not isinstance(weight, Tensor) or shape is None:
        return flow.unknown(node, operands, {})
    dim = 1 - weight.ndim
    inputs = channel_constants(x, dim)
    split = constants.by_group(weight, groups, transposed=transposed)
    known = constants.contract(split, bias, inputs, bordered=bordered)
    if groups == inputs.numel() == known.numel():
        flow.lose(node, inputs, known, "its constant is another one at the border of this padded depthwise convolution")
    return Field.along(known, dim % len(shape), shape)


def linear(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Known outputs of a linear layer."""
    x, weight, bias = (*args, None)[:3]
    x, shape = as_field(x), shape_of(node)
    weight, bias = as_tensor(weight), as_tensor(bias)
    if not isinstance(x, Field) or not isinstance(weight, Tensor) or shape is None:
        return flow.unknown(node, args, kwargs)
    split = constants.by_group(weight, 1, transposed=False)
    known = constants.contract(split, bias, channel_constants(x, -1), bordered=False)
    return Field.along(known, len(shape) - 1, shape)


def as_field(x: Value) -> Value:
    """A parameter that a layer reads as its input has the same values whatever the network's input."""
    return Field.of(x.double()) if isinstance(x, Tensor) else x


def as_tensor(parameter: Value) -> Value:
    """The values of a weight or bias, those of a computed one with NaN for unknown."""
    return parameter.full() if isinstance(parameter, Field) else parameter


def channel_constants(x: Field, dim: int) -> Tensor:
    """The constant of each channel along ``dim``; NaN for one that varies over space or tokens. Float64 ``[C]``."""
    dim %= len(x.shape)
    known = constants.agreed(x.data, tuple(d for d in range(len(x.shape)) if d != dim))
    return known.reshape(-1).expand(x.shape[dim])


def batch_norm(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Affine in each channel; a scale of 0 leaves the shift."""
    several = isinstance(node.meta.get("val"), (tuple, list))
    x, scale, shift, mean, variance = args[:5]
    training, eps = (False, args[6]) if several else (args[5], args[7])
    computed = any(isinstance(a, Field) for a in args[1:5])
    if not isinstance(x, Field) or training or computed or not isinstance(mean, Tensor):
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


def glu(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Half of the channels times the sigmoid of the other half."""
    x, dim = (*args, -1)[:2]
    if not isinstance(x, Field):
        return flow.unknown(node, args, kwargs)
    value, gate = x.full().chunk(2, dim)
    return Field.of(constants.absorbing_product(value, gate.sigmoid()))


def embedding(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """A column of the table in which every entry is the same."""
    table, shape = args[0], shape_of(node)
    if not isinstance(table, Tensor) or shape is None:
        return flow.unknown(node, args, kwargs)
    return Field.along(constants.agreed(table.double(), (0,)).flatten(), len(shape) - 1, shape)


def reduce(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """The mean of equal values is that value."""
    x, shape = args[0], shape_of(node)
    if not isinstance(x, Field) or shape is None:
        return flow.unknown(node, args, kwargs)
    dims = reduced_dims(node, x, args, kwargs)
    data = constants.agreed(x.data, dims)
    return Field(data.squeeze(dims) if len(shape) < len(x.shape) else data, shape)


def pool(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Pooling or interpolation of a spatially constant channel: itself. Max pooling ignores its padding.

    Where the op returns indices too, those are unknown.
    """
    x = args[0]
    if not isinstance(x, Field):
        return flow.unknown(node, args, kwargs)
    known = constants.agreed(x.data, tuple(spatial_dims(node, x)))
    if (shape := shape_of(node)) is not None:
        return Field(known, shape)
    values, *indices = flow.unknown(node, args, kwargs)
    return (Field(known, values.shape), *indices)


def pad(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Padding: executed where it adds something now; where it adds nothing, it may at another input size."""
    padded = move(flow, node, args, kwargs)
    return zeros_alone(padded) if isinstance(args[0], Field) and padded.shape == args[0].shape else padded


def avg_pool(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Average pooling (input, kernel, stride, padding, ceil_mode, count_include_pad, divisor_override).

    Where padding is counted, or the sum is divided by another number than the window's, only 0 survives.
    """
    padding, counted, divisor = pooling_arguments(args)[3:]
    pooled = pool(flow, node, args, kwargs)
    if not divisor and not (counted and is_padded(padding, ())):
        return pooled
    known = zeros_alone(pooled)
    if isinstance(args[0], Field):
        dim = -len(spatial_dims(node, args[0])) - 1
        before, after = channel_constants(pooled, dim), channel_constants(known, dim)
        flow.lose(
            node,
            before,
            after,
            "its constant is another one at the border of this average pooling",
        )
    return known


def interpolate(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Weights that sum to 1 only up to rounding, in their own way at every place: 0 survives."""
    return zeros_alone(pool(flow, node, args, kwargs))


def largest(flow: ConstantFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """The larger of two tensors, or the largest along dimensions."""
    pair = len(args) > 1 and isinstance(args[1], (Field, Tensor))
    return (pointwise if pair else extreme)(flow, node, args, kwargs)


CREATED: dict[str, int | float] = {
    **named(0.0, "zeros zeros_like new_zeros zero"),
    **named(1.0, "ones ones_like new_ones"),
    **named(0, "scalar_tensor"),
    **named(1, "full full_like fill"),
    **named(2, "new_full"),
}
"""Ops that make a tensor of one number -> the number, or (a whole number) which argument it is."""

RULES: dict[str, Rule] = {
    **named(move, MOVEMENT),
    **named(move, MOVEMENT_OF_FLOATS),
    **named(scatter, "slice_scatter select_scatter"),
    **named(created, " ".join(CREATED)),
    **named(cast, "to _to_copy"),
    **named(index, "index index_select"),
    **named(pad, "pad constant_pad_nd"),
    "getitem": getitem,
    **named(same, UNCHANGED),
    **named(dropout, DROPOUT),
    **named(
        pointwise,
        "relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid hardsigmoid hardswish hardtanh tanh softplus "
        "log_sigmoid exp expm1 log log1p sqrt rsqrt abs neg square reciprocal clamp clamp_min "
        "clamp_max sin cos erf add sub rsub div maximum minimum",
    ),
    "mul": product,
    **named(masked, "where masked_fill"),
    **named(conv, CONVOLUTION),
    **named(conv_transposed, CONVOLUTION_TRANSPOSED),
    "linear": linear,
    **named(matrix_product, "matmul bmm mm"),
    "einsum": einsum,
    "scaled_dot_product_attention": attention,
    **named(batch_norm, BATCH_NORM),
    "prelu": prelu,
    "glu": glu,
    "embedding": embedding,
    **named(reduce, "mean amax amin"),
    **named(largest, "max min"),
    **named(extreme, "topk sort"),
    **named(accumulate, "cumsum std var linalg_vector_norm"),
    "sum": total,
    **named(softmax, "softmax _softmax"),
    "instance_norm": instance_norm,
    **named(layer_norm, "layer_norm rms_norm"),
    "upsample_bicubic2d": interpolate,
    **named(pool, WINDOWS),
    **named(avg_pool, AVERAGE_POOLING),
}
"""Op -> rule. What is not here gives unknown."""
