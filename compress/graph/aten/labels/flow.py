"""The label flow over an ATen graph: one visible table, op -> rule.

Ops that only move data need no rule of their own: the very op is executed on the labels. Elementwise ops unify what
meets. Contractions, normalisations and reductions have a rule each. Whatever has no rule pins what enters it under the
op's name, and its result is pinned too: an op is handled, ignored for a reason, or its channels stay and the report
says why.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, fx

from compress.graph.aten.labels.contractions import (
    attention,
    conv,
    conv_transposed,
    einsum,
    embedding,
    linear,
    matrix_product,
    product,
)
from compress.graph.aten.labels.meeting import glu, meet
from compress.graph.aten.labels.movement import constant_pad, getitem, index, move, move_as_float, neutral, pad, same
from compress.graph.aten.labels.statistics import batch_norm, layer_norm, over_channels, pool, prelu, reduce, softmax
from compress.graph.aten.labels.values import Computed, Contraction, Parameter, Selection, place
from compress.graph.aten.ops import (
    AVERAGE_POOLING,
    BATCH_NORM,
    CONVOLUTION,
    CONVOLUTION_TRANSPOSED,
    MOVEMENT,
    MOVEMENT_OF_FLOATS,
    REDUCTIONS,
    UNCHANGED,
    WINDOWS,
    named,
)
from compress.graph.aten.trace import DROPOUT, Trace, base_name
from compress.graph.aten.walk import Value, Walk, fields_in, map_result, shape_of
from compress.graph.field import Field
from compress.graph.labels import NEUTRAL, LabelBook
from compress.graph.nested import map_only


class LabelFlow(Walk):
    """Runs the graph on labels.

    ``book`` and ``contractions`` hold what was found, ``sized`` the labels that passed an op whose arguments may hold
    a number of channels as a literal, ``groups`` the number of groups of each grouped convolution, by weight, ``mixed``
    the weights that layers of different kinds share.

    Args:
        trace: the network.
        select: running means (state-dict names) of the BatchNorms in front of which channels may be selected.
        channelwise: weights of depthwise convolutions and PReLUs that would not be known for such by their shape.
    """

    def __init__(self, trace: Trace, select: frozenset[str] = frozenset(), channelwise: frozenset[str] = frozenset()):
        super().__init__(trace)
        self.book = LabelBook()
        self.contractions: list[Contraction] = []
        self.selections: list[Selection] = []
        self.sized: list[Tensor] = []
        self.groups: dict[str, int] = {}
        self.mixed: set[str] = set()
        self.select, self.channelwise = select, channelwise
        self.tensors = dict(trace.tensors.values())
        self.rules = RULES

    def placeholder(self, node: fx.Node) -> Value:  # noqa: D102
        if node.name in self.trace.tensors:
            name, tensor = self.trace.tensors[node.name]
            return Parameter(name, tuple(tensor.shape))
        shape = shape_of(node)
        return None if shape is None else self.pinned(shape, "input of the network")

    def output(self, node: fx.Node) -> None:  # noqa: D102
        map_only(
            Field,
            lambda field: self.book.pin(field.data, "output of the network"),
            map_only(fx.Node, self.env.__getitem__, node.args),
        )

    def unknown(self, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
        """Pin everything that enters an op without a rule, and what leaves it."""
        return self.refuse(node, args, kwargs, f"{base_name(node)} has no rule")

    def refuse(self, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value], why: str) -> Value:
        """Pin all labels and parameters among the arguments and the results, with the reason and the place."""
        reason = f"{why} (at {place(node)})"
        for field in fields_in(args, kwargs):
            self.book.pin(field.data, reason)
        map_only(Parameter, lambda p: self.pin_parameter(p, reason), (args, kwargs))
        map_only(Computed, lambda c: self.book.pin(c.labels.data, reason), (args, kwargs))
        return map_result(node, lambda shape: self.pinned(shape, reason))

    def pinned(self, shape: tuple[int, ...], reason: str) -> Field:
        """A field of one fresh label that must stay."""
        label = self.book.fresh(1)
        self.book.pin(label, reason)
        return Field(label.reshape([1] * len(shape)), shape)

    def pin_parameter(self, parameter: Parameter, reason: str) -> None:
        """Keep every index of a parameter."""
        for dim, size in enumerate(parameter.shape):
            if size > 1:
                self.book.pin(self.book.parameter(parameter.name, dim, size), reason)

    def own(self, parameter: Value, dim: int, labels: Tensor) -> None:
        """The parameter's indices along ``dim`` belong to the channels ``labels``; a computed one carries its own."""
        if isinstance(parameter, Parameter) and parameter.moved is None:
            own = self.book.parameter(parameter.name, dim, labels.numel())
            self.book.unify(own, labels)
            self.book.pin(own[labels == NEUTRAL], f"{parameter.name} reads padding or a created tensor there")
        elif isinstance(parameter, Parameter):
            self.pin_parameter(parameter, reason := f"{parameter.name} is rearranged before it is used")
            self.book.pin(labels, reason)
        elif isinstance(parameter, (Field, Computed)):
            field = parameter if isinstance(parameter, Field) else parameter.labels
            self.book.unify(field.vector(dim), labels)


Rule = Callable[[LabelFlow, fx.Node, tuple[Value, ...], dict[str, Value]], Value]


RULES: dict[str, Rule] = {
    **named(move, MOVEMENT),
    **named(move_as_float, MOVEMENT_OF_FLOATS),
    **named(index, "index index_select"),
    "_assert_tensor_metadata": lambda *_: None,
    "pad": pad,
    "constant_pad_nd": constant_pad,
    "getitem": getitem,
    **named(same, UNCHANGED),
    **named(same, DROPOUT),
    **named(same, "to _to_copy"),
    **named(neutral, "zeros ones full arange empty zeros_like ones_like full_like zero fill"),
    **named(neutral, "new_zeros new_ones new_full scalar_tensor"),
    **named(
        meet,
        "relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid hardsigmoid hardswish hardtanh tanh softplus "
        "log_sigmoid hardshrink softshrink threshold exp expm1 log log1p sqrt rsqrt abs neg "
        "square pow reciprocal clamp clamp_min clamp_max sin cos tan atan erf sign floor ceil round trunc frac "
        "fmod remainder lerp nan_to_num add sub mul div rsub maximum minimum where "
        "masked_fill eq ne lt le gt ge logical_and logical_or logical_not addcmul addcdiv",
    ),
    **named(conv, CONVOLUTION),
    **named(conv_transposed, CONVOLUTION_TRANSPOSED),
    "linear": linear,
    **named(matrix_product, "matmul bmm mm"),
    "scaled_dot_product_attention": attention,
    "einsum": einsum,
    **named(product, "baddbmm addmm"),
    "embedding": embedding,
    "glu": glu,
    **named(batch_norm, BATCH_NORM),
    "instance_norm": batch_norm,
    "prelu": prelu,
    **named(layer_norm, "layer_norm native_layer_norm rms_norm"),
    **named(over_channels, "group_norm native_group_norm"),
    **named(softmax, "softmax _softmax log_softmax _log_softmax"),
    **named(reduce, REDUCTIONS),
    **named(pool, WINDOWS),
    **named(pool, AVERAGE_POOLING),
    "upsample_bicubic2d": pool,
}
"""Op (without overload and in-place underscore) -> rule. What is not here is pinned under its name."""
