"""The worker's own parts, in this process; whole requests are tested through the targets."""

import base64
import mmap
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto

from bench import worker
from bench.protobuf import inside

TYPES = (
    *("FLOAT", "FLOAT16", "DOUBLE", "UINT8", "INT8", "UINT16", "INT16", "UINT32", "INT32", "UINT64", "INT64"),
    *("BOOL", "STRING"),
)
REQUEST = {"threads": 1, "batch": None, "shapes": {}, "seed": 0, "provider": "CPUExecutionProvider"}


@pytest.mark.parametrize("name", TYPES)
def test_inputs_of_every_usual_type_run(make_identity, name: str) -> None:
    model = worker.Model(str(make_identity("a.onnx", getattr(TensorProto, name), ["n", 3])), REQUEST)
    model.prepare()
    assert model.feeds["x"].shape == (1, 3)
    assert model.inputs()[0]["dtype"] == name.lower()


def test_every_type_of_the_table_is_tested() -> None:
    assert set(worker.DTYPES) == {f"tensor({name.lower()})" for name in TYPES}


def test_a_type_that_numpy_lacks_is_refused(make_identity) -> None:
    model = worker.Model(str(make_identity("a.onnx", TensorProto.BFLOAT16, [1])), REQUEST)
    with pytest.raises(worker.RefusedError, match=r"input x is a tensor\(bfloat16\), which numpy lacks"):
        model.prepare()


@pytest.mark.parametrize("measure", [worker.measure_latency, worker.measure_periodic])
def test_a_time_that_is_too_short_to_load_is_called_that(make_convs, measure) -> None:
    path = str(make_convs("a.onnx"))
    request = {
        **REQUEST,
        "models": [path],
        "limit_seconds": 1e-3,
        "min_samples": 2,
        "min_seconds": 0,
        "period_ns": 1000,
    }
    with pytest.raises(
        worker.RefusedError, match=r"^to load and warm up .*a.onnx took \S+ s, and each process has 0.001 s .*: give a"
    ) as told:
        measure(request)
    assert str(told.value).endswith("give a longer --timeout")


def test_scalars_have_no_batch(make_identity) -> None:
    path = str(make_identity("a.onnx", TensorProto.FLOAT, []))
    worker.Model(path, REQUEST).prepare()
    with pytest.raises(worker.RefusedError, match="no input can take batch 2"):
        worker.Model(path, {**REQUEST, "batch": 2})


def test_the_same_seed_gives_the_same_inputs() -> None:
    same = [worker.random_tensor(np.random.RandomState(seed), "float32", [2, 3]) for seed in (5, 5, 6)]
    assert np.array_equal(same[0], same[1])
    assert not np.array_equal(same[0], same[2])


def test_bytes_take_their_whole_range_and_indices_are_0_or_1() -> None:
    rng = np.random.RandomState(0)
    pixels = worker.random_tensor(rng, "uint8", [10_000])
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert set(worker.random_tensor(rng, "int64", [100])) == {0, 1}


@pytest.mark.parametrize(
    ("declared", "batch", "wanted", "shape"),
    [
        (["n", 3, "h", "w"], None, None, [1, 3, 1, 1]),
        (["n", 3, "h", "w"], 4, None, [4, 3, 1, 1]),
        (["n", 3, "h", "w"], 4, [2, 3, 8, 9], [2, 3, 8, 9]),
        ([2, None], None, None, [2, 1]),
        ([], 4, None, []),
    ],
)
def test_open_sizes_are_filled(declared, batch, wanted, shape) -> None:
    assert worker.input_shape("a.onnx", "x", declared, batch, wanted) == shape


def test_a_model_that_fails_when_run_is_refused_with_its_shapes(make_convs) -> None:
    session = ort.InferenceSession(str(make_convs("a.onnx")))
    model = worker.Model.__new__(worker.Model)
    model.path, model.session, model.shapes, model.seed, model.feeds = "a.onnx", session, {"image": [1, 2, 8, 8]}, 0, {}
    with pytest.raises(worker.RefusedError, match=r"a.onnx cannot run with image=\[1, 2, 8, 8\]: .*--shape"):
        model.prepare()


def test_cores_of_an_arm_board_are_named() -> None:
    assert worker.cpu_model({"CPU part": ["0xd03", "0xd0b", "0xfff"]}) == "Cortex-A53 + Cortex-A76 + ARM part 0xfff"
    assert worker.cpu_model({"model name": ["Some CPU"]}) == "Some CPU"


def test_a_peak_can_be_reset_where_the_method_says_so() -> None:
    method, resident, peak, reset = worker.memory_probes()
    if method != "clear_refs+VmHWM":
        pytest.skip(f"this kernel has only {method}")
    with mmap.mmap(-1, 64 << 20) as block:  # its own pages: an array could lie in memory that is resident already
        block.write(bytes(64 << 20))
        high = peak()
    assert reset()
    assert high - peak() > 48 << 20
    assert resident() <= peak()


