import hashlib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from bench.errors import BenchError
from bench.onnx_file import describe, external_files, metadata


def test_a_file_is_known_by_name_size_and_hash(make_convs) -> None:
    path = make_convs("a.onnx")
    file = describe(path)
    assert (file.file_name, file.file_bytes) == ("a.onnx", path.stat().st_size)
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_weights_in_another_file_count(make_convs, tmp_path: Path) -> None:
    inside = make_convs("inside.onnx", width=32, depth=2)
    path, weights = tmp_path / "outside.onnx", tmp_path / "outside.data"
    onnx.save(onnx.load(inside), path, save_as_external_data=True, location=weights.name, size_threshold=0)
    assert external_files(path.read_bytes()) == ["outside.data"]
    assert describe(path).file_bytes == path.stat().st_size + weights.stat().st_size
    before = describe(path).sha256
    weights.write_bytes(bytes(weights.stat().st_size))
    assert describe(path).sha256 != before
    weights.unlink()
    with pytest.raises(BenchError, match=r"the weights of .*outside.onnx, file not found: .*outside.data"):
        describe(path)


def test_weights_in_a_folder_and_inside_of_branches_count(tmp_path: Path) -> None:
    def tensor(name: str, location: str) -> onnx.TensorProto:
        value = onnx.numpy_helper.from_array(np.ones(4, np.float32), name)
        onnx.external_data_helper.set_external_data(value, location, offset=0, length=16)
        value.ClearField("raw_data")
        return value

    def value(name: str, kind: int) -> onnx.ValueInfoProto:
        return onnx.helper.make_tensor_value_info(name, kind, [])

    (tmp_path / "weights").mkdir()
    names = ["weights/else.bin", "weights/then.bin", "weights/top.bin"]
    for place, name in enumerate(names):
        (tmp_path / name).write_bytes(np.full(4, place, np.float32).tobytes())
    branches = {
        f"{branch}_branch": onnx.helper.make_graph(
            [onnx.helper.make_node("Add", ["top", branch], [f"out_{branch}"])],
            branch,
            [],
            [value(f"out_{branch}", onnx.TensorProto.FLOAT)],
            [tensor(branch, f"weights/{branch}.bin")],
        )
        for branch in ("then", "else")
    }
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("If", ["which"], ["y"], **branches)],
        "test",
        [value("which", onnx.TensorProto.BOOL)],
        [onnx.helper.make_empty_tensor_value_info("y")],
        [tensor("top", "weights/top.bin")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "branches.onnx"
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.run(None, {"which": np.array(True)})[0].tolist() == [3.0] * 4  # what the files hold is used
    assert external_files(path.read_bytes()) == names
    assert describe(path).file_bytes == path.stat().st_size + 3 * 16


@pytest.mark.parametrize("content", [b"", b"no protobuf at all", b"\xff" * 40, b"\x3a\x7f\x2a\x7f\x6a\x05"])
def test_what_is_no_protobuf_names_no_files(content: bytes) -> None:
    assert external_files(content) == []


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=r"model file not found: .*none.onnx"):
        describe(tmp_path / "none.onnx")
    with pytest.raises(BenchError, match="cannot be read"):
        describe(tmp_path)
    with pytest.raises(BenchError, match="cannot be read"):
        describe(Path("a\0b"))


def test_a_file_tells_what_its_metadata_say(make_convs) -> None:
    path = make_convs("a.onnx")
    assert metadata(path) == {}
    model = onnx.load(path)
    entries = {
        "test_accuracy": "0.9887",
        "class_names": '["Straße", "x"]',
        "note": "",
        "": "nameless",
        "long": "x" * 300,
    }
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, path)
    assert metadata(path) == entries


def test_metadata_of_a_file_that_was_cut_off_are_refused(make_convs) -> None:
    path = make_convs("a.onnx")
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"test_accuracy": "0.9887"})
    content = onnx.ModelProto(metadata_props=model.metadata_props).SerializeToString()
    path.write_bytes(content[:-1])
    with pytest.raises(BenchError, match="is no ONNX file: its metadata cannot be read"):
        metadata(path)
