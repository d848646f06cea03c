"""Candidates: the coupled groups of a network, as classes of its channel graph, with comparable scores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.errors import ConfigError, ModelError
from compress.graph import ChannelGraph, channel_graph
from compress.groups import GRANULARITIES, Groups
from compress.pruning.criteria import CRITERIA
from compress.pruning.criterion import NORMALISATIONS, Batch
from compress.pruning.policy import Policy
from compress.pruning.units import layers_of
from compress.surgery import CompactReport, Plan, compact
from compress.surgery.dead import find_dead


@dataclass(frozen=True)
class Candidates:
    """What could leave a network.

    Attributes:
        graph: its channel graph.
        groups: its coupled groups.
        classes: int64 ``[groups]``, the class of each.
        rows: for each layer, the class of each output channel.
        layers: int64 ``[classes]``, see ``layers_of``.
        gone: bool ``[classes]``, classes that leave as the network is.
        compact: what is left of the network as it is, if anything leaves.
        scores: float64 ``[classes]``; NaN for classes that stay or are gone.
    """

    graph: ChannelGraph
    groups: Groups
    classes: Tensor
    rows: tuple[Tensor, ...]
    layers: Tensor
    gone: Tensor
    compact: CompactReport | None
    scores: Tensor

    @property
    def alive(self) -> Tensor:
        """Int64: the classes of the groups that are not gone."""
        return self.classes[~self.gone[self.classes]]

    @torch.no_grad()
    def zero_(self, chosen: Tensor) -> None:
        """Make all that the classes ``chosen`` (bool ``[classes]``) own exactly zero, in place."""
        dead = torch.cat((chosen[self.classes], torch.zeros(1, dtype=torch.bool)))
        for part in self.groups.slices:
            part.parameter.masked_fill_(part.spread(dead.to(part.parameter.device)), 0)


def find_candidates(
    model: nn.Module, example_inputs: tuple[Tensor, ...], policy: Policy, batches: Iterable[Batch]
) -> Candidates:
    """Trace the network and judge its groups.

    Raises:
        ConfigError: no channel could leave, or the criterion cannot judge this network.
        ModelError: the network can't be traced, or its scores are not finite.
    """
    graph = channel_graph(model, example_inputs)
    groups = GRANULARITIES["coupled"](model, graph)
    if not groups.count:
        raise ConfigError(f"{type(model).__name__} has no channels that could leave it; compress inspect shows why")
    classes, rows, layers = locate(groups, graph)
    result = compact(model, example_inputs, round_to=policy.round_to) if bool(find_dead(graph).removed.any()) else None
    gone = torch.zeros(graph.classes.count, dtype=torch.bool) if result is None else removed_classes(graph, result.plan)
    judged = _judge(model, groups, policy, batches).masked_fill(gone[classes], torch.nan)
    normalise = NORMALISATIONS[policy.normalisation]
    scores = torch.full((graph.classes.count,), torch.nan, dtype=torch.float64)
    scores[classes] = normalise(judged, groups.sizes().double().cpu(), layers[classes])
    return Candidates(graph, groups, classes, rows, layers, gone, result.report if result else None, scores)


def removed_classes(graph: ChannelGraph, plan: Plan) -> Tensor:
    """Bool ``[classes]``: the classes of ``graph`` that the plan cuts out, wherever they are."""
    cut, stays = (torch.zeros(graph.classes.count, dtype=torch.bool) for _ in range(2))
    for (name, dim), along in graph.out_slices().items():
        kept = plan.parameters.get(name)
        inside = torch.ones(len(along), dtype=torch.bool)
        if kept is not None and dim in kept.indices:
            inside[:] = False
            inside[kept.indices[dim]] = True
        cut[along[~inside]] = True
        stays[along[inside]] = True
    return cut & ~stays


def locate(groups: Groups, graph: ChannelGraph) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Where coupled groups are in the channel graph: ``classes``, ``rows`` and ``layers`` of ``Candidates``."""
    slices = graph.out_slices()
    found = torch.empty(groups.count + 1, dtype=torch.int64)  # the last entry: in no group
    for part in groups.slices:
        found[part.groups.cpu()] = slices[part.name, part.dim]
    classes = found[:-1]
    free = torch.zeros(graph.classes.count, dtype=torch.bool)
    free[classes] = True
    rows = tuple(graph.layer_rows())
    layers = layers_of([along[free[along]] for along in rows if bool(free[along].any())], graph.classes.count)
    return classes, rows, layers


def _judge(model: nn.Module, groups: Groups, policy: Policy, batches: Iterable[Batch]) -> Tensor:
    scores = CRITERIA[policy.criterion].score(model, groups, batches).double().cpu()
    if bool(scores.isinf().any()) or bool(scores.isnan().all()):
        raise ModelError(
            f"criterion {policy.criterion}: the scores of this {type(model).__name__} are not finite; "
            "check its weights for NaN or infinity"
        )
    return scores
