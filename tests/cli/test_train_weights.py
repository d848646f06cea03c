"""``compress train --weights``; whatever cannot be used is one message, exit code 2, and nothing written."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.models import build

SHORT = (
    "--model", "lenet300-100", "--dataset", "digits", "--limit", "200", "--epochs", "1", "--penalty", "none",
    "--device", "cpu", "--set", "run.threads=1", "--set", "run.curves=false", "--set", "optimizer.lr=1e-30",
)  # fmt: skip


def state(classes: int = 10) -> dict[str, torch.Tensor]:
    return build("lenet300-100", num_classes=classes, in_channels=1, image_size=8).state_dict()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_training_starts_from_the_file(compress_command: Callable, tmp_path: Path, name: str):
    given = state()
    save_file(given, tmp_path / name) if name.endswith("safetensors") else torch.save(given, tmp_path / name)
    outcome = compress_command("train", *SHORT, "--weights", tmp_path / name, "--out", tmp_path / "run")
    assert outcome.code == 0
    assert outcome.out.splitlines()[0] == f"started from {tmp_path / name}: 6 tensors"
    trained = load_file(tmp_path / "run" / "masked.safetensors")
    assert all(torch.equal(given[key], trained[key]) for key in given)
    (tmp_path / name).unlink()
    assert compress_command("train", "--out", tmp_path / "run", "--resume").code == 0
    assert compress_command("inspect", tmp_path / "run").code == 0


@pytest.mark.parametrize(
    ("content", "words", "told"),
    [
        (None, (), ("cannot read the weights", "weights.pth")),
        (b"no weights", (), ("weights.pth: cannot be read as weights", "torch.save(model.state_dict(), FILE)")),
        ({"net": state()}, (), ("entries that are no tensors (net)", "state_dict, model_state_dict, model")),
        (state(7), (), ("2 of another shape: fc3.weight [7, 100] in the file, [10, 100] here", "model.new_head=true")),
        (state(10), ("--set", "model.new_head=true"), ("as many classes as the data set, 10",)),
        (state(10), ("--model", "lenet5", "--image-size", "16"), ("missing in the file: conv1.weight, ", "lenet" * 0)),
        (state(10), ("--weights", "weights.onnx"), ("model.weights", "ends in .safetensors, .pth, .pt")),
    ],
    ids=["missing", "text", "unknown checkpoint", "another head", "the same head", "another network", "ending"],
)
def test_what_cannot_be_used_is_one_message_and_exit_code_2(
    compress_command: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    content: object,
    words: tuple[str, ...],
    told: tuple[str, ...],
):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    before = sorted(tmp_path.iterdir())
    outcome = compress_command("train", *SHORT, "--weights", path, *words, "--out", "run")
    assert outcome.code == 2
    assert outcome.err.startswith("compress: ")
    assert [part for part in told if part not in outcome.err] == []
    assert "Traceback" not in outcome.err + outcome.out
    assert sorted(tmp_path.iterdir()) == before


def test_a_new_head_is_named(compress_command: Callable, tmp_path: Path):
    torch.save(state(7), tmp_path / "w.pth")
    options = ("--weights", tmp_path / "w.pth", "--set", "model.new_head=true")
    outcome = compress_command("train", *SHORT, *options, "--out", tmp_path / "run")
    assert outcome.out.splitlines()[0] == f"started from {tmp_path / 'w.pth'}: 4 tensors; new last layer: fc3"


def test_a_new_head_without_weights_is_a_fault(compress_command: Callable, tmp_path: Path):
    outcome = compress_command("train", *SHORT, "--set", "model.new_head=true", "--out", tmp_path / "run")
    assert outcome.code == 2
    assert "model.new_head: got True; without model.weights the whole network is new; leave it out" in outcome.err
