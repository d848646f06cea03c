"""Dead channels that leave while the network trains: nothing else changes."""

import copy
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.utils import prune

import compress
from compress.errors import CheckpointError
from compress.surgery import Plan
from compress.surgery.compose import compose
from compress.train.checkpoint import load_checkpoint, random_state
from compress.train.compaction import Compaction, expanded, find_compaction
from compress.train.config import Config
from compress.train.inputs import Inputs
from compress.train.interrupt import Interrupted
from compress.train.learner import Learner, build_learner
from compress.train.loop import Trainer
from compress.train.progress import ProgressView
from compress.train.rundir import CHECKPOINT, METRICS, START, load_data, open_run
from compress.train.session import build_model, seed_everything, train

Tiny = Callable[..., Config]

STEPS_PER_EPOCH = 3  # 90 images, 32 a step

ROUNDING = 1e-11
"""Sums of rows without their zeros are rounded otherwise, by some 1e-16 a step; a few dozen steps magnify that."""

FILE = Path(__file__).parent / "half_dead.py"
LENET, RESNET = f"{FILE}:lenet5", f"{FILE}:resnet8"
RESNET_PARAMETERS = (77_754, 19_810)  # with 16, 32 and 64 channels, for grey images and 10 classes; with half of them


class DoubleInputs(Inputs):
    """The same images in float64."""

    def plain_batches(self, *what: object, **who: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in super().plain_batches(*what, **who):
            yield images.double(), labels

    def augmented(self, *what: object, **when: int) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in super().augmented(*what, **when):
            yield images.double(), labels


def make_trainer(config: Config, directory: Path, *, double: bool = False) -> Trainer:
    directory.mkdir(exist_ok=True)
    data = load_data(config.data, config.run.seed)
    kind = DoubleInputs if double else Inputs
    inputs = kind(data, config.data.augment, seed=config.run.seed, device=torch.device("cpu"))
    seed_everything(config.run.seed)
    model = build_model(config, data, saved=directory / START)
    example, _ = inputs.plain(data.validation, torch.arange(1))
    learner = build_learner(config, model.double() if double else model, example)
    seed_everything(config.run.seed)
    return Trainer(learner, data, inputs, config, directory)


def fit(trainer: Trainer, at: int | None = None, act: Callable[[], bool] = lambda: True) -> None:
    """Train; with ``at``, ``act`` is called when that step (counted over all epochs, with one more at the end of each)
    is done, and may stop the training, as if Ctrl-C came.
    """
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked == at and act()

    with ProgressView(Console(quiet=True), "test", epochs=9, steps_per_epoch=trainer.steps_per_epoch) as view:
        trainer.fit(view, should_stop)


def log_of(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / METRICS).read_text().splitlines()]


def without_times(log: list[dict]) -> list[dict]:
    for line in log:
        del line["seconds"]
        if line["compaction"] is not None:
            del line["compaction"]["seconds"]
    return log


def kill_second_channels(learner: Learner) -> None:
    """Make zero what was the second channel of every convolution before any compaction."""
    cut = functools.reduce(compose, learner.plans, Plan("", {})).parameters
    with torch.no_grad():
        for path, module in learner.model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                if isinstance(module, (torch.nn.Conv2d, torch.nn.BatchNorm2d)):
                    kept = cut.get(f"{path}.{name}")
                    parameter[kept.indices[0].index(1) if kept else 1] = 0.0


SGD = ("optimizer.name=sgd", "optimizer.lr=0.02", "optimizer.momentum=0.9", "optimizer.weight_decay=1e-3")
RMSPROP = ("optimizer.name=rmsprop", "optimizer.lr=0.001", "optimizer.momentum=0.5")
ADAM = ("optimizer.name=adam", "optimizer.lr=0.001")

SQRT_SIZE = ("penalty.name=group-lasso", "penalty.strength=0.03")
MACS = ("penalty.name=l0", "penalty.group_weights=macs", "penalty.strength=0.3")
WEAK = ("penalty.name=group-lasso", "penalty.strength=0.003")
PULL = (*SQRT_SIZE, "penalty.mode=subgradient")


