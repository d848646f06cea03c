"""The certificate: a compact network is compared with its original before anybody gets it.

Two checks that fail for different reasons. The *type check* captures the compact network anew and compares which
channels meet: a shuffle or chunk of unevenly cut channels runs without an error and mixes the wrong ones. The *numeric
check* compares outputs on random inputs, in float64 where rounding can hide nothing, and in the network's own
precision, at two input sizes where the network accepts them: an error at the border shows only at some sizes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from compress.errors import VerificationError
from compress.graph import ChannelGraph
from compress.graph.aten.trace import evaluating
from compress.graph.caches import unspoilt
from compress.graph.channels import Operation
from compress.surgery.bake import double_copy, private_copy
from compress.surgery.input_sizes import Sizes, all_sizes, is_opposite, one_sample, other_sizes, samples
from compress.surgery.plan import Plan

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative difference allowed by precision. Float64: six digits above rounding, far below any real mistake. Float32:
sums in another order differ by about 1e-6 of the largest output. Half precision: about ten times its rounding unit; it
shows that the network runs, and the comparison in float64 that it is right."""

ROUNDINGS = 4
"""How many times the original's own rounding error the two may differ, where that is more: each has one, the compact
network's sums are in another order, and the largest of few outputs is no exact measure."""


COARSE = 100
"""How many times the tolerance shows that a graph computes something else at another size: not rounding."""


@dataclass(frozen=True)
class Agreement:
    """How two networks compare at one input size.

    Attributes:
        input_shapes: the sizes.
        dtype: the precision of the comparison.
        max_abs_error: largest difference of any output.
        max_relative_error: the same relative to the original's largest output.
        rounding: how far the original itself is from its float64 form on the same input, relative likewise: the measure
            of what sums in another order may change; ``None`` where there is no such form, or this is the comparison in
            float64.
    """

    input_shapes: Sizes
    dtype: str
    max_abs_error: float
    max_relative_error: float
    rounding: float | None = None


def certify(
    original: nn.Module,
    compact: nn.Module,
    compact_double: nn.Module | None,
    example_inputs: tuple[Tensor, ...],
    *,
    any_size: bool = True,
    only_given: bool = False,
    any_samples: bool = True,
    runs: Collection[Run] | None = None,
) -> list[Agreement]:
    """Compare at the given size, at a smaller and a larger one, and wherever else the network does something else.

    In float64, at the first two sizes in the network's own precision too.

    Args:
        original: the network before surgery. A ``forward`` that writes to buffers changes them here: pass a copy.
        compact: the network after it.
        compact_double: the network after the same surgery in float64; ``None`` for a network that is float64 already.
        example_inputs: what both take.
        any_size: whether the compact network must accept every input size that the original does. One that need not,
            and refuses one of them or returns something else, is compared at the given size alone.
        only_given: whether other sizes are none of its concern.
        any_samples: whether it must take every number of samples, too.
        runs: what ``other_runs`` tells of the original, where that is known.

    Returns:
        One agreement for each size and precision; sizes that the original refuses are left out. Where it insists on
        another precision than float64, its own is compared at every size.

    Raises:
        VerificationError: a difference above the tolerance, outputs that are not finite or of another shape, or an
            input that only the original accepts.
    """
    original_double = None if compact_double is None else double_copy(original)
    fixed = only_given or not (any_size or _takes_every_size(original, compact, example_inputs))
    given, *others = all_sizes(example_inputs)
    others = [s for s in others if not fixed or one_sample(s) == one_sample(given)]
    sizes = [given, *(s for s in others if any_samples or samples(s) == samples(given))]
    if runs is None:
        runs = other_runs(original, example_inputs)
    course = _Course(given, () if fixed else runs)
    found: list[Agreement] = []
    for size, shapes in enumerate(sizes):
        if not course.leads_to(shapes):
            continue
        inputs = random_inputs(example_inputs, shapes, seed=size)
        expected = outputs(original, inputs) if size == 0 else _accepted(original, inputs)
        if expected is None or not (any_size or size == 0 or _returns_such(compact, inputs, expected)):
            continue
        if size > 0 and not _are_finite(expected):
            continue  # the variance of one sample, say
        exact = None
        if original_double is not None:
            double = in_double(inputs)
            exact = _accepted(original_double, double, torch.float64)
            if size > 0 and exact is not None and not _are_finite(exact):
                continue
        if exact is None or not course.others:
            found.append(_agreement(expected, compact, inputs, _precision(original), exact))
        if exact is not None and compact_double is not None:
            found.append(_agreement(exact, compact_double, double, torch.float64))
        course.note(shapes)
    return found


