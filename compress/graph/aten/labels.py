"""The label flow over an ATen graph: one visible table, op -> rule.

Ops that only move data need no rule of their own: the very op is executed on the labels. Elementwise ops unify what
meets. Contractions, normalisations and reductions have a rule each. Whatever has no rule pins what enters it under the
op's name, and its result is pinned too: an op is handled, ignored for a reason, or its channels stay and the report
says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map_only

from compress.graph.aten.ops import (
    AVERAGE_POOLING,
    BATCH_NORM,
    CONVOLUTION,
    CONVOLUTION_TRANSPOSED,
    MOVEMENT,
    MOVEMENT_OF_FLOATS,
    REDUCTIONS,
    SLICES,
    UNCHANGED,
    WINDOWS,
    as_result,
    conv_arguments,
    conv_transposed_arguments,
    einsum_letters,
    is_padded,
    named,
    reads_bits,
    reduced_dims,
    spatial_dims,
    summed_dims,
)
from compress.graph.aten.trace import DROPOUT, Trace, base_name
from compress.graph.aten.walk import Value, Walk, execute, fields_in, map_result, shape_of
from compress.graph.field import Field
from compress.graph.labels import NEUTRAL, LabelBook, collapse


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer as an argument: it has no labels until an op says what its dimensions mean.

    Attributes:
        name: its state-dict name.
        shape: its shape as it is registered.
        moved: behind ops that move data, the address of each entry in the registered tensor (int64, of the present
            shape); ``None`` where nothing was moved.
    """

    name: str
    shape: tuple[int, ...]
    moved: Tensor | None = None

    def addresses(self) -> Tensor:
        """The address of each entry, int64, of the present shape."""
        return torch.arange(math.prod(self.shape)).reshape(self.shape) if self.moved is None else self.moved

    def coordinates(self, dim: int) -> Tensor:
        """The index along the registered dimension ``dim`` of each entry, int64, of the present shape."""
        return self.addresses() // math.prod(self.shape[dim + 1 :]) % self.shape[dim]


@dataclass(frozen=True)
class Computed:
    """The result of arithmetic on parameters alone; it carries the labels of their indices."""

    labels: Field


@dataclass(frozen=True)
class Contraction:
    """One use of a convolution or linear layer, which mixes input channels into output channels.

    Attributes:
        node: the graph node.
        weight: state-dict name of the weight; ``bias`` of the bias, if there is one.
        padded: whether border outputs see fewer inputs than inner ones.
        groups: of the convolution; each mixes its own share of the inputs into its own share of the outputs.
        transposed: whether the weight is ``[in, out / groups, *kernel]`` instead of ``[out, in / groups, *kernel]``.
    """

    node: fx.Node
    weight: str
    bias: str | None
    padded: bool
    groups: int = 1
    transposed: bool = False


@dataclass(frozen=True)
class Selection:
    """A BatchNorm whose outputs have labels of their own, so that it may see fewer channels than there are.

    Attributes:
        mean: state-dict name of its running mean.
        inputs: int64 ``[channels]``, the labels that enter; ``outputs`` those that leave.
        entries: how many numbers each channel holds.
    """

    mean: str
    inputs: Tensor
    outputs: Tensor
    entries: int


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
        tree_map_only(Computed, lambda c: self.book.pin(c.labels.data, reason), (args, kwargs))
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
        joined.append(_unified(flow, node, [*others, *([] if own is None else [own])], size))
    return joined


