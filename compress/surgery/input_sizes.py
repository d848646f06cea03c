"""Sizes of inputs at which two networks are compared, and at which a network is watched for doing something else.

A network accepts some of them: which dimensions of an input are height and width, and which hold channels, is known
only to its ``forward``. So all that could be meant are tried, and what is refused is passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from torch import Tensor

Sizes = tuple[tuple[int, ...], ...]
"""The shape of each input."""

CHEAP_BELOW = 64
"""Pixels a side up to which a larger image costs little; from there on smaller ones are tried first."""


def all_sizes(example_inputs: tuple[Tensor, ...]) -> list[Sizes]:
    """The given sizes first, then others to try, each with one sample more, and with as many as given.

    First come heights and widths of other parity, the cheaper ones first; then a half and the double, for networks that
    take only multiples; then images that are wider than high or higher than wide; then the same where channels come
    last, for films, and for images alone among several inputs; then sequences of another length; then only another
    number of samples.
    """
    given = tuple(tuple(x.shape) for x in example_inputs)
    candidates = [given]
    for shapes in [*_scaled_images(given), *_longer(example_inputs), given]:
        candidates += [_with_samples(shapes, given, more=1), shapes]
    if any(shape and shape[0] > 1 for shape in given):
        candidates.append(tuple((1, *shape[1:]) if shape else shape for shape in given))
    return list(dict.fromkeys(candidates))


def other_sizes(example_inputs: tuple[Tensor, ...]) -> list[Sizes]:
    """Other input sizes to try."""
    return all_sizes(example_inputs)[1:]


def one_sample(shapes: Sizes) -> Sizes:
    """Sizes without the number of samples."""
    return tuple(shape[1:] for shape in shapes)


def is_opposite(shapes: Sizes, second: Sizes, given: Sizes) -> bool:
    """Whether images are larger where those of ``second`` are smaller than the ``given`` ones, or the other way."""
    own, other = (_growth(some, given) for some in (shapes, second))
    return own * other < 0


def samples(shapes: Sizes) -> tuple[int, ...]:
    """The number of samples of each input."""
    return tuple(shape[0] for shape in shapes if shape)


def _growth(shapes: Sizes, given: Sizes) -> int:
    return sum(sum(one) for one in one_sample(shapes)) - sum(sum(one) for one in one_sample(given))


def _with_samples(shapes: Sizes, given: Sizes, *, more: int) -> Sizes:
    return tuple((own[0] + more, *shape[1:]) if own else shape for shape, own in zip(shapes, given, strict=True))


Dims = Callable[[tuple[int, ...]], Sequence[int]]
"""The dimensions of a shape that are taken for height and width (or depth, or length)."""

LAYOUTS: tuple[Dims, ...] = (
    lambda shape: range(2, len(shape)),  # [N, C, ...]
    lambda shape: range(2, len(shape)) if len(shape) > 3 else (),  # images alone, beside sequences [N, L, C]
    lambda shape: range(1, len(shape) - 1) if len(shape) > 3 else (),  # [N, H, W, C]
    lambda shape: range(3, len(shape)) if len(shape) > 4 else (),  # [N, T, C, H, W]
)


def _scaled_images(given: Sizes) -> Iterator[Sizes]:
    for layout in LAYOUTS:
        dims = [[d for d in layout(shape) if shape[d] > 1] for shape in given]
        if any(dims):
            yield from _scaled(given, dims)


def _scaled(given: Sizes, dims: list[list[int]]) -> Iterator[Sizes]:
    largest = max(shape[d] for shape, own in zip(given, dims, strict=True) for d in own)
    first, second = ((0.6, True), (1.125, True)) if largest >= CHEAP_BELOW else ((1.5, True), (0.6, True))
    halves = ((0.5, False), (2.0, False)) if largest >= CHEAP_BELOW else ((2.0, False), (0.5, False))
    for factor, odd in (first, second, *halves):
        yield _by(given, dims, factor, odd=odd)
    if any(len(own) > 1 for own in dims):
        for alone in (-1, -2):  # width, height
            yield _by(given, [own[alone:][:1] if len(own) > 1 else [] for own in dims], first[0], odd=True)


def _by(given: Sizes, dims: Iterable[Sequence[int]], factor: float, *, odd: bool) -> Sizes:
    def scaled(size: int) -> int:
        return _other_parity(size, factor) if odd else max(1, int(size * factor))

    return tuple(
        tuple(scaled(size) if d in own else size for d, size in enumerate(shape))
        for shape, own in zip(given, dims, strict=True)
    )


def _other_parity(size: int, factor: float) -> int:
    """About ``factor * size``, odd where that is even: networks pad odd sizes, or even ones, in their own way."""
    scaled = int(size * factor)
    return scaled + 1 if scaled % 2 == size % 2 else scaled


SEQUENCES: tuple[Callable[[Tensor], bool], ...] = (
    lambda x: x.ndim == 3 or (x.ndim == 2 and not x.is_floating_point()),
    lambda x: x.ndim == 2,
    lambda x: x.ndim in (2, 3),
)
"""Inputs whose dimension 1 may be the length of a sequence: tokens; features over time, such as sound; both."""


def _longer(example_inputs: tuple[Tensor, ...]) -> Iterator[Sizes]:
    for is_sequence in SEQUENCES:
        if any(map(is_sequence, example_inputs)):
            yield tuple(
                (x.shape[0], _other_parity(x.shape[1], 1.5), *x.shape[2:]) if is_sequence(x) else tuple(x.shape)
                for x in example_inputs
            )