class _Course:
    """Which sizes are compared: the given one, a smaller and a larger one, and whatever makes the network do otherwise.

    Attributes:
        others: what was compared so far, but for the given size.
    """

    def __init__(self, given: Sizes, runs: Collection[Run]):
        self.given, self.others = given, list[Sizes]()
        self._runs = {alike[0]: alike for alike in runs}
        self._beyond = False

    def leads_to(self, shapes: Sizes) -> bool:
        """Whether a size is to be compared, after those that were."""
        if not self.others:
            return True  # the second size is the first that the network takes
        otherwise = set(self.others).isdisjoint(self._runs.get(shapes, self.others))
        return otherwise or (not self._beyond and self._is_beyond(shapes))

    def note(self, shapes: Sizes) -> None:
        """It was compared."""
        if shapes != self.given:
            self._beyond |= bool(self.others) and self._is_beyond(shapes)
            self.others.append(shapes)

    def _is_beyond(self, shapes: Sizes) -> bool:
        return samples(shapes) == samples(self.given) and is_opposite(shapes, self.others[0], self.given)


def _takes_every_size(original: nn.Module, compact: nn.Module, example_inputs: tuple[Tensor, ...]) -> bool:
    """Whether ``compact`` takes every other size that ``original`` takes, and returns about the same there."""
    seen = {one_sample(tuple(tuple(x.shape) for x in example_inputs))}
    for shapes in other_sizes(example_inputs):
        if one_sample(shapes) in seen:
            continue
        inputs = random_inputs(example_inputs, shapes, seed=0)
        expected = _accepted(original, inputs)
        if expected is None:
            continue
        seen.add(one_sample(shapes))
        if not _returns_about(compact, inputs, expected, _precision(original)):
            return False
    return True


SAMPLES = ((1, 1), (1, 4), (0, 1))
"""How many times the given number of samples, and how many more. A graph's numbers follow that of samples in a line
through two of them: others show whether that holds."""


def takes_every_batch(original: nn.Module, compact: nn.Module, example_inputs: tuple[Tensor, ...]) -> bool:
    """Whether ``compact`` returns about the same with more samples, and with one, where ``original`` takes as many."""
    every = range(len(example_inputs))
    for times, more in SAMPLES:
        for several in dict.fromkeys((tuple(every), *((alone,) for alone in every))):  # a vector may have no batch
            shapes = [
                (times * x.shape[0] + more, *x.shape[1:]) if x.ndim and at in several else tuple(x.shape)
                for at, x in enumerate(example_inputs)
            ]
            inputs = random_inputs(example_inputs, shapes, seed=1)
            expected = _accepted(original, inputs)
            if expected is None or not _are_finite(expected):
                continue
            if not _returns_about(compact, inputs, expected, _precision(original)):
                return False
    return True


def _returns_about(
    model: nn.Module, inputs: tuple[Tensor, ...], expected: list[Tensor], precision: torch.dtype
) -> bool:
    got = _accepted(model, inputs)
    if got is None or [x.shape for x in got] != [x.shape for x in expected]:
        return False
    return _difference(expected, got)[1] <= COARSE * TOLERANCES[precision]


