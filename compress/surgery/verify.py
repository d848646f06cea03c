"""The certificate: a compact network is compared with its original before anybody gets it.

Two checks that fail for different reasons. The *type check* (``type_check``) captures the compact network anew and
compares which channels meet: a shuffle or chunk of unevenly cut channels runs without an error and mixes the wrong
ones. The *numeric check*, here, compares outputs on random inputs, in float64 where rounding can hide nothing, and in
the network's own precision, at two input sizes where the network accepts them: an error at the border shows only at
some sizes.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.errors import VerificationError
from compress.surgery.bake import double_copy
from compress.surgery.input_sizes import Sizes, all_sizes, is_opposite, one_sample, other_sizes, samples
from compress.surgery.running import accepted, in_double, outputs, random_inputs
from compress.surgery.watch import Run, other_runs

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
        expected = outputs(original, inputs) if size == 0 else accepted(original, inputs)
        if expected is None or not (any_size or size == 0 or _returns_such(compact, inputs, expected)):
            continue
        if size > 0 and not _are_finite(expected):
            continue  # the variance of one sample, say
        exact = None
        if original_double is not None:
            double = in_double(inputs)
            exact = accepted(original_double, double, torch.float64)
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
        expected = accepted(original, inputs)
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
            expected = accepted(original, inputs)
            if expected is None or not _are_finite(expected):
                continue
            if not _returns_about(compact, inputs, expected, _precision(original)):
                return False
    return True


def _returns_about(
    model: nn.Module, inputs: tuple[Tensor, ...], expected: list[Tensor], precision: torch.dtype
) -> bool:
    got = accepted(model, inputs)
    if got is None or [x.shape for x in got] != [x.shape for x in expected]:
        return False
    return _difference(expected, got)[1] <= COARSE * TOLERANCES[precision]


def _returns_such(model: nn.Module, inputs: tuple[Tensor, ...], expected: list[Tensor]) -> bool:
    """Whether the network takes these inputs: it returns tensors of the expected shapes."""
    found = accepted(model, inputs)
    return found is not None and [x.shape for x in found] == [x.shape for x in expected]


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
