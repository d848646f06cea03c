"""Tuples, lists and dicts of arguments, walked as ``torch.utils._pytree`` does, at a fraction of its cost a call.

An analysis walks the arguments of every operation of a network several times: mostly two or three leaves each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def leaves(value: Any) -> list[Any]:
    """Everything in nested tuples, lists and dicts that is none of these."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


def map_only(kind: type, function: Callable[[Any], Any], value: Any) -> Any:
    """The same structure with ``function`` of every leaf that is a ``kind``; named tuples become plain ones."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, tuple):
        return tuple(map_only(kind, function, part) for part in value)
    if isinstance(value, list):
        return [map_only(kind, function, part) for part in value]
    if isinstance(value, dict):
        return {key: map_only(kind, function, part) for key, part in value.items()}
    return value
