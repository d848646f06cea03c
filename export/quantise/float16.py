"""float16: half the bytes. The converter is ONNX Runtime's; inputs and outputs stay float32.

ONNX Runtime has next to no float16 kernels for x86: it brings every layer back to float32 with casts, and is no faster.
ARM CPUs from ARMv8.2 on with half-precision arithmetic have some. What overflows there does not overflow here, where a
value between two layers stays float32 and may well be larger than 65504: each is looked at for itself.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from export.errors import ExportError
from export.naming import in_order, named
from export.proof import FLOAT16, Graph
from export.quiet import quiet
from export.verify import RANDOM_SCALES, Case, outputs_of

Array = npt.NDArray[Any]

FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
LARGEST = float(np.finfo(np.float16).max)

TOLERANCE = 5e-2
"""On the relative difference. float16 rounds to 5e-4, and tens of layers bring that to some 1e-2; a weight or value
beyond its largest number, 65504, is far above."""


def to_float16(graph: Graph) -> Graph:
    """The graph with weights and values in float16.

    Raises:
        ExportError: It cannot be converted, differs by more than the tolerance, or a value within it overflows.
    """
    from onnxruntime.transformers.float16 import convert_float_to_float16

    if not graph.lossless:
        raise ExportError(f"float16 starts from float32, this graph is {graph.precision}")
    # The converter raises what its parts raise, and warns of every weight that is too small.
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted = convert_float_to_float16(named(graph.model), keep_io_types=True)
        made = in_order(converted, graph.model.ir_version)
        made.graph.ClearField("value_info")  # of what stays float32 (Resize) it names the wrong type
        made = onnx.shape_inference.infer_shapes(made)
    except Exception as error:
        raise ExportError(f"float16: ONNX Runtime's converter cannot take this graph: {error}") from error
    half = graph.then(FLOAT16, made, tolerance=TOLERANCE, precision=FLOAT16)
    _require_no_overflow(graph.model, made, [*graph.cases.random[: len(RANDOM_SCALES)], *graph.cases.real])
    return half


def _require_no_overflow(model: onnx.ModelProto, made: onnx.ModelProto, cases: Sequence[Case]) -> None:
    """Refuse a value that is finite in float32 and infinite in float16, on any of the cases."""
    makers = {name: node.op_type for node in model.graph.node for name in node.output}
    names = sorted(_halves(made) & makers.keys())
    outputs = [value.name for value in model.graph.output]
    runs = (_between(each, names, cases, kind) for each, kind in ((model, FLOAT), (made, HALF)))
    for case, wide, narrow in zip(cases, *runs, strict=True):
        for name, value in zip(outputs, case.expected, strict=True):
            if value.dtype == np.float32:
                _refuse(name, makers.get(name, "model"), value, np.abs(value) > LARGEST)
        for name, value, rounded in zip(names, wide, narrow, strict=True):
            _refuse(name, makers[name], value, np.isfinite(value) & ~np.isfinite(rounded))


def _refuse(name: str, maker: str, value: Array, beyond: npt.NDArray[np.bool_]) -> None:
    if beyond.any():
        raise ExportError(
            f"float16: {name}, the result of a {maker}, comes to {np.abs(value[beyond]).max():.3g}, and float16 ends "
            f"at {LARGEST:.0f}: a CPU that computes in float16 gives infinity (this one computes in float32, and does "
            "not); keep float32, or let the network have smaller values"
        )


def _halves(model: onnx.ModelProto) -> set[str]:
    """The values between nodes that are float16."""
    values = onnx.shape_inference.infer_shapes(model).graph.value_info
    return {value.name for value in values if value.type.tensor_type.elem_type == HALF}


def _between(
    model: onnx.ModelProto, names: Sequence[str], cases: Sequence[Case], kind: int
) -> Iterator[tuple[Array, ...]]:
    """Values between nodes, of the given type, case by case: all at once would fill the memory."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    own = len(copy.graph.output)
    copy.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, None) for name in names)
    inputs = [case.inputs for case in cases]
    return (found[own:] for found in outputs_of(copy, inputs, "the graph with all values given out"))
