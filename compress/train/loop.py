"""The march of epochs: batches, validation, log, checkpoints, and a clean end at any step."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from compress.data import Data
from compress.data.sampler import batch_count, batches
from compress.errors import CheckpointError
from compress.surgery.plan import weights_hash
from compress.train.budget import CHECKS_PER_EPOCH
from compress.train.checkpoint import State, load_checkpoint, random_state, save_checkpoint, set_random_state
from compress.train.compaction import Compaction, find_compaction
from compress.train.config import NO_PENALTY, Config
from compress.train.distill import Teacher
from compress.train.divergence import DivergenceError, check_finite, where_not_finite
from compress.train.epoch_files import EpochFiles
from compress.train.evaluate import EVALUATION_BATCH, evaluate, inference
from compress.train.inputs import Inputs
from compress.train.interrupt import Interrupted
from compress.train.learner import Learner, StepResult
from compress.train.metrics import MetricsLog, Record
from compress.train.progress import ProgressView
from compress.train.rundir import CHECKPOINT, METRICS, file_hash, model_file
from compress.train.schedule import lr_at, strength_at

CHECKPOINT_INTERVAL_S = 300.0
"""In epochs longer than this a checkpoint is also written in between: what a power cut may cost, in seconds."""

COMPARED_IMAGES = 64
"""Training images on which the networks before and after a compaction are compared in training mode."""


@dataclass
class Position:
    """Where a training stands, with the running sums of the epoch it is in.

    Attributes:
        epoch: Epochs that are complete.
        step: Steps done in the next one.
        loss_sum: Sum of the loss over its images so far.
        correct: Images classified rightly so far.
        images: Images seen so far.
        seconds: Time since the epoch's start, spent in training; stops are not counted.
        best_accuracy: Highest validation accuracy so far.
        best_epoch: The epoch (from 1) that reached it; 0 before the first.
        kept_accuracy: Highest validation accuracy since the penalty's end; below 0 before.
        stale_epochs: Epochs since it was reached.
    """

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    correct: int = 0
    images: int = 0
    seconds: float = 0.0
    best_accuracy: float = 0.0
    best_epoch: int = 0
    kept_accuracy: float = -1.0
    stale_epochs: int = 0

    def count(self, result: StepResult) -> None:
        """Add one step."""
        self.step += 1
        self.loss_sum += result.loss * result.images
        self.correct += result.correct
        self.images += result.images

    @property
    def loss(self) -> float:
        """Mean loss of the epoch's images so far."""
        return self.loss_sum / max(self.images, 1)

    @property
    def accuracy(self) -> float:
        """Accuracy on the epoch's images so far."""
        return self.correct / max(self.images, 1)

    def next_epoch(self, validation_accuracy: float) -> None:
        """Close the epoch."""
        self.epoch += 1
        if self.best_epoch == 0 or validation_accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = validation_accuracy, self.epoch
        self.step, self.loss_sum, self.correct, self.images, self.seconds = 0, 0.0, 0, 0, 0.0


def origin(config: Config, data: Data, teacher: Teacher | None) -> dict[str, str]:
    """What a run starts from beside its recipe, each with a SHA-256: a resumed run must find the same.

    Of the images the labels in their order stand for all: files that come, go or move change them.
    """
    file = model_file(config)
    found = {} if file is None else {"model file": file_hash(file)}
    if teacher is not None:
        found["teacher"] = weights_hash(teacher.network.state_dict())
    labels = torch.cat((data.train.labels, data.validation.labels)).to(torch.int64)
    return {**found, "data set": hashlib.sha256(labels.numpy().tobytes()).hexdigest()}


