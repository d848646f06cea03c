"""Every penalty on single weights, filters and coupled groups: how many exact zeros it makes, and at what price.

    python experiments/penalty_table.py --data-dir DIR --out runs/penalties --markdown docs/results/penalties-mnist.md

LeNet-5 on MNIST, one seed. First each penalty is tried at every decade of strength, on few images (``SEARCH``); of
those that cost no more than ``PRICE`` of accuracy on the *validation* split against no penalty at all, the one that
leaves the fewest groups is taken. Then the network is trained on more images (``FINAL``), first at half a decade above
it, and then at a quarter of a decade less each time, until it costs no more than ``PRICE`` there, on the validation
split again: that run is the row. "zeros" is the share of groups that are exactly zero at the end of training, as the
proximal steps left them: nothing is thresholded. No choice depends on the test split. What was done is kept in the
folder; called again, it goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from page import Page, about
from rich.progress import Progress
from safetensors.torch import load_file

from compress.errors import CompressError
from compress.penalties import PENALTIES
from compress.train.recipe import resolve
from compress.train.rundir import MASKED
from compress.train.session import train

GRANULARITIES = ("weight", "filter", "coupled")
STRENGTHS = tuple(10.0**k for k in range(-6, 3))
QUARTERS = range(2, -8, -1)
"""Above the decade that was found, in turn."""
SEARCH = {"data.limit": 4000, "schedule.epochs": 3}
FINAL = {"data.limit": 24000, "schedule.epochs": 3}
PRICE = 0.01
HEADINGS = ("penalty", "groups", "strength", "zeros", "weights left", "test error", "compact MACs")

COMMON = {
    "model.name": "lenet5",
    "data.name": "mnist",
    "optimizer.name": "adam",
    "optimizer.lr": 0.001,
    "schedule.batch_size": 128,
    "schedule.lr_schedule": "cosine",
    "run.device": "cpu",
    "run.threads": 1,
}

Summary = dict[str, Any]


class Study:
    """All runs of the table.

    Args:
        data_dir: holds MNIST.
        out: of the runs.
    """

    def __init__(self, data_dir: Path, out: Path) -> None:
        self._data_dir, self._out = data_dir, out

    def directory(self, penalty: str, granularity: str, strength: float, size: dict[str, int]) -> Path:
        """Of one run."""
        kind = "search" if size is SEARCH else "final"
        return self._out / f"{kind}-{penalty}-{granularity}-{strength:.3g}"

    def run(self, penalty: str, granularity: str, strength: float, size: dict[str, int]) -> Summary:
        """The summary of one training, done now or earlier."""
        directory = self.directory(penalty, granularity, strength, size)
        settings: dict[str, object] = {
            **COMMON,
            **size,
            "penalty.name": penalty,
            "penalty.granularity": granularity,
            "penalty.strength": strength,
            "penalty.warmup_epochs": 1.0,
            "data.dir": self._data_dir,
            "run.out": directory,
        }
        done = directory / "summary.json"
        if done.exists():
            return dict(json.loads(done.read_text(encoding="utf-8")))
        return train(resolve(flags=settings), resume=directory.exists())

    def tried(self, penalty: str, granularity: str, strength: float, size: dict[str, int]) -> tuple[float, float]:
        """Validation accuracy lost against no penalty, and the share of zeros.

        All is lost where no filter is left, or where the loss is not finite.
        """
        free = self.run("none", "weight", 0.0, size)["accuracy"]["validation"]["masked"]
        try:
            summary = self.run(penalty, granularity, strength, size)
        except CompressError:
            return 1.0, 0.0
        return free - summary["accuracy"]["validation"]["masked"], summary["dead_share"]

    def strength(self, penalty: str, granularity: str, advance: Callable[[], None]) -> float:
        """The strength that the validation split recommends."""
        best, fewest = STRENGTHS[0], 0.0
        for strength in STRENGTHS:
            loss, zeros = self.tried(penalty, granularity, strength, SEARCH)
            advance()
            if loss <= PRICE and zeros >= fewest:
                best, fewest = strength, zeros
            if loss > 10 * PRICE:
                break
        for quarter in QUARTERS:
            strength = best * 10 ** (quarter / 4)
            loss, _ = self.tried(penalty, granularity, strength, FINAL)
            advance()
            if loss <= PRICE:
                break
        return strength


def rows(study: Study, penalties: list[str]) -> Iterator[tuple[str, ...]]:
    """One row for each penalty and granularity, and one for none."""
    plain = study.run("none", "weight", 0.0, FINAL)
    yield ("none", "", "", "", "", error(plain), "")
    with Progress() as bar:
        for penalty in penalties:
            for granularity in GRANULARITIES:
                task = bar.add_task(f"{penalty} {granularity}", total=len(STRENGTHS) + len(QUARTERS))
                strength = study.strength(penalty, granularity, lambda task=task: bar.advance(task))
                found = study.run(penalty, granularity, strength, FINAL)
                bar.update(task, visible=False)
                macs = found["macs"]
                yield (
                    penalty,
                    granularity,
                    f"{strength:.2g}",
                    f"{found['dead_share']:.2%}",
                    f"{weights_left(study.directory(penalty, granularity, strength, FINAL)):.2%}",
                    error(found),
                    f"{macs['compact'] / macs['dense']:.1%}",
                )


def weights_left(directory: Path) -> float:
    """The share of the weights of convolutions and linear layers, without biases, that are not zero."""
    tensors = [tensor for name, tensor in load_file(directory / MASKED).items() if name.endswith("weight")]
    return sum(int((tensor != 0).sum()) for tensor in tensors) / sum(tensor.numel() for tensor in tensors)


def error(summary: Summary) -> str:
    """Of the masked network on the test split."""
    return f"{1 - summary['accuracy']['test']['masked']:.2%}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("penalties", nargs="*", help=f"default: all, {', '.join(PENALTIES)}")
    parser.add_argument("--data-dir", type=Path, required=True, help="holds MNIST/raw")
    parser.add_argument("--out", type=Path, required=True, help="of the runs")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    sizes = f"SEARCH = {SEARCH}, FINAL = {FINAL}, PRICE = {PRICE:.0%}."
    page = Page("Penalties on LeNet-5, MNIST", "python experiments/penalty_table.py", about(__doc__), sizes)
    study = Study(arguments.data_dir, arguments.out)
    page.table(HEADINGS, rows(study, arguments.penalties or list(PENALTIES)))
    page.save(arguments.markdown)


if __name__ == "__main__":
    main()
