import base64
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from bench import targets
from bench.errors import BenchError
from bench.measure.latency import latency
from bench.measure.parity import arithmetic_of, local_outputs, require_parity
from bench.measure.runs import answers
from bench.protocol import Output, Request
from bench.targets.launch import WORKER
from bench.targets.local import LocalTarget

REQUEST = Request(
    measure="outputs",
    models=(),
    threads=1,
    batch=None,
    shapes={},
    seed=3,
    min_seconds=0.0,
    min_samples=1,
    limit_seconds=20.0,
)


def output(values: object, dtype: str = "float32", name: str = "y", stride: int = 1) -> Output:
    array = np.asarray(values, dtype)
    return Output(
        name=name,
        dtype=dtype,
        shape=array.shape,
        stride=stride,
        values=base64.b64encode(array.reshape(-1)[::stride].tobytes()).decode(),
    )


@pytest.fixture
def fp32(make_convs) -> Path:
    return make_convs("fp32.onnx")


def test_the_worst_output_is_told_with_its_difference(fp32: Path) -> None:
    here = [output([1.0, -4.0], name="a"), output([100.0], name="b")]
    there = [output([1.0, -4.0001], name="a"), output([100.001], name="b")]
    found = require_parity(fp32, here, there, "board")
    assert (found.output, found.arithmetic, found.tolerance) == ("b", "float32", 1e-4)
    assert found.max_abs_error == pytest.approx(0.001, rel=1e-2)  # 100.001 in float32
    assert found.largest_value == 100.0


def test_a_difference_above_the_tolerance_names_output_size_and_way_out(fp32: Path) -> None:
    with pytest.raises(BenchError) as caught:
        require_parity(fp32, [output([1.0, -4.0])], [output([1.0, -3.9])], "ssh://pi")
    assert "computes something else on ssh://pi than on this machine: output y differs by 0.1 at most" in str(
        caught.value
    )
    assert "allowed 0.0004 (0.0001 of the largest value, 4; it computes in float32)" in str(caught.value)
    assert "--tolerance" in str(caught.value)
    assert require_parity(fp32, [output([1.0, -4.0])], [output([1.0, -3.9])], "ssh://pi", 0.1).tolerance == 0.1


def test_an_output_that_is_wrong_is_not_hidden_behind_a_larger_one_that_is_right(fp32: Path) -> None:
    here = [output([1e6], name="large"), output([1e-3], name="small")]
    there = [output([1e6 + 10], name="large"), output([2e-3], name="small")]
    with pytest.raises(BenchError, match=r"output small differs by 0.001"):
        require_parity(fp32, here, there, "board")


def test_what_is_no_number_must_be_none_on_both_sides(fp32: Path) -> None:
    both = output([np.nan, np.inf, -np.inf, 2.0])
    assert require_parity(fp32, [both], [both], "board").max_abs_error == 0.0
    for other in ([0.0, np.inf, -np.inf, 2.0], [np.nan, np.inf, np.inf, 2.0], [np.nan, np.inf, -np.inf, np.nan]):
        with pytest.raises(BenchError, match=r"differs by inf"):
            require_parity(fp32, [both], [output(other)], "board", 10.0)


def test_classes_are_exact_and_codes_are_not(fp32: Path) -> None:
    with pytest.raises(BenchError, match=r"differs by 1 at most, allowed 0 "):
        require_parity(fp32, [output([700], "int64")], [output([701], "int64")], "board", 0.5)
    assert require_parity(fp32, [output([200], "uint8")], [output([201], "uint8")], "board", 0.01).max_abs_error == 1.0


def test_other_shapes_are_refused(fp32: Path) -> None:
    with pytest.raises(
        BenchError, match=r"has other outputs on board than on this machine: y \[3\] float32, expected y \[2\]"
    ):
        require_parity(fp32, [output([1.0, 2.0])], [output([1.0, 2.0, 3.0])], "board")
    short = replace(output([1.0, 2.0]), values=output([1.0]).values)
    with pytest.raises(BenchError, match=r"output y has 1 values, expected 2"):
        require_parity(fp32, [output([1.0, 2.0])], [short], "board")


