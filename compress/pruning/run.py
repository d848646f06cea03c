"""From a finished run to a pruned one: decide and zero, measure, compact, verify; the new run appears whole."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.data import Data
from compress.data.sampler import batches
from compress.errors import CheckpointError
from compress.files import write_text
from compress.pruning.criteria import CRITERIA
from compress.pruning.criterion import Batch
from compress.pruning.policy import Policy
from compress.pruning.prune import PruneReport, prune_
from compress.pruning.statistics import has_statistics, recalibrate_
from compress.pruning.target import Target
from compress.train.config import Config
from compress.train.evaluate import evaluate
from compress.train.finish import Trained, finish
from compress.train.inputs import Inputs
from compress.train.recipe import resolve, to_toml
from compress.train.rundir import CONFIG, PRUNE, Origin, Run, check_new, images_at, load_data, open_run, read_summary
from compress.train.session import cpu_threads, pick_device


@dataclass(frozen=True)
class Task:
    """What is to be done to a run.

    Attributes:
        target: when to stop.
        policy: how to choose.
        batches: batches of training images that are shown to a criterion that reads images.
        recalibrate: batches of training images from which BatchNorm statistics are estimated anew; 0 leaves them.
        device: as in ``run.device`` of a recipe; the run's own by default.
        data_dir: where the run's images are now, if they were moved.
    """

    target: Target
    policy: Policy = field(default_factory=Policy)
    batches: int = 32
    recalibrate: int = 0
    device: str | None = None
    data_dir: Path | None = None


def prune_run(source: Path, out: Path, task: Task, say: Callable[[str], object] = lambda _: None) -> dict[str, Any]:
    """Prune the network of the run in ``source``, and write the run directory ``out``.

    Images are taken from the training split to choose and to recalibrate, from the validation split to report what
    each act costs. The test split is read once, at the end.

    Args:
        source: a complete run.
        out: a new directory; it appears when all is done.
        task: what to do.
        say: called with a line after each act.

    Returns:
        The summary, as in ``summary.json``; ``origin.prune`` in it tells what was done, and the validation accuracies.

    Raises:
        CompressError: something the user can mend; nothing is left behind.
    """
    check_new(out)
    run = open_run(source)
    own: dict[str, Any] = {
        "run.out": out.resolve(),
        "run.device": task.device,
        "run.dense_baseline": False,
        "run.round_to": task.policy.round_to,
    }
    config = resolve(run.path / CONFIG, own | images_at(run.config, task.data_dir))
    with cpu_threads(config.run.threads):
        return _prune_run(run, config, task, say)


def _prune_run(run: Run, config: Config, task: Task, say: Callable[[str], object]) -> dict[str, Any]:
    device = pick_device(config.run.device)
    data = load_data(config.data, config.run.seed)
    inputs = Inputs(data, config.data.augment, seed=config.run.seed, device=device)
    model = run.dense_model().to(device)
    start_s = time.monotonic()
    report, accuracy = _prune_(model, config, data, inputs, task, say)
    trained = Trained(
        masked=model,
        dense=None,
        dead_share=report.zeroed / report.groups,
        best={"accuracy": accuracy["zeroed"], "epoch": 0},
        seconds=time.monotonic() - start_s,
        biases=run.biases(),
    )
    origin = Origin(PRUNE, run, {"prune": _record(task, report, accuracy)})
    with _appearing(config.out) as directory:
        write_text(directory / CONFIG, to_toml(config))
        origin.save(directory)
        finish(config, data, inputs, trained, directory, origin)
    return read_summary(config.out)


def _prune_(
    model: nn.Module, config: Config, data: Data, inputs: Inputs, task: Task, say: Callable[[str], object]
) -> tuple[PruneReport, dict[str, float]]:
    """Zero and recalibrate, in place.

    Returns:
        What was zeroed, and the validation accuracy after each act, by name.
    """
    accuracy: dict[str, float] = {}

    def measure(act: str, what: str) -> None:
        accuracy[act] = evaluate(model, data.validation, inputs).accuracy
        say(f"{what}: validation accuracy {accuracy[act]:.2%}")

    def images(count: int) -> Iterator[Batch]:
        return _training_batches(config, data, inputs, count)

    measure("before", "before pruning")
    example, _ = inputs.plain(data.validation, torch.arange(1))
    report = prune_(model, (example,), task.target, task.policy, images(task.batches))
    measure("zeroed", f"{report.zeroed:,} of {report.groups:,} groups zeroed")
    if task.recalibrate:
        recalibrate_(model, (batch for batch, _ in images(task.recalibrate)))
        measure("recalibrated", "BatchNorm statistics re-estimated")
    elif has_statistics(model):
        say("note: BatchNorm statistics are those from before pruning; recalibrate to estimate them anew")
    return report, accuracy


def _training_batches(config: Config, data: Data, inputs: Inputs, count: int) -> Iterator[Batch]:
    """The first batches of a shuffled training split, without augmentation; all of it, if it has fewer."""
    order = batches(len(data.train), config.schedule.batch_size, seed=config.run.seed, epoch=0)
    for indices, _ in zip(order, range(count), strict=False):
        yield inputs.plain(data.train, indices)


def _record(task: Task, report: PruneReport, accuracy: dict[str, float]) -> dict[str, Any]:
    return {
        "target": {"kind": task.target.kind, "value": task.target.value},
        "criterion": task.policy.criterion,
        "normalise": task.policy.normalisation,
        "per_layer": task.policy.per_layer,
        "min_channels": task.policy.min_channels,
        "round_to": task.policy.round_to,
        "batches": task.batches if CRITERIA[task.policy.criterion].reads_images else 0,
        "recalibrate": task.recalibrate,
        "report": report.to_dict(),
        "validation_accuracy": accuracy,
    }


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A directory to fill, which takes the name ``out`` at the end; if anything is raised inside, it is gone."""
    hidden = out.with_name(f".{out.name}.tmp")
    try:
        shutil.rmtree(hidden, ignore_errors=True)
        hidden.mkdir(parents=True)
        yield hidden
        hidden.replace(out)
    except OSError as error:
        raise CheckpointError(f"--out {out}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
