from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.errors import BenchError
from bench.loading import load_report
from bench.measure.memory import memory, ratios

MIB = 1 << 20


@pytest.fixture
def make_dense(tmp_path):
    """``make_dense(name, mebibytes)``: one matrix of that size."""

    def make(name: str, mebibytes: int):
        matrix = np.ones((512, mebibytes * MIB // 4 // 512), np.float32)
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])],
            "dense",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 512])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(matrix, "w")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    return make


def test_weights_are_found_in_the_memory_and_compared(make_dense, tmp_path) -> None:
    report = memory(make_dense("large.onnx", 24), make_dense("small.onnx", 4), repeats=2)
    assert report.baseline is not None
    assert report.ratios is not None
    large, small = report.model.memory, report.baseline.memory
    # The weights are resident once at least; the small model's a second time, as ONNX Runtime packed them: the
    # allocator gives large blocks back to the system, but keeps small ones.
    assert large.model_rss_bytes > 24 * MIB
    assert large.model_rss_bytes - small.model_rss_bytes > 10 * MIB
    assert large.peak_rss_bytes >= large.bare_rss_bytes + 24 * MIB
    assert large.load_peak_rss_bytes >= large.bare_rss_bytes + 24 * MIB
    assert large.peak_over_bare_bytes == pytest.approx(large.peak_rss_bytes - large.bare_rss_bytes, abs=MIB)
    assert len(large.runs) == 2
    assert large.spread_bytes < 0.02 * large.peak_rss_bytes
    assert large.spread_bytes == abs(large.runs[0].peak_rss_bytes - large.runs[1].peak_rss_bytes)
    assert report.ratios.file_bytes == pytest.approx(6, rel=0.01)
    assert report.ratios.peak_rss_bytes == large.peak_rss_bytes / small.peak_rss_bytes > 1

    report.save(tmp_path / "report.json")
    assert load_report(tmp_path / "report.json") == report


def test_no_repeat_is_refused(make_dense) -> None:
    with pytest.raises(BenchError, match=r"^repeats is 0, expected at least 1$"):
        memory(make_dense("a.onnx", 1), repeats=0)


def test_open_sizes_that_nobody_gave_are_told(make_convs) -> None:
    report = memory(make_convs("open.onnx", size="side"), repeats=1)
    assert report.model.inputs[0].shape == (1, 1, 1, 1)
    assert report.model.inputs[0].assumed == (2, 3)
    (warning,) = (text for text in report.warnings if "open" in text)
    assert warning == (
        "open.onnx leaves sizes of its input image open, and ran with 1 in their place: 1x1x1x1; "
        "give them: --shape image=1,3,224,224, for example"
    )


def test_nothing_is_no_divisor(pair, generous) -> None:
    """Where a system tells only the largest size of a process, small models add nothing to it."""
    result = generous.memory.model
    nothing = replace(result, memory=replace(result.memory, model_rss_bytes=0, peak_over_bare_bytes=0))
    found = ratios(result, nothing)
    assert (found.model_rss_bytes, found.peak_over_bare_bytes, found.peak_rss_bytes) == (None, None, 1.0)
