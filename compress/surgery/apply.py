"""From a decision to a compact network: fold what removed constants contributed, then cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from compress.graph import ChannelGraph
from compress.graph.modules import owners
from compress.surgery.dead import Decision, Fold
from compress.surgery.plan import Kept, Plan


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
            parameters[name] = Kept(tuple(graph.tensors[name].shape), indices)
    targets = [_target(fold) for fold in decision.folds]
    return Plan(
        architecture=f"{type(model).__module__}.{type(model).__qualname__}",
        parameters=parameters,
        new_biases=tuple(name for kind, name in targets if kind == "new bias"),
        folds=tuple(_record(fold, *target) for fold, target in zip(decision.folds, targets, strict=True)),
    )


def apply_(model: nn.Module, decision: Decision, plan: Plan) -> None:
    """Fold and cut, in place. Folds are computed in float64 and cast once."""
    tensors = {name: getattr(*holders[0]) for name, holders in owners(model).items()}
    new: dict[str, Tensor] = {}
    for fold in decision.folds:
        weight = tensors[fold.consumer.weight]
        kind, name = _target(fold)
        if kind == "carrier":
            _carry_(weight.detach(), fold)
        else:
            shift = _shift(weight.detach(), fold)
            if kind == "new bias":
                new[name] = shift[torch.tensor(_kept_rows(plan, fold.consumer.weight, weight), device=shift.device)]
            else:
                old = tensors[name].detach()
                old.copy_(old.double() + (shift if kind == "bias" else -shift))
    plan.reshape_(model)
    for name, value in new.items():
        bias = model.get_parameter(name).detach()
        bias.copy_(value)


def _target(fold: Fold) -> tuple[str, str]:
    """Where a fold goes: (carrier | bias | mean | new bias, state name)."""
    if fold.carrier is not None:
        return "carrier", fold.consumer.weight
    assert fold.consumer.shift is not None  # only such layers are folded into
    return fold.consumer.shift


def _record(fold: Fold, kind: str, name: str) -> dict[str, Any]:
    record: dict[str, Any] = {"weight": fold.consumer.weight, "into": name, "inputs": fold.indices.tolist()}
    return record | ({"carrier": fold.carrier} if kind == "carrier" else {})


def _shift(weight: Tensor, fold: Fold) -> Tensor:
    """What the removed constants add to each output, float64 ``[out]``."""
    indices = fold.indices.to(weight.device)
    taps = weight.index_select(1, indices).double()
    taps = taps.flatten(2).sum(2) if taps.ndim > 2 else taps
    return taps @ fold.constants.to(weight.device)


def _carry_(weight: Tensor, fold: Fold) -> None:
    """``W[:, k] += sum_j (c_j / c_k) W[:, j]``."""
    assert fold.carrier is not None
    indices = fold.indices.to(weight.device)
    ratios = (fold.constants / fold.carried).to(weight.device).reshape([1, -1, *[1] * (weight.ndim - 2)])
    added = (weight.index_select(1, indices).double() * ratios).sum(1)
    weight[:, fold.carrier] = (weight[:, fold.carrier].double() + added).to(weight.dtype)


def _kept_rows(plan: Plan, name: str, weight: Tensor) -> list[int]:
    kept = plan.parameters.get(name)
    return kept.indices.get(0, list(range(weight.shape[0]))) if kept else list(range(weight.shape[0]))
