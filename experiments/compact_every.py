"""What ``--compact-every`` saves: VGG-16 on CIFAR-10 (JPEG), with and without, an epoch each in turns.

    python experiments/compact_every.py --cifar-dir DIR --markdown docs/results/compact-every.md

Both trainings have the same recipe and the same seed, but for ``penalty.compact_every = 1`` in the one: then channels
that died in an epoch leave after it. They take turns, so that a machine that becomes busier slows both. Seconds are
those of training alone; those of a compaction itself are in "all seconds". "Groups left" are those that are not zero.
The accuracy is that on the test images, read once, at the end; no choice depends on it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from epochs import EpochByEpoch
from page import Page, about, environment

from compress.train.recipe import resolve

HEADINGS = ("epoch", "groups left", "s, without", "s, with", "with / without", "all s, without", "all s, with")

RECIPE: dict[str, object] = {
    "model.name": "vgg16",
    "data.name": "folder",
    "data.validation_share": 0.1,
    "data.augment.pad": 4,
    "data.augment.flip": True,
    "penalty.name": "group-lasso",
    "penalty.granularity": "coupled",
    "optimizer.name": "adam",
    "optimizer.lr": 0.001,
    "schedule.batch_size": 64,
    "run.device": "cpu",
}


class Timed:
    """One of the two trainings, with the clock of all that it does."""

    def __init__(self, settings: dict[str, object], scratch: Path) -> None:
        self.training = EpochByEpoch(resolve(flags={**RECIPE, **settings}), scratch)
        self.seconds = self.all_seconds = 0.0

    def epoch(self) -> dict[str, Any]:
        """Train one; its line of the log."""
        begin = time.perf_counter()
        record = self.training.epoch()
        self.all_seconds += time.perf_counter() - begin
        self.seconds += record["seconds"]
        return record


def rows(without: Timed, within: Timed, epochs: int) -> Iterator[tuple[str, ...]]:
    """One row for each epoch, and one for all of them."""
    for epoch in range(1, epochs + 1):
        plain, compacted = without.epoch(), within.epoch()
        seconds = plain["seconds"], compacted["seconds"]
        left = f"{1 - compacted['dead_share']:.1%}"
        yield (
            str(epoch),
            left,
            *(f"{s:.1f}" for s in seconds),
            f"{seconds[1] / seconds[0]:.2f}",
            f"{without.all_seconds:.0f}",
            f"{within.all_seconds:.0f}",
        )
    yield (
        "all",
        left,
        f"{without.seconds:.0f}",
        f"{within.seconds:.0f}",
        f"{within.seconds / without.seconds:.2f}",
        f"{without.all_seconds:.0f}",
        f"{within.all_seconds:.0f}",
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar-dir", type=Path, default=Path("runs/cifar10-jpeg"), help="holds train/ and test/")
    parser.add_argument("--scratch", type=Path, default=Path("runs/compact-every"), help="for the run directories")
    parser.add_argument("--limit", type=int, default=3000, help="images, a tenth of them for validation")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--strength", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="write the tables to this file too")
    arguments = parser.parse_args()
    common = {
        "data.dir": arguments.cifar_dir,
        "data.limit": arguments.limit,
        "schedule.epochs": arguments.epochs,
        "penalty.strength": arguments.strength,
        "run.seed": arguments.seed,
    }
    without, within = (Timed({**common, "penalty.compact_every": every}, arguments.scratch) for every in (0, 1))
    command = f"python experiments/compact_every.py --limit {arguments.limit} --epochs {arguments.epochs}"
    page = Page(
        "Compaction while training",
        f"{command} --strength {arguments.strength:g} --seed {arguments.seed}",
        about(__doc__),
        f"{arguments.limit} images, batches of {RECIPE['schedule.batch_size']}; {environment()}",
    )
    page.table(HEADINGS, rows(without, within, arguments.epochs), "Seconds an epoch")
    scores = [(name, f"{each.training.accuracy():.2%}") for name, each in (("without", without), ("with", within))]
    page.table(("compaction", "test accuracy"), scores, "Accuracy")
    page.save(arguments.markdown)


if __name__ == "__main__":
    main()
