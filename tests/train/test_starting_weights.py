"""Runs that start from a file of weights: what they start with, and that they need the file only once."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from compress.errors import ModelError
from compress.models import build
from compress.train.config import Config
from compress.train.rundir import Origin, open_run
from compress.train.session import train

Tiny = Callable[..., Config]
Stopping = Callable[[int], AbstractContextManager[None]]
STANDING = ("optimizer.lr=1e-30", "penalty.name=none", "schedule.epochs=1")
"""Training that moves no weight by more than rounding."""


@pytest.fixture
def weights(tiny: Tiny, tmp_path: Path) -> Callable[[int], Path]:
    """A file of weights for the tiny network, for so many classes."""

    def write(classes: int) -> Path:
        torch.manual_seed(99)
        model = build(tiny().model.name, num_classes=classes, in_channels=1, image_size=8)
        torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
        return tmp_path / "weights.pth"

    return write


def same(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first, second, rtol=0, atol=1e-20)


def parameters(path: Path) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in load_file(path).items() if "running" not in name and "num_" not in name}


def test_training_starts_with_the_files_weights(tiny: Tiny, weights: Callable[[int], Path]):
    path = weights(10)
    config = tiny(f"model.weights={path}", *STANDING)
    train(config)
    given, got = torch.load(path)["state_dict"], parameters(config.out / "masked.safetensors")
    assert len(got) > 4
    assert all(same(given[name], tensor) for name, tensor in got.items())


def test_a_new_head_is_that_of_the_seed(tiny: Tiny, weights: Callable[[int], Path], tmp_path: Path):
    path = weights(7)
    with pytest.raises(ModelError, match=r"the file has it for 7 classes\. .*model\.new_head=true"):
        train(tiny(f"model.weights={path}"))
    assert not (tmp_path / "run").exists()
    config = tiny(f"model.weights={path}", "model.new_head=true", *STANDING)
    train(config)
    train(tiny(*STANDING, out=tmp_path / "new"))
    given, new = torch.load(path)["state_dict"], parameters(tmp_path / "new" / "masked.safetensors")
    got = parameters(config.out / "masked.safetensors")
    heads = {name for name, tensor in got.items() if tensor.shape != given[name].shape}
    assert len(heads) == 2
    assert all(same(new[name] if name in heads else given[name], tensor) for name, tensor in got.items())


@pytest.mark.parametrize("step", [4, 33], ids=["in the dense baseline", "in the sparse training"])
def test_a_resumed_run_does_not_need_the_file(
    tiny: Tiny, weights: Callable[[int], Path], tmp_path: Path, stopping: Stopping, step: int
):
    settings = (f"model.weights={weights(7)}", "model.new_head=true", "run.dense_baseline=true")
    whole = train(tiny(*settings, out=tmp_path / "whole"))
    config = tiny(*settings, out=tmp_path / "parts")
    with stopping(step):
        train(config)
    Path(tmp_path / "weights.pth").unlink()
    resumed = train(config, resume=True)
    assert resumed["hash"] == whole["hash"]
    assert resumed["accuracy"] == whole["accuracy"]
    # Nor does what goes on from it.
    tuned = tiny(*settings[:2], "penalty.name=none", out=tmp_path / "tuned")
    train(tuned, origin=Origin("finetune", open_run(config.out)))
    assert not (tmp_path / "tuned" / "start.safetensors").exists()


def test_only_a_run_with_given_weights_keeps_them(tiny: Tiny, weights: Callable[[int], Path], tmp_path: Path):
    config = tiny(f"model.weights={weights(10)}", "penalty.compact_every=1", "penalty.strength=0.1")
    train(config)
    start, given = load_file(config.out / "start.safetensors"), torch.load(tmp_path / "weights.pth")["state_dict"]
    assert start.keys() == given.keys()
    assert all(torch.equal(start[name], tensor) for name, tensor in given.items())
    train(tiny(*STANDING, out=tmp_path / "new"))
    assert not (tmp_path / "new" / "start.safetensors").exists()
