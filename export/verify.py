"""Does the ONNX file compute what the torch model computes?

The torch model is run once on every batch (`reference_cases`), each candidate file is run on the same batches in
ONNX Runtime (`verify`). For output o over the batches b of one group (random, or real):

    absolute_o = max_b |onnx_o(b) - torch_o(b)|        relative_o = absolute_o / max_b |torch_o(b)|

and the largest of each over the outputs is reported. The largest output over *all* batches of the group is the
yardstick, because a network with a single output may come close to zero on one batch by chance.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree

from export.errors import ExportError

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

Inputs = tuple[Tensor, ...]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One batch: what goes in, and what the torch model gave for it."""

    inputs: tuple[Array, ...]
    expected: tuple[Array, ...]


@dataclass(frozen=True, slots=True)
class Parity:
    """The largest differences between two models over some batches."""

    batches: int
    max_abs_difference: float
    max_relative_difference: float

    def __str__(self) -> str:
        return (
            f"{self.max_abs_difference:.2e} absolute, {self.max_relative_difference:.2e} relative "
            f"over {self.batches} batches"
        )


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


def verify(model: onnx.ModelProto, cases: Sequence[Case], *, tolerance: float, what: str) -> Parity:
    """Run an ONNX model on every case in ONNX Runtime on the CPU and compare with torch's outputs.

    Args:
        model: The candidate, weights inside.
        cases: From `reference_cases`.
        tolerance: Bound on the largest relative difference.
        what: What the candidate and the batches are called in messages.

    Raises:
        ExportError: ONNX Runtime cannot load or run it, an output is missing, misshapen or not finite, or the
            difference exceeds the tolerance; the message holds the figures.
    """
    run = _runner(model, what)
    results = [run(case) for case in cases]
    for case, outputs in zip(cases, results, strict=True):
        expected_shapes, shapes = [x.shape for x in case.expected], [x.shape for x in outputs]
        if shapes != expected_shapes:
            raise ExportError(f"{what}: outputs of shape {shapes}, the torch model gives {expected_shapes}")
        _require_finite(outputs, what)
    parity = _parity(cases, results)
    if not parity.max_relative_difference <= tolerance:
        raise ExportError(f"{what} and the torch model disagree: {parity}; allowed are {tolerance:.0e} relative")
    return parity


def _runner(model: onnx.ModelProto, what: str) -> Callable[[Case], tuple[Array, ...]]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: they come as exceptions, warnings would reach the user's terminal
    options.intra_op_num_threads = torch.get_num_threads()  # as many as the caller granted torch
    # ONNX Runtime's exceptions have no common base class but Exception.
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ExportError(f"{what}: ONNX Runtime {onnxruntime.__version__} cannot load it: {error}") from error
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
    largest_abs, largest_relative = 0.0, 0.0
    for output in zip(*pairs, strict=True):  # one output over all batches
        difference = max(_largest(got.astype(np.float64) - want.astype(np.float64)) for want, got in output)
        magnitude = max(_largest(want.astype(np.float64)) for want, _ in output)
        relative = 0.0 if difference == 0 else difference / magnitude if magnitude else math.inf
        largest_abs, largest_relative = max(largest_abs, difference), max(largest_relative, relative)
    return Parity(len(cases), largest_abs, largest_relative)


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
    _require_finite(arrays, f"{name} on inputs of shape {shapes}")
    return arrays


def _require_finite(outputs: tuple[Array, ...], what: str) -> None:
    for index, output in enumerate(outputs):
        bad = int(output.size - np.isfinite(output).sum())
        if bad:
            raise ExportError(f"{what}: output {index} holds {bad} values that are not finite, of {output.size}")


def _to_numpy(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()


def _device(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
