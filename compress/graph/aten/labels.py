"""The label flow over an ATen graph: one visible table, op -> rule.

Ops that only move data need no rule of their own: the very op is executed on the labels. Elementwise ops unify what
meets. Contractions, normalisations and reductions have a rule each. Whatever has no rule pins what enters it under the
op's name, and its result is pinned too: an op is handled, ignored for a reason, or its channels stay and the report
says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from compress.graph.aten.ops import (
    AVERAGE_POOLING,
    BATCH_NORM,
    CONVOLUTION,
    MOVEMENT,
    MOVEMENT_OF_FLOATS,
    UNCHANGED,
    WINDOWS,
    conv_arguments,
    is_padded,
    named,
    reads_bits,
    reduced_dims,
    spatial_dims,
)
from compress.graph.aten.trace import DROPOUT, Trace, base_name
from compress.graph.aten.walk import Value, Walk, execute, fields_in, map_result, shape_of
from compress.graph.field import Field
from compress.graph.labels import NEUTRAL, LabelBook, collapse


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer as an argument: it has no labels until an op says what its dimensions mean."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Contraction:
    """One use of a convolution or linear layer, which mixes input channels into output channels.

    Attributes:
        node: the graph node.
        weight: state-dict name of the weight; ``bias`` of the bias, if there is one.
        out_dim: the weight's dimension of output channels; ``in_dim`` that of input channels.
        inputs: int64 ``[in]``, the label of the input that meets each index along ``in_dim``.
        padded: whether border outputs see fewer inputs than inner ones.
    """

    node: fx.Node
    weight: str
    bias: str | None
    out_dim: int
    in_dim: int
    inputs: Tensor
    padded: bool


class LabelFlow(Walk):
    """Runs the graph on labels.

    ``book`` and ``contractions`` hold what was found, ``sized`` the labels that passed an op whose arguments may hold
    a number of channels as a literal.
    """

    def __init__(self, trace: Trace):
        super().__init__(trace)
        self.book = LabelBook()
        self.contractions: list[Contraction] = []
        self.sized: list[Tensor] = []
        self.rules = RULES

    def placeholder(self, node: fx.Node) -> Value:  # noqa: D102
        if node.name in self.trace.tensors:
            name, tensor = self.trace.tensors[node.name]
            return Parameter(name, tuple(tensor.shape))
        shape = shape_of(node)
        return None if shape is None else self.pinned(shape, "input of the network")

    def output(self, node: fx.Node) -> None:  # noqa: D102
        tree_map_only(
            Field,
            lambda field: self.book.pin(field.data, "output of the network"),
            tree_map_only(fx.Node, self.env.__getitem__, node.args),
        )

    def unknown(self, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
        """Pin everything that enters an op without a rule, and what leaves it."""
        return self.refuse(node, args, kwargs, f"{base_name(node)} has no rule")

    def refuse(self, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value], why: str) -> Value:
        """Pin all labels and parameters among the arguments and the results, with the reason and the place."""
        reason = f"{why} (at {place(node)})"
        for field in fields_in(args, kwargs):
            self.book.pin(field.data, reason)
        tree_map_only(Parameter, lambda p: self.pin_parameter(p, reason), (args, kwargs))
        return map_result(node, lambda shape: self.pinned(shape, reason))

    def pinned(self, shape: tuple[int, ...], reason: str) -> Field:
        """A field of one fresh label that must stay."""
        label = self.book.fresh(1)
        self.book.pin(label, reason)
        return Field(label.reshape([1] * len(shape)), shape)

    def pin_parameter(self, parameter: Parameter, reason: str) -> None:
        """Keep every index of a parameter, along its two dimensions of channels."""
        for dim, size in enumerate(parameter.shape[:2]):
            self.book.pin(self.book.parameter(parameter.name, dim, size), reason)

    def own(self, parameter: Value, dim: int, labels: Tensor) -> None:
        """The parameter's indices along ``dim`` belong to the channels ``labels``; a computed one carries its own."""
        if isinstance(parameter, Parameter):
            own = self.book.parameter(parameter.name, dim, parameter.shape[dim])
            self.book.unify(own, labels)
            self.book.pin(own[labels == NEUTRAL], f"{parameter.name} reads padding or a created tensor there")
        elif isinstance(parameter, Field):
            self.book.unify(parameter.vector(dim), labels)


Rule = Callable[[LabelFlow, fx.Node, tuple[Value, ...], dict[str, Value]], Value]


