"""The front end for modules: ``torch.export``, then labels and constants over the ATen graph."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from compress.graph.aten.constants import ConstantFlow, as_field, channel_constants
from compress.graph.aten.labels import Contraction, LabelFlow, Parameter, channels, place
from compress.graph.aten.operations import operations
from compress.graph.aten.ops import AVERAGE_POOLING, BATCH_NORM, CONVOLUTION, is_padded, pooling_arguments
from compress.graph.aten.trace import Trace, base_name, check_inputs, trace
from compress.graph.channels import ChannelGraph, Consumer, Selection
from compress.graph.field import Field
from compress.graph.labels import Classes
from compress.graph.modules import SIZE_ATTRIBUTES, owners

__all__ = ["channel_graph", "check_inputs", "consumers", "count_macs", "graph_of", "trace"]


def channel_graph(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    *,
    select: Collection[str] = (),
    channelwise: Collection[str] = (),
) -> ChannelGraph:
    """Trace ``model`` and run both flows.

    Args:
        model: any module that ``torch.export`` captures; it is not changed.
        example_inputs: one input tensor for each argument of ``forward``, usually with batch size 1.
        select: running means (state-dict names) of the BatchNorms in front of which channels may be selected: their
            outputs are classes of their own.
        channelwise: weights (state-dict names) of depthwise convolutions and PReLUs, which could be taken for others
            once a single channel is left of them.

    Raises:
        ModelError: the model can't be captured.
    """
    return graph_of(model, trace(model, example_inputs), select=select, channelwise=channelwise)


def graph_of(
    model: nn.Module, traced: Trace, *, select: Collection[str] = (), channelwise: Collection[str] = ()
) -> ChannelGraph:
    """The same for a model that was traced already."""
    labels, values, state = _flows(model, traced, select, channelwise)
    classes = labels.book.solve()
    return ChannelGraph(
        classes=classes,
        consumers=tuple(_consumer(c, values, state) for c in labels.contractions),
        selections=tuple(
            Selection(s.mean, classes.of(s.inputs), classes.of(s.outputs), s.entries) for s in labels.selections
        ),
        groups=labels.groups,
        tensors=dict(traced.tensors.values()),
        uses=dict(state.uses),
        sized=_mark(classes, labels.sized),
        operations=operations(traced, labels, classes, state.holders),
        macs=sum(_node_macs(node) for node in traced.graph.nodes),
        layer_macs=_layer_macs(traced),
        layer_constants=_layer_constants(traced, values),
        norms=state.norms(),
        constant_output=values.constant_output,
        lost=_lost(labels, values, classes),
    )


def consumers(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> tuple[Consumer, ...]:
    """What layers read at an input size; the ``consumers`` of ``channel_graph`` alone.

    Raises:
        ModelError: the model can't be captured.
    """
    labels, values, state = _flows(model, trace(model, example_inputs), (), ())
    return tuple(_consumer(contraction, values, state) for contraction in labels.contractions)


def _flows(
    model: nn.Module, traced: Trace, select: Collection[str], channelwise: Collection[str]
) -> tuple[LabelFlow, ConstantFlow, _State]:
    with torch.no_grad():
        labels = LabelFlow(traced, frozenset(select), frozenset(channelwise))
        labels.run()
        state = _State(model, traced)
        state.pin_constants(labels)
        values = ConstantFlow(traced, labels.env)
        values.run()
    return labels, values, state


def count_macs(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> int:
    """Multiply-accumulates of convolutions, linear layers and matrix products for the inputs as given."""
    return sum(_node_macs(node) for node in trace(model, example_inputs).graph.nodes)


def _lost(labels: LabelFlow, values: ConstantFlow, classes: Classes) -> dict[int, str]:
    found: dict[int, str] = {}
    for node, gone, why in values.lost:
        assert isinstance(node.args[0], fx.Node)
        source = labels.env[node.args[0]]
        dim = 1 if len(source.shape) in (3, 4, 5) and source.shape[1] == gone.numel() else 0
        own = channels(source, dim)
        if own is not None and own.numel() == gone.numel():
            for cls in classes.of(own[gone]).tolist():
                found.setdefault(cls, f"{why} (at {place(node)})")
    return found


def _mark(classes: Classes, labels: list[Tensor]) -> Tensor:
    """Bool ``[classes]``: those of any of the labels."""
    marked = torch.zeros(classes.count, dtype=torch.bool)
    for some in labels:
        marked[classes.of_label[some[some >= 0]]] = True
    return marked


def _consumer(contraction: Contraction, values: ConstantFlow, state: _State) -> Consumer:
    node = contraction.node
    source = node.args[0]
    assert isinstance(source, fx.Node)
    dim = -1 if base_name(node) == "linear" else 1 - state.tensors[contraction.weight].ndim
    source, in_front = _behind_padding(source, dim)
    field = as_field(values.env[source])
    assert isinstance(field, Field)
    return Consumer(
        place(node),
        contraction.weight,
        state.shift_behind(contraction),
        channel_constants(field, dim),
        contraction.padded or in_front,
        contraction.groups,
        contraction.transposed,
    )


def _behind_padding(source: fx.Node, dim: int) -> tuple[fx.Node, bool]:
    """What a layer reads behind nodes that make less of it at the border, and whether there are any.

    They do so with all channels alike: one constant stands for the others there, too.
    """
    fewer = False
    while isinstance(front := source.args[0] if source.args else None, fx.Node):
        if not (_pads_zeros(source, front, dim) or _averages_padding(source, dim)):
            break
        source, fewer = front, True
    return source, fewer


def _pads_zeros(node: fx.Node, front: fx.Node, dim: int) -> bool:
    """Whether zeros are put around what is in ``front``, and not along its channels ``dim``.

    Also a node that adds nothing counts: its amounts may follow from the input's size.
    """
    args = node.args
    if base_name(node) not in ("pad", "constant_pad_nd"):
        return False
    before, after = front.meta["val"].shape, node.meta["val"].shape
    mode, value = (args[2] if len(args) > 2 else "constant"), (args[3] if len(args) > 3 else 0)
    if base_name(node) == "constant_pad_nd":
        mode, value = "constant", (args[2] if len(args) > 2 else 0)
    return mode == "constant" and not value and len(before) == len(after) and before[dim] == after[dim]


def _averages_padding(node: fx.Node, dim: int) -> bool:
    """Whether it is an average pooling whose windows hold padding, or divide by another number than theirs."""
    if base_name(node) not in AVERAGE_POOLING.split():
        return False
    padding, counted, divisor = pooling_arguments(node.args)[3:]
    spatial = int(base_name(node)[-2])
    return -dim > spatial and bool(divisor or (counted and is_padded(padding, ())))


class _State:
    """Parameters and buffers: which modules hold them, and how many operations read each."""

    def __init__(self, model: nn.Module, traced: Trace):
        self.graph = traced.graph
        self.tensors = dict(traced.tensors.values())
        self.holders = owners(model)
        self.names = {n: traced.tensors[n.name][0] for n in traced.graph.nodes if n.name in traced.tensors}
        self.uses = Counter({name: len(node.users) for node, name in self.names.items()})

    def pin_constants(self, labels: LabelFlow) -> None:
        """Tensors that ``forward`` makes itself belong to no module, and can't be cut."""
        for name, tensor in labels.tensors.items():
            if name not in self.holders:
                labels.pin_parameter(
                    Parameter(name, tuple(tensor.shape)), f"{name} is no parameter or buffer of a module"
                )

    def norms(self) -> frozenset[str]:
        """See ``ChannelGraph.norms``; one that selects channels already is left as it is."""
        found = set()
        selecting = {place(node) for node in self.graph.nodes if base_name(node) == "index_select"}
        for node in self.graph.nodes:
            if node.op == "call_function" and base_name(node) in BATCH_NORM.split():
                name, path = self.names.get(node.args[3], ""), place(node)
                own = any(isinstance(module, _BatchNorm) for module, _ in self.holders.get(name, ()))
                if own and name == f"{path}.running_mean" and self.uses[name] == 1 and path not in selecting:
                    found.add(name)
        return frozenset(found)

    def shift_behind(self, contraction: Contraction) -> tuple[str, str] | None:
        """See ``Consumer.shift``."""
        node, layer = contraction.node, contraction.weight.rpartition(".")[0]
        if contraction.bias is not None:
            return ("bias", contraction.bias) if contraction.bias in self.holders else None
        if len(node.args) > 2 and node.args[2] is not None:  # the bias is computed
            return None
        if len(node.users) == 1:
            (user,) = node.users
            if base_name(user) in BATCH_NORM.split() and user.args[0] is node:
                mean = self.names.get(user.args[3])  # None where it is computed or missing
                if mean in self.holders and self.uses[mean] == 1:
                    return "mean", mean
        # A forward that calls F.conv2d with the layer's weight would not read a bias that the layer is given.
        ours = any(type(module) in SIZE_ATTRIBUTES for module, _ in self.holders.get(contraction.weight, ()))
        return ("new bias", f"{layer}.bias") if ours and place(node) == layer else None


