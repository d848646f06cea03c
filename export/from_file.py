"""From an ONNX file of any origin to a smaller one that is proved to compute the same.

The reference is the file itself, run node by node with ONNX Runtime's optimisations switched off: what it says, not
what a runtime makes of it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor

from export import metadata as model_metadata
from export import passes
from export.errors import ExportError
from export.load import default_opset, load
from export.opset import require_known
from export.proof import FLOAT16, FLOAT32, INT8, INT8_WEIGHTS, Cases, Graph, compared, count, optimised, simplified
from export.verify import (
    DYNAMIC_BATCH_SIZES,
    RELATIVE_TOLERANCE,
    Case,
    Inputs,
    at_other_sizes,
    outputs_of,
    random_batches,
    require_finite,
)

SIDES = (2, 3)
"""Dimensions of height and width in [N, C, H, W]."""

ROUNDED_TOLERANCE = 5e-2
"""For files whose numbers are integers or float16 already: ONNX Runtime rounds them at other places than they say."""

LOWEST_IR_VERSION = 8
"""Of the default opset: what every runtime of the table reads."""

DEFAULT_SIDE = 64
"""Height and width to verify with where the file leaves them open, in pixels."""


def read_graph(
    path: Path,
    *,
    opset: int | None = None,
    simplify: bool = True,
    extra_inputs: Sequence[tuple[npt.NDArray[Any], ...]] = (),
    tolerance: float = RELATIVE_TOLERANCE,
) -> Graph:
    """Read a file, run the passes and onnxsim over it, and hold every step against the file itself.

    Args:
        path: The file; weights may lie in files beside it.
        opset: To convert to; the file's own by default.
        simplify: Run onnxsim.
        extra_inputs: Real inputs to verify on.
        tolerance: Bound on the largest difference relative to the largest output.

    Returns:
        The graph in memory; one that a pass or onnxsim would have changed in its function is without that step, and a
        note says so.

    Raises:
        ExportError: See `export.load`; the file cannot be run, or its own outputs are not finite.
    """
    source = load(path)
    precision = _precision(source)
    tolerance = tolerance if precision == FLOAT32 else max(tolerance, ROUNDED_TOLERANCE)
    random, notes = _random_cases(source, path)
    cases = Cases(random, _cases(source, extra_inputs, path), tolerance, reference="the file")
    start = _converted(source, opset, path)
    graph = Graph(
        model=start,
        opset=default_opset(start),
        cases=cases,
        steps=(compared("read", start, cases, tolerance),),
        precision=precision,
        nodes_before=len(source.graph.node),
        batch_norms_before=count(source, "BatchNormalization"),
        notes=notes,
    )
    return simplified(optimised(graph), wanted=simplify)


def _converted(model: onnx.ModelProto, opset: int | None, path: Path) -> onnx.ModelProto:
    if opset is None or opset == default_opset(model):
        converted = onnx.ModelProto()
        converted.CopyFrom(model)
        return _readable(converted)
    require_known(opset)
    try:
        converted = onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # the converter is C++: RuntimeError, ConvertError and others
        raise ExportError(
            f"{path}: cannot be converted from opset {default_opset(model)} to {opset}: {error}"
        ) from error
    return _readable(converted)


def _readable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, in place, repaired, and with the lowest IR version that its opset needs, 8 at least.

    Notes at nodes go: they are not allowed below IR version 10.
    """
    model_metadata.strip_traces(model)
    passes.run(passes.REPAIRS, model)
    lowest = onnx.helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = min(model.ir_version, max(LOWEST_IR_VERSION, lowest))
    return model


def _precision(model: onnx.ModelProto) -> str:
    """What the weights of a file are already, in the words of `export.proof.Graph`."""
    ops = {node.op_type for node in model.graph.node}
    if "QuantizeLinear" in ops or any(op.startswith("QLinear") for op in ops):
        return INT8
    if "DequantizeLinear" in ops:
        return INT8_WEIGHTS
    kinds = {tensor.data_type for tensor in model.graph.initializer}
    return FLOAT16 if onnx.TensorProto.FLOAT16 in kinds else FLOAT32


def _random_cases(model: onnx.ModelProto, path: Path) -> tuple[list[Case], tuple[str, ...]]:
    """Random batches at the open sizes, with what the file gives; a note for each size that it refuses."""
    weights = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in weights]
    example = tuple(_example(value, path) for value in values)
    if not example:
        raise ExportError(f"{path}: takes no input; there is nothing to verify")
    open_batch = all(value.type.tensor_type.shape.dim and _size(value, 0) is None for value in values)
    open_size = all(value.type.tensor_type.shape.dim[d:] and _size(value, d) is None for value in values for d in SIDES)
    first, *others = at_other_sizes(example) if open_size else [example]
    sizes = DYNAMIC_BATCH_SIZES if open_batch else None
    cases = _cases(model, [*map(_numpy, random_batches(first, sizes))], path)
    notes = []
    for other in others:
        try:
            cases += _cases(model, [*map(_numpy, random_batches(other, sizes))], path)
        except ExportError:
            shapes = ", ".join("x".join(map(str, x.shape[2:])) for x in other)
            notes.append(f"not verified on images of {shapes}: the file itself does not take them")
    return cases, tuple(notes)


def _example(value: onnx.ValueInfoProto, path: Path) -> Tensor:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise ExportError(f"{path}: the input {value.name} has no shape; give it one, for example with onnx.helper")
    shape = [_size(value, d) or (1 if d < min(SIDES) else DEFAULT_SIDE) for d in range(len(kind.shape.dim))]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if np.issubdtype(dtype, np.floating):
        return torch.zeros(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype)
    if dtype == np.uint8:
        pixels = torch.zeros(shape, dtype=torch.uint8)
        pixels.view(-1)[-1] = 255  # random images take the same range
        return pixels
    raise ExportError(
        f"{path}: the input {value.name} is {dtype}; only images, float32 or uint8, can be made up to verify on"
    )


def _size(value: onnx.ValueInfoProto, dimension: int) -> int | None:
    found = value.type.tensor_type.shape.dim[dimension]
    return int(found.dim_value) if found.HasField("dim_value") and found.dim_value > 0 else None


def _cases(model: onnx.ModelProto, inputs: Sequence[tuple[npt.NDArray[Any], ...]], path: Path) -> list[Case]:
    if not inputs:
        return []
    what = f"{path}, run as it is written"
    cases = [Case(batch, out) for batch, out in zip(inputs, outputs_of(model, inputs, what), strict=True)]
    for case in cases:
        require_finite(case.expected, what)
    return cases


def _numpy(inputs: Inputs) -> tuple[npt.NDArray[Any], ...]:
    return tuple(x.numpy() for x in inputs)
