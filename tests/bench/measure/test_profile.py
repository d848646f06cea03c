from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.loading import load_report
from bench.measure.profile import profile
from bench.report import ProfileReport

QUICK = {"runs": 2, "samples": 20}
SIZE, WIDTH, CLASSES = 16, 12, 10
MACS = [SIZE**2 * WIDTH * 3 * 9, SIZE**2 * WIDTH * WIDTH * 9, WIDTH * CLASSES]


def network(path: Path, *, names: bool) -> Path:
    """Two convolutions with Relu, pooled, and a matrix product; 12 channels are no whole block on any machine."""
    rng = np.random.default_rng(0)

    def node(operator: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(operator, inputs, [output], name=f"node_{output}" if names else "", **attributes)

    nodes = [
        node("Conv", ["image", "w0"], "a", pads=[1] * 4),
        node("Relu", ["a"], "b"),
        node("Conv", ["b", "w1"], "c", pads=[1] * 4),
        node("Relu", ["c"], "d"),
        node("GlobalAveragePool", ["d"], "e"),
        node("Flatten", ["e"], "f"),
        node("Gemm", ["f", "w2"], "g"),
    ]
    shapes = {"w0": (WIDTH, 3, 3, 3), "w1": (WIDTH, WIDTH, 3, 3), "w2": (WIDTH, CLASSES)}
    weights = [
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name) for name, shape in shapes.items()
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])
    graph = helper.make_graph(nodes, "test", [image], [helper.make_empty_tensor_value_info("g")], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> ProfileReport:
    folder = tmp_path_factory.mktemp("profile")
    return profile(
        network(folder / "named.onnx", names=True), network(folder / "nameless.onnx", names=False), batch=2, **QUICK
    )


def test_every_multiplication_is_placed_at_the_node_that_does_it(report: ProfileReport) -> None:
    assert report.baseline is not None
    for result in (report.model, report.baseline):
        figures = result.profile
        assert figures.macs == 2 * sum(MACS)
        assert [node.macs for node in figures.nodes if node.macs] == [2 * count for count in MACS]
        assert figures.uncounted == ()
        for node in figures.nodes:
            if node.gflops is not None:
                assert node.gflops == pytest.approx(2 * node.macs / node.time_us / 1e3)


def test_nodes_have_the_names_of_the_file_however_they_were_fused(report: ProfileReport) -> None:
    named = [node.name for node in report.model.profile.nodes if node.macs]
    assert named == ["node_a", "node_c", "node_g"]
    assert report.baseline is not None
    nameless = [node.name for node in report.baseline.profile.nodes]
    assert [name for name in nameless if name.startswith(("Conv", "Gemm"))] == ["Conv a", "Conv c", "Gemm g"]
    assert "GlobalAveragePool e" in nameless
    assert "Flatten f" in nameless


def test_shares_and_sums_are_those_of_the_nodes(report: ProfileReport) -> None:
    figures = report.model.profile
    assert sum(node.share for node in figures.nodes) == pytest.approx(1)
    assert sum(each.share for each in figures.operators) == pytest.approx(1)
    assert sum(each.nodes for each in figures.operators) == len(figures.nodes)
    assert sum(node.time_us for node in figures.nodes) == pytest.approx(1e3 * figures.nodes_ms)
    assert sum(each.macs or 0 for each in figures.operators) == figures.macs
    assert [each.time_us for each in figures.operators] == sorted((e.time_us for e in figures.operators), reverse=True)
    for run in figures.runs:
        assert len(run.samples_ns) == len(run.profiled_ns) == 10
        assert {len(node.samples_us) for node in run.nodes} == {10}
    # The nodes' times are parts of the profiled inferences, which the clock around them saw.
    assert 0 < figures.nodes_ms < 1.5 * figures.profiled_p50_ms


def test_the_report_comes_back_equal(report: ProfileReport, tmp_path: Path) -> None:
    report.save(tmp_path / "report.json")
    assert load_report(tmp_path / "report.json") == report


def test_int8_convolutions_are_counted_like_those_of_floats(tmp_path: Path) -> None:
    """Weights and values between QuantizeLinear and DequantizeLinear, which ONNX Runtime fuses into integer kernels."""
    weights = [
        numpy_helper.from_array(np.ones((8, 3, 3, 3), np.int8), "w"),
        numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
        numpy_helper.from_array(np.array(0, np.int8), "zero"),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x8"], name="q"),
        helper.make_node("DequantizeLinear", ["x8", "scale", "zero"], ["xf"], name="dq"),
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["wf"], name="dqw"),
        helper.make_node("Conv", ["xf", "wf"], ["a"], name="conv"),
        helper.make_node("QuantizeLinear", ["a", "scale", "zero"], ["a8"], name="qa"),
        helper.make_node("DequantizeLinear", ["a8", "scale", "zero"], ["y"], name="dqa"),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 10, 10])
    graph = helper.make_graph(nodes, "test", [value], [helper.make_empty_tensor_value_info("y")], weights)
    path = tmp_path / "int8.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    figures = profile(path, runs=1, samples=5).model.profile
    assert figures.macs == 8 * 8 * 8 * 3 * 9
    assert [(node.name, node.macs) for node in figures.nodes if node.macs] == [("conv", figures.macs)]


def test_a_loop_holds_the_time_of_what_runs_inside_and_has_no_rule(tmp_path: Path) -> None:
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("MatMul", ["carried", "w"], ["next"], name="inside"),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, [4, 4]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [4, 4]),
        ],
    )
    weights = [
        numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"),
        numpy_helper.from_array(np.array(5), "trips"),
        numpy_helper.from_array(np.array(True), "start"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="before"),
        helper.make_node("Loop", ["trips", "start", "h"], ["y"], name="loop", body=body),
    ]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])
    graph = helper.make_graph(
        nodes, "test", [value], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 4])], weights
    )
    path = tmp_path / "loop.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    figures = profile(path, runs=1, samples=5).model.profile
    assert [(node.name, node.macs) for node in figures.nodes] == [("before", 64), ("loop", None)]
    assert (figures.macs, figures.uncounted) == (None, ("Loop",))
