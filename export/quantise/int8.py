"""Static int8: QuantizeLinear and DequantizeLinear around every layer, by ONNX Runtime's quantiser.

Activations are uint8 with a zero point, weights int8, symmetric, one scale for each output channel, biases int32.
Weights use 7 of their 8 bits unless told otherwise: x86 CPUs without VNNI add two products of an activation and a
weight in 16 bits, which saturates without an error where weights have 8 bits. A file of 7 bits computes the same on
every CPU: what ONNX Runtime computes here is compared with what the graph says, node by node.

Layers that hurt are found by quantising each layer alone and measuring how far the outputs move, relative to their
size. While the whole network loses more accuracy than is allowed, the layer that hurts most is left in float. Both are
done on images that the test split has nothing to do with.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorsData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from export.errors import ExportError
from export.naming import in_order, named
from export.proof import INT8, Graph
from export.protos import default_opset, groups_of
from export.quantise.calibration import measured_ranges, require_array, require_calibration_set
from export.quiet import quiet
from export.verify import Case, Parity, outputs_of, verify

Array = npt.NDArray[Any]

FIRST_OPSET = 13
"""The first whose DequantizeLinear takes a scale for each channel."""

LAYERS = frozenset(("Add", "Concat", "Conv", "ConvTranspose", "Gemm", "GlobalAveragePool", "MatMul", "Mul", "Sigmoid"))
"""Ops that are computed in integers; the sensitivity pass tries each of their nodes."""

WEIGHTED = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul"))

FOLLOWERS = frozenset(
    (
        *("AveragePool", "Clip", "Flatten", "MaxPool", "Pad", "Relu", "Reshape", "Resize", "Slice", "Split"),
        *("Squeeze", "Transpose", "Unsqueeze"),
    )
)
"""Ops that hand integers on where they get them, and stay as they are where they don't."""

COMPARED_IMAGES = 32
"""Images on which the graph as it is written is compared with what ONNX Runtime makes of it."""

FUSED_TOLERANCE = 0.05
"""Relative difference of these two from which it is told. Integers that are rounded at another place differ by some
steps of 1/255; saturation was measured to move outputs by 10% (LeNet-5 with 8 bits on AVX2)."""

SENSITIVITY_IMAGES = 128
"""Images on which each layer is tried alone: enough to rank layers, few enough for a deep network."""

ROUNDING = 1e-9
"""Of the difference of two accuracies: 1 - 0.99 is more than 0.01 in floating point."""

WEIGHT_BITS = (7, 8)


@dataclass(frozen=True, slots=True)
class Calibration:
    """How ranges are found.

    Attributes:
        images: Of the training split, as the network takes them: [n, C, H, W].
        method: A key of `export.quantise.calibration.METHODS`.
    """

    images: Array
    method: str = "min-max"


@dataclass(frozen=True, slots=True)
class Judge:
    """What decides whether a quantised network is good enough; none of it may come from the test split.

    Attributes:
        accuracy: Share of the images of the validation split that a graph classifies rightly.
        images: Of the validation split, on which layers are ranked: [n, C, H, W].
        max_drop: How much of the accuracy may be lost, as a share: 0.01 is one percentage point.
    """

    accuracy: Callable[[onnx.ModelProto], float]
    images: Array
    max_drop: float = 0.01


@dataclass(frozen=True, slots=True)
class Int8:
    """A quantised graph, and how it came about.

    Attributes:
        graph: With one more step, ``int8``.
        layers: Quantised ones, by name.
        float_layers: Left in float since they hurt, the worst first.
        sensitivity: Of each layer, how far the outputs move when it alone is quantised, relative to their size (root of
            the mean square); empty where no layer had to be left out.
        accuracy_before: Of the graph in float, on the validation split.
        accuracy_after: Of the quantised one.
        fused: How far what ONNX Runtime computes on this machine is from what the quantised graph says.
    """

    graph: Graph
    layers: tuple[str, ...]
    float_layers: tuple[str, ...]
    sensitivity: dict[str, float]
    accuracy_before: float
    accuracy_after: float
    fused: Parity


def to_int8(graph: Graph, calibration: Calibration, judge: Judge, *, weight_bits: int = 7) -> Int8:
    """Quantise a graph, and leave what hurts in float until it loses no more accuracy than is allowed.

    Args:
        graph: Verified, in float32.
        calibration: Where ranges come from.
        judge: What may be lost.
        weight_bits: 7, or 8 for targets that are known not to saturate: x86 with VNNI, and ARM.

    Raises:
        ExportError: The calibration images do not fit, the opset is too old, nothing can be quantised, or too much is
            lost with every layer but one in float.
    """
    _require_sane(graph, judge, weight_bits)
    require_calibration_set(graph.model, calibration.images)
    model = named(graph.model)
    layers = tuple(node.name for node in _candidates(model))
    if not layers:
        raise ExportError(f"int8: the graph has none of the ops that are quantised: {', '.join(sorted(LAYERS))}")
    ranges = measured_ranges(model, calibration.images, calibration.method, sorted(LAYERS | FOLLOWERS))

    def quantised(chosen: Sequence[str]) -> onnx.ModelProto:
        return _quantised(model, ranges, chosen, weight_bits)

    before = judge.accuracy(graph.model)
    candidate, sensitivity, ranked = quantised(layers), dict[str, float](), list[str]()
    after, left = judge.accuracy(candidate), 0
    while before - after > judge.max_drop + ROUNDING:
        if not ranked:
            sensitivity = _sensitivity(graph.model, layers, quantised, judge.images[:SENSITIVITY_IMAGES])
            ranked = sorted(layers, key=lambda name: -sensitivity[name])
        left += 1
        if left == len(layers):
            raise ExportError(
                f"int8: the validation accuracy falls from {before:.2%} to {after:.2%} with {left - 1} of "
                f"{len(layers)} layers in float, more than the {judge.max_drop:.2%} allowed; calibrate on more images "
                "or by another method, or allow more"
            )
        candidate = quantised([name for name in layers if name not in ranked[:left]])
        after = judge.accuracy(candidate)
    done = graph.then(INT8, candidate, tolerance=math.inf, precision=INT8)
    fused, notes = _fused(candidate, judge.images[:COMPARED_IMAGES], weight_bits)
    out = tuple(ranked[:left])
    kept = tuple(name for name in layers if name not in out)
    return Int8(done.noting(*notes), kept, out, sensitivity, before, after, fused)


