"""How few single weights LeNet-5 needs on MNIST.

    python experiments/single_weights.py --data-dir DIR --out runs/lenet5-mnist-weights \
        --markdown docs/results/lenet5-mnist-weights.md

Trains by ``recipes/lenet5-mnist-weights.toml``: one seed; all choices were made on the validation split, and the test
split is read once, at the end. The ratio is that of all weights of convolutions and linear layers (biases are not
counted) to those that are not exactly zero. The last line is what an update over the air ships: the file, compressed.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

from page import Page, about
from rich.console import Console
from safetensors.torch import load_file

from compress.train.interrupt import Interrupted
from compress.train.recipe import resolve
from compress.train.rundir import MASKED
from compress.train.session import train

RECIPE = Path(__file__).parents[1] / "recipes" / "lenet5-mnist-weights.toml"


def main() -> None:
    """Train, or take the run that is there, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="holds MNIST/raw")
    parser.add_argument("--out", type=Path, required=True, help="run directory; a stopped run goes on")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    config = resolve(RECIPE, {"data.dir": arguments.data_dir, "run.out": arguments.out})
    try:
        summary = train(config, resume=arguments.out.exists(), console=Console())
    except Interrupted:
        raise SystemExit("stopped; the same command goes on") from None
    weights = {name: w for name, w in load_file(arguments.out / MASKED).items() if w.ndim > 1}
    left, total = (sum(int(w.numel() if every else (w != 0).sum()) for w in weights.values()) for every in (0, 1))
    file = (arguments.out / MASKED).read_bytes()
    accuracy = summary["accuracy"]
    rows = {
        "weights": f"{total:,}",
        "not zero": f"{left:,}",
        "ratio": f"{total / left:.0f}",
        **{f"not zero in {name}": f"{int((w != 0).sum()):,} of {w.numel():,}" for name, w in weights.items()},
        "error on the validation split": f"{1 - accuracy['validation']['masked']:.2%}",
        "error on the test split": f"{1 - accuracy['test']['masked']:.2%}",
        "epochs": f"{config.schedule.epochs}",
        "file": f"{len(file):,} B, gzip {len(gzip.compress(file, 9)):,} B",
    }
    page = Page("Single weights of LeNet-5, MNIST", "python experiments/single_weights.py", about(__doc__))
    page.table(("", ""), rows.items())
    page.save(arguments.markdown)


if __name__ == "__main__":
    main()
