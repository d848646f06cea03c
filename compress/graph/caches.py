"""What a network keeps outside of itself: a cache of grids by size, on its class or in its file.

A run on tensors without values would fill such a cache with these, and the user's own network would find them there.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from functools import _lru_cache_wrapper
from types import FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from compress.graph.nested import leaves

OURS_OR_TORCHS = ("torch", "compress", "builtins")
"""Packages whose classes keep no tensors of a network."""

LARGEST = 10_000
"""Entries of a list, dict or set that may be a cache of tensors; longer ones are left alone."""

DEPTH = 3
"""How deep containers within containers are looked at."""


@contextlib.contextmanager
def unspoilt(model: nn.Module) -> Iterator[None]:
    """Within the block ``forward`` may run on tensors without values; none stays on classes or in modules' files.

    What the network's classes, the files that define them, and containers, functions and objects there held before is
    there again; functions there that remember results forget them where they learned any.
    """
    spaces = list(_spaces(model))
    before = [dict(vars(space)) for space in spaces]
    held = [value for names in before for value in names.values()]
    files = {space.__name__ for space in spaces if isinstance(space, ModuleType)}
    found: dict[int, Any] = {}
    for value in held:
        _collect(value, files, DEPTH, found)
    kept = [(value, (dict if isinstance(value, dict) else list)(value)) for value in found.values()]
    known = [(value, value.cache_info().misses) for value in held if isinstance(value, _lru_cache_wrapper)]
    try:
        yield
    finally:
        for space, names in zip(spaces, before, strict=True):
            for name, value in list(vars(space).items()):
                if value is not names.get(name) and _is_empty(value):
                    setattr(space, name, names[name]) if name in names else delattr(space, name)
        for container, copy in kept:
            _restore_(container, copy)
        for function, misses in known:
            if function.cache_info().misses > misses:
                function.cache_clear()


def _collect(value: Any, files: set[str], depth: int, found: dict[int, Any]) -> None:
    """Containers in which a network may keep tensors, by their identity."""
    inner: Iterable[Any] = ()
    if isinstance(value, (dict, list, set)):
        if len(value) > LARGEST or id(value) in found:
            return
        found[id(value)] = value
        inner = value.values() if isinstance(value, dict) else value
    elif isinstance(value, FunctionType):
        inner = (value.__dict__, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    elif type(value).__module__ in files and isinstance(own := getattr(value, "__dict__", None), dict):
        inner = (own,)
    if depth:
        for part in inner:
            _collect(part, files, depth - 1, found)


def _spaces(model: nn.Module) -> Iterator[Any]:
    """Classes of the network's modules, and the files in which they are defined."""
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    own = [cls for cls in classes if cls.__module__.partition(".")[0] not in OURS_OR_TORCHS]
    yield from own
    for name in {cls.__module__ for cls in own}:
        if name in sys.modules:
            yield sys.modules[name]


def _is_empty(value: Any) -> bool:
    """Whether a tensor without values is in it."""
    if isinstance(value, (set, frozenset)):
        value = list(value)
    return any(isinstance(leaf, FakeTensor) or (isinstance(leaf, Tensor) and leaf.is_meta) for leaf in leaves(value))


def _restore_(container: Any, copy: Any) -> None:
    """Take out what has no values, in place; what else came or went meanwhile is left alone."""
    if isinstance(container, dict):
        for key, value in list(container.items()):
            if value is not copy.get(key) and _is_empty(value):
                if key in copy:
                    container[key] = copy[key]
                else:
                    del container[key]
        return
    own = set(map(id, copy))
    spoilt = [value for value in container if id(value) not in own and _is_empty(value)]
    for value in spoilt:
        if isinstance(container, set):
            container.discard(value)
        else:
            del container[next(at for at, found in enumerate(container) if found is value)]
