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
