"""The exam of surgery on ONNX files: masked networks, exported as they are, shrunk as files.

    python experiments/exam_onnx.py --models resnet18 --case a
    python experiments/exam_onnx.py --markdown docs/results/onnx-exam.md

Each network is damaged as in ``exam.py``, exported by torch's own exporter with nothing removed and an open batch size,
and cut twice: by ``compress.compact`` as a module, and by ``compress compact`` as a file. Rows are kept as JSON lines
under ``--out``; what is there is not run again, unless ``--again`` says so. The exit code is 1 where widths differ, or
outputs by more than 1e-5.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from exam_damage import calibrate_, kill_groups_, kill_scales_, randomise_
from exam_networks import Network, find
from page import Page
from torch import nn

from compress.graph import channel_graph
from compress.surgery import compact
from compress.surgery.onnx_compact import compact_onnx, write_model

MODELS = ("vgg11_bn", "resnet18", "mobilenet_v2", "densenet121", "shufflenet_v2_x0_5", "efficientnet_b0")
CASES = {"a": kill_groups_, "b": kill_scales_}
TOLERANCE = 1e-5
SEED, OWN_SEED = 20, 2000
BATCHES = (1, 3)
EXPORTERS = ("dynamo", "torchscript")
"""Both of torch's: the one that traces with torch.export, and the older one."""
PIXELS = {("vgg11_bn", "torchscript"): 224}
"""Where the network's own size of the exam does not do: the older exporter refuses to pool 2x2 places to 7x7."""

ABOUT = f"""
Each network has random weights; half of its inner channels are dead: (a) half of the coupled groups, (b) half of the
scales of every normalisation. It is exported by torch's own exporter, with nothing removed and an open batch size:
`dynamo` is the exporter of `torch.export`, `torchscript` the older one; both fold BatchNorm into convolutions.

"file" counts the channels that leave the ONNX file, "module" those that leave the torch module (`prefer="smallest"`),
both of all layers; "widths" says whether every layer has as many left in both. "difference" is the largest in ONNX
Runtime between the two files, relative to the largest output, on inputs that the certificate has not seen, in batches
of {BATCHES[0]} and {BATCHES[1]}; {TOLERANCE:.0e} is allowed. "float64" is that of the certificate. "s" are seconds on
one thread from file to file, of a machine that others use too.
"""


def main() -> int:
    """Run what is missing, print the rows, write the document; 1 where a row fails."""
    options = _options()
    if options.child:
        print(json.dumps(examine(options.child[0], options.child[1], options.child[2])))
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [(m, c, e) for m in options.models for c in options.case for e in options.exporter]
    missing = [names for names in wanted if options.table_only and not _path(options, *names).exists()]
    rows = [row for names in wanted if names not in missing and (row := _row(options, *names))]
    missing += [names for names in wanted if names not in missing and not _path(options, *names).exists()]
    about = [ABOUT, *(["Not run: " + ", ".join(f"{m} ({c}, {e})" for m, c, e in missing) + "."] if missing else [])]
    page = Page("Exam of surgery on ONNX files", "python experiments/exam_onnx.py", *about)
    headings = (
        "model",
        "case",
        "exporter",
        "px",
        "file",
        "module",
        "widths",
        "parameters",
        "MB",
        "difference",
        "float64",
        "s",
    )
    page.table(headings, (_cells(row) for row in rows))
    if options.markdown:
        page.save(options.markdown)
    return int(any(_fails(row) for row in rows) or bool(missing and not options.table_only))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--exporter", nargs="+", choices=EXPORTERS, default=list(EXPORTERS))
    parser.add_argument("--out", type=Path, default=Path("runs/exam-onnx"))
    parser.add_argument("--again", action="store_true", help="run also what has a row")
    parser.add_argument("--table-only", action="store_true", help="run nothing; show what has a row")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def _row(options: argparse.Namespace, model: str, case: str, exporter: str) -> dict[str, Any] | None:
    """A row, from its file or from a process of its own, whose memory is given back; none if that failed."""
    path = _path(options, model, case, exporter)
    if options.again or not path.exists():
        command = [sys.executable, __file__, "--child", model, case, exporter]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{model}, case {case}, {exporter}:\n{done.stderr}", file=sys.stderr)
            return None
        path.write_text(done.stdout.splitlines()[-1] + "\n", encoding="utf-8")
    row: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return row


