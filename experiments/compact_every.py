"""What compactions during training save: seconds an epoch with and without, side by side.

    python experiments/compact_every.py --out runs/compact-every

VGG-11 on digits, 32x32, half of each layer's filters zero from the start; ``compress train`` with ``--compact-every 0``
and ``--compact-every 1``, one after the other. The figures are those of the runs' own logs.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

from compress.models.vgg import VGG, vgg11

COMPRESS = Path(sys.executable).parent / "compress"
"""The console script of this very environment."""

EVERY = (0, 1)
"""Without compactions, and with one after each epoch."""


def half_dead_vgg11(num_classes: int, in_channels: int, image_size: int) -> VGG:
    """VGG-11 in which every second filter is zero, with its BatchNorm: it stays so, since no gradient reaches it."""
    model = vgg11(num_classes=num_classes, in_channels=in_channels, image_size=image_size)
    for module in model.features:
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            for parameter in module.parameters():
                parameter.detach()[::2] = 0.0
    return model


def main() -> None:
    """Run both trainings and print the table."""
    options = _options()
    logs = {every: _train(options, every) for every in EVERY}
    Console().print(_table(logs))
    without, with_ = (_typical_s(log) for log in logs.values())
    print(f"median of epochs 2 to {options.epochs}: {without:.2f} s without, {with_:.2f} s with compaction")
    print(f"an epoch takes {with_ / without:.2f} of the time; {_compactions(logs[1])}")


def _train(options: argparse.Namespace, every: int) -> list[dict[str, Any]]:
    """Train with one setting; the lines of its log."""
    out = options.out / f"every-{every}"
    command = [
        str(COMPRESS), "train", "--model", f"{__file__}:{half_dead_vgg11.__name__}", "--dataset", "digits",
        "--image-size", "32", "--limit", str(options.limit), "--penalty", "l0", "--strength", "0",
        "--epochs", str(options.epochs), "--compact-every", str(every), "--device", options.device,
        "--set", "data.augment.pad=2", "--set", "run.threads=1", "--out", str(out),
    ]  # fmt: skip
    print("$", shlex.join(["compress", *command[1:]]), flush=True)
    subprocess.run(command, check=True)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def _table(logs: dict[int, list[dict[str, Any]]]) -> Table:
    table = Table(title="seconds an epoch", box=box.SIMPLE_HEAD)
    for name in ("epoch", "without", "with", "loss without", "loss with"):
        table.add_column(name, justify="right")
    for lines in zip(*logs.values(), strict=True):
        seconds = [f"{line['seconds']:.2f}" for line in lines]
        table.add_row(str(lines[0]["epoch"]), *seconds, *(f"{line['loss']:.6f}" for line in lines))
    return table


def _typical_s(log: list[dict[str, Any]]) -> float:
    """Median over the epochs after the first compaction."""
    return statistics.median(line["seconds"] for line in log[1:])


def _compactions(log: list[dict[str, Any]]) -> str:
    made = [line["compaction"] for line in log if line["compaction"]]
    (before, after), (macs_before, macs_after) = made[0]["parameters"], made[0]["macs"]
    idle_s = statistics.median(compaction["seconds"] for compaction in made[1:])
    return (
        f"parameters {before:,} -> {after:,}, MACs {macs_before:,} -> {macs_after:,}; "
        f"the compaction that cut them took {made[0]['seconds']:.1f} s, one that finds nothing {idle_s:.1f} s"
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--out", type=Path, required=True, help="a new folder for both runs")
    parser.add_argument("--epochs", type=int, default=4, help="three or more")
    parser.add_argument("--limit", type=int, default=400, help="training images")
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


if __name__ == "__main__":
    main()