def save(path: Path, nodes: list[onnx.NodeProto], element_type: int) -> Path:
    value = helper.make_tensor_value_info("x", element_type, [4])
    weight = helper.make_tensor("w", element_type, [4], [1, 2, 3, 4])
    result = helper.make_empty_tensor_value_info(nodes[-1].output[0])
    graph = helper.make_graph(nodes, "test", [value], [result], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return path


def test_the_coarsest_arithmetic_of_a_file(tmp_path: Path, fp32: Path) -> None:
    add = helper.make_node("Add", ["x", "w"], ["y"])
    dynamic = helper.make_node("DynamicQuantizeLinear", ["y"], ["q", "scale", "zero"])
    assert arithmetic_of(fp32) == "float32"
    assert arithmetic_of(save(tmp_path / "half.onnx", [add], TensorProto.FLOAT16)) == "float16"
    assert arithmetic_of(save(tmp_path / "int8.onnx", [add, dynamic], TensorProto.FLOAT)) == "int8"


def test_local_outputs_are_those_of_the_seed(make_convs) -> None:
    path = make_convs("a.onnx", width=2, size=4)
    request = replace(REQUEST, models=(str(path),), batch=2)
    ((found,),) = local_outputs(request, 20.0)
    assert (found.name, found.shape, found.dtype, found.stride) == ("y0", (2, 2, 4, 4), "float32", 1)
    image = np.random.RandomState(3).standard_normal((2, 1, 4, 4)).astype(np.float32)
    kernel = onnx.numpy_helper.to_array(onnx.load(str(path)).graph.initializer[0])
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    expected = np.einsum("nihwab,oiab->nohw", windows, kernel)
    got = np.frombuffer(base64.b64decode(found.values), "<f4").reshape(expected.shape)
    assert np.abs(got - expected).max() <= 1e-5


def target(tmp_path: Path, change: str) -> Callable[[str], LocalTarget]:
    """This machine with a worker that is changed in one place."""
    worker = tmp_path / "worker.py"
    text = WORKER.read_text()
    assert "values = model.session.run(None, model.feeds)" in text
    worker.write_text(
        text.replace(
            "values = model.session.run(None, model.feeds)",
            f"values = model.session.run(None, model.feeds)\n    {change}",
        )
    )
    return lambda _: LocalTarget(worker=worker)


def test_a_device_that_computes_something_else_is_not_measured(make_convs, tmp_path: Path, monkeypatch) -> None:
    small, other = make_convs("small.onnx"), make_convs("other.onnx", width=8)
    request = replace(REQUEST, models=(str(small), str(other)))
    monkeypatch.setitem(targets.TARGETS, "right", target(tmp_path, ""))
    assert len(list(answers("right", [request], 60.0, None))) == 1
    (tmp_path / "wrong").mkdir()
    # The second model alone is wrong there.
    change = "values = [value + 1 if value.shape[1] == 8 else value for value in values]"
    monkeypatch.setitem(targets.TARGETS, "wrong", target(tmp_path / "wrong", change))
    refusal = r"other.onnx computes something else on wrong than on this machine: output y0 .*\(0\.01 of the largest"
    with pytest.raises(BenchError, match=refusal):
        latency(small, other, device="wrong", runs=6, samples=6, min_seconds=0.0, tolerance=0.01)
    assert len(list(answers("wrong", [request], 60.0, None, tolerance=2.0))) == 1


def test_a_model_that_does_not_run_here_cannot_be_compared(make_convs) -> None:
    path = make_convs("a.onnx")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(
        BenchError, match=r"on this machine, with which the outputs are compared: ONNX Runtime .* cannot load"
    ):
        local_outputs(replace(REQUEST, models=(str(path),)), 20.0)
