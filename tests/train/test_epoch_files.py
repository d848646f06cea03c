"""The log for other programs holds what the log holds, after a stop too."""

import csv
import json
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from compress.errors import ConfigError
from compress.train.config import Config
from compress.train.epoch_files import row, table
from compress.train.session import train

Tiny = Callable[..., Config]
Stopping = Callable[[int], AbstractContextManager[None]]

RECORD = {
    "epoch": 1,
    "loss": 0.5,
    "dead_share": None,
    "live_groups": {"features.0": 8, "features.4": 3},
    "compaction": {"parameters": [100, 60], "macs": [1000, 700], "refused": None, "seconds": 0.1},
}


def test_a_row_has_every_number_under_one_name():
    assert row(RECORD) == {
        "epoch": 1, "loss": 0.5, "dead_share": None, "live_groups/features.0": 8, "live_groups/features.4": 3,
        "parameters": 60, "macs": 700,
    }  # fmt: skip


def test_what_an_epoch_does_not_have_is_left_empty():
    other = RECORD | {"epoch": 2, "live_groups": {"features.4": 2}, "compaction": None}
    refused = RECORD | {"epoch": 3, "live_groups": None, "compaction": dict.fromkeys(RECORD["compaction"])}
    assert table([RECORD, other, refused]) == (
        "epoch,loss,dead_share,live_groups/features.0,live_groups/features.4,parameters,macs\n"
        "1,0.5,,8,3,60,700\n2,0.5,,,2,,\n3,0.5,,,,,\n"
    )


def log_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("stop", [9, 14], ids=["in an epoch", "at an epoch's end"])
def test_table_and_events_are_the_log_after_a_stop_too(tiny: Tiny, stopping: Stopping, stop: int):
    config = tiny("run.tensorboard=true")
    with stopping(stop):
        train(config)
    (config.out / "metrics.csv").unlink()
    train(config, resume=True)
    log = log_of(config.out)
    with (config.out / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(each["loss"]) for each in rows] == [line["loss"] for line in log]
    assert [int(each["live_groups/features.4"]) for each in rows] == [line["live_groups"]["features.4"] for line in log]
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    for name in ("loss", "validation_accuracy", "strength"):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [1, 2, 3]
        assert [scalar.value for scalar in scalars] == pytest.approx([line[name] for line in log], rel=1e-6)
    assert [scalar.value for scalar in events.Scalars("live_groups/features.4")] == [
        line["live_groups"]["features.4"] for line in log
    ]


def test_epochs_that_a_killed_run_wrote_after_its_checkpoint_are_purged(tiny: Tiny, stopping: Stopping):
    config = tiny("run.tensorboard=true")
    with stopping(7):
        train(config)
    checkpoint = (config.out / "checkpoint.pt").read_bytes()
    with stopping(7):
        train(config, resume=True)
    (config.out / "checkpoint.pt").write_bytes(checkpoint)  # as if the second epoch's had not been written any more
    train(config, resume=True)
    events = EventAccumulator(str(config.out / "tensorboard"))
    events.Reload()
    assert [scalar.step for scalar in events.Scalars("loss")] == [1, 2, 3]


def test_tensorboard_is_needed_only_where_it_is_asked_for(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # what an import finds that is not installed
    config = tiny("run.tensorboard=true", out=tmp_path / "watched")
    with pytest.raises(ConfigError, match=r"run\.tensorboard: the package tensorboard is not installed"):
        train(config)
    assert not config.out.exists()
    train(tiny(out=tmp_path / "plain"))
    assert not (tmp_path / "plain" / "tensorboard").exists()