def _move_parameter(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Move the addresses of a parameter, or the labels of what is computed from parameters."""
    operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, (Field, Parameter, Computed))]
    first, others = operands[0], operands[1:]
    if base_name(node) in WRITING and is_plain(first) and len(first.shape) == 1 and all(map(_is_neutral, others)):
        return Computed(Field(flow.book.parameter(first.name, 0, first.shape[0]), first.shape))
    if len(operands) > 1:
        return flow.refuse(node, args, kwargs, f"a parameter enters {base_name(node)} directly")
    (moved,) = operands
    if not isinstance(moved, Parameter):
        args, kwargs = tree_map_only(Computed, lambda c: c.labels, (args, kwargs))
        return tree_map_only(Field, Computed, execute(node, args, kwargs))
    args, kwargs = tree_map_only(Parameter, lambda p: Field(p.addresses(), tuple(p.addresses().shape)), (args, kwargs))
    return tree_map_only(Field, lambda f: Parameter(moved.name, moved.shape, f.full()), execute(node, args, kwargs))


def _is_neutral(value: Value) -> bool:
    return isinstance(value, Field) and bool((value.data == NEUTRAL).all())


def cuts_channels(node: fx.Node, args: tuple[Value, ...]) -> bool:
    """Whether a slice is one of channels: ``y[:, :, ::2, ::2]`` holds no number of them."""
    if base_name(node) not in SLICES or not isinstance(args[0], Field):
        return False
    dim = args[1] if len(args) > 1 else 0
    return args[0].varies(dim) and shape_of(node) != args[0].shape


def has_parameters(*values: Value) -> bool:
    """Whether a parameter or buffer is among (nested) arguments."""
    return any(isinstance(leaf, (Parameter, Computed)) for leaf in tree_leaves(values))


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
    return args[0] if isinstance(args[0], (Field, Parameter, Computed)) else flow.unknown(node, args, kwargs)


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
    shape = shape_of(node)
    operands = (*args, *kwargs.values())
    fields = fields_in(operands)
    parameters = [a for a in operands if isinstance(a, (Parameter, Computed))]
    if shape is None or not (fields or parameters):
        return flow.unknown(node, args, kwargs)
    owned = [labels_of_parameter(flow, p, fields, shape) for p in parameters]
    if None in owned:
        return flow.refuse(node, args, kwargs, f"a parameter enters {base_name(node)} along several dimensions")
    result = _unified(flow, node, [*fields, *(f for f in owned if f is not None)], shape)
    return result if fields else Computed(result)


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


def _unified(flow: LabelFlow, node: fx.Node, fields: list[Field], shape: tuple[int, ...]) -> Field:
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


def channels(x: Field, dim: int) -> Tensor | None:
    """The label of each channel along ``dim``, ``[C]``; ``None`` where channels vary over other dimensions."""
    dim %= len(x.shape)
    data = collapse(x.data, tuple(d for d in range(len(x.shape)) if d != dim))
    return None if data is None else data.reshape(-1).expand(x.shape[dim])


# --- contractions --------------------------------------------------------------------------------------------------


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


def of_activation(x: Value) -> Value:
    """A parameter that a layer reads as its input (a table of coordinates, say): its channels are none of ours."""
    if isinstance(x, Parameter):
        return Field.uniform(NEUTRAL, x.addresses().shape, torch.int64)
    return x


def is_plain(weight: Value) -> TypeGuard[Parameter]:
    """Whether this is a parameter as it is registered."""
    return isinstance(weight, Parameter) and weight.moved is None


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


def product(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Products with a parameter that is no layer's, or that add something too."""
    factor = "with a parameter" if has_parameters(args, kwargs) else "of activations"
    return flow.refuse(node, args, kwargs, f"{base_name(node)}: a product {factor}")


def matrix_product(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Products of two activations, ``[..., n, k] @ [..., k, m]``: all that one result reads belongs together with it.

    In attention these are the channels of one head, which can only leave as a whole.
    """
    a, b = args[:2]
    if not (isinstance(a, Field) and isinstance(b, Field)) or min(len(a.shape), len(b.shape)) < 2:
        return product(flow, node, args, kwargs)
    return _multiplied(flow, node, a, b)


def einsum(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Einstein sum (equation, (a, b)): the same for products of two activations over named dimensions."""
    letters, shape = einsum_letters(args[0]), shape_of(node)
    if letters is None or shape is None or len(args[1]) != 2 or not all(isinstance(x, Field) for x in args[1]):
        return product(flow, node, args, kwargs)
    *inner, out = letters
    factors = []
    for own, x in zip(inner, args[1], strict=True):
        flow.book.explain(x.data, _whole_head(node))
        data = as_result(_unify_along(flow, x, summed_dims(own, out)), own, out)
        factors.append(Field(data, shape))
    return _unified(flow, node, factors, shape)


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
        scores = _unified(flow, node, [scores, mask], scores.shape)
    return _multiplied(flow, node, scores, value)


def _multiplied(flow: LabelFlow, node: fx.Node, a: Field, b: Field) -> Field:
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])  # type: ignore[no-untyped-call]
    n, m = a.shape[-2], b.shape[-1]
    for field in (a, b):
        flow.book.explain(field.data, _whole_head(node))
    left = Field(_unify_along(flow, a, (-1,)), (*a.shape[:-1], m))
    right = Field(_unify_along(flow, b, (-2,)), (*b.shape[:-2], n, m))
    return _unified(flow, node, [left, right], (*batch, n, m))


