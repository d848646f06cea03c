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
from export.proof import FLOAT32, Cases, Graph, compared, count, simplified
from export.verify import (
    DYNAMIC_BATCH_SIZES,
    RELATIVE_TOLERANCE,
    Case,
    Inputs,
    outputs_of,
    random_batches,
    require_finite,
)

OPTIMISED = "optimised"

FIRST_SIDE = 2
"""Dimension of the height in [N, C, H, W]."""

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
    inputs = [*map(_numpy, _random_inputs(source, path))]
    cases = Cases(_cases(source, inputs, path), _cases(source, extra_inputs, path), tolerance, reference="the file")
    start = _converted(source, opset, path)
    graph = Graph(
        model=start,
        opset=default_opset(start),
        cases=cases,
        steps=(compared("read", start, cases, tolerance),),
        precision=FLOAT32,
        nodes_before=len(source.graph.node),
        batch_norms_before=count(source, "BatchNormalization"),
    )
    return simplified(_optimised(graph), wanted=simplify)


def _optimised(graph: Graph) -> Graph:
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    model_metadata.strip_traces(model)
    try:
        done = passes.run_all(model)
        return graph.then(OPTIMISED, model) if done else graph
    except ExportError as error:
        return graph.noting(f"passes left out: {error}")


def _converted(model: onnx.ModelProto, opset: int | None, path: Path) -> onnx.ModelProto:
    if opset is None or opset == default_opset(model):
        return model
    require_known(opset)
    try:
        converted = onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # the converter is C++: RuntimeError, ConvertError and others
        raise ExportError(
            f"{path}: cannot be converted from opset {default_opset(model)} to {opset}: {error}"
        ) from error
    return converted


def _random_inputs(model: onnx.ModelProto, path: Path) -> list[Inputs]:
    weights = {tensor.name for tensor in model.graph.initializer}
    values = [value for value in model.graph.input if value.name not in weights]
    example = tuple(_example(value, path) for value in values)
    if not example:
        raise ExportError(f"{path}: takes no input; there is nothing to verify")
    open_batch = all(value.type.tensor_type.shape.dim and _size(value, 0) is None for value in values)
    return random_batches(example, DYNAMIC_BATCH_SIZES if open_batch else None)


def _example(value: onnx.ValueInfoProto, path: Path) -> Tensor:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise ExportError(f"{path}: the input {value.name} has no shape; give it one, for example with onnx.helper")
    shape = [_size(value, d) or (1 if d < FIRST_SIDE else DEFAULT_SIDE) for d in range(len(kind.shape.dim))]
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if np.issubdtype(dtype, np.floating):
        return torch.zeros(shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype)
    if dtype == np.uint8:
        return torch.arange(0, torch.Size(shape).numel()).remainder(256).reshape(shape).to(torch.uint8)
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
