from pathlib import Path

import pytest

from compress.errors import CheckpointError
from compress.train.metrics import MetricsLog


def test_lines_come_back_and_later_ones_can_be_dropped(tmp_path: Path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.records() == []
    log.keep(3)
    for epoch in (1, 2, 3):
        log.append({"epoch": epoch, "loss": 0.5})
    log.keep(2)
    assert log.records() == [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.5}]


def test_a_log_that_cannot_be_written_is_an_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot write"):
        MetricsLog(tmp_path / "gone" / "metrics.jsonl").append({})