@pytest.mark.parametrize("model", [LENET, pytest.param(RESNET, marks=pytest.mark.slow)], ids=["lenet5", "resnet8"])
@pytest.mark.parametrize(
    ("optimizer", "penalty"),
    [(SGD, SQRT_SIZE), (RMSPROP, MACS), (ADAM, WEAK), (SGD, PULL)],
    ids=["sgd", "rmsprop", "adam", "subgradient"],
)
def test_training_goes_on_as_without_compactions(
    tiny: Tiny, tmp_path: Path, model: str, optimizer: tuple[str, ...], penalty: tuple[str, ...]
):
    """Half of the channels leave under the penalty, more of them after its end."""
    size = 16 if model == LENET else 8
    settings = (
        f"model.name={model}", f"data.image_size={size}", "data.limit=96", "schedule.batch_size=16",
        "schedule.epochs=5", "penalty.epochs=3", *optimizer, *penalty,
    )  # fmt: skip
    plain, small, base = with_and_without(
        tiny, tmp_path, *settings, every=2, kill_at=lambda trainer: 3 * (trainer.steps_per_epoch + 1)
    )
    assert len(small.plans) == 2
    assert_same_end(plain, small, base, torch.zeros(1, 1, size, size, dtype=torch.float64))
    assert_same_log(tmp_path / "0", tmp_path / "2")


@pytest.mark.parametrize("optimizer", [SGD, ADAM], ids=["sgd", "adam"])
def test_a_channel_that_momentum_brings_back_stays(tiny: Tiny, tmp_path: Path, optimizer: tuple[str, ...]):
    """It died in the last step before a compaction, and is alive again after the next."""
    settings = (
        f"model.name={LENET}", "data.image_size=16", "data.limit=96", "schedule.batch_size=16", "schedule.epochs=3",
        *optimizer, "penalty.strength=1e-5",
    )  # fmt: skip
    plain, small, base = with_and_without(tiny, tmp_path, *settings, kill_at=lambda trainer: trainer.steps_per_epoch)
    alive = [sum(line["live_groups"].values()) for line in log_of(tmp_path / "0")]
    assert alive[0] < alive[1]
    assert small.plans
    assert_same_end(plain, small, base, torch.zeros(1, 1, 16, 16, dtype=torch.float64))
    assert_same_log(tmp_path / "0", tmp_path / "1")


def test_what_a_penalty_kills_leaves_a_network_with_batchnorm_as_it_would_be(tiny: Tiny, tmp_path: Path):
    """Channels die by themselves, in every epoch others; what Adam and the running statistics know goes along."""
    settings = (
        f"model.name={FILE}:stack", "data.limit=160", "schedule.batch_size=16", "schedule.lr_schedule=constant",
        "schedule.epochs=5", *ADAM, "penalty.strength=0.02",
    )  # fmt: skip
    plain, small, base = with_and_without(tiny, tmp_path, *settings)
    shares = [line["dead_share"] for line in log_of(tmp_path / "0")]
    assert 0.2 < shares[-2] < shares[-1] < 0.9
    assert len(small.plans) >= 3
    assert_same_end(plain, small, base, torch.zeros(1, 1, 8, 8, dtype=torch.float64))
    assert_same_log(tmp_path / "0", tmp_path / "1")


def with_and_without(
    tiny: Tiny, tmp_path: Path, *settings: str, every: int = 1, kill_at: Callable[[Trainer], int] | None = None
) -> tuple[Learner, Learner, torch.nn.Module]:
    """Train without compactions (``tmp_path / "0"``) and with; both learners, and the network before its first step.

    At the step that ``kill_at`` tells of, second channels are made zero.
    """
    ended = []
    for compact_every in (0, every):
        config = tiny(*settings, f"penalty.compact_every={compact_every}")
        trainer = make_trainer(config, tmp_path / str(compact_every), double=True)
        ended.append(trainer.learner)
        if kill_at is None:
            fit(trainer)
        else:
            fit(trainer, kill_at(trainer), functools.partial(kill_second_channels, trainer.learner))
    return ended[0], ended[1], make_trainer(config, tmp_path / "base", double=True).learner.model


def assert_same_end(plain: Learner, small: Learner, base: torch.nn.Module, example: Tensor) -> None:
    """Both learners have the same network when dead channels have left; ``base`` has its first shapes."""
    whole = expanded(base, small.model, small.plans, example)
    expected, got = compress.compact(plain.model, (example,)), compress.compact(whole, (example,))
    assert got.plan.parameters == expected.plan.parameters
    weights = got.model.state_dict()
    for name, tensor in expected.model.state_dict().items():
        assert (weights[name] - tensor).abs().max() <= ROUNDING * tensor.abs().max(), name


def assert_same_log(expected: Path, got: Path) -> None:
    """Losses and live groups of every epoch."""
    for line, same in zip(log_of(got), log_of(expected), strict=True):
        assert line["loss"] == pytest.approx(same["loss"], rel=ROUNDING)
        assert line["live_groups"] == same["live_groups"]
        assert line["dead_share"] == pytest.approx(same["dead_share"])


