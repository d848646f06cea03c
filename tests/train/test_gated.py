"""``compress train`` with hard-concrete gates: from random gates to exact zeros, with and without a stop."""

import json

import pytest

from compress.errors import ConfigError
from compress.train.session import train

GATED = (
    *("penalty.name=hard-concrete", "penalty.strength=0.05", "penalty.gate_lr_factor=50"),
    *("optimizer.name=adam", "optimizer.lr=0.01"),
)


@pytest.mark.parametrize(
    "penalty_epochs", ["penalty.epochs=2", "penalty.warmup_epochs=1"], ids=["then recovery", "to the end"]
)
def test_gates_are_folded_into_exact_zeros_that_leave(tiny, penalty_epochs: str) -> None:
    config = tiny(*GATED, penalty_epochs, "schedule.epochs=4")
    summary = train(config)
    assert summary["dead_share"] > 0
    assert summary["parameters"]["compact"] < summary["parameters"]["dense"]
    assert summary["max_abs_error"] < 1e-5
    accuracy = summary["accuracy"]["validation"]
    assert accuracy["masked"] == accuracy["compact"]
    log = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["validation_accuracy"] == pytest.approx(accuracy["masked"])  # folding changed nothing


@pytest.mark.parametrize("step", [8, 14], ids=["gated", "folded"])
def test_a_gated_run_that_was_stopped_ends_as_one_that_was_not(tiny, tmp_path, stopping, step: int) -> None:
    settings = (*GATED, "penalty.epochs=2", "schedule.epochs=3")
    whole, config = tiny(*settings, out=tmp_path / "whole"), tiny(*settings, out=tmp_path / "parts")
    train(whole)
    with stopping(step):
        train(config)
    train(config, resume=True)
    assert (config.out / "masked.safetensors").read_bytes() == (whole.out / "masked.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("penalty.budget.target=0.5", "penalty.budget: gates are folded"),
        ("penalty.compact_every=1", "penalty.compact_every: gates are folded"),
        ("penalty.mode=subgradient", "penalty.mode: gates are folded"),
    ],
)
def test_what_gates_cannot_do_is_refused(tiny, setting: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        tiny(*GATED, setting)
