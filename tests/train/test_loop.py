import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from rich.console import Console

from compress.errors import CheckpointError
from compress.train.config import Config
from compress.train.divergence import DivergenceError
from compress.train.inputs import Inputs
from compress.train.interrupt import Interrupted
from compress.train.learner import build_learner
from compress.train.loop import Trainer
from compress.train.progress import ProgressView
from compress.train.rundir import CHECKPOINT, METRICS, START, load_data
from compress.train.session import build_model, seed_everything

Tiny = Callable[..., Config]
STEPS_PER_EPOCH = 6  # 180 images, 32 a step


def make_trainer(config: Config, directory: Path) -> Trainer:
    directory.mkdir(exist_ok=True)
    data = load_data(config.data, config.run.seed)
    inputs = Inputs(data, config.data.augment, seed=config.run.seed, device=torch.device("cpu"))
    seed_everything(config.run.seed)
    learner = build_learner(
        config, build_model(config, data, saved=directory / START), torch.zeros(1, *data.image_shape)
    )
    seed_everything(config.run.seed)
    return Trainer(learner, data, inputs, config, directory)


def fit(trainer: Trainer, stop_after: int | None = None) -> None:
    """Train; with ``stop_after``, as if Ctrl-C came in that step (counted over all epochs)."""
    steps = 0

    def should_stop() -> bool:
        nonlocal steps
        steps += 1
        return steps == stop_after

    view = ProgressView(Console(quiet=True), "test", epochs=3, steps_per_epoch=trainer.steps_per_epoch)
    with view:
        trainer.fit(view, should_stop)


def log_of(directory: Path) -> list[dict[str, object]]:
    lines = [json.loads(line) for line in (directory / METRICS).read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def assert_same(one: Trainer, other: Trainer) -> None:
    weights, expected = other.learner.model.state_dict(), one.learner.model.state_dict()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []


@pytest.mark.parametrize(
    ("settings", "stop_after"),
    [
        (("optimizer.name=sgd",), 1),
        (("optimizer.name=adam",), STEPS_PER_EPOCH + 3),
        (("optimizer.name=rmsprop", "optimizer.lr=0.003", "data.augment.flip=true"), STEPS_PER_EPOCH),
        (("penalty.epochs=1", "penalty.strength=0.4"), 2 * STEPS_PER_EPOCH + 4),
        (("penalty.mode=subgradient",), STEPS_PER_EPOCH + 1),
        (("penalty.name=none",), STEPS_PER_EPOCH + 2),
        (("data.augment.brightness=0.3", "data.augment.cutout=2", "data.augment.mixup=0.4"), STEPS_PER_EPOCH + 3),
        (("average.decay=0.9", "schedule.label_smoothing=0.1"), STEPS_PER_EPOCH + 2),
        (("penalty.epochs=1", "schedule.patience=1", "average.decay=0.9"), 2 * STEPS_PER_EPOCH + 4),
    ],
    ids=[
        *("first step", "mid-epoch", "last step of an epoch", "after the penalty", "subgradient", "no penalty"),
        *("mixed", "average", "patience"),
    ],
)
def test_an_interrupted_training_ends_with_the_same_bits(
    tiny: Tiny, tmp_path: Path, settings: tuple[str, ...], stop_after: int
):
    config = tiny(*settings)
    whole = make_trainer(config, tmp_path / "whole")
    fit(whole)
    with pytest.raises(Interrupted):
        fit(make_trainer(config, tmp_path / "parts"), stop_after)
    torch.rand(7)  # whatever else the process drew must not matter
    resumed = make_trainer(config, tmp_path / "parts")
    assert resumed.resume()
    fit(resumed)
    assert_same(whole, resumed)
    assert log_of(tmp_path / "parts") == log_of(tmp_path / "whole")
    assert resumed.position.best_accuracy == whole.position.best_accuracy


def test_the_same_seed_gives_the_same_weights_and_another_one_others(tiny: Tiny, tmp_path: Path):
    trainers = {}
    for name, seed in [("first", 1), ("second", 1), ("other", 2)]:
        trainers[name] = make_trainer(tiny(f"run.seed={seed}"), tmp_path / name)
        fit(trainers[name])
    assert_same(trainers["first"], trainers["second"])
    first, other = (trainers[name].learner.model.state_dict()["classifier.2.weight"] for name in ("first", "other"))
    assert not torch.equal(first, other)


def test_the_log_has_a_line_an_epoch(tiny: Tiny, tmp_path: Path):
    trainer = make_trainer(tiny("penalty.epochs=2"), tmp_path / "run")
    fit(trainer)
    log = log_of(tmp_path / "run")
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert [line["strength"] for line in log] == [0.2, 0.2, 0.0]
    assert log[0]["loss"] > log[1]["loss"] > log[2]["loss"]
    alive = log[2]["live_groups"]
    assert 1 - sum(alive.values()) / 20 == pytest.approx(log[2]["dead_share"])
    assert log[1]["dead_share"] == log[2]["dead_share"] > 0  # frozen: none dies, none comes back


def test_lines_after_the_last_checkpoint_are_written_anew(tiny: Tiny, tmp_path: Path):
    config = tiny()
    with pytest.raises(Interrupted):
        fit(make_trainer(config, tmp_path / "run"), STEPS_PER_EPOCH + 3)
    with (tmp_path / "run" / METRICS).open("a") as log:
        log.write('{"epoch": 2, "left by": "a killed process"}\n')
    trainer = make_trainer(config, tmp_path / "run")
    trainer.resume()
    assert [line["epoch"] for line in log_of(tmp_path / "run")] == [1]


def test_long_epochs_get_checkpoints_in_between(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("compress.train.loop.CHECKPOINT_INTERVAL_S", 0.0)
    trainer = make_trainer(tiny(), tmp_path / "run")
    steps: list[int] = []
    save = trainer.save
    monkeypatch.setattr(trainer, "save", lambda: (save(), steps.append(trainer.position.step)))
    fit(trainer)
    assert steps == [1, 2, 3, 4, 5, 6, 0] * 3


def test_a_loss_that_is_not_finite_stops_and_names_step_and_rate(tiny: Tiny, tmp_path: Path):
    trainer = make_trainer(tiny("optimizer.lr=1e30", "schedule.lr_schedule=constant"), tmp_path / "run")
    with pytest.raises(DivergenceError, match=r"step 2 of epoch 1 \(learning rate 1e\+30.*loss is nan.*optimizer\.lr="):
        fit(trainer)
    assert not (tmp_path / "run" / CHECKPOINT).exists()


def test_a_checkpoint_of_another_model_is_refused(tiny: Tiny, tmp_path: Path):
    with pytest.raises(Interrupted):
        fit(make_trainer(tiny(), tmp_path / "run"), 1)
    other = make_trainer(tiny("model.name=lenet5", "data.image_size=28"), tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"does not fit the run: (?s:.)*conv1"):
        other.resume()


def test_no_checkpoint_means_from_the_start(tiny: Tiny, tmp_path: Path):
    assert not make_trainer(tiny(), tmp_path / "run").resume()