def place(node: fx.Node) -> str:
    """Where in the user's model a node comes from: the module's path, else the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values() if path]
    return paths[-1] if paths else node.name


# --- data movement, elementwise, created ---------------------------------------------------------------------------


def move(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Execute the op itself on the labels."""
    if base_name(node) in SIZED or cuts_channels(node, args):
        flow.sized.extend(field.data for field in fields_in(args, kwargs))
    if has_parameters(args, kwargs) or reads_bits(args):
        return flow.unknown(node, args, kwargs)
    return execute(node, args, kwargs)


def cuts_channels(node: fx.Node, args: tuple[Value, ...]) -> bool:
    """Whether a slice is one of channels: ``y[:, :, ::2, ::2]`` holds no number of them."""
    if base_name(node) not in SLICES or not isinstance(args[0], Field):
        return False
    dim = args[1] if len(args) > 1 else 0
    return args[0].varies(dim) and shape_of(node) != args[0].shape


def has_parameters(*values: Value) -> bool:
    """Whether a parameter or buffer is among (nested) arguments."""
    return any(isinstance(leaf, Parameter) for leaf in tree_leaves(values))


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


def same(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """The op changes no channel."""
    return args[0] if isinstance(args[0], Field) else flow.unknown(node, args, kwargs)


def getitem(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """One of several results."""
    return args[0][args[1]] if isinstance(args[0], (tuple, list)) else flow.unknown(node, args, kwargs)


def neutral(_flow: LabelFlow, node: fx.Node, _args: tuple[Value, ...], _kwargs: dict[str, Value]) -> Value:
    """Created tensors belong to no channel."""
    return map_result(node, lambda shape: Field.uniform(NEUTRAL, shape, torch.int64))


def meet(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Elementwise: labels that meet belong together.

    A tensor that is broadcast along a dimension in which the other's labels vary (a spatial attention map, say) is no
    channel of the result; the channel it comes from is pinned. A channel that meets padding or a created tensor counts
    as sized: the number of channels may stand in ``forward``.
    """
    if any(isinstance(a, Parameter) and a.shape not in ((), (1,)) for a in (*args, *kwargs.values())):
        return flow.refuse(node, args, kwargs, f"a parameter enters {base_name(node)} directly")
    shape = shape_of(node)
    fields = fields_in(args, kwargs)
    if shape is None or not fields:
        return flow.unknown(node, args, kwargs)
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
            flow.sized.append(torch.where(one < 0, other, one)[(one < 0) != (other < 0)])
            result = torch.where(one >= 0, one, other)
    if result is None:
        return Field.uniform(NEUTRAL, shape, torch.int64)
    return Field(result, shape)


def channels(x: Field, dim: int) -> Tensor | None:
    """The label of each channel along ``dim``, ``[C]``; ``None`` where channels vary over other dimensions."""
    dim %= len(x.shape)
    data = collapse(x.data, tuple(d for d in range(len(x.shape)) if d != dim))
    return None if data is None else data.reshape(-1).expand(x.shape[dim])


# --- contractions --------------------------------------------------------------------------------------------------


def conv(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Convolution: mixes inputs into fresh outputs; depthwise: each output channel is its input channel."""
    x, weight, bias, _stride, padding, _dilation, groups = conv_arguments(args)
    shape = shape_of(node)
    if not isinstance(x, Field) or not isinstance(weight, Parameter) or shape is None:
        return flow.refuse(node, args, kwargs, "the weight of this convolution is computed")
    channel_dim = -(len(weight.shape) - 1)
    inputs = channels(x, channel_dim)
    if inputs is None:
        return flow.refuse(node, args, kwargs, "channels of this convolution's input vary over space")
    outputs = flow.book.parameter(weight.name, 0, weight.shape[0])
    if groups == 1:
        _contract(flow, node, inputs, weight, bias, padded=is_padded(padding, weight.shape[2:]))
    elif weight.shape[1] == 1 and groups == inputs.numel():
        flow.book.unify(outputs, inputs.repeat_interleave(weight.shape[0] // groups))
    else:
        flow.book.pin(inputs, reason := f"convolution in {groups} groups (at {place(node)})")
        flow.pin_parameter(weight, reason)
    flow.own(bias, 0, outputs)
    return Field.along(outputs, channel_dim % len(shape), shape)


def linear(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Linear layer on the last dimension."""
    x, weight, bias = (*args, None)[:3]
    shape = shape_of(node)
    if not isinstance(x, Field) or not isinstance(weight, Parameter) or shape is None:
        return flow.refuse(node, args, kwargs, "the weight of this linear layer is computed")
    inputs = channels(x, -1)
    if inputs is None:
        return flow.refuse(node, args, kwargs, "features of this linear layer's input vary over other dimensions")
    _contract(flow, node, inputs, weight, bias, padded=False)
    outputs = flow.book.parameter(weight.name, 0, weight.shape[0])
    flow.own(bias, 0, outputs)
    return Field.along(outputs, len(shape) - 1, shape)


def _contract(flow: LabelFlow, node: fx.Node, inputs: Tensor, weight: Parameter, bias: Value, *, padded: bool) -> None:
    flow.own(weight, 1, inputs)
    name = bias.name if isinstance(bias, Parameter) else None
    flow.contractions.append(Contraction(node, weight.name, name, 0, 1, inputs, padded))


# --- normalisations and reductions ---------------------------------------------------------------------------------


def batch_norm(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Each channel on its own: scale, shift and statistics belong to it."""
    x = args[0]
    inputs = channels(x, 1) if isinstance(x, Field) else None
    if inputs is None:
        return flow.refuse(node, args, kwargs, "channels of this BatchNorm's input vary over space")
    for parameter in args[1:5]:
        flow.own(parameter, 0, inputs)
    return (x, None, None) if isinstance(node.meta.get("val"), (tuple, list)) else x


def prelu(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """One slope a channel belongs to that channel; a single shared slope to none."""
    x, slope = args
    if not isinstance(x, Field) or not isinstance(slope, Parameter):
        return flow.unknown(node, args, kwargs)
    if slope.shape != (1,):
        inputs = channels(x, 1)
        if inputs is None:
            return flow.refuse(node, args, kwargs, "channels of this PReLU's input vary over space")
        flow.own(slope, 0, inputs)
    return x


def over_channels(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """LayerNorm, GroupNorm, softmax: a statistic over channels changes when one leaves, even a dead one."""
    return flow.refuse(node, args, kwargs, f"{base_name(node)}: a statistic over channels")


def reduce(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Mean, sum, largest: harmless along dimensions in which the labels are the same."""
    x, shape = args[0], shape_of(node)
    if not isinstance(x, Field) or shape is None:
        return flow.unknown(node, args, kwargs)
    dims = reduced_dims(x, args, kwargs)
    data = collapse(x.data, dims)
    if data is None:
        return flow.refuse(node, args, kwargs, f"{base_name(node)} over channels")
    return Field(data.squeeze(dims) if len(shape) < len(x.shape) else data, shape)


def pool(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Windows of a pooling or an interpolation stay within a channel."""
    x = args[0]
    if not isinstance(x, Field):
        return flow.unknown(node, args, kwargs)
    data = collapse(x.data, tuple(spatial_dims(node, x)))
    if data is None:
        return flow.refuse(node, args, kwargs, f"channels of the input of {base_name(node)} vary over space")
    return map_result(node, lambda shape: Field(data, shape))


_SIZED = (
    "view reshape _unsafe_view expand split split_with_sizes chunk unbind unflatten repeat pixel_shuffle "
    "channel_shuffle"
)
SIZED = frozenset(_SIZED.split())
"""Ops whose arguments may hold a number of channels that ``forward`` wrote as a literal, or that need a multiple."""

SLICES = frozenset(("slice", "select", "narrow"))
"""The same, where they work along the channels."""

RULES: dict[str, Rule] = {
    **named(move, MOVEMENT),
    **named(move_as_float, MOVEMENT_OF_FLOATS),
    "pad": pad,
    "constant_pad_nd": constant_pad,
    "getitem": getitem,
    **named(same, UNCHANGED),
    **named(same, DROPOUT),
    **named(same, "to _to_copy"),
    **named(neutral, "zeros ones full arange empty zeros_like ones_like full_like"),
    **named(neutral, "new_zeros new_ones new_full scalar_tensor"),
    **named(
        meet,
        "relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid hardsigmoid hardswish hardtanh tanh softplus "
        "log_sigmoid hardshrink softshrink threshold exp expm1 log log1p sqrt rsqrt abs neg "
        "square pow reciprocal clamp clamp_min clamp_max sin cos erf sign add sub mul div rsub maximum minimum where "
        "masked_fill eq ne lt le gt ge logical_and logical_or logical_not",
    ),
    **named(conv, CONVOLUTION),
    "linear": linear,
    **named(batch_norm, BATCH_NORM),
    "prelu": prelu,
    **named(over_channels, "layer_norm native_layer_norm group_norm native_group_norm instance_norm"),
    **named(over_channels, "softmax _softmax log_softmax _log_softmax"),
    **named(reduce, "mean sum amax amin"),
    **named(pool, WINDOWS),
    **named(pool, AVERAGE_POOLING),
    "upsample_bicubic2d": pool,
}
"""Op (without overload and in-place underscore) -> rule. What is not here is pinned under its name."""
