"""The label flow over an ATen graph: one visible table, op -> rule.

Ops that only move data need no rule of their own: the very op is executed on the labels. Elementwise ops unify what
meets. Contractions, normalisations and reductions have a rule each. Whatever has no rule pins what enters it under the
op's name, and its result is pinned too: an op is handled, ignored for a reason, or its channels stay and the report
says why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_map_only

from compress.graph.aten.trace import Trace, base_name
from compress.graph.aten.walk import Value, Walk, execute, fields_in, map_result, shape_of
from compress.graph.field import Field
from compress.graph.labels import NEUTRAL, LabelBook


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
        """The parameter's indices along ``dim`` belong to the channels ``labels``."""
        if isinstance(parameter, Parameter):
            self.book.unify(self.book.parameter(parameter.name, dim, parameter.shape[dim]), labels)


Rule = Callable[[LabelFlow, fx.Node, tuple[Value, ...], dict[str, Value]], Value]


def place(node: fx.Node) -> str:
    """Where in the user's model a node comes from: the module's path, else the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values() if path]
    return paths[-1] if paths else node.name


# --- data movement, elementwise, created ---------------------------------------------------------------------------


def move(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Execute the op itself on the labels."""
    if base_name(node) in SIZED:
        flow.sized.extend(field.data for field in fields_in(args, kwargs))
    if any(isinstance(a, Parameter) for a in torch.utils._pytree.tree_leaves((args, kwargs))):
        return flow.unknown(node, args, kwargs)
    return execute(node, args, kwargs)


