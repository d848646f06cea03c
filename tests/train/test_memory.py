"""Too little memory is told with what to change."""

from collections.abc import Callable
from pathlib import Path

import pytest

from compress.train.checkpoint import load_checkpoint
from compress.train.config import Config
from compress.train.memory import MemoryShortageError
from compress.train.session import train

NET = """
import torch
from torch import nn

class Net(nn.Module):
    steps = 0

    def __init__(self, num_classes):
        super().__init__()
        self.convolution = nn.Conv2d(1, 8, 3)
        self.classifier = nn.Linear(8, num_classes)

    def forward(self, images):
        Net.steps += self.training and len(images) > 1
        if Net.steps > STEPS:
            torch.empty(len(images), 2**45)  # more than any machine has
        return self.classifier(self.convolution(images).amax((2, 3)))

def make(num_classes, in_channels):
    return Net(num_classes)
"""


@pytest.mark.parametrize("steps", [3, 8], ids=["before the first checkpoint", "after it"])
def test_memory_that_runs_out_is_told_and_the_checkpoint_stays(tiny: Callable[..., Config], tmp_path: Path, steps: int):
    file = tmp_path / "net.py"
    file.write_text(NET.replace("STEPS", str(steps)))
    config = tiny(f"model.name={file}:make", "penalty.name=none")
    with pytest.raises(MemoryShortageError) as caught:
        train(config)
    told = str(caught.value)
    assert "can't allocate memory: you tried to allocate" in told
    assert "--set schedule.batch_size=16 (now 32)" in told
    assert "--image-size N (the data set's own now)" in told
    assert f"compress train --out {config.out} --resume" in told
    saved = config.out / "checkpoint.pt"
    assert ("The last checkpoint is kept" in told) == saved.exists() == (steps == 8)
    if saved.exists():
        assert load_checkpoint(saved)["position"]["epoch"] == 1


def test_other_errors_pass(tiny: Callable[..., Config], tmp_path: Path):
    file = tmp_path / "net.py"
    file.write_text(NET.replace("STEPS", "3").replace("torch.empty", "raise RuntimeError('another fault') if 1 else f"))
    with pytest.raises(RuntimeError, match=r"^another fault$"):
        train(tiny(f"model.name={file}:make", "penalty.name=none"))