COMPACTING = (
    f"model.name={RESNET}",
    "data.limit=100",
    "penalty.epochs=2",
    "schedule.epochs=4",
    "penalty.compact_every=1",
)
"""Channels leave after the first epoch, and the penalty ends after the second."""

SMALLER = (f"model.name={LENET}", "data.image_size=16")


@pytest.mark.parametrize(
    ("settings", "stop_after"),
    [
        ((), STEPS_PER_EPOCH + 1),  # the others quick, of the network without residual streams
        pytest.param((*ADAM, "penalty.strength=0.003"), STEPS_PER_EPOCH + 3, marks=pytest.mark.slow),
        ((*SMALLER, *RMSPROP, "penalty.strength=0.003"), 2 * (STEPS_PER_EPOCH + 1)),
        pytest.param((), 2 * (STEPS_PER_EPOCH + 1) + 2, marks=pytest.mark.slow),
        ((*SMALLER, "penalty.mode=subgradient"), STEPS_PER_EPOCH + 2),
        pytest.param(("average.decay=0.9",), STEPS_PER_EPOCH + 2, marks=pytest.mark.slow),
        ((*SMALLER, "average.decay=0.9", "schedule.patience=1", "schedule.epochs=5"), 3 * (STEPS_PER_EPOCH + 1) + 1),
        ((*SMALLER, "penalty.granularity=weight", "penalty.name=l1", "penalty.strength=0.01"), 3 * STEPS_PER_EPOCH),
    ],
    ids=[
        "after a compaction",
        "in the next epoch",
        "as the penalty ends",
        "after it",
        "subgradient",
        "average",
        "patience",
        "single weights",
    ],
)
def test_an_interrupted_training_ends_with_the_same_bits(
    tiny: Tiny, tmp_path: Path, settings: tuple[str, ...], stop_after: int
):
    config = tiny(*COMPACTING, "penalty.strength=0.05", *settings)
    whole = make_trainer(config, tmp_path / "whole")
    fit(whole)
    with pytest.raises(Interrupted):
        fit(make_trainer(config, tmp_path / "parts"), stop_after)
    assert load_checkpoint(tmp_path / "parts" / CHECKPOINT)["plans"]
    torch.rand(7)  # whatever else the process drew must not matter
    resumed = make_trainer(config, tmp_path / "parts")
    assert resumed.resume()
    fit(resumed)
    expected, weights = whole.learner.model.state_dict(), resumed.learner.model.state_dict()
    assert [name for name in expected if not torch.equal(weights[name], expected[name])] == []
    assert resumed.learner.plans == whole.learner.plans
    assert without_times(log_of(tmp_path / "parts")) == without_times(log_of(tmp_path / "whole"))


def test_a_checkpoint_of_another_model_is_refused(tiny: Tiny, tmp_path: Path):
    with pytest.raises(Interrupted):
        fit(make_trainer(tiny(*COMPACTING), tmp_path / "run"), STEPS_PER_EPOCH + 1)
    other = make_trainer(tiny("model.name=lenet5", "data.image_size=28"), tmp_path / "run")
    with pytest.raises(CheckpointError):
        other.resume()


def compaction_of(trainer: Trainer) -> Compaction:
    torch.manual_seed(1)
    return find_compaction(trainer.learner.model, torch.zeros(1, 1, 8, 8), torch.randn(16, 1, 8, 8))


def test_looking_for_dead_channels_draws_no_number_and_changes_no_weight(tiny: Tiny, tmp_path: Path):
    trainer = make_trainer(tiny(f"model.name={RESNET}"), tmp_path / "run")
    model = trainer.learner.model.train()
    model.classifier.requires_grad_(False)
    before, images = copy.deepcopy(model.state_dict()), torch.randn(16, 1, 8, 8)
    generators = random_state()
    compaction = find_compaction(model, torch.zeros(1, 1, 8, 8), images)
    assert torch.equal(random_state()["torch"], generators["torch"])
    assert random_state()["python"] == generators["python"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())

    assert compaction.parameters == RESNET_PARAMETERS
    assert compaction.refused is None
    parameters = list(model.parameters())
    trainer.learner.compact_(compaction.plan)
    assert sum(parameter.numel() for parameter in model.parameters()) == RESNET_PARAMETERS[1]
    assert all(module.training for module in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in parameters]
    assert not model.classifier.weight.requires_grad
    trained = trainer.learner.optimizer.param_groups[0]["params"]
    assert {id(parameter) for parameter in model.parameters()} <= {id(parameter) for parameter in trained}