def _whole_head(node: fx.Node) -> str:
    return f"leaves only with what {base_name(node)} multiplies it with: a whole attention head (at {place(node)})"


def embedding(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """A table of vectors: its second dimension is that of channels."""
    weight, shape = args[0], shape_of(node)
    if not is_plain(weight) or shape is None:
        return flow.refuse(node, args, kwargs, "the table of this embedding is computed")
    return Field.along(flow.book.parameter(weight.name, 1, weight.shape[1]), len(shape) - 1, shape)


def index(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Pick by a list of positions that is part of the network: executed, since nobody changes it."""
    x = args[0]
    positions = [leaf for leaf in tree_leaves(args[1:]) if isinstance(leaf, (Field, Parameter, Computed))]
    if not isinstance(x, (Field, Parameter)) or not all(isinstance(p, Parameter) for p in positions):
        return flow.unknown(node, args, kwargs)

    def value(parameter: Parameter) -> Tensor:
        return flow.tensors[parameter.name].cpu().flatten()[parameter.addresses()]

    rest = tree_map_only(Parameter, value, args[1:])
    if isinstance(x, Field):
        flow.sized.append(x.data)
        try:
            return execute(node, (x, *rest), kwargs)
        except (IndexError, RuntimeError):  # fewer channels than the list was made for
            return flow.refuse(node, args, kwargs, f"{base_name(node)} reads channels that are not there")
    moved = execute(node, (Field(x.addresses(), tuple(x.addresses().shape)), *rest), kwargs)
    return Parameter(x.name, x.shape, moved.full())


def glu(flow: LabelFlow, node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    """Gated linear unit: one half of the channels times the sigmoid of the other."""
    x, dim = (*args, -1)[:2]
    if not isinstance(x, Field):
        return flow.unknown(node, args, kwargs)
    flow.sized.append(x.data)
    value, gate = (Field.of(half) for half in x.full().chunk(2, dim))
    return _unified(flow, node, [value, gate], value.shape)


# --- normalisations and reductions ---------------------------------------------------------------------------------


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
        _unify_along(flow, x, (args[1] % len(x.shape),))
        return x
    return over_channels(flow, node, args, kwargs)


def _is_partial(x: Field, dims: tuple[int, ...]) -> bool:
    """Whether channels vary along other dimensions too: along ``dims`` are those that leave together."""
    return any(x.varies(d) for d in range(1, len(x.shape)) if d not in dims)


def _unify_along(flow: LabelFlow, x: Field, dims: tuple[int, ...]) -> Tensor:
    """Note that labels along ``dims`` belong together; one of each is returned, of size 1 there."""
    first = x.data.amax(dims, keepdim=True) if dims else x.data  # neutral ones give way
    flow.book.unify(x.data, first)
    return first


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
        data = _unify_along(flow, x, dims)
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
