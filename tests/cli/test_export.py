"""``compress export`` on a run that was really trained, briefly, on the embedded digits."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from rich.console import Console

from compress.cli.export import export_command, next_command
from compress.errors import CheckpointError, CompressError
from compress.train.recipe import resolve
from compress.train.rundir import open_run
from compress.train.session import train


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """LeNet-5 on 300 digits for two epochs, with so strong a penalty that neurons die."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    flags = {
        "model.name": "lenet5",
        "data.name": "digits",
        "data.limit": 300,
        "data.image_size": 16,
        "penalty.name": "l0",
        "penalty.granularity": "coupled",
        "penalty.strength": 20.0,
        "schedule.epochs": 2,
        "run.device": "cpu",
        "run.out": path,
    }
    train(resolve(None, flags), console=Console(quiet=True))
    return path


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_compact_network_is_written_and_agrees_on_real_images(run_dir, tmp_path, capsys):
    path = tmp_path / "digits.onnx"
    export_command(run_dir, path)
    run = open_run(run_dir)
    images = run.validation_batch(4)
    onnx_model = session(path)
    with torch.no_grad():
        expected = run.model()(images).numpy()
    for image, logits in zip(images, expected, strict=True):
        (output,) = onnx_model.run(None, {"input": image[None].numpy()})
        np.testing.assert_allclose(output[0], logits, rtol=1e-4, atol=1e-4)
    stored = onnx_model.get_modelmeta().custom_metadata_map
    assert stored["run_hash"] == run.hash
    assert stored["variant"] == "compact"
    assert json.loads(stored["class_names"]) == list(run.class_names)
    assert json.loads(stored["mean"]) == list(run.mean)
    assert json.loads(stored["std"]) == list(run.std)
    assert json.loads(stored["test_accuracy"]) == run.summary["accuracy"]["test"]["compact"]
    assert json.loads(stored["macs"]) == run.summary["macs"]["compact"]
    assert int(stored["real_batches_checked"]) == min(32, run.summary["images"]["validation"])
    assert float(stored["max_relative_difference"]) <= 1e-4
    printed = capsys.readouterr().out
    assert f"{path.stat().st_size:,}" in printed
    assert "18 (ONNX Runtime 1.14 and later)" in printed
    assert printed.splitlines()[-1] == next_command(run_dir, path, dense=False)


def test_dense_network_computes_the_same_and_is_larger(run_dir, tmp_path, capsys):
    compact, dense = tmp_path / "digits.onnx", tmp_path / "digits-dense.onnx"
    export_command(run_dir, dense, dense=True, dynamic_batch=True)
    export_command(run_dir, compact, dynamic_batch=True, opset=20)
    images = open_run(run_dir).validation_batch(7).numpy()
    outputs = [session(path).run(None, {"input": images})[0] for path in (compact, dense)]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    assert compact.stat().st_size < dense.stat().st_size
    assert session(dense).get_modelmeta().custom_metadata_map["variant"] == "masked"
    last = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(last) == ["bench", "latency", str(compact), "--baseline", str(dense), "--device", "cpu"]


@pytest.mark.parametrize(
    "name, dense, expected",
    [
        ("m.onnx", False, "compress export runs/a --onnx m-dense.onnx --dense && {bench}"),
        ("m-dense.onnx", True, "compress export runs/a --onnx m.onnx && {bench}"),
    ],
)
def test_next_command_makes_the_missing_half(name, dense, expected):
    bench = "bench latency m.onnx --baseline m-dense.onnx --device cpu"
    assert next_command(Path("runs/a"), Path(name), dense=dense) == expected.format(bench=bench)


def test_next_command_never_names_one_file_twice_and_quotes():
    assert next_command(Path("a run"), Path("base.onnx"), dense=True) == (
        "compress export 'a run' --onnx base-compact.onnx && "
        "bench latency base-compact.onnx --baseline base.onnx --device cpu"
    )


def test_bad_input_is_refused_and_leaves_nothing(run_dir, tmp_path):
    with pytest.raises(CompressError, match=r"cannot export .*: cannot write .*: the folder .*nowhere does not exist"):
        export_command(run_dir, tmp_path / "nowhere" / "m.onnx")
    with pytest.raises(CompressError, match="is a folder"):
        export_command(run_dir, tmp_path)
    with pytest.raises(CompressError, match="opset 11 cannot be exported"):
        export_command(run_dir, tmp_path / "m.onnx", opset=11)
    with pytest.raises(CheckpointError, match="is no run directory"):
        export_command(tmp_path, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_command_line_says_it_in_one_message_with_exit_code_2(tmp_path):
    command = [sys.executable, "-c", "from compress.cli import main; main()"]
    arguments = ["export", str(tmp_path), "--onnx", str(tmp_path / "m.onnx")]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"compress: {tmp_path}: is no run directory")
    assert "Traceback" not in done.stderr


def test_the_runs_own_files_are_not_overwritten(run_dir):
    before = (run_dir / "masked.safetensors").read_bytes()
    with pytest.raises(CompressError, match=r"must end in \.onnx"):
        export_command(run_dir, run_dir / "masked.safetensors")
    assert (run_dir / "masked.safetensors").read_bytes() == before
