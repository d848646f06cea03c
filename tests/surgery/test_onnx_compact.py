"""Dead channels leave ONNX files: what leaves, what must stay, and that the outputs are the same."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

from compress.errors import ModelError
from compress.surgery.onnx_compact import OnnxResult, compact_onnx
from onnx_runs import ints

Node = tuple[str, list[str], list[str], dict[str, Any]]


def floats(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) + 0.01


def without(array: np.ndarray, *rows: int) -> np.ndarray:
    """A copy whose rows are zero."""
    array = array.copy()
    array[list(rows)] = 0
    return array


class Build:
    """Writes ONNX files node by node."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(
        self,
        nodes: Sequence[Node],
        stored: dict[str, np.ndarray],
        inputs: dict[str, list[Any]] | None = None,
        outputs: Sequence[str] = ("y",),
        opset: int = 18,
        extra: Callable[[onnx.ModelProto], None] | None = None,
    ) -> Path:
        given = inputs or {"x": ["n", 3, 8, 8]}
        graph = helper.make_graph(
            [helper.make_node(op, i, o, name=f"{op}_{k}", **a) for k, (op, i, o, a) in enumerate(nodes)],
            "graph",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in given.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(value, name) for name, value in stored.items()],
        )
        model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])
        if extra is not None:
            extra(model)
        path = self.folder / "model.onnx"
        inferred = onnx.shape_inference.infer_shapes(model)  # the checker wants to know the shapes of outputs
        for output, other in zip(model.graph.output, inferred.graph.output, strict=True):
            known = other.type.tensor_type.HasField("shape")
            output.CopyFrom(
                other if known else helper.make_tensor_value_info(output.name, TensorProto.FLOAT, [None] * 4)
            )
        onnx.save(model, path)
        return path


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def weights(result: OnnxResult) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in result.model.graph.initializer}


def agree(path: Path, result: OnnxResult, *shapes: tuple[int, ...], dtype: type = np.float32) -> None:
    """Both files return the same in ONNX Runtime, on inputs of their own."""
    sessions = [onnxruntime.InferenceSession(source) for source in (str(path), result.model.SerializeToString())]
    for shape in shapes or ((1, 3, 8, 8), (3, 3, 8, 8)):
        x = floats(99, *shape) if dtype is np.float32 else np.random.default_rng(99).integers(0, 256, shape, dtype)
        wanted, got = (s.run(None, {"x": x}) for s in sessions)
        for a, b in zip(wanted, got, strict=True):
            assert a.shape == b.shape
            np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * np.abs(a).max())


PADDED = {"pads": [1, 1, 1, 1]}


def two_convs(build: Build, second: dict[str, Any], **stored: np.ndarray) -> Path:
    """Conv (channels 1 and 2 dead, with constants 0.5 and 0.25), Relu, Conv."""
    bias = floats(1, 4)
    bias[1:3] = 0.5, 0.25
    kept = {"w1": without(floats(0, 4, 3, 3, 3), 1, 2), "b1": bias, "w2": floats(2, 5, 4, 3, 3), **stored}
    inputs = ["r", "w2", *(["b2"] if "b2" in kept else [])]
    nodes: list[Node] = [
        ("Conv", ["x", "w1", "b1"], ["c"], PADDED),
        ("Relu", ["c"], ["r"], {}),
        ("Conv", inputs, ["y"], second),
    ]
    return build(nodes, kept)


def test_constants_read_without_padding_go_into_the_bias(build: Build) -> None:
    path = two_convs(build, {}, b2=floats(3, 5))
    result = compact_onnx(path)
    small, w2 = weights(result), floats(2, 5, 4, 3, 3)
    assert small["w1"].shape == (2, 3, 3, 3)
    assert small["w2"].shape == (5, 2, 3, 3)
    expected = floats(3, 5) + 0.5 * w2[:, 1].sum((1, 2)) + 0.25 * w2[:, 2].sum((1, 2))
    np.testing.assert_allclose(small["b2"], expected, rtol=1e-6)
    assert result.removed == 2
    agree(path, result)


