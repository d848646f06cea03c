"""Plans one after another, and backwards.

``compose`` makes one plan of two: a compact network may be compacted again, and the second plan counts its channels;
composed, both count those of the original. ``restore_`` writes a compact network's weights, which may have been trained
in the meantime, back into a network of the original shapes, where what had left is exactly zero.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compress.errors import CheckpointError
from compress.graph.modules import owners
from compress.surgery.bake import private_copy
from compress.surgery.kept import Kept
from compress.surgery.plan import Plan


def compose(first: Plan, second: Plan) -> Plan:
    """The plan that does what ``first`` does, then ``second``.

    Args:
        first: from the original network to a compact one.
        second: from this compact network, whose weights may have changed in between, to a smaller one.

    Returns:
        The plan from the original to the smaller network. Its ``hash_before`` is empty where the weights changed in
        between: no weights of the original shapes exist that it was made from. (A first plan without hashes was made
        for no weights in particular.)

    Raises:
        CheckpointError: the plans do not follow each other, or the first changes the network in a way that is not known
            here. A plan that changes nothing can be composed with any other.
    """
    if not _acts(first):
        return dataclasses.replace(second, architecture=first.architecture)
    hash_before = second.hash_before if not first.hash_after else ""
    if first.hash_after == second.hash_before:
        hash_before = first.hash_before
    if not _acts(second):
        return dataclasses.replace(first, hash_before=hash_before, hash_after=second.hash_after)
    _refuse_unknown(first)
    parts = {name: part(first, second) for name, part in PARTS.items()}
    return dataclasses.replace(second, **parts, architecture=first.architecture, hash_before=hash_before)


def _parameters(first: Plan, second: Plan) -> dict[str, Kept]:
    kept = dict(first.parameters)
    for name, then in second.parameters.items():
        if name in first.new_biases:
            _check_new_bias(name, second)  # the original has no such parameter; the plan makes it in its last shape
        else:
            kept[name] = _kept_of_kept(name, first.parameters.get(name), then)
    return kept


def _new_biases(first: Plan, second: Plan) -> tuple[str, ...]:
    twice = set(first.new_biases) & set(second.new_biases)
    if twice:
        raise CheckpointError(
            f"the plans do not follow each other: both give {', '.join(sorted(twice))} to the network"
        )
    return first.new_biases + second.new_biases


def _folds(first: Plan, second: Plan) -> tuple[dict[str, Any], ...]:
    return first.folds + tuple(_in_original_channels(fold, first) for fold in second.folds)


def _selections(first: Plan, second: Plan) -> dict[str, list[int]]:
    """A BatchNorm that selects already is left as it is: nothing of the stream in front of it leaves afterwards."""
    twice = set(first.selections) & set(second.selections)
    if twice:
        raise CheckpointError(
            f"the plans do not follow each other: both select channels for {', '.join(sorted(twice))}"
        )
    return first.selections | second.selections


PARTS: dict[str, Callable[[Plan, Plan], Any]] = {
    "parameters": _parameters,
    "new_biases": _new_biases,
    "folds": _folds,
    "selections": _selections,
}
"""Field of a plan -> how those of two plans become one. What other fields say counts in the last network: they are the
second plan's, and a first plan with anything in them is refused."""

_LABELS = frozenset(("architecture", "hash_before", "hash_after"))
"""Fields that say what a plan belongs to, not what it does."""


def _acts(plan: Plan) -> list[str]:
    """The fields with which the plan changes a network."""
    idle = type(plan)(plan.architecture, {})
    names = [field.name for field in dataclasses.fields(plan) if field.name not in _LABELS]
    return [name for name in names if getattr(plan, name) != getattr(idle, name)]


def _refuse_unknown(first: Plan) -> None:
    strange = [name for name in _acts(first) if name not in PARTS]
    if strange:
        raise CheckpointError(
            f"the plan for {first.architecture} cannot be followed by another: it holds {', '.join(strange)}; "
            "compact the network in its original shapes instead"
        )


