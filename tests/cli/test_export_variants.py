"""``compress export`` of other sources and to smaller numbers, on a run that was really trained on the digits."""

import functools
import gzip
import json

import numpy as np
import onnx
import pytest
import torch
from rich.console import Console

import bench
from compress.cli.export.variants import why_int8_is_slower
from compress.train.recipe import resolve
from compress.train.rundir import open_run
from compress.train.session import train
from export import Fusion
from onnx_runs import session


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """LeNet-5 on 600 digits for four epochs, without a penalty."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    flags = {
        "model.name": "lenet5",
        "data.name": "digits",
        "data.limit": 600,
        "data.image_size": 16,
        "penalty.name": "none",
        "schedule.epochs": 4,
        "run.device": "cpu",
        "run.curves": False,
        "run.out": path,
    }
    train(resolve(None, flags), console=Console(quiet=True))
    return path


@pytest.fixture
def factory(tmp_path):
    """A file whose function makes a network that takes images of any size."""
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "def make(num_classes, in_channels):\n"
        "    conv, norm = nn.Conv2d(in_channels, 8, 3, bias=False), nn.BatchNorm2d(8)\n"
        "    return nn.Sequential(conv, norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))\n"
    )
    return f"{file}:make"


def right_share(path, run, split):
    """Accuracy of a file by hand."""
    data = run.data()
    images = data.validation if split == "validation" else data.load_test()
    pixels = images.images(torch.arange(len(images))).float().numpy() / 255
    inputs = ((pixels - np.reshape(run.mean, (-1, 1, 1))) / np.reshape(run.std, (-1, 1, 1))).astype(np.float32)
    file = session(path)
    answers = [int(file.run(None, {"input": one[None]})[0].argmax()) for one in inputs]
    return float(np.mean(np.array(answers) == images.labels.numpy()))


def document(path):
    return json.loads(path.with_name(f"{path.name}.json").read_text())


def test_int8_is_calibrated_judged_timed_and_told(run_dir, tmp_path, compress_command, monkeypatch):
    monkeypatch.setattr("bench.latency", functools.partial(bench.latency, runs=6, min_seconds=0.5))
    path, plain = tmp_path / "int8.onnx", tmp_path / "plain.onnx"
    assert compress_command("export", run_dir, "--onnx", plain).code == 0
    done = compress_command("export", run_dir, "--onnx", path, "--int8", "--calibration-images", 40)
    assert done.code == 0
    assert done.err == ""
    run, told = open_run(run_dir), document(path)
    assert told["precision"] == "int8"
    assert path.stat().st_size < 0.4 * plain.stat().st_size
    assert told["gzip_bytes"] == len(gzip.compress(path.read_bytes(), 9, mtime=0))
    assert [step["name"] for step in told["verification"]] == ["exported", "simplified", "int8"]
    assert told["int8"]["calibration"] == {"method": "min-max", "images": 40}
    assert told["int8"]["weight_bits"] == 7
    assert told["int8"]["fused_and_written_differ"]["max_relative_difference"] < 0.05
    for split in ("validation", "test"):
        assert told["accuracy"]["int8"][split] == pytest.approx(right_share(path, run, split))
        assert told["accuracy"]["float32"][split] == pytest.approx(right_share(plain, run, split))
    assert told["accuracy"]["float32"]["validation"] - told["accuracy"]["int8"]["validation"] <= 0.01
    stored = session(path).get_modelmeta().custom_metadata_map
    assert json.loads(stored["test_accuracy"]) == told["accuracy"]["int8"]["test"]
    assert (stored["precision"], stored["compared_on"]) == ("int8", "real images")
    real = told["verification"][-1]["real"]
    for key in ("max_abs_difference", "max_relative_difference", "mean_abs_difference", "argmax_agreement"):
        assert float(stored[key]) == real[key]
    assert "beyond what int8 was calibrated for" in done.out
    latency = told["latency"]
    assert 0 < latency["ratio_low"] <= latency["ratio"] <= latency["ratio_high"]
    slower = [line for line in done.out.splitlines() if "slower than float32 on this CPU" in line]
    assert bool(slower) == (latency["ratio_low"] > 1)
    assert f"{latency['ratio']:.3f} [{latency['ratio_low']:.3f}, {latency['ratio_high']:.3f}]" in done.out
    assert f"{told['accuracy']['int8']['test']:.2%}" in done.out
    beside = tmp_path / "int8-float32.onnx"
    bench_it = f"bench latency {path} --baseline {beside} --device cpu"
    assert done.out.splitlines()[-1] == f"compress export {run_dir} --onnx {beside} && {bench_it}"


@pytest.mark.parametrize(
    "flag, precision, share", [("--fp16", "float16", 0.55), ("--weights-int8", "int8 weights", 0.3)]
)
def test_other_numbers(run_dir, tmp_path, compress_command, flag, precision, share):
    path = tmp_path / "m.onnx"
    assert compress_command("export", run_dir, "--onnx", path, flag, "--no-latency").code == 0
    told = document(path)
    assert told["precision"] == precision
    assert told["latency"] is None
    assert told["file_bytes"] < share * open_run(run_dir).summary["bytes"]["compact"]
    assert told["accuracy"][precision]["test"] == pytest.approx(right_share(path, open_run(run_dir), "test"))


@pytest.mark.parametrize("options", [[], ["--int8", "--no-latency", "--calibration", "percentile"]], ids=str)
def test_pixels_as_they_come(run_dir, tmp_path, compress_command, options):
    path = tmp_path / "m.onnx"
    done = compress_command("export", run_dir, "--onnx", path, "--with-preprocess", "--layout", "nhwc", *options)
    assert done.code == 0
    run = open_run(run_dir)
    data = run.data()
    pixels = data.validation.images(torch.arange(50))
    with torch.no_grad():
        expected = run.model()(run.validation_batch(50)).numpy()
    file = session(path)
    got = np.concatenate([file.run(None, {"input": one[None].permute(0, 2, 3, 1).numpy()})[0] for one in pixels])
    np.testing.assert_allclose(got, expected, atol=(0.1 if options else 1e-4) * np.abs(expected).max())
    stored = file.get_modelmeta().custom_metadata_map
    assert (stored["mean"], stored["std"]) == ("null", "null")
    how = json.loads(stored["preprocess"])
    assert (how["dtype"], how["layout"], how["scale"], how["normalise"]) == ("uint8", "NHWC", None, None)


def test_a_factory(factory, tmp_path, compress_command):
    path = tmp_path / "m.onnx"
    options = ["--dynamic-size", "--dynamic-batch", "--channels", 1, "--classes", 4, "--image-size", 12]
    names = ["--input-name", "image", "--output-name", "scores"]
    done = compress_command("export", factory, "--onnx", path, *options, *names, "--ort")
    assert done.code == 0
    assert session(path).run(["scores"], {"image": np.zeros((3, 1, 20, 15), np.float32)})[0].shape == (3, 4)
    stored = session(path).get_modelmeta().custom_metadata_map
    assert (stored["model"], stored["batch"], stored["size"]) == ("net.py:make", "dynamic", "dynamic")
    assert int(stored["parameters"]) == 8 * 9 + 2 * 8 + 4 * 8 + 4
    assert int(stored["macs"]) == 8 * 9 * 10 * 10 + 4 * 8
    assert {"mean", "std", "class_names", "preprocess", "output"}.isdisjoint(stored)
    assert session(path.with_suffix(".ort")).get_inputs()[0].shape == ["batch", 1, "height", "width"]
    assert done.out.splitlines()[-1] == f"bench latency {path} --device cpu --shape image=1,1,12,12"


def test_an_onnx_file(run_dir, tmp_path, compress_command):
    first, second = tmp_path / "first.onnx", tmp_path / "second.onnx"
    compress_command("export", run_dir, "--onnx", first)
    done = compress_command("export", first, "--onnx", second, "--opset", 21, "--fp16", "--no-latency")
    assert done.code == 0
    assert done.out.splitlines()[-1] == f"bench latency {second} --baseline {first} --device cpu"
    stored = session(second).get_modelmeta().custom_metadata_map
    assert stored["run_hash"] == open_run(run_dir).hash
    assert stored["class_names"] == json.dumps(list(open_run(run_dir).class_names))
    assert "test_accuracy" not in stored  # that of float32
    assert (stored["precision"], stored["opset"]) == ("float16", "21")
    assert [entry.version for entry in onnx.load(second).opset_import if entry.domain == ""] == [21]


@pytest.mark.parametrize(
    "options, message",
    [
        (["--int8", "--fp16"], "--int8 and --fp16: a file holds one of them"),
        (["--int8", "--calibration-images", "0"], "--calibration-images 0: the calibration set would be empty"),
        (["--int8", "--max-drop", "2"], "--max-drop 2.0: a share of the accuracy between 0 and 1"),
        (["--dynamic-size", "--with-preprocess", "--layout", "nhwc"], "sizes vary in images of the layout nchw only"),
        (["--sparse-initializers", "--fp16"], "stores float32 weights, this file holds float16"),
        (["--sparse-initializers", "--ort"], "ONNX Runtime's own format holds dense weights"),
        (["--dynamic-size"], "LeNet5 itself fails on inputs of shape"),
    ],
)
def test_what_makes_no_sense_is_refused(run_dir, tmp_path, compress_command, options, message):
    done = compress_command("export", run_dir, "--onnx", tmp_path / "m.onnx", *options)
    assert done.code == 2
    assert message in done.err
    assert list(tmp_path.iterdir()) == []


def test_accuracy_that_would_be_lost_is_refused(run_dir, tmp_path, compress_command, monkeypatch):
    """Weights in so few steps that the network no longer knows digits."""
    monkeypatch.setattr("export.quantise.weights.LARGEST", 1)
    done = compress_command("export", run_dir, "--onnx", tmp_path / "m.onnx", "--weights-int8", "--no-latency")
    assert done.code == 2
    assert "of the validation accuracy, more than the 1.00% of --max-drop; no file was written" in done.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "isa, architecture, fusion, expected",
    [
        (("avx2",), "x86_64", Fusion(3, 0, 2), "it has no VNNI, so that a product of integers takes several"),
        (
            ("asimd",),
            "aarch64",
            Fusion(3, 0, 2),
            "it has no dot product (asimddp), so that a product of",
        ),
        (("asimddp",), "aarch64", Fusion(3, 2, 2), "2 layers are computed in float"),
        (("avx_vnni",), "x86_64", Fusion(3, 0, 6), "4 conversions between float and integers are left inside of the"),
        (("avx512_vnni",), "x86_64", Fusion(3, 0, 2), "the layers are so small that rounding to integers takes longer"),
    ],
)
def test_why_int8_is_slower(isa, architecture, fusion, expected):
    assert why_int8_is_slower(isa, architecture, fusion).startswith(expected)
