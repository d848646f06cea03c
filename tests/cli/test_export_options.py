"""What ``compress export`` refuses before it loads anything, and what it makes of small files of other tools."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compress.cli.export.options import Options
from compress.errors import ConfigError
from export import read_metadata

SMALLER = "goes with --int8, --fp16 or --weights-int8"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a run, a factory, and an ONNX file that is never read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "net.py").write_text("def make(): ...")
    (tmp_path / "own.onnx").write_bytes(b"weights")
    return tmp_path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("command, option", [("export", "--onnx"), ("compact", "--out")])
@pytest.mark.parametrize("out", ["own.onnx", "./own.onnx", "run/../own.onnx", "soft.onnx", "hard.onnx"])
def test_the_source_is_never_overwritten(folder, compress_command, command, option, out):
    (folder / "soft.onnx").symlink_to("own.onnx")
    os.link("own.onnx", "hard.onnx")
    before = contents(folder)
    for source, to in (("own.onnx", out), (out, "own.onnx")):
        done = compress_command(command, source, option, to)
        assert done.code == 2
        assert "is the file itself that is read" in done.err
    assert contents(folder) == before


@pytest.mark.parametrize("beside", ["m.onnx.json", "m.ort", "m.required_operators.config"])
def test_nor_by_a_file_beside_the_output(folder, compress_command, beside):
    os.link("own.onnx", beside)
    done = compress_command("export", "own.onnx", "--onnx", "m.onnx", "--ort")
    assert done.code == 2
    assert f"{beside} is the file itself that is read" in done.err
    if beside != "m.onnx.json":  # not written without --ort
        Options(source="own.onnx", onnx=folder / "m.onnx")


@pytest.mark.parametrize(
    "source, options, message",
    [
        ("run", ["--image-size", "64"], "--image-size cannot be given for run: only a factory has to be told"),
        ("run", ["--image-size", "32"], "--image-size cannot be given"),  # the default, and yet a wish
        ("own.onnx", ["--channels", "1", "--classes", "2"], "--channels, --classes cannot be given for own.onnx"),
        ("run", ["--max-drop", "0.5"], f"--max-drop cannot be given for run: {SMALLER}"),
        ("run", ["--max-drop", "0.01"], "--max-drop cannot be given"),
        ("run", ["--latency"], f"--latency cannot be given for run: {SMALLER}"),
        ("run", ["--calibration", "min-max"], "--calibration cannot be given for run: goes with --int8"),
        ("run", ["--fp16", "--calibration-images", "9"], "--calibration-images cannot be given for run: goes with"),
        ("run", ["--weights-int8", "--weight-bits", "7"], "--weight-bits cannot be given for run: goes with --int8"),
        ("run", ["--int8", "--weight-bits", "6"], "--weight-bits 6: expected 7 or 8"),
        ("run", ["--layout", "nhwc"], "--layout cannot be given for run: goes with --with-preprocess"),
        ("net.py:make", ["--fp16", "--max-drop", "0.1"], "the accuracy is measured on the images of a run"),
        ("net.py:make", ["--with-preprocess"], "--with-preprocess cannot be given for net.py:make: a run knows"),
        ("net.py:make", ["--int8"], "--int8 needs a run directory"),
        ("own.onnx", ["--int8"], "--int8 needs a run directory"),
        ("own.onnx", ["--dense"], "--dense cannot be given for own.onnx: a run knows the network before removal"),
        ("own.onnx", ["--dynamic-batch", "--input-name", "x"], "--dynamic-batch, --input-name cannot be given"),
        ("gone.onnx", [], "gone.onnx: there is no such file"),
        ("gone.py:make", [], "gone.py: there is no such file"),
        ("gone", [], "gone: there is no such file"),
        ("own.onnx", ["--opset", "17", "--int8", "--dense"], "; --int8 needs a run"),  # all at once
    ],
)
def test_what_would_be_ignored_is_refused(folder, compress_command, source, options, message):
    before = contents(folder)
    done = compress_command("export", source, "--onnx", "m.onnx", *options)
    assert done.code == 2
    assert message in done.err
    assert contents(folder) == before


def test_what_holds_anyway_is_no_fault():
    assert not Options(source="run", onnx=Path("m.onnx"), latency=False, given=frozenset(("latency",))).latency


@pytest.mark.parametrize(
    "shape, batch, size, words",
    [
        ((1, 3, 4, 4), "1", "fixed", ""),
        (("n", 3, 4, 4), "dynamic", "fixed", ""),
        ((2, 3, "h", "w"), "2", "dynamic", " --shape x=2,3,64,64"),
    ],
)
def test_an_onnx_file_tells_its_interface_and_where_dead_channels_leave(
    folder, compress_command, shape, batch, size, words
):
    weight = np.ones((8, 3, 1, 1), np.float32)
    weight[::2] = 0
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in (("x", shape), ("y", [None] * 4)))
    node = helper.make_node("Conv", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), "own.onnx")
    done = compress_command("export", "own.onnx", "--onnx", "m.onnx")
    assert done.code == 0
    assert "leave with compress compact own.onnx --out own-compact.onnx" in done.out
    assert done.out.splitlines()[-1] == f"bench latency m.onnx --baseline own.onnx --device cpu{words}"
    stored = read_metadata(Path("m.onnx"))
    assert (stored["batch"], stored["size"]) == (batch, size)
    assert "torch_version" not in stored


def test_a_name_that_no_file_system_takes_is_refused(folder):
    with pytest.raises(ConfigError, match="File name too long"):
        Options(source="own.onnx", onnx=folder / ("long" * 100 + ".onnx"))