def _returns_such(model: nn.Module, inputs: tuple[Tensor, ...], expected: list[Tensor]) -> bool:
    """Whether the network takes these inputs: it returns tensors of the expected shapes."""
    found = _accepted(model, inputs)
    return found is not None and [x.shape for x in found] == [x.shape for x in expected]


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Every tensor that the network returns in evaluation mode, and every number, as a tensor of that number."""
    with evaluating(model), torch.no_grad():
        result: Any = model(*(x.clone() for x in inputs))
    leaves = [torch.tensor(leaf) if isinstance(leaf, (int, float)) else leaf for leaf in tree_leaves(result)]
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _are_finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _agreement(
    expected: list[Tensor],
    compact: nn.Module,
    inputs: tuple[Tensor, ...],
    dtype: torch.dtype,
    exact: list[Tensor] | None = None,
) -> Agreement:
    """Compare what ``compact`` returns with what is expected, and refuse what differs.

    Where the original's own rounding, its distance from ``exact``, is large, sums in another order may differ as much:
    a deep network amplifies them. That nothing else differs shows the comparison in float64.
    """
    shapes = tuple(tuple(x.shape) for x in inputs)
    precision = str(dtype).removeprefix("torch.")
    where = f"({precision}, input {shapes})"
    try:
        got = outputs(compact, inputs)
    except Exception as error:  # a user's forward may raise anything
        raise VerificationError(
            f"the compact network fails where the original runs {where}: {type(error).__name__}: {error}"
        ) from error
    if [tuple(e.shape) for e in expected] != [tuple(g.shape) for g in got]:
        raise VerificationError(
            f"the compact network returns shapes {[tuple(g.shape) for g in got]}, "
            f"expected {[tuple(e.shape) for e in expected]} {where}."
        )
    if not _are_finite([*expected, *got]):
        raise VerificationError(
            f"an output is not finite on random input {where}: check the weights for NaN or infinity, and that the "
            "network takes any numbers (inputs are drawn from a normal distribution)."
        )
    difference, relative = _difference(expected, got)
    rounding = None if exact is None else _difference(expected, exact)[1]
    allowed = max(TOLERANCES[dtype], ROUNDINGS * (rounding or 0.0))
    if relative > allowed:
        raise VerificationError(
            f"the compact network differs from the original by {relative:.2e} of the largest output {where}, "
            f"allowed {allowed:.0e}; it is not returned. "
            "Please report the model; until then, train without removing channels."
        )
    return Agreement(shapes, precision, difference, relative, rounding)


def agrees(expected: Tensor, got: Tensor) -> bool:
    """Whether two results within a network are the same up to rounding."""
    if expected.shape != got.shape or not expected.is_floating_point():
        return expected.shape == got.shape and torch.equal(expected, got)
    return _difference([expected], [got])[1] <= TOLERANCES[expected.dtype]


def _difference(expected: list[Tensor], got: list[Tensor]) -> tuple[float, float]:
    """The largest difference of any output, and the largest relative to that output's own largest entry."""
    difference = relative = 0.0
    for wanted, found in zip(expected, got, strict=True):
        if wanted.numel():
            exact = torch.complex128 if wanted.is_complex() or found.is_complex() else torch.float64
            wide = wanted.to(exact)
            largest, off = float(wide.abs().max()), float((wide - found.to(exact)).abs().max())
            difference = max(difference, off)
            relative = max(relative, off / largest if largest > 0 else off)
    return difference, relative