def _path(options: argparse.Namespace, model: str, case: str, exporter: str) -> Path:
    folder: Path = options.out
    return folder / f"{model}-{case}-{exporter}.json"


def examine(name: str, case: str, exporter: str) -> dict[str, Any]:
    """Damage, export, cut both ways, compare."""
    torch.manual_seed(SEED)
    network = find("torchvision", name)
    pixels = PIXELS.get((name, exporter), network.size)
    with warnings.catch_warnings(), torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        warnings.simplefilter("ignore")
        model = damaged(network, case)
        file, small = Path(folder) / "model.onnx", Path(folder) / "small.onnx"
        export(model, pixels, file, exporter)
        started = time.perf_counter()
        result = compact_onnx(file)
        write_model(result.model, small)
        seconds = time.perf_counter() - started
        module = compact(model, (torch.zeros(1, 3, pixels, pixels),), prefer="smallest").report
        own, theirs = ([(w.before, w.after) for w in report.layers.values()] for report in (result.report, module))
        return {
            "model": name,
            "case": case,
            "exporter": exporter,
            "pixels": pixels,
            "removed": result.removed,
            "module": sum(before - after for before, after in theirs),
            "same": own == theirs,
            "parameters": [result.report.params_before, result.report.params_after],
            "bytes": [result.original_bytes, small.stat().st_size],
            "difference": difference(file, small, pixels),
            "float64": result.report.max_exact_error,
            "seconds": seconds,
        }


def damaged(network: Network, case: str) -> nn.Module:
    """The network with random weights, half of whose channels are dead."""
    generator = torch.Generator().manual_seed(SEED)
    model = network.quietly_built()
    images = torch.randn(4, 3, network.size, network.size, generator=generator)
    randomise_(model, generator)
    CASES[case](model, channel_graph(model, (images[:1],)), generator)
    calibrate_(model, images, generator)
    return model


def export(model: nn.Module, size: int, file: Path, exporter: str) -> None:
    """Write the network as torch does it, with an open batch size."""
    images = torch.zeros(2, 3, size, size)
    if exporter == "dynamo":
        shapes = ({0: torch.export.Dim("batch")},)
        torch.onnx.export(model, (images,), file, dynamo=True, verbose=False, dynamic_shapes=shapes)
    else:
        axes = {"image": {0: "batch"}}
        torch.onnx.export(model, (images,), file, dynamo=False, input_names=["image"], dynamic_axes=axes)


def difference(file: Path, small: Path, size: int) -> float:
    """The largest difference of two files in ONNX Runtime, relative to the largest output."""
    worst = 0.0
    sessions = [onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]) for path in (file, small)]
    for batch in BATCHES:
        images = np.random.default_rng(OWN_SEED + batch).standard_normal((batch, 3, size, size), dtype=np.float32)
        wanted, got = (s.run(None, {s.get_inputs()[0].name: images})[0] for s in sessions)
        worst = max(worst, float(np.abs(wanted - got).max() / np.abs(wanted).max()))
    return worst


def _fails(row: dict[str, Any]) -> bool:
    return not (row["same"] and row["difference"] <= TOLERANCE)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["model"],
        row["case"],
        row["exporter"],
        str(row["pixels"]),
        f"{row['removed']:,}",
        f"{row['module']:,}",
        "the same" if row["same"] else "differ",
        " → ".join(f"{n / 1e6:.2f}" for n in row["parameters"]) + " M",
        " → ".join(f"{n / 1e6:.1f}" for n in row["bytes"]),
        f"{row['difference']:.0e}",
        f"{row['float64']:.0e}",
        f"{row['seconds']:.0f}",
    ]


if __name__ == "__main__":
    sys.exit(main())
