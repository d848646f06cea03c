"""The certificate: a compact network is compared with its original before anybody gets it.

Two checks that fail for different reasons. The *type check* exports the compact network anew and compares which channels
meet: a shuffle or chunk of unevenly cut channels runs without an error and mixes the wrong ones. The *numeric check*
compares outputs on random inputs, in float64 where rounding can hide nothing, and in the network's own precision, at
two input sizes where the network accepts them: an error at the border shows only at some sizes.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from compress.errors import VerificationError
from compress.graph import ChannelGraph
from compress.graph.aten.trace import evaluating
from compress.surgery.plan import Plan

EXACT_TOLERANCE = 1e-10
"""Relative difference allowed in float64: seven digits above rounding, far below any real mistake."""

FLOAT32_TOLERANCE = 1e-5
"""Relative difference allowed in float32: sums in another order differ by about 1e-6 of the largest output."""

_SEEDS = (0, 1)


@dataclass(frozen=True)
class Agreement:
    """How two networks compare at one input size.

    Attributes:
        input_shapes: the sizes.
        dtype: the precision of the comparison.
        max_abs_error: largest difference of any output.
        max_relative_error: the same relative to the original's largest output.
    """

    input_shapes: tuple[tuple[int, ...], ...]
    dtype: str
    max_abs_error: float
    max_relative_error: float


def compare(original: nn.Module, compact: nn.Module, inputs: tuple[Tensor, ...]) -> Agreement:
    """Run both networks in evaluation mode on the same inputs.

    Raises:
        VerificationError: an output is not finite, or has another shape.
    """
    with evaluating(original), evaluating(compact), torch.no_grad():
        expected, got = (_outputs(model(*(x.clone() for x in inputs))) for model in (original, compact))
    if [tuple(e.shape) for e in expected] != [tuple(g.shape) for g in got]:
        raise VerificationError(
            f"the compact network returns shapes {[tuple(g.shape) for g in got]}, "
            f"expected {[tuple(e.shape) for e in expected]}."
        )
    largest = max((float(e.abs().max()) for e in expected if e.numel()), default=0.0)
    error = max((float((e - g).abs().max()) for e, g in zip(expected, got, strict=True) if e.numel()), default=0.0)
    if not (torch.tensor([largest, error]).isfinite().all()):
        raise VerificationError("an output is not finite on random input; check the weights for NaN or infinity.")
    shapes = tuple(tuple(x.shape) for x in inputs)
    relative = error / largest if largest > 0 else error
    return Agreement(shapes, str(inputs[0].dtype).removeprefix("torch."), error, relative)


def certify(
    original: nn.Module,
    compact: nn.Module,
    compact_double: nn.Module | None,
    example_inputs: tuple[Tensor, ...],
) -> list[Agreement]:
    """Compare at the given size and at a second one, in float64 and in the network's own precision.

    Args:
        original: the network before surgery.
        compact: the network after it.
        compact_double: the network after the same surgery in float64; ``None`` where that is not possible.
        example_inputs: what both take.

    Returns:
        One agreement for each size and precision; sizes that the original refuses are left out.

    Raises:
        VerificationError: a difference above the tolerance.
    """
    original_double = None if compact_double is None else copy.deepcopy(original).double()
    found: list[Agreement] = []
    for size, shapes in enumerate(_sizes(example_inputs)):
        for seed in _SEEDS if size == 0 else _SEEDS[:1]:
            inputs = random_inputs(example_inputs, shapes, seed)
            if size > 0 and not _accepts(original, inputs):
                continue
            if original_double is not None and compact_double is not None:
                exact = compare(original_double, compact_double, tuple(_double(x) for x in inputs))
                found.append(_within(exact, EXACT_TOLERANCE))
            found.append(_within(compare(original, compact, inputs), FLOAT32_TOLERANCE))
        if size > 0 and any(a.input_shapes == shapes for a in found):
            break  # one second size that works is enough
    return found


def type_conflicts(original: ChannelGraph, compact: ChannelGraph, plan: Plan) -> Tensor:
    """Classes of the original whose channels meet others in the compact network.

    Every index of every parameter of the compact network comes from a known class of the original. Wherever the
    compact network ties two indices together, they must come from one class.

    Returns:
        Bool ``[classes of the original]``; all of them where even the sequence of operations differs.
    """
    conflict = torch.zeros(original.classes.count, dtype=torch.bool)
    if original.signature != compact.signature:
        return ~conflict
    before, after = [], []
    for name, dims in original.classes.parameters.items():
        for dim, classes in dims.items():
            now = compact.classes.parameters.get(name, {}).get(dim)
            kept = plan.parameters.get(name)
            if kept is not None and dim in kept.indices:
                classes = classes[torch.tensor(kept.indices[dim], dtype=torch.int64)]
            if now is None or now.numel() != classes.numel():
                conflict[classes] = True
            else:
                before.append(classes)
                after.append(now)
    if before:
        source, target = torch.cat(before), torch.cat(after)
        low = torch.full((compact.classes.count,), original.classes.count).scatter_reduce(0, target, source, "amin")
        high = torch.full((compact.classes.count,), -1).scatter_reduce(0, target, source, "amax")
        mixed = (low != high)[target]
        conflict[source[mixed]] = True
    return conflict


def random_inputs(
    example_inputs: tuple[Tensor, ...], shapes: Sequence[tuple[int, ...]], seed: int
) -> tuple[Tensor, ...]:
    """Standard normal inputs of the given shapes; integer inputs keep the example's values."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(shape, generator=generator, dtype=x.dtype if x.dtype != torch.float16 else torch.float32).to(x)
        if x.is_floating_point()
        else x
        for x, shape in zip(example_inputs, shapes, strict=True)
    )


def _sizes(example_inputs: tuple[Tensor, ...]) -> list[tuple[tuple[int, ...], ...]]:
    """The given sizes first, then odd ones to try: smaller ones first where there is room, since they are cheap."""
    first = tuple(tuple(x.shape) for x in example_inputs)
    spatial = max((max(shape[2:]) for shape in first if len(shape) > 2), default=0)
    factors = (0.6, 1.5) if spatial >= 64 else (1.5, 0.6)
    return [first, *(_scaled(first, factor) for factor in factors if spatial)]


def _scaled(shapes: tuple[tuple[int, ...], ...], factor: float) -> tuple[tuple[int, ...], ...]:
    return tuple((*shape[:2], *(int(size * factor) | 1 for size in shape[2:])) for shape in shapes)


def _accepts(model: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether the model runs at this size at all; whatever it raises is its way of saying no."""
    with evaluating(model), torch.no_grad():
        try:
            model(*inputs)
        except (RuntimeError, ValueError, AssertionError, IndexError):
            return False
    return True


def _within(agreement: Agreement, tolerance: float) -> Agreement:
    if not agreement.max_relative_error <= tolerance:
        raise VerificationError(
            f"the compact network differs from the original by {agreement.max_relative_error:.2e} of the largest output "
            f"({agreement.dtype}, input {agreement.input_shapes}), allowed {tolerance:.0e}; it is not returned. "
            "Please report the model; until then, train without removing channels."
        )
    return agreement


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _outputs(result: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
