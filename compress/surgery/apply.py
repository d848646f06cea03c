"""From a decision to a compact network: fold what removed constants contributed, then cut."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from compress.graph import ChannelGraph
from compress.graph.modules import owners
from compress.surgery.dead import Decision, Fold, constant_layers
from compress.surgery.kept import Kept
from compress.surgery.layers import REPLACEABLE, ConstantLayer, replace_module_
from compress.surgery.plan import Plan


def make_plan(model: nn.Module, graph: ChannelGraph, decision: Decision) -> Plan:
    """The plan that carries a decision out on the network of ``graph``; hashes are added by the caller."""
    parameters: dict[str, Kept] = {}
    for name, dims in graph.classes.parameters.items():
        indices = {
            dim: (~decision.removed[classes]).nonzero().flatten().tolist()
            for dim, classes in dims.items()
            if bool(decision.removed[classes].any())
        }
        if indices:
            parameters[name] = Kept(tuple(graph.tensors[name].shape), indices, graph.groups.get(name, 1))
    targets = [fold.target for fold in decision.folds]
    return Plan(
        architecture=f"{type(model).__module__}.{type(model).__qualname__}",
        parameters=parameters,
        new_biases=tuple(name for kind, name in targets if kind == "new bias"),
        selections=_selections(graph, decision),
        folds=tuple(_record(fold, *target) for fold, target in zip(decision.folds, targets, strict=True)),
    )


def _selections(graph: ChannelGraph, decision: Decision) -> dict[str, list[int]]:
    """For each BatchNorm that reads fewer channels than arrive: the positions of those that it reads."""
    found = {}
    for selection in graph.selections:
        arrives, stays = (~decision.removed[classes] for classes in (selection.inputs, selection.outputs))
        positions = arrives.cumsum(0) - 1
        if not torch.equal(arrives, stays):
            found[selection.mean.rpartition(".")[0]] = positions[stays].tolist()
    return found


def replace_constants_(model: nn.Module, graph: ChannelGraph, plan: Plan) -> Plan:
    """Replace the layers of a compact network that return the same for every input, in place.

    Args:
        model: the compact network, or its twin in another precision.
        graph: of the compact network.
        plan: that of the compact network.

    Returns:
        The plan with these layers.
    """
    replaced = []
    for name, constant in constant_layers(graph).items():
        path = name.rpartition(".")[0]
        layer = model.get_submodule(path)
        if (
            name.endswith(".weight")
            and type(layer) in REPLACEABLE
            and graph.uses[name] == 1
            and _runs_itself(graph, path)
        ):
            new = ConstantLayer(layer)
            new.bias.detach().copy_(constant)
            replace_module_(model, layer, new.train(layer.training))
            replaced.append(path)
    return dataclasses.replace(plan, constant_layers=tuple(replaced))


def _runs_itself(graph: ChannelGraph, path: str) -> bool:
    """Whether the layer's own forward is what uses its weight."""
    return any(operation.where == path for operation in graph.operations)


def apply_(model: nn.Module, decision: Decision, plan: Plan) -> None:
    """Fold and cut, in place. Folds are computed in float64 and cast once.

    What ``folded_into`` names is written to; other tensors are replaced where they are cut, and else left.
    """
    new = _fold_(model, decision)
    plan.reshape_(model)
    rows = {fold.target[1]: _kept_rows(plan, fold) for fold in decision.folds}
    for name, value in new.items():
        bias = model.get_parameter(name).detach()
        bias.copy_(value[torch.tensor(rows[name], device=value.device)])


def folded_into(decision: Decision) -> set[str]:
    """State names of the tensors that folding writes to."""
    targets = [(fold, *fold.target) for fold in decision.folds]
    return {fold.consumer.weight if kind == "carrier" else name for fold, kind, name in targets if kind != "new bias"}


def fold_(model: nn.Module, decision: Decision) -> None:
    """Fold in place, and cut nothing: new biases have their full length."""
    for name, value in _fold_(model, decision).items():
        path, _, attribute = name.rpartition(".")
        layer = model.get_submodule(path)
        assert isinstance(layer.weight, nn.Parameter)
        trained = layer.weight.requires_grad
        setattr(layer, attribute, nn.Parameter(value.to(layer.weight), requires_grad=trained))


def _fold_(model: nn.Module, decision: Decision) -> dict[str, Tensor]:
    """Fold in place; what goes into biases that the network does not have is returned, float64 ``[out]`` each."""
    tensors = {name: getattr(*holders[0]) for name, holders in owners(model).items()}
    new: dict[str, Tensor] = {}
    for fold in decision.folds:
        weight = tensors[fold.consumer.weight]
        kind, name = fold.target
        if kind == "carrier":
            _carry_(weight.detach(), fold)
        else:
            shift = _shift(weight.detach(), fold)
            if kind == "new bias":
                new[name] = shift
            else:
                old = tensors[name].detach()
                old.copy_(old.double() + (shift if kind == "bias" else -shift))
    return new


def _record(fold: Fold, kind: str, name: str) -> dict[str, Any]:
    record: dict[str, Any] = {"weight": fold.consumer.weight, "into": name, "inputs": fold.indices.tolist()}
    return record | ({"carrier": fold.carrier} if kind == "carrier" else {})


def _shift(weight: Tensor, fold: Fold) -> Tensor:
    """What the removed constants add to each output, float64 ``[out]``."""
    split = fold.consumer.by_group(weight)
    constants = torch.zeros(split.shape[0] * split.shape[2], dtype=torch.float64, device=weight.device)
    constants[fold.indices.to(weight.device)] = fold.constants.to(weight.device)
    read = (constants.reshape(split.shape[0], -1) != 0).any(0)  # large weights: touch only what matters
    taps = split[:, :, read].double().sum(-1)
    return (taps @ constants.reshape(split.shape[0], -1, 1)[:, read]).reshape(-1)


def _carry_(weight: Tensor, fold: Fold) -> None:
    """``W[:, k] += sum_j (c_j / c_k) W[:, j]``, among the channels of one group."""
    assert fold.carrier is not None
    plain = weight.contiguous()
    split = fold.consumer.by_group(plain)
    width = split.shape[2]
    own, carrier = split[fold.carrier // width], fold.carrier % width
    indices = (fold.indices % width).to(weight.device)
    ratios = (fold.constants / fold.carried).to(weight.device).reshape(1, -1, 1)
    added = (own.index_select(1, indices).double() * ratios).sum(1)
    own[:, carrier] = (own[:, carrier].double() + added).to(weight.dtype)
    if plain is not weight:
        weight.copy_(plain)


def _kept_rows(plan: Plan, fold: Fold) -> list[int]:
    """Indices of the outputs that stay, of the layer that a constant is folded into."""
    kept = plan.parameters.get(fold.consumer.weight)
    every = list(range(fold.outputs))
    return every if kept is None else kept.indices.get(1 - fold.consumer.in_dim, every)
