"""Channel selection: a BatchNorm that reads fewer channels than the stream in front of it holds.

In pre-activation networks (DenseNet, ResNet-v2) many BatchNorms read the same stream. Where the scale of one is dead
while other readers keep the channel alive, the channel stays in the stream, and an index in front of that BatchNorm
leaves it out. The BatchNorm, the activation and the convolution behind it become narrower; the index is a copy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from compress.graph import ChannelGraph
from compress.surgery.dead import Decision, unread_inputs

COPY_COST = 14
"""Multiply-accumulates in the time in which one number is copied, see ``experiments/selection_cost.py``."""


def may_select(graph: ChannelGraph, decision: Decision) -> bool:
    """Whether any BatchNorm could read fewer channels than stay, those apart that stay to carry others."""
    stays = ~decision.removed
    stays[list(decision.kept)] = False
    for mean in graph.norms:
        scale = mean.removesuffix("running_mean") + "weight"
        if scale in graph.tensors and scale in graph.classes.parameters:
            dead = graph.tensors[scale].cpu() == 0
            if bool((dead & stays[graph.classes.parameters[scale][0]]).any()):
                return True
    if not graph.norms:
        return False
    return any(bool((unread & stays[inputs]).any()) for inputs, unread in unread_inputs(graph, decision))


def worth_selecting(graph: ChannelGraph, decision: Decision, *, at_any_cost: bool) -> frozenset[str]:
    """The BatchNorms in front of which an index saves more than it costs.

    Args:
        graph: the channel graph in which every BatchNorm may select.
        decision: what leaves it.
        at_any_cost: whether every index that leaves out a channel counts as worth it.

    Returns:
        State names of their running means.
    """
    chosen = set()
    for selection in graph.selections:
        left_out = decision.removed[selection.outputs] & ~decision.removed[selection.inputs]
        stays = int((~decision.removed[selection.outputs]).sum())
        if bool(left_out.any()) and (
            at_any_cost
            or _saved_macs(graph, decision, selection.outputs[left_out]) > COPY_COST * stays * selection.entries
        ):
            chosen.add(selection.mean)
    return frozenset(chosen)


def _saved_macs(graph: ChannelGraph, decision: Decision, classes: Tensor) -> float:
    """Multiply-accumulates that the layers which read ``classes`` save by their absence, after all other removals."""
    gone = torch.zeros_like(decision.removed)
    gone[classes] = True
    saved = 0.0
    for consumer in {c.weight: c for c in graph.consumers}.values():
        dims = graph.classes.parameters[consumer.weight]
        inputs, outputs = dims[consumer.in_dim], dims[1 - consumer.in_dim]
        share = float(gone[inputs].double().mean()) * float((~decision.removed[outputs]).double().mean())
        saved += graph.layer_macs.get(consumer.weight, 0) * share
    return saved
