"""Does the ONNX file compute what the torch model computes?

The torch model is run once on every batch (`reference_cases`), each candidate file is run on the same batches in
ONNX Runtime (`verify`). For output o over the batches b of one group (random, or real):

    absolute_o = max_b |onnx_o(b) - torch_o(b)|        relative_o = absolute_o / max_b |torch_o(b)|

and the largest of each over the outputs is reported. The largest output over *all* batches of the group is the
yardstick, because a network with a single output may come close to zero on one batch by chance. Beside these stand the
mean of |onnx_o(b) - torch_o(b)| over all values of all outputs, and how often the largest score is the same one.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from export.errors import ExportError
from export.runtime import open_session

# Float32 rounds to 6e-8; sums over thousands of products, taken in another order by other kernels, and tens of layers
# bring ResNets to about 1e-6. 1e-4 leaves two orders of magnitude, and is far below any real defect (a lost BatchNorm
# shift is 1e-1) and below what int8 costs (1e-2).
RELATIVE_TOLERANCE = 1e-4

# Normalised pixels are about standard normal: that scale twice, and a quarter and four times of it, where saturating
# functions show their other half. Every batch has a seed of its own.
RANDOM_SCALES = (0.25, 1.0, 1.0, 4.0)

# A batch of 1 is what edge devices run and what exporters specialise on; 2 and 5 are neither each other's multiples nor
# the traced size.
DYNAMIC_BATCH_SIZES = (1, 2, 5)

NUMBERS = "biuf"
"""Kinds of numpy's types that can be compared: truth values, whole numbers, floating point."""

IMAGE_DIMENSIONS = 4

