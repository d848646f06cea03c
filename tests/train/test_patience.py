"""Early stopping: which epochs count, and which network is kept."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from compress.errors import ConfigError
from compress.train.config import Config
from compress.train.session import train

Tiny = Callable[..., Config]


def accuracies(out: Path) -> list[float]:
    return [json.loads(line)["validation_accuracy"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def last_epoch(accuracy: list[float], patience: int, first: int) -> int:
    """The number of epochs that a run with these accuracies has, by the definition."""
    for epochs in range(first + patience + 1, len(accuracy) + 1):
        since = accuracy[first:epochs]
        if max(since[:-patience]) >= max(since[-patience:]):
            return epochs
    return len(accuracy)


@pytest.mark.parametrize("patience", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_run_ends_after_so_many_epochs_without_a_gain_and_keeps_the_best(tiny: Tiny, tmp_path: Path, patience: int):
    settings = ("penalty.epochs=3", "schedule.epochs=12", "schedule.lr_schedule=constant", "optimizer.lr=0.1")
    settings = (*settings, "penalty.strength=0.02")
    train(tiny(*settings, out=tmp_path / "all"))
    config = tiny(*settings, f"schedule.patience={patience}", "penalty.compact_every=2", out=tmp_path / "run")
    summary = train(config)
    everything, ours = accuracies(tmp_path / "all"), accuracies(config.out)
    assert ours[0] == everything[0]
    assert last_epoch(ours, patience, first=3) == len(ours) <= 12
    assert summary["accuracy"]["validation"]["compact"] == pytest.approx(max(ours[3:]))


def test_patience_ends_a_run_and_the_stopped_run_is_resumed_alike(
    tiny: Tiny, tmp_path: Path, stopping: Callable[[int], AbstractContextManager[None]]
):
    settings = ("penalty.name=none", "schedule.epochs=40", "schedule.patience=2", "run.dense_baseline=false")
    settings = (*settings, "optimizer.lr=0.3", "schedule.lr_schedule=constant", "average.decay=0.5")
    whole = train(tiny(*settings, out=tmp_path / "whole"))
    ours = accuracies(tmp_path / "whole")
    assert len(ours) == last_epoch(ours, 2, first=0) < 40
    assert max(ours[:-2]) == whole["accuracy"]["validation"]["compact"]
    config = tiny(*settings, out=tmp_path / "parts")
    with stopping(7 * len(ours) - 9):  # six steps an epoch, and one question at its end: in the last but one
        train(config)
    assert train(config, resume=True)["hash"] == whole["hash"]
    (config.out / "summary.json").unlink()
    assert train(config, resume=True)["hash"] == whole["hash"]  # an ended training ends the same way again
    assert accuracies(config.out) == ours


def test_patience_without_an_epoch_that_counts_is_refused(tiny: Tiny):
    with pytest.raises(ConfigError, match=r"schedule\.patience: got 2, but epochs count from the penalty's end"):
        tiny("schedule.patience=2")
    assert tiny("schedule.patience=2", "penalty.epochs=2").schedule.patience == 2
    assert tiny("schedule.patience=2", "penalty.name=none").schedule.patience == 2
