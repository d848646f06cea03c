"""Whether ``--compact-every`` changes what a training ends with, over several seeds.

    python experiments/compact_every_seeds.py narrow-mnist --data-dir DIR --seeds 5 --markdown FILE
    python experiments/compact_every_seeds.py vgg16-cifar10jpeg --data-dir DIR --seeds 3 --markdown FILE

Each seed trains three times with one recipe: without compactions, with ``penalty.compact_every = 1``, and, to know what
rounding alone does, without compactions from starting weights that differ by about 1e-7 of themselves. The penalty acts
for the first epochs; then what is dead stays so, and the rest trains on without it. Accuracy on the 10,000 test images,
read once, at the end of each training. Seconds are processor time of all epochs.

Finished trainings are kept in a file, and not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from epochs import EpochByEpoch
from page import Page, about, environment

from compress.train.recipe import resolve

NUDGE = 1e-7
"""Relative; about the rounding of one float32."""

SIDES = {"without": (0, 0.0), "with": (1, 0.0), "nudged": (0, NUDGE)}
"""Name -> ``penalty.compact_every``, and how far starting weights are moved."""

COMMON: dict[str, object] = {
    "penalty.name": "group-lasso",
    "penalty.granularity": "coupled",
    "optimizer.name": "adam",
    "schedule.lr_schedule": "cosine",
    "run.device": "cpu",
}

RECIPES: dict[str, dict[str, object]] = {
    "narrow-mnist": COMMON
    | {
        "model.name": f"{Path(__file__).parent / 'narrow_vgg.py'}:vgg16",
        "data.name": "mnist",
        "data.image_size": 16,
        "data.limit": 1500,
        "penalty.strength": 0.0015,
        "penalty.epochs": 6,
        "optimizer.lr": 0.002,
        "schedule.batch_size": 64,
        "schedule.epochs": 10,
    },
    "vgg16-cifar10jpeg": COMMON
    | {
        "model.name": "vgg16",
        "data.name": "folder",
        "data.limit": 3000,
        "data.validation_share": 0.1,
        "data.augment.pad": 4,
        "data.augment.flip": True,
        "penalty.strength": 6e-4,
        "penalty.epochs": 4,
        "optimizer.lr": 0.0003,
        "schedule.batch_size": 32,
        "schedule.epochs": 8,
    },
}

NETWORKS = {
    "narrow-mnist": "VGG-16 (BatchNorm) with a quarter of its widths, 1,500 images of MNIST at 16x16",
    "vgg16-cifar10jpeg": "VGG-16 (BatchNorm), 3,000 images of CIFAR-10 (JPEG), a tenth of them for validation",
}

Row = dict[str, Any]


def trained(study: str, side: str, seed: int, data_dir: Path, scratch: Path) -> Row:
    """Train once."""
    every, nudge = SIDES[side]
    settings = {"data.dir": data_dir, "penalty.compact_every": every, "run.seed": seed}
    config = resolve(flags={**RECIPES[study], **settings})
    training = EpochByEpoch(config, scratch)
    learner = training.trainer.learner
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.model.parameters() if nudge else ():
            parameter.mul_(1.0 + nudge * torch.randn(parameter.shape, generator=generator))
    begin = time.process_time()
    epochs = [training.epoch() for _ in range(config.schedule.epochs)]
    return {
        "study": study,
        "side": side,
        "seed": seed,
        "losses": [line["loss"] for line in epochs],
        "seconds": time.process_time() - begin,
        "dead_share": epochs[-1]["dead_share"],
        "accuracy": 100 * training.accuracy(),
    }


def rows_of(file: Path, study: str) -> dict[tuple[int, str], Row]:
    """Trainings that are finished, by seed and side."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {(row["seed"], row["side"]): row for row in map(json.loads, lines) if row["study"] == study}


def table(rows: dict[tuple[int, str], Row], seeds: int) -> Iterator[tuple[str, ...]]:
    """One line a seed, then means with their standard errors."""
    accuracies = [[rows[seed, side]["accuracy"] for side in SIDES] for seed in range(seeds)]
    for seed, (without, within, nudged) in enumerate(accuracies):
        left = (f"{100 * (1 - rows[seed, side]['dead_share']):.1f}" for side in SIDES)
        differences = f"{within - without:+.2f}", f"{nudged - without:+.2f}"
        shown = (f"{value:.2f}" for value in (without, within, nudged))
        seconds = (f"{rows[seed, side]['seconds']:.0f}" for side in SIDES)
        yield str(seed), *shown, *differences, " / ".join(left), " / ".join(seconds)
    means = (f"{statistics.mean(column):.2f}" for column in zip(*accuracies, strict=True))
    yield "mean", *means, *(spread([row[at] - row[0] for row in accuracies]) for at in (1, 2)), "", ""


def spread(differences: list[float]) -> str:
    """Mean and standard error."""
    error = statistics.stdev(differences) / len(differences) ** 0.5
    return f"{statistics.mean(differences):+.2f} ± {error:.2f}"


HEADINGS = (
    *("seed", "without", "with", "nudged", "with - without", "nudged - without"),
    *("groups left, % (without / with / nudged)", "s (without / with / nudged)"),
)


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=RECIPES)
    parser.add_argument("--data-dir", type=Path, required=True, help="holds MNIST, or the images' train/ and test/")
    parser.add_argument("--scratch", type=Path, default=Path("runs/compact-every-seeds"), help="for run directories")
    parser.add_argument("--seeds", type=int, default=5, help="two or more")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    arguments.scratch.mkdir(parents=True, exist_ok=True)
    file = arguments.scratch / "rows.jsonl"
    study = arguments.study
    rows = rows_of(file, study)
    for seed in range(arguments.seeds):
        for side in SIDES:
            if (seed, side) not in rows:
                row = rows[seed, side] = trained(study, side, seed, arguments.data_dir, arguments.scratch)
                print(json.dumps(row), flush=True)
                with file.open("a", encoding="utf-8") as out:
                    out.write(json.dumps(row) + "\n")
    page = Page(
        "Compaction while training: several seeds",
        f"python experiments/compact_every_seeds.py {study} --seeds {arguments.seeds}",
        about(__doc__),
        f"{NETWORKS[study]}; {environment()}",
    )
    page.table(HEADINGS, table(rows, arguments.seeds), "Test accuracy, %")
    page.save(arguments.markdown)


if __name__ == "__main__":
    main()