def _fused(model: onnx.ModelProto, images: Array, weight_bits: int) -> tuple[Parity, list[str]]:
    """What ONNX Runtime computes here, held against the graph as it is written."""
    feeds = [(images[i : i + 1],) for i in range(len(images))]
    what = "the int8 graph, run as it is written"
    cases = [Case(feed, out) for feed, out in zip(feeds, outputs_of(model, feeds, what), strict=True)]
    parity = verify(
        model,
        cases,
        tolerance=math.inf,
        what="what ONNX Runtime computes of the int8 graph on this CPU",
        reference="the graph, run as it is written,",
    )
    if parity.max_relative_difference <= FUSED_TOLERANCE:
        return parity, []
    off = f"what this CPU computes is {parity.max_relative_difference:.1%} off what the int8 graph says"
    if weight_bits > min(WEIGHT_BITS):
        why = "its integer products saturate with 8-bit weights; use 7 bits unless the target does not saturate"
    else:
        why = "it rounds at other places, and other CPUs may do so elsewhere"
    return parity, [f"{off}: {why}. The accuracy is that of this CPU"]


def _require_sane(graph: Graph, judge: Judge, weight_bits: int) -> None:
    if weight_bits not in WEIGHT_BITS:
        raise ExportError(f"weight_bits is {weight_bits}, expected 7 or 8")
    if not 0 <= judge.max_drop <= 1:
        raise ExportError(f"max_drop is {judge.max_drop}, a share of the accuracy between 0 and 1")
    require_array(judge.images, "the images of the judge")
    if not graph.lossless:
        raise ExportError(f"int8 starts from float32, this graph is {graph.precision}")
    if default_opset(graph.model) < FIRST_OPSET:
        raise ExportError(
            f"int8 with a scale for each channel needs opset {FIRST_OPSET} or later, this graph has "
            f"{default_opset(graph.model)}; convert it with --opset 18"
        )


def _candidates(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes to quantise, from the first layer with weights on: what prepares the input stays in float.

    Shapes are added and multiplied too, in integers of their own: those are none of ours.
    """
    values = (*model.graph.value_info, *model.graph.output)
    floats = {value.name for value in values if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    weights = {tensor.name for tensor in model.graph.initializer}
    behind: set[str] = set()
    found = []
    for node in model.graph.node:
        if node.op_type in WEIGHTED or behind & set(node.input):
            behind |= set(node.output)
            # A product of two values, as in attention, is left alone.
            product = node.op_type == "MatMul" and node.input[1] not in weights
            # ONNX Runtime's quantiser gives a bias as many scales as a group has channels, and fails.
            biased_groups = node.op_type == "ConvTranspose" and len(node.input) > 2 and groups_of(node) > 1
            if node.op_type in LAYERS and node.output[0] in floats and not product and not biased_groups:
                found.append(node)
    return found


def _quantised(model: onnx.ModelProto, ranges: TensorsData, chosen: Sequence[str], weight_bits: int) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    followers = [node.name for node in copy.graph.node if node.op_type in FOLLOWERS]
    # The quantiser raises what its parts raise.
    try:
        with quiet():
            quantiser = QDQQuantizer(
                copy,
                per_channel=True,
                reduce_range=weight_bits == min(WEIGHT_BITS),
                weight_qType=QuantType.QInt8,
                activation_qType=QuantType.QUInt8,
                tensors_range=ranges,
                nodes_to_quantize=[*chosen, *followers],
                nodes_to_exclude=[],
                op_types_to_quantize=sorted(LAYERS | FOLLOWERS),
                extra_options={
                    "WeightSymmetric": True,
                    "MatMulConstBOnly": True,
                    "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
                },
            )
            quantiser.quantize_model()
        return in_order(quantiser.model.model, model.ir_version)
    except Exception as error:
        raise ExportError(f"int8: ONNX Runtime cannot quantise this graph: {error}") from error


def _sensitivity(
    model: onnx.ModelProto, layers: Sequence[str], quantised: Callable[[Sequence[str]], onnx.ModelProto], images: Array
) -> dict[str, float]:
    """How far the outputs move with each layer alone in int8, relative to their size."""
    feeds = [(images[i : i + 1],) for i in range(len(images))]
    expected = _flat(outputs_of(model, feeds, "the graph in float32"))
    size = float(np.sqrt(np.mean(expected**2))) or 1.0
    moved = {}
    for layer in layers:
        got = _flat(outputs_of(quantised([layer]), feeds, f"the graph with {layer} in int8"))
        moved[layer] = float(np.sqrt(np.mean((got - expected) ** 2))) / size
    return moved


def _flat(results: Iterable[tuple[Array, ...]]) -> Array:
    return np.concatenate([np.asarray(output, np.float64).ravel() for outputs in results for output in outputs])
