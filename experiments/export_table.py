"""Dense, compact, and compact in 8 bits: accuracy, size, latency and memory of LeNet-5 and ResNet-20.

    python experiments/export_table.py --data-dir DIR --cifar-dir DIR --out runs/export-table

Every step is one of the commands that people run, printed before it runs; what is there already is not made again. The
figures come from the files that these commands write.

Both trainings are shortened. LeNet-5 sees half of MNIST's training images for 8 of the recipe's 12 epochs. ResNet-20
sees 4,000 of 50,000 images for 4 of 60 epochs: its rows show the path, not the accuracy that such a network reaches.

Accuracy is that of the test split: of `dense` in torch, of the same recipe trained without a penalty; of `compact` in
torch; of `compact + int8` in ONNX Runtime on this CPU. Layers are left in float by the validation split. File, latency
and memory of `dense` are those of the network before removal. Ratios are to `dense`: latency with its 95% interval, one
thread and one image at a time; memory is the peak during inference over the bare runtime. Absolute times depend on the
machine, and so does what int8 gains: see the CPU's flags below.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page import Page, about
from pipeline import COMMANDS

HEADINGS = ("", "test accuracy", "file", "gzip", "size ratio", "latency ratio [95%]", "peak memory ratio")
KINDS = {"dense": ["--dense"], "compact": [], "int8": ["--int8", "--no-latency"]}
NAMES = {"dense": "dense", "compact": "compact", "int8": "compact + int8"}


@dataclass(frozen=True)
class Case:
    """A network and its data set: the title, the run's name, and the words that train it."""

    title: str
    name: str
    train: list[str]


def main() -> int:
    """Run the steps and write the page; the failing command's exit code if one fails."""
    options = _options()
    page = Page("Export: dense, compact, and compact in 8 bits", "make export-table", about(__doc__))
    host: dict[str, Any] = {}
    for case in cases(options):
        run = options.out / case.name
        for command, made in steps(case, run):
            if made.exists():
                continue
            print(f"\n$ {shlex.join(command)}", flush=True)
            code = subprocess.run([str(COMMANDS / command[0]), *command[1:]], check=False).returncode
            if code:
                return code
        host = _read(run / "latency-int8.json")["host"]
        page.table(HEADINGS, rows(run), case.title)
        page.paragraph("Trained by:", "", f"    {shlex.join(['compress', 'train', *case.train, '--out', str(run)])}")
        page.paragraph(*_notes(run))
    page.paragraph(
        f"Host: {host['cpu_model']}, {host['architecture']}, {' '.join(host['isa'])}; onnxruntime "
        f"{host['onnxruntime']}."
    )
    page.save(options.markdown)
    return 0


def cases(options: argparse.Namespace) -> list[Case]:
    """The two networks."""
    lenet = ["--recipe", "recipes/lenet5-mnist-l0.toml", "--data-dir", str(options.data_dir), "--limit", "30000"]
    lenet += ["--epochs", "8", "--set", "penalty.epochs=5", "--set", "penalty.warmup_epochs=3"]
    resnet = ["--recipe", "recipes/resnet20-cifar10jpeg.toml", "--data-dir", str(options.cifar_dir), "--limit", "4000"]
    resnet += ["--epochs", "4", "--strength", "2", "--set", "penalty.epochs=3", "--set", "run.dense_baseline=true"]
    return [
        Case("LeNet-5 on MNIST", "lenet5", lenet),
        Case("ResNet-20 on CIFAR-10 (JPEG): the path, not the accuracy", "resnet20", resnet),
    ]


def steps(case: Case, run: Path) -> list[tuple[list[str], Path]]:
    """Each command, and the file that it leaves last."""
    resume = ["--resume"] if (run / "config.toml").exists() else []
    found = [(["compress", "train", *case.train, "--out", str(run), *resume], run / "summary.json")]
    files = {kind: run / f"{kind}.onnx" for kind in KINDS}
    for kind, words in KINDS.items():
        command = ["compress", "export", str(run), "--onnx", str(files[kind]), *words]
        found.append((command, files[kind]))
    for measure in ("latency", "memory"):
        for kind in ("compact", "int8"):
            report = run / f"{measure}-{kind}.json"
            words = [str(files[kind]), "--baseline", str(files["dense"]), "--device", "cpu", "--json", str(report)]
            found.append((["bench", measure, *words], report))
    return found


def rows(run: Path) -> list[list[str]]:
    """The table of a run, its first row the baseline."""
    documents = {kind: _read(run / f"{kind}.onnx.json") for kind in KINDS}
    accuracy = dict(_read(run / "summary.json")["accuracy"]["test"])
    accuracy["int8"] = documents["int8"]["accuracy"]["int8"]["test"]
    found = []
    for kind, document in documents.items():
        row = [NAMES[kind], f"{accuracy[kind]:.2%}", f"{document['file_bytes']:,} B", f"{document['gzip_bytes']:,} B"]
        if kind == "dense":
            found.append([*row, "1", "1", "1"])
            continue
        ratio, memory = _read(run / f"latency-{kind}.json")["ratio"], _read(run / f"memory-{kind}.json")["ratios"]
        found.append(
            [
                *row,
                f"{document['file_bytes'] / documents['dense']['file_bytes']:.3f}",
                f"{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]",
                f"{memory['peak_over_bare_bytes']:.3f}",
            ]
        )
    return found


def _notes(run: Path) -> list[str]:
    """What the export said about int8, and what bench doubts of the latencies."""
    doubts = {
        f"Latency of {NAMES[kind]}: {warning.split(': run')[0].split('; stop')[0].split('; run')[0]}"
        for kind in ("compact", "int8")
        for warning in _read(run / f"latency-{kind}.json")["warnings"]
    }
    return [f"- {note}." for note in (*_read(run / "int8.onnx.json")["notes"], *sorted(doubts))]


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="holds MNIST/raw/")
    parser.add_argument("--cifar-dir", type=Path, required=True, help="holds train/<class>/ and test/<class>/")
    parser.add_argument("--out", type=Path, required=True, help="run directories; files and reports go there too")
    parser.add_argument("--markdown", type=Path, help="write the page here as well")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
