"""A whole run: from a checked configuration to a complete run directory."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from compress.data import Data
from compress.data.machine import core_count
from compress.data.storage import place, worker_count
from compress.errors import ConfigError, WriteError
from compress.files import leftovers, write_text
from compress.groups import WITHOUT_GRAPH
from compress.models import build
from compress.models.weights import start_from_
from compress.surgery import Plan, save_weights
from compress.surgery.plan import load_weights, put_weights_
from compress.train.allocator import keep_freed_memory
from compress.train.compaction import check_followed, expanded
from compress.train.config import DENSE_TEACHER, NO_PENALTY, Config
from compress.train.curves import CURVES, can_draw, draw_curves
from compress.train.distill import Teacher, find_teacher, own_teacher
from compress.train.epoch_files import require_tensorboard
from compress.train.finish import Trained, finish
from compress.train.inputs import Inputs
from compress.train.interrupt import Interrupted, StopRequest
from compress.train.learner import Learner, build_learner
from compress.train.loop import Trainer
from compress.train.memory import memory_shortage_told
from compress.train.metrics import MetricsLog, Record
from compress.train.progress import ProgressView
from compress.train.recipe import to_toml
from compress.train.rundir import (
    CONFIG,
    DENSE,
    METRICS,
    MODEL,
    START,
    SUMMARY,
    Origin,
    check_new,
    check_same,
    load_data,
    read_summary,
    resume_command,
)
from compress.train.world import World

STDERR = 2


def train(
    config: Config, *, resume: bool = False, console: Console | None = None, origin: Origin | None = None
) -> dict[str, Any]:
    """Train, compact, verify, and write the run directory ``config.out``.

    Args:
        config: What to do.
        resume: Continue the run in ``config.out``; on the CPU the result is that of a run without a stop, bit for bit.
        console: Where progress is shown; nowhere by default.
        origin: The run whose compact network is trained on, with its data; by default a new network is trained.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        CompressError: Something the user can mend; nothing is left behind by what could not start.
        Interrupted: Ctrl-C; ``resume`` continues from the checkpoint.
    """
    directory = config.out
    world = World.joined(config.run.device)
    if world.size > 1 and config.schedule.batch_size < world.least:
        raise ConfigError(
            f"schedule.batch_size: {config.schedule.batch_size} images cannot be shared among {world.size} processes, "
            f"which need two each; give at least {world.least}"
        )
    if world.main and resume:
        check_same(directory, config, origin)
    elif world.main:
        check_new(directory)
    if not world.from_main((directory / SUMMARY).exists()):
        with (
            world.directory(directory) as own,
            cpu_threads(config.run.threads),
            memory_shortage_told(config),
            _full_disk_told(directory),
            _interruption_told(directory),
        ):
            quiet = Console(quiet=True)
            mine = config if world.main else _without_files(config, own)
            Session(mine, world, resume=resume, console=console or quiet, origin=origin).run()
    return world.from_main(read_summary(directory) if world.main else {})


def _without_files(config: Config, directory: Path) -> Config:
    """The recipe of a process that does not write: what it must write goes to ``directory``."""
    run = config.run.model_copy(update={"out": directory, "tensorboard": False, "curves": False})
    return config.model_copy(update={"run": run})


class Session:
    """One call of ``train``, after the run directory was found to be in order.

    Args:
        config: What to do.
        world: The processes that do it together.
        resume: Look for checkpoints.
        console: Where progress is shown.
        origin: The run whose compact network is trained on, if any.
    """

    def __init__(
        self, config: Config, world: World, *, resume: bool, console: Console, origin: Origin | None = None
    ) -> None:
        self._config = config
        self._world = world
        self._origin = origin
        self._resume = resume
        self._console = console
        self._device = pick_device(config.run.device)
        with world.main_first():
            self._data = load_data(config.data, config.run.seed)
        self._workers = worker_count(config.data.workers)
        self._inputs = Inputs(
            self._data,
            config.data.augment,
            seed=config.run.seed,
            device=self._device,
            workers=self._workers,
            rank=world.rank,
        )

    def run(self) -> None:
        """Train, and write the run directory."""
        directory = self._config.out
        start = self._build(self._config)  # whatever cannot be built is refused before anything is written
        penalty = self._config.penalty
        if penalty.name == NO_PENALTY or penalty.granularity in WITHOUT_GRAPH:  # else the learner has followed it
            check_followed(start.model, self._example())
        teacher = self._teacher()
        if self._config.run.tensorboard:
            require_tensorboard()
        _make(directory)
        if self._origin is not None:
            self._origin.save(directory)
        elif self._config.model.weights is not None and not (directory / START).exists():
            save_weights(start.model, directory / START)
        _save_recipe(directory, self._config)  # last, since it says that there is a run to resume
        self._tell_places()
        if self._device.type == "cpu":
            keep_freed_memory()
        with StopRequest(self._tell_stop) as stop:
            dense = None
            if self._config.run.dense_baseline:
                penalty = self._config.penalty.model_copy(update={"name": NO_PENALTY})
                plain = self._config.model_copy(update={"penalty": penalty, "distill": None})
                dense = self._fit(plain, directory / DENSE, stop)
                save_weights(dense.learner.model, directory / DENSE / MODEL)
                teacher = teacher or own_teacher(dense.learner.model)
            masked = self._fit(self._config, directory, stop, teacher)
        if not self._world.main:
            return
        self._draw(directory)
        best = masked.position
        network, biases = self._restored(self._first_shapes(masked.learner))
        trained = Trained(
            masked=network,
            dense=dense.learner.model if dense else None,
            dead_share=masked.learner.dead_share(),
            best={"accuracy": best.best_accuracy, "epoch": best.best_epoch},
            seconds=sum(map(_seconds, MetricsLog(directory / METRICS).records())),
            biases=biases,
            budget=masked.learner.landing,
        )
        finish(self._config, self._data, self._inputs, trained, directory, self._origin)

    def _teacher(self) -> Teacher | None:
        """Whom the recipe names; None if nobody, or the dense network that is trained first."""
        section = self._config.distill
        if section is None or (section.teacher == DENSE_TEACHER and self._config.run.dense_baseline):
            return None
        before = None if self._origin is None else self._origin.run
        return find_teacher(section, self._data, before, self._device)

    def _fit(self, config: Config, directory: Path, stop: StopRequest, teacher: Teacher | None = None) -> Trainer:
        _make(directory)
        _save_recipe(directory, config)
        learner = self._build(config, teacher)
        learner.world = self._world
        trainer = Trainer(learner, self._data, self._inputs, config, directory)
        plain = "dense" if self._origin is None else self._origin.act
        title = config.penalty.name if config.penalty.name != NO_PENALTY else plain
        view = ProgressView(
            self._console, title, epochs=config.schedule.epochs, steps_per_epoch=trainer.steps_per_epoch
        )
        if self._resume and trainer.resume():
            view.say(f"{title}: going on after epoch {trainer.position.epoch}, step {trainer.position.step}")
        with view:
            trainer.fit(view, stop.__bool__)
        learner.finish_()
        return trainer

    def _draw(self, directory: Path) -> None:
        if not self._config.run.curves:
            return
        if not can_draw():
            told = f"no {CURVES}: matplotlib is not installed (pip install matplotlib, or 'edge-compress[plots]')"
            self._say(told)
            return
        records, dense = (MetricsLog(each / METRICS).records() for each in (directory, directory / DENSE))
        title = f"{self._config.model.name.rpartition(':')[2]} on {Path(self._config.data.name).name}"
        draw_curves(records, directory / CURVES, title=f"{title}, {self._config.penalty.name}", dense=dense)

    def _first_shapes(self, learner: Learner) -> nn.Module:
        """The trained network; channels that left it while it trained are back in it, as exact zeros."""
        if not learner.plans:
            return learner.model
        return expanded(self._start(self._config), learner.model, learner.plans, self._example())

    def _restored(self, model: nn.Module) -> tuple[nn.Module, Plan | None]:
        """The trained network in the recipe's shapes, and the biases that the recipe's network does not have."""
        if self._origin is None:
            return model, None
        network, biases = self._origin.run.restored(model)
        return network.to(self._device), biases

    def _start(self, config: Config) -> nn.Module:
        """The network that is trained, as it starts; that of an origin is the compact one."""
        if self._origin is not None:
            return self._origin.run.model().to(self._device)
        return build_model(config, self._data, saved=self._config.out / START, say=self._say).to(self._device)

    def _example(self) -> Tensor:
        return self._inputs.plain(self._data.validation, torch.arange(1))[0]

    def _build(self, config: Config, teacher: Teacher | None = None) -> Learner:
        """A learner at its start; the same seed gives the same one."""
        seed_everything(config.run.seed)
        learner = build_learner(config, self._start(config), self._example(), teacher)
        # Building and tracing may draw numbers or not; training starts from the seed in either case.
        seed_everything(config.run.seed)
        return learner

    def _tell_places(self) -> None:
        """Say where images are kept, where there was a choice."""
        limit_gib = self._data.memory_gib
        if limit_gib is not None:
            for what, split in (("training", self._data.train), ("validation", self._data.validation)):
                self._say(place(what, split, limit_gib=limit_gib, workers=self._workers))

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def _tell_stop(self) -> None:
        # Straight to the descriptor of stderr: the signal may have come in the middle of a print, and Python's buffered
        # streams raise when a handler enters them again.
        if not self._console.quiet:
            with suppress(OSError):
                os.write(STDERR, b"\nstopping after this step; once more Ctrl-C stops at once\n")


def _seconds(epoch: Record) -> float:
    """Training time of an epoch, with the compaction behind it."""
    compaction = epoch["compaction"]
    return float(epoch["seconds"] + (compaction["seconds"] if compaction else 0.0))


def build_model(config: Config, data: Data, *, saved: Path, say: Callable[[str], object] = lambda _: None) -> nn.Module:
    """The recipe's network for the images of ``data``, with the weights of the recipe's file or new ones.

    Args:
        config: The recipe.
        data: Its images.
        saved: Where a run keeps the weights that it started from; the recipe's file is read only where there are none.
        say: Called with a line on what was taken from the recipe's file.

    Raises:
        ModelError: The network cannot be built, or the file does not fit it.
        CheckpointError: ``saved`` is damaged.
    """
    channels, height, _ = data.image_shape
    classes, section = len(data.classes), config.model
    model = build(section.name, num_classes=classes, in_channels=channels, image_size=height)
    if section.weights is not None and saved.exists():
        put_weights_(model, load_weights(saved), source=str(saved))
    elif section.weights is not None:
        say(str(start_from_(model, section.weights, num_classes=classes, new_head=section.new_head)))
    return model


def seed_everything(seed: int) -> None:
    """Seed torch's generators and Python's."""
    torch.manual_seed(seed)
    random.seed(seed)


def pick_device(name: str) -> torch.device:
    """The device of ``run.device``.

    Raises:
        ConfigError: ``cuda`` was asked for and there is none.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("run.device: cuda, but torch finds no GPU here; use --device cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")


@contextmanager
def _full_disk_told(directory: Path) -> Iterator[None]:
    """Tell how the run goes on once its files can be written again."""
    try:
        yield
    except WriteError as error:
        if not (directory / CONFIG).is_file():
            raise
        line = resume_command(directory)
        raise WriteError(
            f"{error}. When there is room again, the run goes on where it was saved last: {line}"
        ) from error


@contextmanager
def _interruption_told(directory: Path) -> Iterator[None]:
    """Take a Ctrl-C that nobody awaits (the second one, or one while the end is computed) for a stop like any other."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not (directory / CONFIG).is_file():  # there is nothing to continue yet
            raise
        raise Interrupted from stop


@contextmanager
def cpu_threads(count: int | None) -> Iterator[None]:
    """Torch's number of threads for one operation; by default its own choice, but not more than cores to run them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or min(before, core_count()))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _make(directory: Path) -> None:
    """Make the directory, or clear it of what killed processes left unfinished."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path in leftovers(directory):
            path.unlink()
    except OSError as error:
        raise WriteError(f"--out {directory}: cannot be made: {error.strerror}") from error


def _save_recipe(directory: Path, config: Config) -> None:
    write_text(directory / CONFIG, to_toml(config))