def _kept_of_kept(name: str, first: Kept | None, then: Kept) -> Kept:
    if first is None:
        return then
    between = tuple(first.cut(torch.empty(first.shape)).shape), first.groups_left
    if between != (then.shape, then.groups):
        raise CheckpointError(
            f"the plans do not follow each other: {name} has shape {between[0]} (groups: {between[1]}), "
            f"the second plan was made for {then.shape} ({then.groups})"
        )
    return dataclasses.replace(
        first, indices=first.indices | {dim: _original(first, dim, along) for dim, along in then.indices.items()}
    )


def _original(kept: Kept | None, dim: int, indices: list[int]) -> list[int]:
    """Where ``indices`` along ``dim`` of the cut parameter stood before it was cut."""
    before = None if kept is None else kept.indices.get(dim)
    return list(indices) if before is None else [before[index] for index in indices]


def _check_new_bias(name: str, second: Plan) -> None:
    """A bias that the first plan adds is cut by the second as the layer's outputs are."""
    weight = f"{name.rpartition('.')[0]}.weight"
    outputs = second.parameters.get(weight)
    if outputs is None or second.parameters[name].indices != {0: outputs.indices.get(0)}:
        raise CheckpointError(
            f"the plans do not follow each other: the first gives {name} to the network, "
            f"the second cuts it otherwise than {weight}"
        )


def _in_original_channels(fold: dict[str, Any], first: Plan) -> dict[str, Any]:
    """A record of a fold, its inputs counted as the original network counts them."""
    kept = first.parameters.get(fold["weight"])
    counted = dict(fold, inputs=_original(kept, 1, fold["inputs"]))
    if "carrier" in fold:
        (counted["carrier"],) = _original(kept, 1, [fold["carrier"]])
    return counted


@torch.no_grad()
def restore_(base: nn.Module, plan: Plan, state: Mapping[str, Tensor]) -> Plan:
    """Write compact weights into ``base``, in place, so that it computes what the compact network does.

    Args:
        base: the original network; its weights do not matter.
        plan: from the original to the compact network.
        state: the compact weights.

    Returns:
        The plan that gives a new original network the biases that ``base`` was given here: it had none where the
        compact network holds what constants added.

    Raises:
        CheckpointError: plan and weights do not belong to the network.
    """
    biases = (*plan.new_biases, *(f"{path}.bias" for path in plan.constant_layers))
    before = base.state_dict()
    added = Plan(plan.architecture, {}, new_biases=tuple(name for name in biases if name not in before))
    added.reshape_(base)
    positions = _positions(base, plan, added.new_biases)
    parameters = {name for name, _ in base.named_parameters(remove_duplicate=False)}
    for name, tensor in base.state_dict().items():
        if name in parameters:
            tensor.zero_()  # statistics of a channel without weights reach nothing: they stay a new network's
        if name in state and state[name].numel() != positions[name].numel():
            raise CheckpointError(
                f"{name} has shape {tuple(state[name].shape)}, the plan leaves {positions[name].numel()} entries of it"
            )
        if name in state:
            entries = tensor.flatten()
            entries[positions[name].to(entries.device)] = state[name].flatten().to(entries)
            tensor.copy_(entries.reshape(tensor.shape))
        elif name.removesuffix(".weight") not in plan.constant_layers:
            raise CheckpointError(f"the compact weights lack {name}")
    return added


def _positions(base: nn.Module, plan: Plan, added: Iterable[str]) -> dict[str, Tensor]:
    """State name -> which entries of the tensor of ``base``, counted flat, the plan leaves: int64 ``[entries]``.

    Args:
        base: the original network, with the biases ``added`` to it.
        plan: what cuts it.
        added: they are cut as the outputs of their layers.
    """
    numbered = private_copy(base)
    for holders in owners(numbered).values():
        shape = getattr(*holders[0]).shape
        numbers = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)  # exact up to 2^53
        for module, attribute in holders:
            is_parameter = attribute in module._parameters
            setattr(module, attribute, nn.Parameter(numbers, requires_grad=False) if is_parameter else numbers)
    rows = {name: plan.parameters.get(f"{name.removesuffix('.bias')}.weight") for name in added}
    biases = {
        name: Kept(kept.shape[:1], {0: kept.indices[0]}) for name, kept in rows.items() if kept and 0 in kept.indices
    }
    Plan(plan.architecture, plan.parameters | biases).reshape_(numbered)
    return {name: getattr(*holders[0]).long().flatten() for name, holders in owners(numbered).items()}
