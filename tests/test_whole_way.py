"""Train, compact, export, latency, memory: through the commands that people type, on real images."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PARITY_TOLERANCE = 1e-4  # what `compress export` promises, relative to the largest output
AGREEMENT_TOLERANCE = 1e-5  # masked against compact network, float32


def pipeline(recipe: str, out: Path, *train: str) -> str:
    command = [sys.executable, str(ROOT / "experiments" / "pipeline.py"), "--recipe", str(ROOT / "recipes" / recipe)]
    done = subprocess.run(
        [*command, "--out", str(out), "--", *train], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``call(main, *words)``: the exit code of a console script's function, in this process, where all is imported."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # compress would set it for good

    def run(main: Callable[[], None], *words: object) -> int:
        monkeypatch.setattr(sys, "argv", [main.__module__.partition(".")[0], *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return int(exit_.value.code or 0)

    return run


def check_run(run: Path) -> None:
    """Everything that the table says, held against the files."""
    from compress.train.rundir import open_run

    opened = open_run(run)
    summary = opened.summary
    compact, masked = opened.model(), opened.dense_model()
    assert type(compact) is type(masked)
    assert summary["parameters"]["compact"] == sum(p.numel() for p in compact.parameters())
    assert summary["parameters"]["compact"] < summary["parameters"]["dense"]
    assert summary["macs"]["compact"] < summary["macs"]["dense"]
    images = opened.validation_batch(64)
    with torch.no_grad():
        expected, got = masked(images), compact(images)
    assert float((expected - got).abs().max()) <= AGREEMENT_TOLERANCE * max(1.0, float(expected.abs().max()))
    # one image may fall on another side of a tie that rounding breaks
    count = summary["images"]["validation"]
    assert abs(summary["accuracy"]["validation"]["masked"] - summary["accuracy"]["validation"]["compact"]) <= 1 / count
    for name, network in (("model.onnx", compact), ("model-dense.onnx", masked)):
        model = onnx.load(run / name)
        onnx.checker.check_model(model, full_check=True)
        facts = {entry.key: entry.value for entry in model.metadata_props}
        assert facts["run_hash"] == opened.hash
        session = onnxruntime.InferenceSession(run / name, providers=["CPUExecutionProvider"])
        for image in images[:8]:
            (onnx_out,) = session.run(None, {session.get_inputs()[0].name: image[None].numpy()})
            with torch.no_grad():
                torch_out = network(image[None]).numpy()
            assert np.abs(onnx_out - torch_out).max() <= PARITY_TOLERANCE * np.abs(torch_out).max()
    latency = json.loads((run / "latency.json").read_text())
    assert latency["format"] == "bench-report"
    assert latency["model"]["latency"]["samples"] >= 200
    assert 0 < latency["ratio"]["low"] <= latency["ratio"]["value"] <= latency["ratio"]["high"]
    memory = json.loads((run / "memory.json").read_text())
    assert memory["model"]["file"]["file_bytes"] == (run / "model.onnx").stat().st_size
    assert memory["ratios"]["file_bytes"] < 1


def test_digits(tmp_path: Path) -> None:
    """The demo's recipe, cut short."""
    out = tmp_path / "run"
    printed = pipeline(
        "digits-demo.toml", out, "--epochs", "3", "--set", "penalty.epochs=2", "--set", "penalty.warmup_epochs=1"
    )
    assert "$ compress train" in printed
    assert "latency p50" in printed
    check_run(out)


def test_resnet20_on_cifar10_jpeg(tmp_path: Path, cifar10_jpeg: Path, call: Callable[..., int]) -> None:
    """Residual additions, 600 images, two epochs: the path, not the accuracy."""
    import bench.cli
    import compress.cli

    out, recipe = tmp_path / "run", ROOT / "recipes" / "resnet20-cifar10jpeg.toml"
    small, dense = out / "model.onnx", out / "model-dense.onnx"
    options = ["--data-dir", cifar10_jpeg, "--limit", 600, "--epochs", 2, "--strength", 4]
    settings = ["--set", "penalty.epochs=2", "--set", "run.curves=false"]
    pair = [small, "--baseline", dense, "--device", "cpu", "--threads", 1]
    assert call(compress.cli.main, "train", "--recipe", recipe, "--out", out, *options, *settings) == 0
    assert call(compress.cli.main, "export", out, "--onnx", small) == 0
    assert call(compress.cli.main, "export", out, "--onnx", dense, "--dense") == 0
    quick = ["--runs", 6, "--min-seconds", 0.5]
    assert call(bench.cli.main, "latency", *pair, *quick, "--json", out / "latency.json") == 0
    assert call(bench.cli.main, "memory", *pair, "--json", out / "memory.json") == 0
    check_run(out)


@pytest.mark.parametrize("step", ["export", "inspect"])
def test_the_next_command_after_an_unfinished_run_says_what_to_do(
    tmp_path: Path, step: str, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    import compress.cli

    options = ["--onnx", tmp_path / "x.onnx"] if step == "export" else []
    assert call(compress.cli.main, step, tmp_path, *options) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert str(tmp_path) in told
    assert not (tmp_path / "x.onnx").exists()
