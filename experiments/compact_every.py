"""What ``--compact-every`` saves: VGG-16 on CIFAR-10 (JPEG), with and without, an epoch each in turns.

    python experiments/compact_every.py --cifar-dir DIR --markdown docs/results/compact-every.md

Both trainings have the same recipe and the same seed, but for ``penalty.compact_every = 1`` in the one: then channels
that died in an epoch leave after it. They take turns, so that what else the machine does slows both alike. The penalty
acts for the first epochs; then what is dead stays so, and the rest trains on without it.

Seconds are processor time, which other processes do not count in, of all that an epoch takes: training, validation,
and compaction where there is one. "Groups left" are those that are not zero, without and with compactions; "back" are
those that were zero when an epoch began and not when it ended, in the training without. Loss: the mean over the epoch's
training images. Test images are read once, at the end; no choice depends on them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from epochs import EpochByEpoch
from page import Page, about, environment

import compress
from compress.errors import ConstantOutputError
from compress.train.recipe import resolve

HEADINGS = (
    *("epoch", "groups left", "back", "loss, without", "loss, with"),
    *("s, without", "s, with", "with / without"),
)
SCORES = ("compaction", "loss, last epoch", "validation accuracy", "test accuracy", "parameters left")

RECIPE: dict[str, object] = {
    "model.name": "vgg16",
    "data.name": "folder",
    "data.validation_share": 0.1,
    "data.augment.pad": 4,
    "data.augment.flip": True,
    "penalty.name": "group-lasso",
    "penalty.granularity": "coupled",
    "optimizer.name": "adam",
    "optimizer.lr": 0.0003,
    "schedule.lr_schedule": "cosine",
    "schedule.batch_size": 32,
    "run.device": "cpu",
}


class Side:
    """One of the two trainings, with its clock.

    Attributes:
        last: The last epoch's line of the log.
        seconds: Processor time of each epoch.
        back: Groups that were dead when the last epoch began and not when it ended; means nothing with compactions.
    """

    def __init__(self, settings: dict[str, object], scratch: Path) -> None:
        self._training = EpochByEpoch(resolve(flags={**RECIPE, **settings}), scratch)
        self.last: dict[str, Any] = {}
        self.seconds: list[float] = []
        self.back = 0

    def epoch(self) -> None:
        """Train one."""
        dead = self._dead()
        begin = time.process_time()
        self.last = self._training.epoch()
        self.seconds.append(time.process_time() - begin)
        after = self._dead()
        self.back = int((dead & ~after).sum()) if len(after) == len(dead) else 0

    def _dead(self) -> torch.Tensor:
        regularizer = self._training.trainer.learner.regularizer
        assert regularizer is not None
        return regularizer.dead()

    def scores(self) -> tuple[str, ...]:
        """Of what is left when the dead channels have gone, as a run ends; a network that guesses stays whole."""
        learner = self._training.trainer.learner
        with suppress(ConstantOutputError):
            example = torch.zeros(1, *self._training.data.image_shape)
            learner.model = compress.compact(learner.model, (example,)).model
        parameters = sum(parameter.numel() for parameter in learner.model.parameters())
        validation, test = self.last["validation_accuracy"], self._training.accuracy()
        return f"{self.last['loss']:.4f}", f"{validation:.1%}", f"{test:.2%}", f"{parameters:,}"


def rows(without: Side, within: Side, epochs: int) -> Iterator[tuple[str, ...]]:
    """One row for each epoch, and one for all of them."""
    sides = without, within
    for epoch in range(1, epochs + 1):
        for side in sides:
            side.epoch()
        left = " / ".join(f"{1 - side.last['dead_share']:.1%}" for side in sides)
        losses = [f"{side.last['loss']:.4f}" for side in sides]
        yield str(epoch), left, str(without.back), *losses, *_clock(without.seconds[-1], within.seconds[-1])
    yield "all", left, "", "", "", *_clock(sum(without.seconds), sum(within.seconds))


def _clock(without: float, within: float) -> tuple[str, ...]:
    return f"{without:.0f}", f"{within:.0f}", f"{within / without:.2f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar-dir", type=Path, default=Path("runs/cifar10-jpeg"), help="holds train/ and test/")
    parser.add_argument("--scratch", type=Path, default=Path("runs/compact-every"), help="for the run directories")
    parser.add_argument("--limit", type=int, default=3000, help="images, a tenth of them for validation")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--penalty-epochs", type=int, default=4, help="of them with the penalty")
    parser.add_argument("--strength", type=float, default=6e-4)
    parser.add_argument("--image-size", type=int, default=32, help="pixels a side that the images are brought to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="write the tables to this file too")
    arguments = parser.parse_args()
    common = {
        "data.dir": arguments.cifar_dir,
        "data.limit": arguments.limit,
        "data.image_size": arguments.image_size,
        "schedule.epochs": arguments.epochs,
        "penalty.epochs": arguments.penalty_epochs,
        "penalty.strength": arguments.strength,
        "run.seed": arguments.seed,
    }
    without, within = (Side({**common, "penalty.compact_every": every}, arguments.scratch) for every in (0, 1))
    command = (
        f"python experiments/compact_every.py --limit {arguments.limit} --epochs {arguments.epochs} "
        f"--penalty-epochs {arguments.penalty_epochs} --strength {arguments.strength:g} "
        f"--image-size {arguments.image_size} --seed {arguments.seed}"
    )
    page = Page(
        "Compaction while training",
        command,
        about(__doc__),
        f"{arguments.limit} images of {arguments.image_size}x{arguments.image_size} pixels, batches of "
        f"{RECIPE['schedule.batch_size']}; {environment()}",
    )
    page.table(HEADINGS, rows(without, within, arguments.epochs), "Seconds an epoch")
    page.table(SCORES, [("without", *without.scores()), ("with", *within.scores())], "Accuracy")
    page.save(arguments.markdown)


if __name__ == "__main__":
    main()
