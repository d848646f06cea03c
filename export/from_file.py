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
from export.load import load
from export.opset import require_known
from export.proof import FLOAT32, READ, Cases, Graph, compared, count, optimised, precision_of, simplified
from export.protos import default_opset, groups_of, inputs_of
from export.verify import (
    DYNAMIC_BATCH_SIZES,
    IMAGE_DIMENSIONS,
    OTHER_SIZES,
    RELATIVE_TOLERANCE,
    Case,
    Inputs,
    Sides,
    outputs_of,
    random_batches,
    require_finite,
    resized,
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
    precision = precision_of(source)
    tolerance = tolerance if precision == FLOAT32 else max(tolerance, ROUNDED_TOLERANCE)
    random, notes = _random_cases(source, path)
    cases = Cases(random, _cases(source, extra_inputs, path), tolerance, reference="the file")
    start = _converted(source, opset, path)
    graph = Graph(
        model=start,
        opset=default_opset(start),
        cases=cases,
        steps=(compared(READ, start, cases, tolerance),),
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


def _random_cases(model: onnx.ModelProto, path: Path) -> tuple[list[Case], tuple[str, ...]]:
    """Random batches at the open sizes, with what the file gives; a note on the sizes that it refuses."""
    values = inputs_of(model)
    if not values:
        raise ExportError(f"{path}: takes no input; there is nothing to verify")
    first, *others = _sizes(values, tuple(_example(value, model, path) for value in values))
    cases = _cases(model, [*map(_numpy, random_batches(first))], path)
    refused = []
    for other in others:
        try:
            cases += _cases(model, [*map(_numpy, random_batches(other))], path)
        except ExportError:
            refused.append(" and ".join("x".join(map(str, x.shape)) for x in other))
    told = f"not verified on inputs of {', '.join(refused)}: the file itself does not take them"
    return cases, (told,) if refused else ()


def _sizes(values: Sequence[onnx.ValueInfoProto], example: Inputs) -> list[Inputs]:
    """The example at every size to verify at, its own first: what an input leaves open varies, the rest stays."""
    has_images = any(_has_open_side(value, x) for value, x in zip(values, example, strict=True))
    batches = DYNAMIC_BATCH_SIZES if any(_is_open(value, 0) for value in values) else (None,)
    return [
        tuple(_varied(value, x, sides, batch) for value, x in zip(values, example, strict=True))
        for sides in (OTHER_SIZES if has_images else OTHER_SIZES[:1])
        for batch in batches
    ]


def _varied(value: onnx.ValueInfoProto, x: Tensor, sides: Sides, batch: int | None) -> Tensor:
    if _has_open_side(value, x):
        x = resized(x, *(side if _is_open(value, d) else _same for side, d in zip(sides, SIDES, strict=True)))
    return x if batch is None or not _is_open(value, 0) else x[:1].expand(batch, *x.shape[1:])


def _same(size: int) -> int:
    return size


def _has_open_side(value: onnx.ValueInfoProto, x: Tensor) -> bool:
    return x.ndim == IMAGE_DIMENSIONS and any(_is_open(value, d) for d in SIDES)


def _is_open(value: onnx.ValueInfoProto, dimension: int) -> bool:
    return len(value.type.tensor_type.shape.dim) > dimension and _size(value, dimension) is None


def _example(value: onnx.ValueInfoProto, model: onnx.ModelProto, path: Path) -> Tensor:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        raise ExportError(f"{path}: the input {value.name} has no shape; give it one, for example with onnx.helper")
    is_open = [_size(value, d) is None for d in range(len(kind.shape.dim))]
    channels_last = is_open[1:] == [True, True, False]  # [N, H, W, C]
    guesses = {0: 1, 1: DEFAULT_SIDE if channels_last else _channels_read(model, value.name)}
    shape = [_size(value, d) or guesses.get(d, DEFAULT_SIDE) for d in range(len(kind.shape.dim))]
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


def _channels_read(model: onnx.ModelProto, name: str) -> int:
    """How many channels a convolution takes that reads an input; 1 where none does."""
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[0] == name and node.input[1] in weights:
            return int(weights[node.input[1]].dims[1]) * groups_of(node)
    return 1


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
