"""ONNX files that can't be cut: each is refused in words, and nothing is written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from compress.cli import build_app
from compress.errors import CompressError, ConstantOutputError, ModelError
from compress.surgery import onnx_compact
from compress.surgery.onnx_compact import compact_onnx, write_model


def a_model(opset: int = 18, *, dead: bool = True, shape: list[Any] | None = None) -> onnx.ModelProto:
    """Conv, Relu, Conv."""
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(s).astype(np.float32) for s in ((16, 3, 3, 3), (2, 16, 3, 3)))
    if dead:
        first[3] = 0
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], name="one"),
        helper.make_node("Relu", ["a"], ["b"], name="two"),
        helper.make_node("Conv", ["b", "second"], ["y"], name="three"),
    ]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape or ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, "h", "w"])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", opset)])


def save_outside(model: onnx.ModelProto, path: Path, weights: str = "weights.bin") -> None:
    onnx.save_model(model, path, save_as_external_data=True, location=weights, size_threshold=0)


def point(path: Path, location: str) -> None:
    model = onnx.load_model(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def corrupt(path: Path) -> None:
    path.write_bytes(b"\x08\x07garbage" * 50)


def truncated(path: Path) -> None:
    content = a_model().SerializeToString()
    path.write_bytes(content[: len(content) // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def text(path: Path) -> None:
    path.write_text("this is no model\n")


def old(path: Path) -> None:
    onnx.save(a_model(opset=12), path)


def new(path: Path) -> None:
    path.write_bytes(a_model(opset=24).SerializeToString())


def garbled(path: Path) -> None:
    path.write_bytes(a_model().SerializeToString().replace(b"second", b"seco\x8fd"))


def invalid(path: Path) -> None:
    model = a_model()
    model.graph.node[1].input[0] = "nothing"
    path.write_bytes(model.SerializeToString())


def missing_weights(path: Path) -> None:
    save_outside(a_model(), path)
    (path.parent / "weights.bin").unlink()


def short_weights(path: Path) -> None:
    save_outside(a_model(), path)
    weights = path.parent / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:100])


def stray_weights(path: Path) -> None:
    save_outside(a_model(), path)
    (path.parent.parent / "weights.bin").write_bytes((path.parent / "weights.bin").read_bytes())
    point(path, "../weights.bin")


def absolute_weights(path: Path) -> None:
    save_outside(a_model(), path)
    point(path, str(path.parent / "weights.bin"))


def linked_weights(path: Path) -> None:
    save_outside(a_model(), path)
    target = path.parent.parent / "elsewhere.bin"
    (path.parent / "weights.bin").rename(target)
    (path.parent / "weights.bin").symlink_to(target)


REFUSED: dict[Callable[[Path], None], str] = {
    corrupt: "damaged|no ONNX model",
    truncated: "damaged|checker",
    empty: "no ONNX model",
    text: "damaged|no ONNX model",
    old: "opset 12; those from 13 to 23 are known",
    new: "opset 24",
    garbled: "a name in it is no text",
    invalid: "checker",
    missing_weights: "weights.bin, which is not there",
    short_weights: "cut short",
    stray_weights: "outside the model's folder",
    absolute_weights: "outside the model's folder",
    linked_weights: "outside the model's folder",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    return folder / "model.onnx"


@pytest.mark.parametrize("spoil", REFUSED, ids=lambda spoil: spoil.__name__)
def test_a_file_that_is_no_model_is_refused(path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(path)
    with pytest.raises(ModelError, match=REFUSED[spoil]) as caught:
        compact_onnx(path)
    assert str(path) in str(caught.value)


def run(*arguments: str | Path) -> Any:
    words = ["compact", *map(str, arguments)]
    return CliRunner().invoke(build_app(words), words)


def test_the_command_writes_nothing_where_it_refuses(path: Path) -> None:
    old(path)
    out = path.parent / "small.onnx"
    result = run(path, "--out", out)
    assert isinstance(result.exception, CompressError)  # which main prints, with exit code 2
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx"]


@pytest.mark.parametrize(
    "arguments, told",
    [
        (("model.onnx", "--out", "model.onnx"), "the file itself"),
        (("model.onnx", "--out", "nowhere/small.onnx"), "does not exist"),
        (("model.onnx", "--out", "small.txt"), "must end in .onnx"),
        (("model.onnx", "--out", "."), "folder"),
        (("model.onnx", "--out", "small.onnx", "--input-size", "x=1x-3"), "expected a name and a shape"),
        (("model.onnx", "--out", "small.onnx", "--input-size", "x=1x\u00b2"), "expected a name and a shape"),
        (("model.onnx", "--out", "small.onnx", "--input-size", "z=1x3x8x8"), "has no input z; its inputs: x"),
        (("model.onnx", "--out", "small.onnx", "--input-size", "x=1x3x9x8"), "does not run with inputs"),
        (("gone.onnx", "--out", "small.onnx"), "there is no such file"),
    ],
)
def test_a_wrong_command_line_is_told(
    path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], told: str
) -> None:
    onnx.save(a_model(), path)
    monkeypatch.chdir(path.parent)
    result = run(*arguments)
    assert isinstance(result.exception, CompressError)
    assert told in str(result.exception)
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]


def test_an_open_size_that_cannot_be_guessed_is_asked_for(path: Path) -> None:
    model = a_model(shape=["n", "c", "h", "w"])
    model.graph.node.insert(0, helper.make_node("Abs", ["x"], ["z"], name="zero"))
    model.graph.node[1].input[0] = "z"
    onnx.save(model, path)
    with pytest.raises(ModelError, match="dimension 1 of the input x is open; name a shape: --input-size x="):
        compact_onnx(path)


def test_a_network_without_an_output_that_depends_on_its_input_is_refused(path: Path) -> None:
    model = a_model()
    zeros = np.zeros((2, 16, 3, 3), dtype=np.float32)
    model.graph.initializer[1].CopyFrom(numpy_helper.from_array(zeros, "second"))
    onnx.save(model, path)
    with pytest.raises(ConstantOutputError, match="no longer depends on its input"):
        compact_onnx(path)


def test_weights_beside_the_file_are_read(path: Path) -> None:
    save_outside(a_model(), path)
    result = compact_onnx(path)
    assert result.removed == 1
    assert not any(tensor.external_data for tensor in result.model.graph.initializer)


def test_the_weights_of_the_original_are_not_overwritten(path: Path) -> None:
    """A large model would be written as ``small.onnx`` and ``small.onnx.data``."""
    save_outside(a_model(), path, "small.onnx.data")
    before = {file: file.read_bytes() for file in path.parent.iterdir()}
    result = run(path, "--out", path.with_name("small.onnx"))
    assert "small.onnx.data is the file itself that is read" in str(result.exception)
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == before


def test_large_models_have_their_weights_beside_them(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_compact, "PROTOBUF_LIMIT", 1000)
    model = a_model()
    write_model(model, path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    for read, wanted in zip(onnx.load(path).graph.initializer, model.graph.initializer, strict=True):
        np.testing.assert_array_equal(numpy_helper.to_array(read), numpy_helper.to_array(wanted))


def test_the_command_tells_what_it_did(path: Path) -> None:
    onnx.save(a_model(), path)
    out = path.parent / "small.onnx"
    result = run(path, "--out", out)
    assert result.exit_code == 0, result.output
    assert "channels removed" in result.output
    assert list(onnx.load(out).graph.initializer[0].dims) == [15, 3, 3, 3]


def test_nothing_to_remove_is_said(path: Path) -> None:
    onnx.save(a_model(dead=False), path)
    result = run(path, "--out", path.parent / "small.onnx")
    assert result.exit_code == 0
    assert "nothing to remove" in result.output


def test_json(path: Path) -> None:
    import json

    onnx.save(a_model(), path)
    result = run(path, "--out", path.parent / "small.onnx", "--json")
    document = json.loads(result.output)
    assert document["removed"] == 1
    assert document["form"] == "onnx"
    assert document["layers"]["one"] == {"before": 16, "after": 15, "dead": 1, "kept": {}}