@pytest.mark.parametrize("shape", [(12, 20), (16, 12, 20), (2, 8, 32)])
def test_large_outputs_are_told_in_part_from_all_rows_and_columns(monkeypatch, shape: tuple[int, ...]) -> None:
    """A kernel that is wrong in the last columns alone, behind whole vectors, must be seen."""
    monkeypatch.setattr(worker, "MAX_VALUES", 1 << 6)
    large = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    found = worker.encoded("a.onnx", "y", large)
    told = np.frombuffer(base64.b64decode(found["values"]), "<f4")
    assert found["shape"] == list(shape)
    assert np.array_equal(told, large.reshape(-1)[:: found["stride"]])
    assert 1 << 4 < len(told) <= 1 << 6
    for axis, places in enumerate(np.unravel_index(told.astype(int), shape)):
        assert set(places) == set(range(shape[axis])), axis


@pytest.mark.parametrize("value", [np.array(["a"], dtype=object), [{"cat": 0.5}]])
def test_outputs_that_are_no_numbers_are_refused(value) -> None:
    with pytest.raises(
        worker.RefusedError, match=r"a.onnx: output y is a .*, which cannot be compared between machines"
    ):
        worker.encoded("a.onnx", "y", value)


def test_nobody_counts_instructions_outside_of_an_emulator(make_convs) -> None:
    request = {**REQUEST, "models": ["a.onnx"], "counter": None}
    with pytest.raises(worker.RefusedError, match=r"bench instructions a.onnx --device arm64:cortex-a53"):
        worker.measure_instructions(request)


def test_counts_of_somebody_else_are_refused(make_convs, tmp_path: Path) -> None:
    counter = tmp_path / "counts"
    counter.write_text("1\n2\n3\n")
    path = str(make_convs("a.onnx"))
    request = {**REQUEST, "models": [path], "counter": str(counter), "min_samples": 2, "limit_seconds": 60.0}
    with pytest.raises(worker.RefusedError, match=r"wrote 3 counts, expected 18"):
        worker.measure_instructions(request)


def test_the_cost_of_marking_is_subtracted(make_convs, tmp_path: Path) -> None:
    marks = [*range(0, 16 * 50, 50), 15 * 50 + 1050, 15 * 50 + 1050 + 2050]
    counter = tmp_path / "counts"
    counter.write_text("".join(f"{mark}\n" for mark in marks))
    path = str(make_convs("a.onnx"))
    request = {**REQUEST, "models": [path], "counter": str(counter), "min_samples": 2, "limit_seconds": 60.0}
    (found,) = worker.measure_instructions(request)
    assert found["instructions"] == {"marking": 50, "counts": [1000, 2000]}
    assert [value["name"] for value in found["outputs"]] == ["y0"]


def test_a_provider_is_found_by_its_short_name() -> None:
    for name in ("cpu", "CPU", "CPUExecutionProvider", "cpuexecutionprovider"):
        assert worker.provider_of(name) == "CPUExecutionProvider"
    with pytest.raises(worker.RefusedError, match=r"no execution provider 'warp' here; it has .*CPUExecutionProvider"):
        worker.provider_of("warp")


def test_a_provider_that_takes_no_node_is_refused(make_convs) -> None:
    if "AzureExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this build has the CPU alone")
    request = {**REQUEST, "provider": "azure", "shapes": {}}
    with pytest.raises(
        worker.RefusedError, match=r"AzureExecutionProvider takes none of the \d+ nodes, which run on CPU"
    ):
        worker.nodes_by_provider(str(make_convs("a.onnx", batch=1)), request)


def test_events_inside_a_loop_are_its_own_and_short_ones_are_kept() -> None:
    rows = [(0, 5, "Conv"), (6, 1, "Add"), (8, 2, "Mul"), (5, 10, "Loop"), (15, 0, "Flatten"), (15, 3, "Gemm")]
    events = [{"ts": ts, "dur": dur, "args": {"op_name": name}} for ts, dur, name in rows]
    assert [event["args"]["op_name"] for event in worker.top_level(events)] == ["Conv", "Loop", "Flatten", "Gemm"]


def test_a_file_with_further_outputs_has_them(make_convs) -> None:
    path = make_convs("a.onnx", depth=3)
    session = ort.InferenceSession(worker.with_outputs(path.read_bytes(), ["y0", "y1"]))
    assert [value.name for value in session.get_outputs()] == ["y2", "y0", "y1"]


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 70_000])
def test_protobuf_fields_of_any_size_are_read_back(size: int) -> None:
    content = bytes(size)
    assert [bytes(found) for found in inside(memoryview(worker.message(12, content)), 12)] == [content]


def test_bytes_of_odd_elements_are_rounded_up() -> None:
    assert worker.tensor_bytes("tensor(float)", [2, 3]) == 24
    assert worker.tensor_bytes("tensor(int4)", [3]) == 2
    assert worker.tensor_bytes("tensor(bfloat16)", []) == 2
    assert worker.tensor_bytes("tensor(float8e5m2)", [0, 7]) == 0
