"""Two plans, one after the other, as one plan.

A compact network may be pruned and compacted again. The second plan counts channels of the first compact network;
composed, both count channels of the original, so that one plan rebuilds what is left from the original class: kept
indices of kept indices, the new biases and the folds of both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from compress.errors import CheckpointError
from compress.surgery.plan import Kept, Plan


def compose(first: Plan, second: Plan) -> Plan:
    """The plan that does what ``first`` does, then ``second``.

    Args:
        first: from the original network to a compact one.
        second: from this compact network, whose weights may have changed in between, to a smaller one.

    Returns:
        The plan from the original to the smaller network. Its ``hash_before`` is empty where the weights changed in
        between: then no weights of the original shapes exist that it was made from.

    Raises:
        CheckpointError: the plans do not follow each other, or cut in a way that is not known here. A plan that cuts
            nothing can be composed with any other.
    """
    if _cuts_nothing(first):
        return dataclasses.replace(second, architecture=first.architecture)
    hash_before = first.hash_before if first.hash_after == second.hash_before else ""
    if _cuts_nothing(second):
        return dataclasses.replace(first, hash_before=hash_before, hash_after=second.hash_after)
    for plan in (first, second):
        _refuse_unknown(plan)
    parts = {name: part(first, second) for name, part in PARTS.items()}
    return dataclasses.replace(first, **parts, hash_before=hash_before, hash_after=second.hash_after)


def _parameters(first: Plan, second: Plan) -> dict[str, Kept]:
    kept = dict(first.parameters)
    for name, then in second.parameters.items():
        if name in first.new_biases:
            _check_new_bias(name, second)  # the original has no such parameter; the plan makes it as it should be
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


PARTS: dict[str, Callable[[Plan, Plan], Any]] = {
    "parameters": _parameters,
    "new_biases": _new_biases,
    "folds": _folds,
}
"""Field of a plan -> how those of two plans become one. Plans with anything in another field are refused."""

_LABELS = frozenset(("architecture", "hash_before", "hash_after"))
"""Fields that say what a plan belongs to, not what it does."""

_KEPT = frozenset(("shape", "indices"))


def _cuts_nothing(plan: Plan) -> bool:
    return not any(getattr(plan, field.name) for field in dataclasses.fields(plan) if field.name not in _LABELS)


def _refuse_unknown(plan: Plan) -> None:
    strange = [
        f.name for f in dataclasses.fields(plan) if f.name not in _LABELS | PARTS.keys() and getattr(plan, f.name)
    ]
    for name, kept in plan.parameters.items():
        strange += [
            f"{f.name} of {name}" for f in dataclasses.fields(kept) if f.name not in _KEPT and getattr(kept, f.name)
        ]
        strange += [
            f"indices of {name}"
            for along in kept.indices.values()
            if not all(isinstance(index, int) for index in along)
        ]
    if strange:
        raise CheckpointError(
            f"the plan for {plan.architecture} cannot be composed with another: it holds {', '.join(strange)}; "
            "prune the network before it was compacted instead"
        )


def _kept_of_kept(name: str, first: Kept | None, then: Kept) -> Kept:
    if first is None:
        return then
    width = tuple(len(first.indices.get(dim, range(size))) for dim, size in enumerate(first.shape))
    if width != then.shape:
        raise CheckpointError(
            f"the plans do not follow each other: {name} has shape {width} after the first, "
            f"the second was made for {then.shape}"
        )
    indices = dict(first.indices)
    for dim, along in then.indices.items():
        indices[dim] = _original(first, dim, along)
    return Kept(first.shape, indices)


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