def move_as_float(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """The same for ops that know no integers."""
    return execute(node, args, kwargs, through=torch.float64)


def pad(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Constant padding is neutral; reflected and repeated borders carry the labels they copy."""
    mode = args[2] if len(args) > 2 else kwargs.get("mode", "constant")
    if mode == "constant":
        return execute(node, (args[0], args[1], "constant", NEUTRAL), {})
    return execute(node, args, kwargs, through=torch.float64)


def same(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """The op changes no channel."""
    return args[0] if isinstance(args[0], Field) else flow.unknown(node, args, kwargs)


def getitem(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """One of several results."""
    return args[0][args[1]] if isinstance(args[0], (tuple, list)) else flow.unknown(node, args, kwargs)


def neutral(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Created tensors belong to no channel."""
    return map_result(node, lambda shape: Field.uniform(NEUTRAL, shape, torch.int64))


def meet(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Elementwise: labels that meet belong together.

    A tensor that is broadcast along a dimension in which the other's labels vary (a spatial attention map, say) is no
    channel of the result; the channel it comes from is pinned.
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
            result = torch.where(result >= 0, *torch.broadcast_tensors(result, data))
    if result is None:
        return Field.uniform(NEUTRAL, shape, torch.int64)
    return Field(result, shape)


# --- contractions --------------------------------------------------------------------------------------------------


def conv(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Convolution: mixes inputs into fresh outputs; depthwise: each output channel is its input channel."""
    x, weight, bias, _stride, padding, _dilation, groups = conv_arguments(args)
    shape = shape_of(node)
    if not isinstance(x, Field) or not isinstance(weight, Parameter) or shape is None:
        return flow.refuse(node, args, kwargs, "the weight of this convolution is computed")
    channel_dim = -(len(weight.shape) - 1)
    if not x.varies_only(channel_dim):
        return flow.refuse(node, args, kwargs, "channels of this convolution's input vary over space")
    inputs = x.vector(channel_dim)
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


def conv_arguments(args: tuple[Value, ...]) -> tuple[Any, ...]:
    """(input, weight, bias, stride, padding, dilation, groups) with ATen's defaults filled in."""
    defaults = (None, None, None, 1, 0, 1, 1)
    return (*args, *defaults[len(args) :])


def is_padded(padding: Any, kernel: tuple[int, ...]) -> bool:
    """Whether the convolution reads beyond the border."""
    if isinstance(padding, str):
        return padding != "valid" and any(k > 1 for k in kernel)
    return any(p > 0 for p in ([padding] if isinstance(padding, int) else padding))


def linear(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Linear layer on the last dimension."""
    x, weight, bias = (*args, None)[:3]
    shape = shape_of(node)
    if not isinstance(x, Field) or not isinstance(weight, Parameter) or shape is None:
        return flow.refuse(node, args, kwargs, "the weight of this linear layer is computed")
    if not x.varies_only(-1):
        return flow.refuse(node, args, kwargs, "features of this linear layer's input vary over other dimensions")
    _contract(flow, node, x.vector(-1), weight, bias, padded=False)
    outputs = flow.book.parameter(weight.name, 0, weight.shape[0])
    flow.own(bias, 0, outputs)
    return Field.along(outputs, len(shape) - 1, shape)


def _contract(
    flow: LabelFlow, node: fx.Node, inputs: Tensor, weight: Parameter, bias: Value, *, padded: bool
) -> None:
    flow.own(weight, 1, inputs)
    name = bias.name if isinstance(bias, Parameter) else None
    flow.contractions.append(Contraction(node, weight.name, name, 0, 1, inputs, padded))


# --- normalisations and reductions ---------------------------------------------------------------------------------


def batch_norm(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Each channel on its own: scale, shift and statistics belong to it."""
    x = args[0]
    if not isinstance(x, Field) or not x.varies_only(1):
        return flow.refuse(node, args, kwargs, "channels of this BatchNorm's input vary over space")
    for parameter in args[1:5]:
        flow.own(parameter, 0, x.vector(1))
    return (x, None, None) if isinstance(node.meta.get("val"), (tuple, list)) else x


def prelu(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """One slope a channel belongs to that channel; a single shared slope to none."""
    x, slope = args
    if not isinstance(x, Field) or not isinstance(slope, Parameter):
        return flow.unknown(node, args, kwargs)
    if slope.shape != (1,):
        if not x.varies_only(1):
            return flow.refuse(node, args, kwargs, "channels of this PReLU's input vary over space")
        flow.own(slope, 0, x.vector(1))
    return x


def over_channels(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """LayerNorm, GroupNorm, softmax: a statistic over channels changes when one leaves, even a dead one."""
    return flow.refuse(node, args, kwargs, f"{base_name(node)}: a statistic over channels")


def reduce(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Mean, sum, largest: harmless along dimensions in which the labels are the same."""
    x = args[0]
    shape = shape_of(node)
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    if not isinstance(x, Field) or shape is None:
        return flow.unknown(node, args, kwargs)
    dims = [d % max(len(x.shape), 1) for d in ([dims] if isinstance(dims, int) else dims or range(len(x.shape)))]
    if any(x.varies(d) for d in dims):
        return flow.refuse(node, args, kwargs, f"{base_name(node)} over channels")
    data = x.data
    if len(shape) < len(x.shape):
        data = data.squeeze(tuple(dims))
    return Field(data, shape)


def pool(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Pooling windows stay within a channel."""
    x = args[0]
    if not isinstance(x, Field):
        return flow.unknown(node, args, kwargs)
    spatial = int(base_name(node).split("pool")[1][0])  # max_pool2d -> 2
    if any(x.varies(d) for d in range(len(x.shape) - spatial, len(x.shape))):
        return flow.refuse(node, args, kwargs, "channels of this pooling's input vary over space")
    results = map_result(node, lambda shape: Field(x.data, shape))
    return results


def _named(rule: Rule, ops: str) -> dict[str, Rule]:
    return dict.fromkeys(ops.split(), rule)


SIZED = frozenset("view reshape _unsafe_view expand split split_with_sizes slice select narrow unflatten repeat".split())
"""Ops whose arguments may hold a number of channels that ``forward`` wrote as a literal."""

RULES: dict[str, Rule] = {
    **_named(
        move,
        "view reshape _unsafe_view permute transpose t cat stack split split_with_sizes chunk unbind slice select narrow "
        "flatten unflatten unsqueeze squeeze expand repeat repeat_interleave roll flip pixel_shuffle pixel_unshuffle "
        "diagonal view_as reshape_as numpy_T movedim swapaxes",
    ),
    **_named(move_as_float, "upsample_nearest1d upsample_nearest2d upsample_nearest3d channel_shuffle"),
    "pad": pad,
    "constant_pad_nd": lambda flow, node, args, kwargs: execute(node, (args[0], args[1], NEUTRAL), {}),
    "getitem": getitem,
    **_named(same, "contiguous clone dropout feature_dropout alpha_dropout alias detach lift_fresh lift_fresh_copy to _to_copy float"),
    **_named(neutral, "zeros ones full arange empty zeros_like ones_like full_like new_zeros new_ones new_full scalar_tensor"),
    **_named(
        meet,
        "relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid hardsigmoid hardswish hardtanh tanh softplus "
        "logsigmoid log_sigmoid hardshrink softshrink tanhshrink threshold exp expm1 log log1p sqrt rsqrt abs neg square pow "
        "reciprocal clamp clamp_min clamp_max sin cos erf sign add sub mul div rsub maximum minimum where masked_fill "
        "eq ne lt le gt ge logical_and logical_or logical_not",
    ),
    **_named(conv, "conv1d conv2d conv3d"),
    "linear": linear,
    **_named(batch_norm, "batch_norm _native_batch_norm_legit_no_training"),
    "prelu": prelu,
    **_named(over_channels, "layer_norm native_layer_norm group_norm native_group_norm instance_norm softmax _softmax log_softmax _log_softmax"),
    **_named(reduce, "mean sum amax amin"),
    **_named(
        pool,
        "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d",
    ),
}
"""Op (without overload and in-place underscore) -> rule. What is not here is pinned under its name."""