class Trainer:
    """Trains a learner by a recipe, into a directory.

    Everything that follows from the position is a pure function of it (order of images, augmentation, learning rate,
    strength), so that position, learner and generators are a complete checkpoint.

    Args:
        learner: What takes the steps.
        data: Its training and validation splits are read.
        inputs: Brings images to the learner's device.
        config: The recipe.
        directory: Exists; ``metrics.jsonl`` and ``checkpoint.pt`` are written there.
    """

    def __init__(self, learner: Learner, data: Data, inputs: Inputs, config: Config, directory: Path) -> None:
        self.learner = learner
        self.position = Position()
        self.steps_per_epoch = batch_count(len(data.train), config.schedule.batch_size, learner.world.least)
        self._data = data
        self._inputs = inputs
        self._config = config
        self._checkpoint = directory / CHECKPOINT
        self._log = MetricsLog(directory / METRICS)
        self._files = EpochFiles(directory, tensorboard=config.run.tensorboard)
        self._saved: Position | None = None
        self._saved_at_s = time.monotonic()
        self._origin = origin(config, data, learner.loss.teacher)

    @property
    def complete(self) -> bool:
        """Whether all epochs are done, or the last ones have brought nothing."""
        patience = self._config.schedule.patience
        impatient = patience is not None and self.position.stale_epochs >= patience
        return impatient or self.position.epoch >= self._config.schedule.epochs

    def fit(self, view: ProgressView, should_stop: Callable[[], bool]) -> None:
        """Train from the present position to the end.

        Args:
            view: Shows the progress.
            should_stop: Asked after each step and each epoch.

        Raises:
            Interrupted: ``should_stop`` said so; the checkpoint is written.
            DivergenceError: The loss, or a weight, is not finite; the last checkpoint stays.
            WriteError: A checkpoint or the log cannot be written; the last checkpoint stays.
        """
        with self._files:
            self._files.write(self._log.records(), new=False)
            self._fit(view, should_stop)

    def _fit(self, view: ProgressView, should_stop: Callable[[], bool]) -> None:
        while not self.complete:
            self._train_epoch(view, should_stop)
            if self.position.epoch + 1 == self._config.schedule.epochs:
                self.learner.settle_()
            record = self._validate()
            self.learner.world.check_same(self.learner.network)
            self._keep_if_best(record["validation_accuracy"])
            self.position.next_epoch(record["validation_accuracy"])
            compaction = self._compact_when_due()
            self._log.append({**record, "compaction": compaction and compaction.record()})
            self.save()
            self._files.write(self._log.records(), new=True)
            view.epoch(record)
            if compaction is not None:
                view.say(f"  {compaction}")
            if self.learner.world.any(should_stop()):
                raise Interrupted
        if self.position.epoch < self._config.schedule.epochs:
            view.say(f"ended after epoch {self.position.epoch}: {self.position.stale_epochs} epochs without a gain")

    def save(self) -> None:
        """Write the checkpoint.

        Raises:
            DivergenceError: There is nothing to go on from: a weight is not finite; the old checkpoint stays.
            WriteError: It cannot be written; the old one stays.
        """
        try:
            check_finite(self.learner.network, self.learner.optimizer)
        except DivergenceError as error:
            raise DivergenceError(self._diverged(str(error))) from error
        save_checkpoint(self._checkpoint, self._state())
        self._saved = replace(self.position)
        self._saved_at_s = time.monotonic()

    def resume(self) -> bool:
        """Go on from the directory's checkpoint; False where there is none yet.

        Raises:
            CheckpointError: It is damaged, or of another model.
        """
        if not self._checkpoint.exists():
            self._log.keep(0)
            return False
        state = load_checkpoint(self._checkpoint)
        changed = [what for what, now in self._origin.items() if state.get("origin", {}).get(what) != now]
        if changed:
            raise CheckpointError(
                f"the checkpoint {self._checkpoint} was made with another {' and another '.join(changed)}; "
                "bring the old one back, or start a new run with another --out"
            )
        try:
            torch.set_num_threads(state["threads"])  # sums in another order are other sums
            self.learner.load_state_(state)
            self.position = Position(**state["position"])
            self._saved = replace(self.position)
            self._freeze_when_due()
            set_random_state(state["random"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"the checkpoint {self._checkpoint} does not fit the run: {error}") from error
        self._log.keep(self.position.epoch)
        return True

    def _state(self) -> State:
        return {
            **self.learner.state(),
            "position": asdict(self.position),
            "random": random_state(),
            "origin": self._origin,
            "threads": torch.get_num_threads(),
        }

    def _train_epoch(self, view: ProgressView, should_stop: Callable[[], bool]) -> None:
        at = self.position
        schedule, seed = self._config.schedule, self._config.run.seed
        self._freeze_when_due()
        self.learner.network.train()
        before_s = time.monotonic() - at.seconds
        images_in_all, world = len(self._data.train), self.learner.world
        shared = batches(
            images_in_all, schedule.batch_size, seed=seed, epoch=at.epoch, start=at.step, least=world.least
        )
        order = [batch[world.share(len(batch))] for batch in shared]
        for images, labels in self._inputs.augmented(self._data.train, order, epoch=at.epoch, start=at.step):
            at.count(self._step(images, labels))
            self._check_budget_when_due()
            at.seconds = time.monotonic() - before_s
            if view.due():
                dead_share = self.learner.dead_share()
                view.update(at.epoch, at.step, loss=at.loss, accuracy=at.accuracy, dead_share=dead_share)
            if world.any(should_stop()):
                self.save()
                raise Interrupted
            if time.monotonic() - self._saved_at_s > CHECKPOINT_INTERVAL_S:
                self.save()

    def _step(self, images: Tensor, labels: Tensor) -> StepResult:
        lr, strength = self._rates()
        try:
            return self.learner.step(images, labels, lr=lr, strength=strength)
        except DivergenceError as error:
            where = where_not_finite(self.learner.network, [images])
            raise DivergenceError(self._diverged(f"{error}: {where}")) from error

    def _diverged(self, what: str) -> str:
        at, saved, config = self.position, self._saved, self._config
        lr, strength = self._rates()
        kept = "nothing was saved before"
        if saved is not None:
            kept = f"the state after epoch {saved.epoch}, step {saved.step} is kept in {self._checkpoint}"
        warmup = max(1.0, 2 * config.schedule.warmup_epochs)
        return (
            f"training diverged at step {at.step + 1} of epoch {at.epoch + 1} (learning rate {lr:g}, strength "
            f"{strength:g}): {what}; {kept}. Train again with another --out and a lower rate, --set optimizer.lr="
            f"{config.optimizer.lr / 10:g}, or a slower start, --set schedule.warmup_epochs={warmup:g}"
        )

    def _rates(self) -> tuple[float, float]:
        """Learning rate and strength of the next step."""
        step_epochs = 1 / self.steps_per_epoch
        time_epochs = self.position.epoch + self.position.step * step_epochs
        lr = lr_at(time_epochs, self._config.optimizer.lr, self._config.schedule, step_epochs=step_epochs)
        return lr, strength_at(time_epochs, self._config) * self._correction()

    def _freeze_when_due(self) -> None:
        penalty, at = self._config.penalty, self.position.epoch
        ends = penalty.epochs is not None or penalty.budget is not None
        if ends and at >= self._config.penalty_epochs:
            self.learner.freeze_()

    def _correction(self) -> float:
        """What the budget makes of the strength, as a factor."""
        budget, given = self.learner.budget, self._config.penalty.strength
        return 1.0 if budget is None or not given else budget.strength / given

    def _check_budget_when_due(self) -> None:
        at, steps = self.position, self.steps_per_epoch
        if at.step * CHECKS_PER_EPOCH // steps != (at.step - 1) * CHECKS_PER_EPOCH // steps:
            self.learner.check_budget_(at.epoch + at.step / steps)

    def _compact_when_due(self) -> Compaction | None:
        """Take dead channels out after every so many epochs; not after the last one, when the run itself does so."""
        penalty = self._config.penalty
        every = 0 if penalty.name == NO_PENALTY else penalty.compact_every
        if not every or self.position.epoch % every or self.complete:
            return None
        example, _ = self._inputs.plain(self._data.validation, torch.arange(1))
        images, _ = self._inputs.plain(self._data.train, torch.arange(min(COMPARED_IMAGES, len(self._data.train))))
        learner, (lr, strength) = self.learner, self._rates()
        coasted = learner.coasted(lr=lr, strength=strength)
        compaction = find_compaction(learner.model, example, images, learner.twins(), coasted=coasted)
        if compaction.plan is not None:
            self.learner.compact_(compaction.plan)
        return compaction

    def _validation_images(self) -> Iterator[Tensor]:
        split = self._data.validation
        for indices in torch.split(torch.arange(len(split)), EVALUATION_BATCH):
            yield self._inputs.plain(split, indices)[0]

    def _keep_if_best(self, accuracy: float) -> None:
        """With ``schedule.patience``, once the penalty has ended: remember the best network."""
        at, config = self.position, self._config
        if config.schedule.patience is None or at.epoch < config.penalty_acts_to:
            return
        at.stale_epochs += 1
        if accuracy > at.kept_accuracy:
            at.kept_accuracy, at.stale_epochs = accuracy, 0
            self.learner.remember_()

    def _validate(self) -> Record:
        at = self.position
        lr, strength = self._rates()
        with self.learner.judged() as network:
            score = evaluate(network, self._data.validation, self._inputs, self.learner.world)
        if not math.isfinite(score.loss):
            with inference(self.learner.network):
                where = where_not_finite(self.learner.network, self._validation_images())
            raise DivergenceError(self._diverged(f"the validation loss is {score.loss}: {where}"))
        return {
            "epoch": at.epoch + 1,
            "loss": at.loss,
            "accuracy": at.accuracy,
            "validation_loss": score.loss,
            "validation_accuracy": score.accuracy,
            "dead_share": self.learner.dead_share(),
            "live_groups": self.learner.live_groups(),
            "lr": lr,
            "strength": 0.0 if self.learner.frozen else strength,
            "seconds": at.seconds,
        }
