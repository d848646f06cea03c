"""The front end for modules: ``torch.export``, then labels and constants over the ATen graph."""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor, fx, nn

from compress.graph.aten.constants import ConstantFlow, channel_constants
from compress.graph.aten.labels import Contraction, LabelFlow, Parameter, place
from compress.graph.aten.trace import Trace, base_name, trace
from compress.graph.channels import ChannelGraph, Consumer
from compress.graph.field import Field
from compress.graph.labels import Classes
from compress.graph.modules import SLICEABLE, owners

__all__ = ["channel_graph", "count_macs", "trace"]


def channel_graph(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> ChannelGraph:
    """Trace ``model`` and run both flows.

    Args:
        model: any module that ``torch.export`` captures; it is not changed.
        example_inputs: one input tensor for each argument of ``forward``, usually with batch size 1.

    Raises:
        ModelError: the model can't be captured.
    """
    traced = trace(model, example_inputs)
    with torch.no_grad():
        labels = LabelFlow(traced)
        labels.run()
        _pin_unknown_owners(model, labels)
        values = ConstantFlow(traced)
        values.run()
    names = {node: name for node, (name, _) in _state_nodes(traced).items()}
    uses = Counter({name: len(node.users) for node, name in names.items()})
    classes = labels.book.solve()
    return ChannelGraph(
        classes=classes,
        consumers=tuple(_consumer(c, values, names, uses) for c in labels.contractions),
        tensors=dict(traced.tensors.values()),
        uses=dict(uses),
        sized=_mark(classes, labels.sized),
        signature=tuple(_signature(node) for node in traced.graph.nodes if node.op == "call_function"),
        macs=sum(_node_macs(node) for node in traced.graph.nodes),
    )


def count_macs(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> int:
    """Multiply-accumulates of convolutions, linear layers and matrix products for the inputs as given."""
    return sum(_node_macs(node) for node in trace(model, example_inputs).graph.nodes)


def _mark(classes: Classes, labels: list[Tensor]) -> Tensor:
    """Bool ``[classes]``: those of any of the labels."""
    marked = torch.zeros(classes.count, dtype=torch.bool)
    for some in labels:
        marked[classes.of_label[some[some >= 0]]] = True
    return marked


def _state_nodes(traced: Trace) -> dict[fx.Node, tuple[str, Tensor]]:
    return {node: traced.tensors[node.name] for node in traced.graph.nodes if node.name in traced.tensors}


def _pin_unknown_owners(model: nn.Module, labels: LabelFlow) -> None:
    """Parameters of modules that we do not know how to slice stay, with the reason."""
    holders = owners(model)
    for name, tensor in labels.trace.tensors.values():
        for module, _ in holders.get(name, [(model, name)]):
            if type(module) not in SLICEABLE:
                labels.pin_parameter(
                    Parameter(name, tuple(tensor.shape)), f"{name} belongs to a {type(module).__name__}"
                )


def _consumer(
    contraction: Contraction, values: ConstantFlow, names: dict[fx.Node, str], uses: Counter[str]
) -> Consumer:
    node = contraction.node
    source = node.args[0]
    assert isinstance(source, fx.Node)
    field = values.env[source]
    assert isinstance(field, Field)
    dim = -1 if base_name(node) == "linear" else 1 - values.trace.tensors[node.args[1].name][1].ndim  # type: ignore[union-attr]
    mean_after = None
    if len(node.users) == 1:
        (user,) = node.users
        if base_name(user) in ("batch_norm", "_native_batch_norm_legit_no_training") and user.args[0] is node:
            mean = names.get(user.args[3])  # type: ignore[arg-type]
            mean_after = mean if mean is not None and uses[mean] == 1 else None
    return Consumer(
        place(node), contraction.weight, contraction.bias, channel_constants(field, dim), contraction.padded, mean_after
    )


def _signature(node: fx.Node) -> tuple[object, ...]:
    """The op and its fractional numbers; whole numbers are sizes, which surgery changes by intent."""
    numbers = [a for a in (*node.args, *node.kwargs.values()) if isinstance(a, float) and not a.is_integer()]
    return (str(node.target), *numbers)


def _node_macs(node: fx.Node) -> int:
    if node.op != "call_function":
        return 0
    name, out = base_name(node), node.meta.get("val")
    if not isinstance(out, Tensor):
        return 0
    if name.startswith("conv") or name == "linear":
        weight = node.args[1].meta["val"]  # type: ignore[union-attr]
        return int(out.numel()) * math.prod(int(size) for size in weight.shape[1:])
    if name in ("matmul", "bmm", "mm"):
        return int(out.numel()) * int(node.args[0].meta["val"].shape[-1])  # type: ignore[union-attr]
    return 0