def _layer_macs(traced: Trace) -> dict[str, int]:
    macs: Counter[str] = Counter()
    for node in traced.graph.nodes:
        weight = node.args[1] if len(node.args) > 1 else None
        if isinstance(weight, fx.Node) and weight.name in traced.tensors and (work := _node_macs(node)):
            macs[traced.tensors[weight.name][0]] += work
    return dict(macs)


def _layer_constants(traced: Trace, values: ConstantFlow) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for node in traced.graph.nodes:
        weight = node.args[1] if len(node.args) > 1 else None
        if not isinstance(weight, fx.Node) or weight.name not in traced.tensors:
            continue
        field = values.env[node]
        if base_name(node) in (*CONVOLUTION.split(), "linear") and isinstance(field, Field):
            name, tensor = traced.tensors[weight.name]
            known = channel_constants(field, -1 if base_name(node) == "linear" else 1 - tensor.ndim)
            before = found.setdefault(name, known)
            found[name] = torch.where(before == known, known, torch.nan)
    return found


def _node_macs(node: fx.Node) -> int:
    if node.op != "call_function":
        return 0
    name, out = base_name(node), node.meta.get("val")
    if not isinstance(out, Tensor):
        return 0
    if name not in _MACS_PER_ENTRY:
        return 0
    of, operand, dims = _MACS_PER_ENTRY[name]
    first, second = (a.meta["val"].shape if isinstance(a, fx.Node) else () for a in node.args[:2])
    entries = math.prod(out.shape if of == "output" else first)
    return int(entries * math.prod((first, second)[operand][dims]))


_MACS_PER_ENTRY = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "linear"), ("output", 1, slice(1, None))),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), ("input", 1, slice(1, None))),
    **dict.fromkeys(("matmul", "bmm", "mm"), ("output", 0, slice(-1, None))),
}
"""Op -> (entries of the output or the input, operand and its dimensions whose sizes give the accumulations of each)."""
