"""What distillation, averaged weights and label smoothing are worth when a pruned network is trained on.

    python experiments/finetune_gains.py --data-dir DIR --scratch DIR --seeds 3 --markdown FILE

For each seed a dense ResNet-20 is trained, half of its multiply-accumulates are pruned by magnitude, and what is left
is trained on in several ways, each for the same number of epochs. Accuracy is that of the compact network on the 10,000
test images, read once, at the end of each run; no setting was chosen by it. Finished runs are not done again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from page import Page, about, environment

COMPRESS = Path(sys.executable).parent / "compress"
RECIPE = {
    "data.augment.pad": "4",
    "data.augment.flip": "true",
    "data.validation_share": "0.1",
    "schedule.lr_schedule": "cosine",
    "optimizer.name": "sgd",
    "optimizer.weight_decay": "0.0001",
    "run.curves": "false",
}
DENSE_LR, FINETUNE_LR = "0.05", "0.02"
TARGET = "50%"

WAYS: dict[str, dict[str, str]] = {
    "labels alone": {},
    "distillation": {"distill.teacher": "dense"},
    "averaged weights": {"average.decay": "0.99"},
    "label smoothing": {"schedule.label_smoothing": "0.1"},
    "distillation, averaged": {"distill.teacher": "dense", "average.decay": "0.99"},
}
"""How the pruned network is trained on -> keys of the recipe, at their usual values."""


def run(directory: Path, *words: object) -> dict[str, dict[str, dict[str, float]]]:
    """The summary of a run, which is made first if it is not there."""
    if not (directory / "summary.json").exists():
        print(f"  {' '.join(map(str, words))}", file=sys.stderr, flush=True)
        subprocess.run([COMPRESS, *map(str, words)], check=True, capture_output=True)
    summary: dict[str, dict[str, dict[str, float]]] = json.loads((directory / "summary.json").read_text("utf-8"))
    return summary


def sets(settings: dict[str, str]) -> list[str]:
    """Keys of a recipe as options."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def accuracies(arguments: argparse.Namespace, seed: int) -> dict[str, float]:
    """Test accuracy in percent: of the dense network, of the pruned one, and of each way to train it on."""
    folder = arguments.scratch / f"seed{seed}"
    dense, half = folder / "dense", folder / "half"
    data = ("--model", "resnet20", "--dataset", arguments.data_dir, "--limit", arguments.limit)
    schedule = ("--epochs", arguments.epochs, "--set", f"optimizer.lr={DENSE_LR}")
    summaries = {
        "dense": run(
            dense, "train", *data, *schedule, "--penalty", "none", "--seed", seed, *sets(RECIPE), "--out", dense
        ),
        "pruned": run(half, "prune", dense, "--out", half, "--target-macs", TARGET, "--recalibrate", 20),
    }
    for way, settings in WAYS.items():
        out = folder / way.replace(", ", "-").replace(" ", "-")
        options = ("--epochs", arguments.finetune_epochs, "--learning-rate", FINETUNE_LR)
        summaries[way] = run(out, "finetune", half, "--out", out, *options, *sets(settings))
    return {name: 100 * summary["accuracy"]["test"]["compact"] for name, summary in summaries.items()}


def rows(found: list[dict[str, float]]) -> Iterable[tuple[str, ...]]:
    """A line for each network: accuracies by seed, their mean, and the mean difference from labels alone."""
    for name in found[0]:
        values = [one[name] for one in found]
        cells = [name, *(f"{value:.2f}" for value in values), f"{statistics.mean(values):.2f}"]
        if WAYS.get(name):
            gains = [one[name] - one["labels alone"] for one in found]
            error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
            cells.append(f"{statistics.mean(gains):+.2f} ± {error:.2f}")
        else:
            cells.append("")
        yield tuple(cells)


def main() -> None:
    """Train what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="CIFAR-10 as folders of JPEG images")
    parser.add_argument("--scratch", type=Path, required=True, help="where the runs are kept")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--limit", type=int, default=10_000, help="training images (default: 10,000)")
    parser.add_argument("--epochs", type=int, default=12, help="of the dense network (default: 12)")
    parser.add_argument("--finetune-epochs", type=int, default=6, help="after pruning (default: 6)")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    settings = (
        f"ResNet-20, {arguments.limit:,} training images of CIFAR-10 (JPEG), a tenth of them for validation; "
        f"{arguments.epochs} epochs dense (SGD, {DENSE_LR}, cosine), pruned to {TARGET} of the multiply-accumulates, "
        f"{arguments.finetune_epochs} epochs more ({FINETUNE_LR}, cosine). Accuracy in percent; the last column is the "
        "mean over the seeds of the difference from the same seed with labels alone, and its standard error."
    )
    command = "python experiments/finetune_gains.py --data-dir DIR --scratch DIR"
    page = Page("What helps a pruned network", command, about(__doc__), settings, environment())
    found = [accuracies(arguments, seed) for seed in range(arguments.seeds)]
    headings = ("network", *(f"seed {seed}" for seed in range(arguments.seeds)), "mean", "over labels alone")
    page.table(headings, rows(found))
    page.save(arguments.markdown)


if __name__ == "__main__":
    main()
