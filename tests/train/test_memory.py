"""Too little memory is told with what to change."""

from collections.abc import Callable

import pytest

from compress.train.checkpoint import load_checkpoint
from compress.train.config import Config
from compress.train.memory import MemoryShortageError
from compress.train.session import train

Tiny = Callable[..., Config]
Failing = Callable[[int, str], str]


@pytest.mark.parametrize("steps", [3, 8], ids=["before the first checkpoint", "after it"])
def test_memory_that_runs_out_is_told_and_the_checkpoint_stays(tiny: Tiny, failing: Failing, steps: int):
    net = failing(steps + 1, "torch.empty(len(images), 2**45)  # more than any machine has")
    config = tiny(f"model.name={net}", "penalty.name=none")
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


def test_other_errors_pass(tiny: Tiny, failing: Failing):
    net = failing(4, "raise RuntimeError('another fault')")
    with pytest.raises(RuntimeError, match=r"^another fault$"):
        train(tiny(f"model.name={net}", "penalty.name=none"))
