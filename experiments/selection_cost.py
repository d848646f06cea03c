"""What an index in front of a BatchNorm costs, and what it saves: the constant behind ``select="auto"``.

    python experiments/selection_cost.py --markdown docs/results/selection-cost.md

A stream of channels is read by a BatchNorm, a ReLU and a 1x1 convolution, as in DenseNet and ResNet-v2; some scales of
the BatchNorm are 0. The network is compacted without an index and with one, both are exported, and their latency is
measured side by side. ``predicted`` is what the rule says: the multiply-accumulates that the index saves, over
``COPY_COST`` for each number that it copies; above 1 it is inserted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from page import Page
from torch import Tensor, nn

import compress
from compress.surgery.select import COPY_COST
from export import to_onnx

BENCH = Path(sys.executable).parent / "bench"
CASES = [
    (channels, outputs, size, share)
    for channels, size in ((256, 28), (512, 14))
    for outputs in (16, 64, 128)
    for share in (0.1, 0.5)
]
"""Channels of the stream, outputs of the convolution, height and width, share of silent channels."""
HEADINGS = ("stream", "outputs", "size", "silent", "predicted", "ratio", "95% interval", "auto")


class Branches(nn.Module):
    """Four branches that read one stream, each the BatchNorm, ReLU and 1x1 convolution of a dense block's layer."""

    def __init__(self, channels: int, outputs: int, branches: int = 4):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(branches))
        self.convs = nn.ModuleList(nn.Conv2d(channels, outputs, 1, bias=False) for _ in range(branches))
        self.last = nn.BatchNorm2d(outputs * branches)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores, say, of images ``[batch, 3, height, width]``."""
        x = self.stem(x)
        parts = [conv(norm(x).relu()) for norm, conv in zip(self.norms, self.convs, strict=True)]
        return self.last(torch.cat(parts, 1)).mean((2, 3))


def measure(channels: int, outputs: int, size: int, share: float, seconds: float) -> tuple[str, ...]:
    """One row of the table."""
    torch.manual_seed(0)
    model = Branches(channels, outputs).eval()
    silent = int(channels * share)
    for branch, norm in enumerate(model.norms):
        assert isinstance(norm, nn.BatchNorm2d)
        with torch.no_grad():  # another set for each branch: the stream keeps all of its channels
            norm.weight[(torch.arange(silent) + branch * (channels - silent) // 3) % channels] = 0
    x = torch.randn(1, 3, size, size)
    results = {how: compress.compact(model, (x,), select=how) for how in ("never", "always", "auto")}
    predicted = silent * outputs / (COPY_COST * (channels - silent))
    with tempfile.TemporaryDirectory() as folder:
        files = {how: Path(folder) / f"{how}.onnx" for how in ("never", "always")}
        for how, file in files.items():
            to_onnx(results[how].model, (x,), file)
        report = Path(folder) / "report.json"
        command = [BENCH, "latency", files["always"], "--baseline", files["never"], "--json", report]
        subprocess.run([*command, "--min-seconds", str(seconds)], check=True, capture_output=True)
        ratio = json.loads(report.read_text())["ratio"]
    chosen = "inserted" if results["auto"].report.selections else "left out"
    interval = f"{ratio['low']:.3f} - {ratio['high']:.3f}"
    return (
        str(channels),
        str(outputs),
        str(size),
        f"{share:.0%}",
        f"{predicted:.2f}",
        f"{ratio['value']:.3f}",
        interval,
        chosen,
    )


def main() -> None:
    """Measure all cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    parser.add_argument("--min-seconds", type=float, default=2.0, help="of each measurement (default: 2)")
    arguments = parser.parse_args()
    rule = (
        "Latency with an index in front of each of four BatchNorms over that without, batch 1, 1 thread. The rule\n"
        f"inserts it where `predicted` is above 1 (COPY_COST = {COPY_COST})."
    )
    page = Page("Channel selection: what an index costs", "python experiments/selection_cost.py", rule)
    page.table(HEADINGS, (measure(*case, arguments.min_seconds) for case in CASES))
    page.save(arguments.markdown)


if __name__ == "__main__":
    main()