def _precision(model: nn.Module) -> torch.dtype:
    """The coarsest floating-point type among the parameters."""
    dtypes = {p.dtype for p in model.parameters() if p.dtype in TOLERANCES}
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps, default=torch.float32)


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
    if name == "aten::gelu" and len(args) == 1:
        return torch.empty_like(x)
    if "batch_norm" in name and not any(a is True for a in args):
        return torch.empty_like(x), x.new_empty(0), x.new_empty(0)
    others = [a for a in args[1:] if isinstance(a, Tensor)]
    if not x.is_floating_point() or any(a.dtype != x.dtype or not a.is_meta for a in others):
        return None
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
        accepted = [(shapes, entries) for shapes, entries in told if entries is not None]
        for _, entries in accepted[:1] if own is None else accepted:  # what can't be watched may do the same
            if own is None or entries not in known:
                known.append(entries)
                found.append(tuple(shapes for shapes, others in accepted if others == entries))
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
    return lambda inputs: None if _accepted(model, inputs) is None else [], None


def _without_values(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)


def _journal(model: nn.Module, inputs: tuple[Tensor, ...]) -> Entries | None:
    journal = _Journal(model)
    with journal:
        accepted = _accepted(model, inputs) is not None
    return journal.entries if accepted else None


def failing_module(model: nn.Module, inputs: tuple[Tensor, ...]) -> str | None:
    """The path of the innermost module whose forward raises on ``inputs``; ``None`` where none does."""
    running: list[str] = []
    handles = []
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # takes no hooks
        handles.append(module.register_forward_pre_hook(lambda _m, _x, path=path: running.append(path)))
        handles.append(module.register_forward_hook(lambda _m, _x, _y: running.pop() and None))
    failed = _accepted(model, inputs) is None
    for handle in handles:
        handle.remove()
    return running[-1] if failed and running else None


def _accepted(model: nn.Module, inputs: tuple[Tensor, ...], dtype: torch.dtype = torch.float32) -> list[Tensor] | None:
    """The outputs, where the model runs at this size at all; and, in float64, computes in float64 from end to end."""
    with _Roundings() if dtype == torch.float64 else contextlib.nullcontext() as roundings:  # type: ignore[no-untyped-call]
        try:
            found = outputs(model, inputs)
        except Exception:  # whatever a user's forward raises is its way of saying no
            return None
    return None if roundings is not None and roundings.seen else found


