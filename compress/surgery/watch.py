"""Input sizes at which a network does something else: it is run without arithmetic, and its operations are compared."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.graph.caches import unspoilt
from compress.surgery.bake import private_copy
from compress.surgery.input_sizes import Sizes, one_sample, other_sizes
from compress.surgery.running import accepted, random_inputs


class _Journal(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes every operation, the numbers that it computes with or by which it looks beyond a border, and parameters.

    What torch makes of one and the same call for other strides is told alike: a linear layer is one product and a sum,
    and whether a view had to be copied is left out.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries: list[tuple[Any, ...]] = []
        tensors = (*model.parameters(), *model.buffers())
        self._position = {id(tensor): position for position, tensor in enumerate(tensors)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name
        noted: tuple[Any, ...] = ()
        if name == "aten::lift_fresh":  # a tensor made in forward
            noted = tuple(args[0].flatten().tolist())
        elif any(part in name for part in ("conv", "pad", "pool")):
            noted = tuple(leaf for leaf in tree_leaves(args) if isinstance(leaf, (int, float)))
        elif name not in _RANGES:
            noted = tuple(value for value in (*args, *kwargs.values()) if isinstance(value, (int, float)))
        self._note(name, noted, args)
        known = _without_looking(name, args) if args and isinstance(args[0], Tensor) and not kwargs else None
        return func(*args, **kwargs) if known is None else known

    def _note(self, name: str, numbers: tuple[Any, ...], args: Any) -> None:
        known = ((at, self._position.get(id(x))) for at, x in enumerate(args) if isinstance(x, Tensor))
        read = tuple((at, position) for at, position in known if position is not None)
        if name == "aten::addmm":
            bias = tuple((1, position) for _, position in read[:1])
            self.entries += [("aten::mm", *read[1:]), ("aten::add", *numbers, *bias)]
        elif name in _LAYOUTS:
            self.entries += [("read", position) for _, position in read]
        else:
            self.entries.append((name, *numbers, *read))


def _without_looking(name: str, args: Any) -> Any:
    """What a common operation returns on tensors without values, where torch takes long to tell; else ``None``."""
    x = args[0]
    if not x.is_meta:
        return None
    if "batch_norm" in name and not any(a is True for a in args):
        return torch.empty_like(x), x.new_empty(0), x.new_empty(0)
    others = [a for a in args[1:] if isinstance(a, Tensor)]
    if not x.is_floating_point() or any(a.dtype != x.dtype or not a.is_meta for a in others):
        return None
    if name == "aten::gelu" and len(args) == 1:
        return torch.empty_like(x)
    if name == "aten::native_layer_norm" and (over := len(args[1])) and list(x.shape[-over:]) == list(args[1]):
        statistics = (*x.shape[:-over], *(1 for _ in args[1]))
        if all(list(a.shape) == list(args[1]) for a in others):
            alike = torch.empty_like(x, memory_format=torch.contiguous_format)
            return alike, x.new_empty(statistics), x.new_empty(statistics)
    if name == "aten::addmm" and [a.ndim for a in others] == [2, 2]:
        (rows, inner), (own, columns) = others[0].shape, others[1].shape
        if inner == own and tuple(x.shape) == (columns,):
            return x.new_empty(rows, columns)
    return None


_LAYOUTS = frozenset(f"aten::{name}" for name in ("view", "_unsafe_view", "clone", "alias", "t", "expand", "detach"))
"""Ops that torch adds or leaves out as strides will have it, and whose sizes follow the input's."""

_RANGES = frozenset(("aten::arange", "aten::linspace"))
"""Ops whose numbers follow the input's size, and of which no constant is concluded."""


Run = tuple[Sizes, ...]
"""Sizes at which a network does the same: alike but for the number of samples, the fewest first."""


def other_runs(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> list[Run]:
    """Other input sizes at which a network runs other operations, or computes with other numbers or padding.

    Args:
        model: the network; a copy of it is run.
        example_inputs: the inputs that the others are compared with.

    Returns:
        One size for everything that it does otherwise; none where it does the same at all sizes that it takes.
    """
    with unspoilt(model):
        return _other_runs(model, example_inputs)


def _other_runs(model: nn.Module, example_inputs: tuple[Tensor, ...]) -> list[Run]:
    run, own = _watched(model, example_inputs)
    by_size: dict[Sizes, list[Sizes]] = {}
    for shapes in other_sizes(example_inputs):
        by_size.setdefault(one_sample(shapes), []).append(shapes)
    known, found = [own], []
    for several in by_size.values():
        told = [(shapes, run(random_inputs(example_inputs, shapes, seed=0))) for shapes in reversed(several)]
        taken = [(shapes, entries) for shapes, entries in told if entries is not None]
        for _, entries in taken[:1] if own is None else taken:  # what can't be watched may do the same
            if own is None or entries not in known:
                known.append(entries)
                found.append(tuple(shapes for shapes, others in taken if others == entries))
    return found


Entries = list[tuple[Any, ...]]
"""What a network did, operation by operation."""


def _watched(
    model: nn.Module, example_inputs: tuple[Tensor, ...]
) -> tuple[Callable[[tuple[Tensor, ...]], Entries | None], Entries | None]:
    """What tells what a network does on its inputs, ``None`` where it refuses them; and that for the example inputs.

    Nothing is computed where forward allows that. Of a network that can't be watched, any other size that it takes is
    told as something else.
    """
    with contextlib.suppress(Exception):  # a scripted part can't be moved there
        empty = private_copy(model, parameter=_without_values).to("meta")

        def without_arithmetic(inputs: tuple[Tensor, ...]) -> Entries | None:
            return _journal(empty, tuple(x.to("meta") for x in inputs))

        if (own := without_arithmetic(example_inputs)) is not None:
            return without_arithmetic, own
    model = private_copy(model, parameter=lambda own: own)
    if (own := _journal(model, example_inputs)) is not None:
        return partial(_journal, model), own
    torch.compiler.reset()  # torch.cond compiles itself, and would go on failing as it did while it was watched
    return lambda inputs: None if accepted(model, inputs) is None else [], None


def _without_values(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)


def _journal(model: nn.Module, inputs: tuple[Tensor, ...]) -> Entries | None:
    journal = _Journal(model)
    with journal:
        runs = accepted(model, inputs) is not None
    return journal.entries if runs else None