def test_a_convolution_without_a_bias_is_given_one(build: Build) -> None:
    path = two_convs(build, {})
    result = compact_onnx(path)
    assert len(result.model.graph.node[-1].input) == 3
    agree(path, result)


def test_a_padded_reader_keeps_one_channel_that_carries_the_others(build: Build) -> None:
    path = two_convs(build, PADDED)
    result = compact_onnx(path)
    small, w2 = weights(result), floats(2, 5, 4, 3, 3)
    np.testing.assert_allclose(small["w2"], np.stack((w2[:, 0], w2[:, 1] + 0.5 * w2[:, 2], w2[:, 3]), 1), rtol=1e-6)
    assert result.report.layers["Conv_0"].kept == {"constant 0.5, carried for the padded Conv_2": 1}
    agree(path, result)


def test_pixels_as_bytes_are_cast_in_the_file(build: Build) -> None:
    """As ``compress export --with-preprocess`` writes it."""

    def take_bytes(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8

    nodes: list[Node] = [
        ("Cast", ["x"], ["f"], {"to": TensorProto.FLOAT}),
        ("Mul", ["f", "scale"], ["s"], {}),
        ("Conv", ["s", "w1"], ["c"], PADDED),
        ("Relu", ["c"], ["r"], {}),
        ("Conv", ["r", "w2"], ["y"], PADDED),
    ]
    stored = {"w1": without(floats(0, 4, 3, 3, 3), 1, 2), "w2": floats(2, 5, 4, 3, 3), "scale": np.float32([1 / 255])}
    path = build(nodes, stored, extra=take_bytes)
    result = compact_onnx(path)
    assert result.removed == 2
    assert result.report.max_exact_error is not None
    agree(path, result, dtype=np.uint8)


def test_bytes_that_a_layer_reads_at_once(build: Build) -> None:
    """In double precision the cast gives doubles, as the weights are."""

    def take_bytes(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8

    nodes: list[Node] = [
        ("Cast", ["x"], ["f"], {"to": TensorProto.FLOAT}),
        ("Conv", ["f", "w1"], ["c"], PADDED),
        ("Conv", ["c", "w2"], ["y"], PADDED),
    ]
    stored = {"w1": without(floats(0, 4, 3, 3, 3), 1, 2), "w2": floats(2, 5, 4, 3, 3)}
    result = compact_onnx(build(nodes, stored, extra=take_bytes))
    assert result.removed == 2
    assert result.report.max_exact_error is not None


def halves(path: Path, *, outside: bool) -> Path:
    """The file in float16 as ONNX Runtime's converter leaves it, out of order; ``outside``: inputs and outputs too."""
    made = convert_float_to_float16(onnx.load(path), keep_io_types=not outside)
    onnx.save(made, path)
    return path


@pytest.mark.parametrize("outside", [False, True])
def test_float16_files(build: Build, *, outside: bool) -> None:
    """Also what is folded, and where they cast to float32 and back; compared in double precision too."""
    middle: list[Node] = [("Resize", ["r", "", "n"], ["m"], {"mode": "linear"})]
    bias = np.abs(floats(1, 8))
    path = halves(
        build(
            [
                ("Conv", ["x", "w1", "b1"], ["c"], PADDED),
                ("Relu", ["c"], ["r"], {}),
                *middle,
                ("Conv", ["m", "w2"], ["y"], {}),
            ],
            {
                "w1": without(floats(0, 8, 3, 3, 3), 1, 2, 4),
                "b1": without(bias, 1, 2, 4),
                "w2": floats(2, 3, 8, 3, 3),
                "n": np.array([1, 1, 2, 2], dtype=np.float32),
            },
        ),
        outside=outside,
    )
    result = compact_onnx(path)
    small = weights(result)
    assert small["w1"].dtype == np.float16
    assert (small["w1"].shape[0], small["w2"].shape[1]) == (5, 5)
    assert result.report.max_exact_error is not None
    assert result.report.max_exact_error < 1e-10
    sessions = [onnxruntime.InferenceSession(s) for s in (str(path), result.model.SerializeToString())]
    x = floats(9, 2, 3, 8, 8).astype(np.float16 if outside else np.float32)
    wanted, got = (session.run(None, {"x": x})[0].astype(np.float32) for session in sessions)
    np.testing.assert_allclose(got, wanted, rtol=0, atol=2e-3 * np.abs(wanted).max())


def test_names_open_sizes_and_metadata_stay(build: Build) -> None:
    def named(model: onnx.ModelProto) -> None:
        helper.set_model_props(model, {"author": "somebody"})
        model.producer_name = "a framework"
        value = helper.make_tensor_value_info("r", TensorProto.FLOAT, ["n", 4, 8, 8])
        model.graph.value_info.append(value)

    path = two_convs(build, {})
    model = onnx.load(path)
    named(model)
    onnx.save(model, path)
    result = compact_onnx(path)
    graph = result.model.graph
    assert [node.name for node in graph.node] == ["Conv_0", "Relu_1", "Conv_2"]
    assert graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    dims = graph.value_info[0].type.tensor_type.shape.dim
    assert (dims[0].dim_param, dims[1].dim_value) == ("n", 2)
    metadata = {entry.key: entry.value for entry in result.model.metadata_props}
    assert metadata["author"] == "somebody"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert json.loads(metadata["compress.original_sha256"]) == {"model.onnx": digest}
    assert float(metadata["compress.max_relative_error"]) < 1e-5
    assert result.model.producer_name == "a framework"


def test_nothing_dead_leaves_the_file_as_it_is(build: Build) -> None:
    path = build([("Conv", ["x", "w"], ["c"], {}), ("Relu", ["c"], ["y"], {})], {"w": floats(0, 4, 3, 3, 3)})
    result = compact_onnx(path)
    assert result.removed == 0
    assert result.model.graph == onnx.load(path).graph


def chain(build: Build, middle: Sequence[Node], reads: int, opset: int = 18, **stored: np.ndarray) -> Path:
    """Conv of 8 channels of which 1, 2, 4 are dead; ``middle`` from ``r`` to ``m``; a convolution of ``reads``."""
    nodes: list[Node] = [("Conv", ["x", "w1"], ["c"], PADDED), ("Relu", ["c"], ["r"], {}), *middle]
    nodes += [("Conv", ["m", "w2"], ["y"], PADDED)]
    first = without(floats(0, 8, 3, 3, 3), 1, 2, 4)
    return build(nodes, {"w1": first, "w2": floats(2, 3, reads, 3, 3), **stored}, opset=opset)


MIDDLES: dict[str, tuple[list[Node], int, dict[str, np.ndarray]]] = {
    "shuffle": (
        [
            ("Reshape", ["r", "s1"], ["a"], {}),
            ("Transpose", ["a"], ["t"], {"perm": [0, 2, 1, 3, 4]}),
            ("Reshape", ["t", "s2"], ["m"], {}),
        ],
        8,
        {"s1": ints(0, 2, 4, 8, 8), "s2": ints(0, 8, 8, 8)},
    ),
    "split, swapped": (
        [("Split", ["r", "n"], ["a", "b"], {"axis": 1}), ("Concat", ["b", "a"], ["m"], {"axis": 1})],
        8,
        {"n": ints(3, 5)},
    ),
    "split evenly": (
        [("Split", ["r"], ["a", "b"], {"axis": 1, "num_outputs": 2}), ("Concat", ["b", "a"], ["m"], {"axis": 1})],
        8,
        {},
    ),
    "a part": (
        [("Slice", ["r", "from", "to", "axis"], ["m"], {})],
        5,
        {"from": ints(2), "to": ints(7), "axis": ints(1)},
    ),
    "picked": ([("Gather", ["r", "n"], ["m"], {"axis": 1})], 6, {"n": ints(7, 1, 0, 3, 3, -2)}),
    "places picked": (
        [
            ("Transpose", ["r"], ["t"], {"perm": [2, 3, 0, 1]}),
            ("GatherND", ["t", "n"], ["p"], {}),
            ("Transpose", ["p"], ["m"], {"perm": [2, 3, 0, 1]}),
        ],
        8,
        {"n": ints(0, 1, 2, -1, 5, 5, 7, 0).reshape(2, 2, 2)},
    ),
    "padded with channels": ([("Pad", ["r", "n"], ["m"], {})], 11, {"n": ints(0, 1, 0, 0, 0, 2, 0, 0)}),
    "twice": ([("Tile", ["r", "n"], ["m"], {})], 16, {"n": ints(1, 2, 1, 1)}),
    "computed sizes": (
        [
            ("Shape", ["r"], ["s"], {}),
            ("Gather", ["s", "one"], ["c1"], {"axis": 0}),
            ("Div", ["c1", "two"], ["half"], {}),
            ("Slice", ["r", "zero", "half", "one"], ["a"], {}),
            ("Slice", ["r", "half", "c1", "one"], ["b"], {}),
            ("Concat", ["b", "a"], ["m"], {"axis": 1}),
        ],
        8,
        {"zero": ints(0), "one": ints(1), "two": ints(2)},
    ),
    "scaled by the number of channels": (
        [
            ("Shape", ["r"], ["s"], {"start": 1, "end": 2}),
            ("Cast", ["s"], ["f"], {"to": TensorProto.FLOAT}),
            ("Sqrt", ["f"], ["q"], {}),
            ("Div", ["r", "q"], ["m"], {}),
        ],
        8,
        {},
    ),
    "gate": (
        [
            ("GlobalAveragePool", ["r"], ["p"], {}),
            ("Conv", ["p", "g"], ["q"], {}),
            ("Sigmoid", ["q"], ["a"], {}),
            ("Mul", ["r", "a"], ["m"], {}),
        ],
        8,
        {"g": floats(7, 8, 8, 1, 1)},
    ),
    "depthwise": ([("Conv", ["r", "d"], ["m"], {"group": 8, **PADDED})], 8, {"d": floats(7, 8, 1, 3, 3)}),
    "BatchNorm": (
        [("BatchNormalization", ["r", "g", "b", "b", "v"], ["m"], {})],
        8,
        {"g": floats(5, 8), "b": floats(6, 8), "v": np.abs(floats(7, 8))},
    ),
    "constants of nodes": (
        [
            ("Constant", [], ["k"], {"value": numpy_helper.from_array(floats(5, 1, 8, 1, 1))}),
            ("Mul", ["r", "k"], ["m"], {}),
        ],
        8,
        {},
    ),
    "names for the same": ([("Identity", ["r"], ["i"], {}), ("Dropout", ["i"], ["m"], {})], 8, {}),
    "spread": (
        [("GlobalAveragePool", ["r"], ["p"], {}), ("Expand", ["p", "n"], ["m"], {})],
        8,
        {"n": ints(1, 8, 8, 8)},
    ),
    "resized": (
        [("Resize", ["r", "", "n"], ["m"], {"mode": "linear"})],
        8,
        {"n": np.array([1, 1, 2, 2], dtype=np.float32)},
    ),
    "depth to space": ([("DepthToSpace", ["r"], ["m"], {"blocksize": 2, "mode": "CRD"})], 2, {}),
}
"""What may lie between two layers, how many channels the second reads, and numbers."""


LEFT = {"depth to space": 8, "BatchNorm": 6, "a part": 3, "picked": 4}
"""Channels left of the 8 in front, where these are not the 5 that live: four that become one leave together; a shift
makes the dead ones constants, of which one carries the others; some channels are read by nobody."""


def test_what_lies_between_layers_follows(build: Build) -> None:
    """All of them one after another, in one network."""
    nodes: list[Node] = []
    stored: dict[str, np.ndarray] = {}
    entering = "x"
    for k, (middle, reads, own) in enumerate(MIDDLES.values()):

        def named(name: str, k: int = k) -> str:
            return f"{name}_{k}" if name else ""

        nodes += [("Conv", [entering, f"w1_{k}"], [f"c_{k}"], PADDED), ("Relu", [f"c_{k}"], [f"r_{k}"], {})]
        nodes += [(op, list(map(named, i)), list(map(named, o)), a) for op, i, o, a in middle]
        entering = f"y_{k}" if k < len(MIDDLES) - 1 else "y"
        nodes += [("Conv", [f"m_{k}", f"w2_{k}"], [entering], PADDED)]
        stored |= {named(name): value for name, value in own.items()}
        stored[f"w1_{k}"] = without(floats(k, 8, 3, 3, 3), 1, 2, 4) / 5
        stored[f"w2_{k}"] = floats(100 + k, 3, reads, 3, 3) / 5
    path = build(nodes, stored)
    result = compact_onnx(path)
    small = weights(result)
    left = {name: small[f"w1_{k}"].shape[0] for k, name in enumerate(MIDDLES)}
    assert left == {name: LEFT.get(name, 5) for name in MIDDLES}
    agree(path, result)


def test_sizes_of_images_stay_open(build: Build) -> None:
    """A shuffle whose Reshapes are computed from the image's size."""
    shape = [("Shape", ["r"], ["n"], {"end": 1}), ("Shape", ["r"], ["hw"], {"start": 2})]
    middle: list[Node] = [
        *shape,
        ("Concat", ["n", "halves", "hw"], ["s1"], {"axis": 0}),
        ("Reshape", ["r", "s1"], ["a"], {}),
        ("Transpose", ["a"], ["t"], {"perm": [0, 2, 1, 3, 4]}),
        ("Concat", ["n", "all", "hw"], ["s2"], {"axis": 0}),
        ("Reshape", ["t", "s2"], ["m"], {}),
    ]
    first = without(floats(0, 8, 3, 3, 3), 1, 5)  # as many of each half: the Reshapes stay
    nodes: list[Node] = [("Conv", ["x", "w1"], ["c"], PADDED), ("Relu", ["c"], ["r"], {}), *middle]
    nodes += [("Conv", ["m", "w2"], ["y"], PADDED)]
    stored = {"w1": first, "w2": floats(2, 3, 8, 3, 3), "halves": ints(2, 4), "all": ints(8)}
    path = build(nodes, stored, {"x": ["n", 3, "h", "w"]})
    result = compact_onnx(path, sizes={"x": (1, 3, 8, 8)})
    assert weights(result)["w1"].shape[0] == 6
    agree(path, result, (1, 3, 8, 8), (2, 3, 13, 6))


@pytest.mark.parametrize(
    "order, left, kind",
    [((7, 6, 5, 4, 3, 2, 1, 0), 5, np.int64), ((7, 1, 0, 3, 3, -2), 4, np.int32), ((2, 3), 1, np.int64)],
)
def test_dead_channels_leave_through_a_gather(build: Build, order: tuple[int, ...], left: int, kind: type) -> None:
    """Those that are picked, though they are 0, and those that nobody picks."""
    path = chain(build, [("Gather", ["r", "n"], ["m"], {"axis": 1})], len(order), n=np.array(order, dtype=kind))
    result = compact_onnx(path)
    assert weights(result)["w1"].shape[0] == left
    agree(path, result)


@pytest.mark.parametrize("opset, attributes", [(13, {}), (18, {"num_outputs": 4})])
def test_a_part_of_a_split_that_nobody_reads(build: Build, opset: int, attributes: dict[str, int]) -> None:
    middle: list[Node] = [("Split", ["r"], ["p0", "p1", "p2", "p3"], {"axis": 1, **attributes})]
    path = chain(build, [*middle, ("Concat", ["p1", "p0"], ["m"], {"axis": 1})], 4, opset=opset)
    result = compact_onnx(path)
    assert weights(result)["w1"].shape[0] == 2  # 0 and 3
    agree(path, result)


@pytest.mark.parametrize("pool", ["MaxPool", "AveragePool"])
def test_pooling_with_padding_behind_alone(build: Build, pool: str) -> None:
    """As TensorFlow pads: another padding for odd sizes than for even ones; both ignore it."""
    middle: list[Node] = [(pool, ["r"], ["m"], {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"})]
    nodes: list[Node] = [("Conv", ["x", "w1"], ["c"], PADDED), ("Relu", ["c"], ["r"], {}), *middle]
    nodes += [("Conv", ["m", "w2"], ["y"], PADDED)]
    stored = {"w1": without(floats(0, 8, 3, 3, 3), 1, 2, 4), "w2": floats(2, 3, 8, 3, 3)}
    path = build(nodes, stored, {"x": ["n", 3, "h", "w"]})
    result = compact_onnx(path, sizes={"x": (1, 3, 8, 8)})
    assert weights(result)["w1"].shape[0] == 5
    agree(path, result, (1, 3, 8, 8), (2, 3, 13, 6))


def test_a_slice_of_channels_and_places_keeps_its_bounds(build: Build) -> None:
    """Bounds that count from the end hold at every size of the image."""
    middle: list[Node] = [("Slice", ["r", "from", "to", "axes"], ["m"], {})]
    nodes: list[Node] = [("Conv", ["x", "w1"], ["c"], PADDED), ("Relu", ["c"], ["r"], {}), *middle]
    nodes += [("Conv", ["m", "w2"], ["y"], PADDED)]
    stored = {"w1": without(floats(0, 8, 3, 3, 3), 1, 2, 4), "w2": floats(2, 3, 5, 3, 3)}
    stored |= {"from": ints(2, -6, 0), "to": ints(7, -1, 10), "axes": ints(1, -2, 3)}
    path = build(nodes, stored, {"x": ["n", 3, "h", "w"]})
    result = compact_onnx(path, sizes={"x": (1, 3, 8, 8)})
    assert weights(result)["w1"].shape[0] == 3
    agree(path, result, (1, 3, 8, 8), (2, 3, 13, 16))


def test_sizes_of_minus_one_are_open(build: Build) -> None:
    """As some exporters write them."""

    def opened(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1

    path = build(
        [("Conv", ["x", "w1"], ["c"], PADDED), ("Conv", ["c", "w2"], ["y"], PADDED)],
        {"w1": without(floats(0, 4, 3, 3, 3), 1), "w2": floats(2, 5, 4, 3, 3)},
        extra=opened,
    )
    result = compact_onnx(path)
    assert result.removed == 1
    agree(path, result)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_weights_that_are_inputs_too_become_constants_and_this_is_told(build: Build, ir_version: int) -> None:
    """As files of IR version 3 list them."""

    def listed(model: onnx.ModelProto) -> None:
        model.ir_version = ir_version
        for tensor in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    path = build(
        [("Conv", ["x", "w1"], ["c"], PADDED), ("Conv", ["c", "w2"], ["y"], PADDED)],
        {"w1": without(floats(0, 4, 3, 3, 3), 1), "w2": floats(2, 5, 4, 3, 3)},
        opset=13,
        extra=listed,
    )
    result = compact_onnx(path)
    assert [value.name for value in result.model.graph.input] == ["x"]
    told = "no inputs any more, but constants with the values that the file holds: w1, w2"
    assert result.report.notes == (told,)
    agree(path, result)


def test_a_linear_layer_behind_flatten(build: Build) -> None:
    nodes: list[Node] = [
        ("Conv", ["x", "w1", "b1"], ["c"], {}),
        ("Relu", ["c"], ["r"], {}),
        ("Flatten", ["r"], ["f"], {}),
        ("MatMul", ["f", "w2"], ["p"], {}),
        ("Relu", ["p"], ["q"], {}),
        ("Gemm", ["q", "w3"], ["y"], {}),
    ]
    stored = {"w1": without(floats(0, 4, 3, 3, 3), 1), "b1": np.abs(floats(1, 4)), "w2": floats(2, 4 * 36, 6)}
    stored["w3"] = floats(3, 6, 2)
    stored["w3"][4] = 0  # nobody reads output 4 of the product
    path = build(nodes, stored)
    result = compact_onnx(path)
    assert weights(result)["w2"].shape == (3 * 36, 5)
    assert weights(result)["w3"].shape == (5, 2)
    assert [node.op_type for node in result.model.graph.node].count("Add") == 1  # the product's new bias
    agree(path, result)


def test_groups_lose_equally_many_channels(build: Build) -> None:
    nodes: list[Node] = [
        ("Conv", ["x", "w1"], ["c"], PADDED),
        ("Conv", ["c", "w2"], ["g"], {"group": 2, **PADDED}),
        ("Conv", ["g", "w3"], ["y"], {}),
    ]
    stored = {
        "w1": without(floats(0, 8, 3, 3, 3), 0, 1, 5),
        "w2": floats(1, 6, 4, 3, 3),
        "w3": floats(2, 3, 6, 1, 1),
    }
    path = build(nodes, stored)
    result = compact_onnx(path)
    assert weights(result)["w2"].shape == (6, 3, 3, 3)
    assert "must keep equally many" in str(result.report.kept)
    agree(path, result)


def test_whole_groups_leave(build: Build) -> None:
    nodes: list[Node] = [
        ("Conv", ["x", "w1"], ["c"], PADDED),
        ("Conv", ["c", "w2"], ["g"], {"group": 4, **PADDED}),
        ("Conv", ["g", "w3"], ["y"], {}),
    ]
    stored = {
        "w1": without(floats(0, 8, 3, 3, 3), 2, 3),
        "w2": floats(1, 8, 2, 3, 3),
        "w3": floats(2, 3, 8, 1, 1),
    }
    path = build(nodes, stored)
    result = compact_onnx(path)
    (group,) = [a.i for a in result.model.graph.node[1].attribute if a.name == "group"]
    assert group == 3
    assert weights(result)["w2"].shape == (6, 2, 3, 3)
    agree(path, result)


def test_tensors_that_are_stored_once_belong_to_each_layer(build: Build) -> None:
    """Exporters store equal statistics of several BatchNorms once: that ties no channels."""
    norm = ["ones", "zeros", "zeros", "ones"]
    nodes: list[Node] = [
        ("Conv", ["x", "w1"], ["a"], {}),
        ("BatchNormalization", ["a", *norm], ["b"], {}),
        ("Conv", ["b", "w2"], ["c"], {}),
        ("BatchNormalization", ["c", *norm], ["d"], {}),
        ("Conv", ["d", "w3"], ["y"], {}),
    ]
    stored = {
        "w1": without(floats(0, 4, 3, 3, 3), 0),
        "w2": without(floats(1, 4, 4, 1, 1), 1, 2),
        "w3": floats(2, 3, 4, 1, 1),
        "ones": np.ones(4, dtype=np.float32),
        "zeros": np.zeros(4, dtype=np.float32),
    }
    path = build(nodes, stored)
    result = compact_onnx(path)
    assert [w.after for w in result.report.layers.values()] == [3, 2, 3]
    agree(path, result)


def test_layers_that_share_a_weight_lose_the_same_channels(build: Build) -> None:
    nodes: list[Node] = [
        ("Conv", ["x", "w0"], ["a"], {}),
        ("Conv", ["a", "w", "b"], ["c"], PADDED),
        ("Relu", ["c"], ["d"], {}),
        ("Conv", ["d", "w", "b"], ["e"], PADDED),
        ("Conv", ["e", "w2"], ["y"], {}),
    ]
    stored = {"w0": floats(0, 4, 3, 1, 1), "w": without(floats(1, 4, 4, 3, 3), 2), "b": without(floats(2, 4), 2)}
    stored["w0"][2] = 0
    stored["w2"] = floats(3, 2, 4, 1, 1)
    path = build(nodes, stored)
    result = compact_onnx(path)
    assert weights(result)["w"].shape == (3, 3, 3, 3)
    agree(path, result)


def test_pre_activation_channels_are_selected(build: Build) -> None:
    """A BatchNorm silences channels that the sum behind still reads."""
    scale = floats(4, 64)
    scale[8:] = 0
    nodes: list[Node] = [
        ("Conv", ["x", "w1"], ["a"], PADDED),
        ("BatchNormalization", ["a", "g", "b", "b", "v"], ["n"], {}),
        ("Conv", ["n", "w2"], ["c"], PADDED),
        ("Add", ["a", "c"], ["y"], {}),
    ]
    stored = {
        "w1": floats(0, 64, 3, 3, 3),
        "w2": floats(2, 64, 64, 3, 3),
        "g": scale,
        "b": np.zeros(64, dtype=np.float32),
        "v": np.ones(64, dtype=np.float32),
    }
    path = build(nodes, stored)
    result = compact_onnx(path)
    assert weights(result)["w2"].shape == (64, 8, 3, 3)
    assert result.report.selections == {"BatchNormalization_1": (8, 64)}
    agree(path, result)


# --- what stays ------------------------------------------------------------------------------------------------------


def test_an_unknown_operation_keeps_its_channels_and_is_named(build: Build) -> None:
    path = chain(build, [("LRN", ["r"], ["m"], {"size": 3})], 8)
    result = compact_onnx(path)
    assert result.removed == 0
    assert result.report.kept == {"Conv_0": "3 channels: onnx_LRN has no rule (at LRN_2)"}


def test_channels_beside_an_unknown_operation_leave(build: Build) -> None:
    nodes: list[Node] = [
        ("Conv", ["x", "w1"], ["a"], PADDED),
        ("Conv", ["a", "w2"], ["b"], PADDED),
        ("LRN", ["b"], ["l"], {"size": 3}),
        ("Conv", ["l", "w3"], ["y"], PADDED),
    ]
    stored = {"w1": without(floats(0, 4, 3, 3, 3), 1), "w2": without(floats(1, 4, 4, 3, 3), 2)}
    path = build(nodes, stored | {"w3": floats(2, 4, 4, 3, 3)})
    result = compact_onnx(path)
    assert [w.after for w in result.report.layers.values()] == [3, 4, 4]
    agree(path, result)


def test_a_branch_keeps_what_it_reads(build: Build) -> None:
    branches = {
        name: helper.make_graph(
            [helper.make_node(op, ["r"], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, ["n", 8, 8, 8])],
        )
        for name, op in (("then_branch", "Relu"), ("else_branch", "Neg"))
    }
    middle: list[Node] = [
        ("ReduceMax", ["x"], ["top"], {"keepdims": 0}),
        ("Greater", ["top", "limit"], ["c0"], {}),
        ("If", ["c0"], ["m"], branches),
    ]
    path = chain(build, middle, 8, limit=np.array(0.5, dtype=np.float32))
    try:
        result = compact_onnx(path)
    except ModelError as error:
        assert "If" in str(error)  # noqa: PT017 - refused by name, where its shape is not known
    else:
        assert result.removed == 0
        assert "onnx_If has no rule" in str(result.report.kept)


def test_quantised_weights_stay_with_the_reason(build: Build) -> None:
    nodes: list[Node] = [
        ("DequantizeLinear", ["q", "s"], ["w1"], {}),
        ("Conv", ["x", "w1"], ["c"], PADDED),
        ("Conv", ["c", "w2"], ["y"], PADDED),
    ]
    quantised = without(np.random.default_rng(0).integers(-9, 9, (8, 3, 3, 3), dtype=np.int8), 1, 2)
    path = build(nodes, {"q": quantised, "s": np.array(0.1, dtype=np.float32), "w2": floats(2, 3, 8, 3, 3)})
    result = compact_onnx(path)
    assert result.removed == 0
    assert result.model.graph.initializer[0].data_type == TensorProto.INT8
    assert result.report.notes == ("operations without a rule, whose channels stay: DequantizeLinear (1)",)


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_int8_files_stay_as_they_are_with_the_reason(build: Build, tmp_path: Path, form: QuantFormat) -> None:
    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = [{"x": floats(k, 1, 3, 8, 8)} for k in range(2)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    path = chain(build, [("Identity", ["r"], ["m"], {})], 8)
    made = tmp_path / "int8.onnx"
    quantize_static(path, made, Images(), quant_format=form, per_channel=True)
    result = compact_onnx(made)
    assert result.removed == 0
    assert result.model.graph == onnx.load(made).graph
    (note,) = result.report.notes
    assert note.startswith("operations without a rule, whose channels stay: ")
    assert "DequantizeLinear" in note


def test_statistics_over_channels_keep_them(build: Build) -> None:
    middle: list[Node] = [("GroupNormalization", ["r", "g", "b"], ["m"], {"num_groups": 2})]
    path = chain(build, middle, 8, opset=21, g=floats(5, 8), b=floats(6, 8))
    result = compact_onnx(path)
    assert result.removed == 0
    assert "a statistic over channels" in str(result.report.kept)
