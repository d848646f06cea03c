from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from compress.train.config import Config
from compress.train.interrupt import Interrupted, StopRequest
from compress.train.recipe import resolve

TINY_NET = f"{Path(__file__).parent / 'tiny_net.py'}:make"


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Config]:
    """A configuration that trains in a second: ``tiny("optimizer.name=adam", out=...)``."""

    def configure(*settings: str, out: Path | None = None) -> Config:
        flags = {
            "model.name": TINY_NET,
            "data.name": "digits",
            "data.limit": 200,
            "data.augment.pad": 1,
            "penalty.name": "group-lasso",
            "penalty.strength": 0.2,
            "penalty.warmup_epochs": 0.5,
            "optimizer.lr": 0.05,
            "schedule.epochs": 3,
            "schedule.batch_size": 32,
            "schedule.lr_schedule": "cosine",
            "run.device": "cpu",
            "run.curves": False,
            "run.out": out or tmp_path / "run",
        }
        return resolve(flags=flags, settings=settings)

    return configure


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], AbstractContextManager[None]]:
    """``with stopping(9): train(config)``: Ctrl-C in step 9, counted over all trainings of a run."""

    @contextmanager
    def stop(step: int) -> Iterator[None]:
        asked = iter(range(1, 10**6))
        with monkeypatch.context() as patch:
            patch.setattr(StopRequest, "__bool__", lambda _: next(asked) == step)
            with pytest.raises(Interrupted):
                yield

    return stop


FAILING_NET = """
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
        features = self.convolution(images).amax((2, 3))
        if Net.steps >= STEP:
            STATEMENT
        return self.classifier(features)

def make(num_classes, in_channels):
    return Net(num_classes)
"""


@pytest.fixture
def failing(tmp_path: Path) -> Callable[[int, str], str]:
    """``failing(9, "features = features / 0")``: the name of a network that does so from its ninth step on."""

    def write(step: int, statement: str) -> str:
        file = tmp_path / "net.py"
        file.write_text(FAILING_NET.replace("STEP", str(step)).replace("STATEMENT", statement))
        return f"{file}:make"

    return write