class _Roundings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices casts from float64 to a shorter type."""

    seen = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._to_copy.default and args[0].dtype == torch.float64:
            self.seen |= result.is_floating_point() and result.dtype != torch.float64
        return result


def changed_operations(original: ChannelGraph, compact: ChannelGraph, plan: Plan) -> tuple[int, ...]:
    """Operations of the original that have other numbers in the compact network: their positions.

    The index in front of a BatchNorm, which the plan put there, is passed over, and so is what differs behind one that
    differs: its sizes follow. Where even the sequence of operations differs, the first difference ends the list.
    """
    changed: list[int] = []
    following: set[int] = set()
    for position, (before, after) in enumerate(zip_longest(original.operations, _operations(compact, plan))):
        if before is not None and after is not None and before.same(after):
            continue
        if before is None or after is None or before.name != after.name:
            changed.append(min(position, len(original.operations) - 1))
            break
        if following.isdisjoint(before.reads):
            changed.append(position)
        following.add(position)
    return tuple(changed)


def _operations(compact: ChannelGraph, plan: Plan) -> list[Operation]:
    """Those of a compact network, but for the indices that the plan put there."""
    put = "aten.index_select.default"
    return [op for op in compact.operations if not (op.name == put and op.where in plan.selections)]


def mixed_channels(original: ChannelGraph, compact: ChannelGraph, plan: Plan) -> Tensor:
    """Classes of the original whose channels meet others in the compact network, or no longer meet each other.

    Every index of every parameter of the compact network comes from a known class of the original. Its classes must
    group the indices as the original's do: where they are coarser the wrong channels meet, where they are finer a
    single channel is broadcast over many.

    Returns:
        Bool ``[classes of the original]``.
    """
    source, target, conflict = _same_indices(original, compact, plan)
    conflict[source[_several(source, target) | _several(target, source)]] = True
    return conflict


def displaced_channels(original: ChannelGraph, compact: ChannelGraph, plan: Plan, removed: Tensor) -> Tensor:
    """Classes that an operation holds in one network alone, though they are in both, or takes other channels of.

    ``x[:, 1]`` is another channel where the first one was cut. The networks run the same operations, and
    ``mixed_channels`` has found none.

    Args:
        original: the graph of the original.
        compact: that of the compact network.
        plan: what made it.
        removed: bool ``[classes of the original]``.

    Returns:
        Bool ``[classes of the original]``.
    """
    source, target, displaced = _same_indices(original, compact, plan)
    origin = torch.full((compact.classes.count,), -1)
    origin[target] = source
    present = torch.zeros_like(displaced)
    present[source] = True
    for before, after in zip(original.operations, _operations(compact, plan), strict=True):
        expected, got = torch.zeros_like(present), torch.zeros_like(present)
        expected[before.classes] = True
        found = origin[after.classes]
        got[found[found >= 0]] = True
        displaced |= (expected & present) ^ got
        if before.pick is not None and after.pick is not None:
            displaced[before.pick.displaced(after.pick, removed)] = True
    return displaced


def _same_indices(original: ChannelGraph, compact: ChannelGraph, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """The class of each index that both networks have, in the one and in the other; and a bool ``[classes]``.

    It marks those of parameters that are not of the planned size.
    """
    conflict = torch.zeros(original.classes.count, dtype=torch.bool)
    before, after = [torch.empty(0, dtype=torch.int64)], [torch.empty(0, dtype=torch.int64)]
    for name, dims in original.classes.parameters.items():
        for dim, classes in dims.items():
            now = compact.classes.parameters.get(name, {}).get(dim)
            kept = plan.parameters.get(name)
            if kept is not None and dim in kept.indices:
                classes = classes[torch.tensor(kept.indices[dim], dtype=torch.int64)]
            if now is None and classes.numel() == 1:
                continue  # a single entry reads as one for all, and there is only one to read it
            if now is None or now.numel() != classes.numel():
                conflict[classes] = True
            else:
                before.append(classes)
                after.append(now)
    if len(original.selections) != len(compact.selections):
        return torch.cat(before), torch.cat(after), torch.ones_like(conflict)
    for selection, selected in zip(original.selections, compact.selections, strict=True):
        kept = plan.parameters.get(selection.mean)
        before.append(selection.inputs if kept is None else selection.inputs[torch.tensor(kept.indices[0])])
        after.append(selected.inputs)
    return torch.cat(before), torch.cat(after), conflict


def _several(values: Tensor, keys: Tensor) -> Tensor:
    """Bool: where the key of an entry occurs with more than one value."""
    if not keys.numel():
        return torch.empty(0, dtype=torch.bool)
    size = int(keys.max()) + 1
    low = torch.full((size,), int(values.max()) + 1).scatter_reduce(0, keys, values, "amin")
    high = torch.full((size,), -1).scatter_reduce(0, keys, values, "amax")
    return (low != high)[keys]


def random_inputs(
    example_inputs: tuple[Tensor, ...], shapes: Sequence[tuple[int, ...]], seed: int
) -> tuple[Tensor, ...]:
    """Random inputs of the given shapes: standard normal, any byte, or whole numbers in the example's range."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(_random_like(x, shape, generator) for x, shape in zip(example_inputs, shapes, strict=True))


def _random_like(x: Tensor, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    if x.is_floating_point() or x.is_complex():
        drawn = torch.randn(shape, generator=generator, dtype=torch.float32 if x.dtype == torch.float16 else x.dtype)
        return drawn.to(x)
    low, high = (0, 255) if x.dtype == torch.uint8 or not x.numel() else (int(x.min()), int(x.max()))
    if x.dtype == torch.bool:
        low, high = 0, 1
    return torch.randint(low, high + 1, shape, generator=generator).to(x)


def in_double(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The inputs in float64; whole numbers, masks and complex numbers as they are."""
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)