def test_what_has_left_counts_as_dead(tiny: Tiny, tmp_path: Path):
    learner = make_trainer(tiny(f"model.name={RESNET}"), tmp_path / "run").learner
    before, alive = learner.dead_share(), learner.live_groups()
    learner.compact_(find_compaction(learner.model, torch.zeros(1, 1, 8, 8), torch.randn(16, 1, 8, 8)).plan)
    assert before == learner.dead_share() == pytest.approx(0.5)
    assert alive == learner.live_groups()


def test_a_channel_that_acts_in_training_mode_alone_stays_until_its_statistics_follow(tiny: Tiny, tmp_path: Path):
    trainer = make_trainer(tiny("penalty.granularity=filter"), tmp_path / "run")
    convolution, norm = trainer.learner.model.features[:2]
    with torch.no_grad():
        convolution.weight[0] = 0.0
        norm.bias[0], norm.running_mean[0] = 0.5, 5.0  # relu(0.5 - 5) in evaluation, relu(0.5) in training
    assert "still acts in training mode" in compaction_of(trainer).refused
    with torch.no_grad():
        norm.bias[0], norm.running_mean[0] = -0.5, 0.0
    compaction = compaction_of(trainer)
    assert compaction.refused is None
    assert compaction.plan.parameters["features.0.weight"].indices == {0: [1, 2, 3, 4, 5, 6, 7]}


def test_masks_of_torch_prune_are_left_for_the_end(tiny: Tiny, tmp_path: Path):
    trainer = make_trainer(tiny(), tmp_path / "run")
    model = trainer.learner.model
    with torch.no_grad():
        for parameter in model.features[1].parameters():
            parameter[0] = 0.0
    prune.ln_structured(model.features[0], "weight", amount=1, n=2, dim=0)
    compaction = compaction_of(trainer)
    assert (compaction.plan, compaction.parameters) == (None, None)
    assert "features.0.weight is computed in every step" in compaction.refused


def test_a_network_that_died_is_trained_on_as_it_is(tiny: Tiny, tmp_path: Path):
    trainer = make_trainer(tiny(), tmp_path / "run")
    with torch.no_grad():
        trainer.learner.model.features[4].weight.zero_()
        trainer.learner.model.features[4].bias.zero_()
    compaction = compaction_of(trainer)
    assert compaction.plan is None
    assert "no longer depends on its input" in str(compaction)


def test_nothing_dead_is_nothing_to_do(tiny: Tiny, tmp_path: Path):
    compaction = compaction_of(make_trainer(tiny(), tmp_path / "run"))
    assert (compaction.plan, compaction.refused, compaction.macs) == (None, None, None)
    assert str(compaction).startswith("nothing to compact")


def test_a_run_is_written_in_the_first_shapes(tiny: Tiny):
    config = tiny(*COMPACTING, "penalty.strength=0.01", "run.dense_baseline=true")
    summary = train(config)
    assert summary["parameters"]["dense"] == RESNET_PARAMETERS[0]
    assert summary["parameters"]["compact"] <= RESNET_PARAMETERS[1]
    assert summary["dead_share"] >= 0.5

    log, dense = log_of(config.out), log_of(config.out / "dense")
    assert [line["compaction"] is not None for line in log] == [True, True, True, False]
    assert log[0]["compaction"]["parameters"] == list(RESNET_PARAMETERS)
    assert log[0]["compaction"]["macs"][0] == summary["macs"]["dense"]
    assert [line["compaction"] for line in dense] == [None] * 4
    spent = [line["seconds"] for line in log] + [line["compaction"]["seconds"] for line in log[:-1]]
    assert summary["seconds"] == pytest.approx(sum(spent))

    run = open_run(config.out)
    masked, compact, images = run.dense_model(), run.model(), run.validation_batch(20)
    assert sum(parameter.numel() for parameter in masked.parameters()) == RESNET_PARAMETERS[0]
    assert not masked.stages[1][0].conv1.weight[::2].any()
    plan = Plan.load(config.out / "plan.json")
    assert plan.parameters["stages.1.0.conv1.weight"].shape == (32, 16, 3, 3)
    with torch.no_grad():
        torch.testing.assert_close(compact(images), masked(images), rtol=0, atol=1e-5)
    assert summary["accuracy"]["validation"]["compact"] == log[-1]["validation_accuracy"]