# Height and width from those of the example: its own; odd, not square, and a bit larger, where a size that the export
# took for a constant or a multiple shows; and twice as large.
Sides = tuple[Callable[[int], int], Callable[[int], int]]
OTHER_SIZES: tuple[Sides, ...] = (
    (lambda height: height, lambda width: width),
    (lambda height: height + 3, lambda width: width + width // 2 + 1),
    (lambda height: 2 * height, lambda width: 2 * width),
)

Inputs = tuple[Tensor, ...]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One batch: what goes in, and what the torch model gave for it."""

    inputs: tuple[Array, ...]
    expected: tuple[Array, ...]


@dataclass(frozen=True, slots=True)
class Parity:
    """How far two models differ over some batches.

    Attributes:
        batches: Their number.
        max_abs_difference: The largest of any output.
        max_relative_difference: The same over the output's largest value.
        mean_abs_difference: Over all values.
        argmax_agreement: Share of the rows ``[n, classes, ...]`` whose largest score is the same; None without scores.
        shapes: Of the inputs, each once, in their order.
    """

    batches: int
    max_abs_difference: float
    max_relative_difference: float
    mean_abs_difference: float
    argmax_agreement: float | None
    shapes: tuple[tuple[tuple[int, ...], ...], ...]

    def __str__(self) -> str:
        agreement = "" if self.argmax_agreement is None else f", same largest score {self.argmax_agreement:.2%}"
        return (
            f"{self.max_abs_difference:.2e} absolute, {self.max_relative_difference:.2e} relative, "
            f"{self.mean_abs_difference:.2e} on average over {self.batches} batches{agreement}"
        )


def at_other_sizes(example_inputs: Inputs) -> list[Inputs]:
    """The example, and what stands for it where heights and widths vary: one odd and not square, one twice as large.

    Only inputs ``[N, C, H, W]`` have a height and a width.
    """
    return [
        tuple(resized(x, height, width) if x.ndim == IMAGE_DIMENSIONS else x for x in example_inputs)
        for height, width in OTHER_SIZES
    ]


def resized(image: Tensor, height: Callable[[int], int], width: Callable[[int], int]) -> Tensor:
    """The image at another height and width.

    Values are repeated or left out: their range is what counts.
    """
    rows, columns = image.shape[2:]
    taken = torch.arange(height(rows)) % rows, torch.arange(width(columns)) % columns
    return image[:, :, taken[0]][:, :, :, taken[1]]


def random_batches(example_inputs: Inputs, batch_sizes: Sequence[int] | None = None) -> list[Inputs]:
    """Batches shaped like the example: normal values in several scales, integers within the example's range.

    Args:
        example_inputs: Tensors whose shapes, types and device are followed.
        batch_sizes: Sizes of dimension 0 to go through; the example's own when None.
    """
    batches: list[Inputs] = []
    for batch_size in batch_sizes or (None,):
        for scale in RANDOM_SCALES:
            generator = torch.Generator().manual_seed(len(batches))
            batches.append(tuple(_random_like(x, batch_size, scale, generator) for x in example_inputs))
    return batches


def _random_like(example: Tensor, batch_size: int | None, scale: float, generator: torch.Generator) -> Tensor:
    shape = example.shape if batch_size is None else (batch_size, *example.shape[1:])
    if example.is_floating_point():
        values = torch.randn(shape, generator=generator) * scale
    else:
        low, high = int(example.min()), int(example.max())
        values = torch.randint(low, high + 1, shape, generator=generator)
    return values.to(example)


def reference_cases(model: nn.Module, batches: Iterable[Inputs], *, tolerance: float) -> list[Case]:
    """Run the torch model, which is in eval mode, on every batch.

    Raises:
        ExportError: The model fails, gives something other than tensors, gives a value that is not finite, or does not
            give the same output twice for the same input.
    """
    cases = [Case(tuple(map(_to_numpy, inputs)), _run_torch(model, inputs)) for inputs in batches]
    if cases:
        first = tuple(torch.from_numpy(x).to(_device(model)) for x in cases[0].inputs)
        again = _parity(cases[:1], [_run_torch(model, first)])
        if again.max_relative_difference > tolerance:
            raise ExportError(
                f"{type(model).__name__} does not give the same output twice for the same input in eval mode: {again}; "
                "is dropout or another random function called without regard to self.training?"
            )
    return cases


def verify(
    model: onnx.ModelProto | bytes,
    cases: Sequence[Case],
    *,
    tolerance: float,
    what: str,
    reference: str = "the torch model",
) -> Parity:
    """Run an ONNX model on every case in ONNX Runtime on the CPU and compare with torch's outputs.

    Args:
        model: The candidate, weights inside; bytes are a file in ONNX Runtime's own format.
        cases: From `reference_cases`.
        tolerance: Bound on the largest relative difference; infinity where a loss is measured, not bounded.
        what: What the candidate and the batches are called in messages.
        reference: What gave the expected outputs, in messages.

    Raises:
        ExportError: ONNX Runtime cannot load or run it, an output is missing, misshapen or not finite, or the
            difference exceeds the tolerance; the message holds the figures.
    """
    run = _runner(model, what)
    results = [run(case) for case in cases]
    for case, outputs in zip(cases, results, strict=True):
        expected_shapes, shapes = [x.shape for x in case.expected], [x.shape for x in outputs]
        if shapes != expected_shapes:
            raise ExportError(f"{what}: outputs of shape {shapes}, {reference} gives {expected_shapes}")
        require_finite(outputs, what)
    parity = _parity(cases, results)
    if not parity.max_relative_difference <= tolerance:
        raise ExportError(f"{what} and {reference} disagree: {parity}; allowed are {tolerance:.0e} relative")
    return parity


def outputs_of(model: onnx.ModelProto, inputs: Iterable[tuple[Array, ...]], what: str) -> Iterator[tuple[Array, ...]]:
    """What ONNX Runtime computes node by node, as the graph is written: the reference for what comes as a file.

    One after another, as they are asked for.

    Raises:
        ExportError: It cannot load or run it.
    """
    run = _runner(model, what, optimise=False)
    return (run(Case(batch, ())) for batch in inputs)


def _runner(model: onnx.ModelProto | bytes, what: str, *, optimise: bool = True) -> Callable[[Case], tuple[Array, ...]]:
    session = open_session(model, what, optimise=optimise)
    names = [node.name for node in session.get_inputs()]

    def run(case: Case) -> tuple[Array, ...]:
        if len(names) != len(case.inputs):
            raise ExportError(f"{what}: the graph has the inputs {names}, the torch model takes {len(case.inputs)}")
        try:
            return tuple(session.run(None, dict(zip(names, case.inputs, strict=True))))
        except Exception as error:
            shapes = [x.shape for x in case.inputs]
            raise ExportError(f"{what}: ONNX Runtime fails on inputs of shape {shapes}: {error}") from error

    return run


def _parity(cases: Sequence[Case], results: Sequence[tuple[Array, ...]]) -> Parity:
    pairs = [zip(case.expected, outputs, strict=True) for case, outputs in zip(cases, results, strict=True)]
    largest_abs, largest_relative, total, values, same = 0.0, 0.0, 0.0, 0, list[npt.NDArray[np.bool_]]()
    for output in zip(*pairs, strict=True):  # one output over all batches
        differences = [np.abs(got.astype(np.float64) - want.astype(np.float64)) for want, got in output]
        difference = max(_largest(each) for each in differences)
        magnitude = max(_largest(want.astype(np.float64)) for want, _ in output)
        relative = 0.0 if difference == 0 else difference / magnitude if magnitude else math.inf
        largest_abs, largest_relative = max(largest_abs, difference), max(largest_relative, relative)
        total, values = (
            total + sum(float(each.sum()) for each in differences),
            values + sum(x.size for x in differences),
        )
        same += [(want.argmax(1) == got.argmax(1)).ravel() for want, got in output if _holds_scores(want)]
    return Parity(
        batches=len(cases),
        max_abs_difference=largest_abs,
        max_relative_difference=largest_relative,
        mean_abs_difference=total / values if values else 0.0,
        argmax_agreement=float(np.concatenate(same).mean()) if same else None,
        shapes=tuple(dict.fromkeys(tuple(x.shape for x in case.inputs) for case in cases)),
    )


def _holds_scores(output: Array) -> bool:
    """Whether dimension 1 may be that of classes: [n, classes] or [n, classes, ...], real numbers."""
    return (
        output.ndim > 1 and output.shape[1] > 1 and output.size > 0 and bool(np.issubdtype(output.dtype, np.floating))
    )


def _largest(values: Array) -> float:
    return float(np.abs(values).max(initial=0.0))


def _run_torch(model: nn.Module, inputs: Inputs) -> tuple[Array, ...]:
    name = type(model).__name__
    shapes = [tuple(x.shape) for x in inputs]
    # The model is the caller's code: whatever it raises is reported as its failure.
    try:
        with torch.no_grad():
            outputs = _pytree.tree_leaves(model(*inputs))
    except Exception as error:
        raise ExportError(f"{name} itself fails on inputs of shape {shapes}: {error}") from error
    if not outputs or not all(isinstance(x, Tensor) for x in outputs):
        kinds = [type(x).__name__ for x in outputs]
        raise ExportError(f"{name} returns {kinds}; only tensors, and tuples, lists and dicts of them, can be exported")
    arrays = tuple(map(_to_numpy, outputs))
    require_finite(arrays, f"{name} on inputs of shape {shapes}")
    return arrays


def require_finite(outputs: tuple[Array, ...], what: str) -> None:
    """Refuse outputs that cannot be compared.

    Raises:
        ExportError: A value is not finite, or an output is none of numbers.
    """
    for index, output in enumerate(outputs):
        kind = output.dtype if isinstance(output, np.ndarray) else type(output).__name__
        if not isinstance(output, np.ndarray) or output.dtype.kind not in NUMBERS:
            raise ExportError(f"{what}: output {index} is {kind}; only tensors of numbers can be compared")
        bad = int(output.size - np.isfinite(output).sum())
        if bad:
            raise ExportError(f"{what}: output {index} holds {bad} values that are not finite, of {output.size}")


def _to_numpy(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
