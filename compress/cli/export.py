"""``compress export``: a run's network as an ONNX file that is proved to compute the same."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress.errors import CompressError, DataError

if TYPE_CHECKING:
    from rich.table import Table
    from torch import Tensor

    from compress.train.rundir import Run
    from export import ExportReport

REAL_IMAGES = 32
"""Validation images on which the file is held against the torch model; a second or two for 224x224 images."""

REAL_BATCH = 8
"""Images at a time where the batch is dynamic; one where it is not."""

DENSE_SUFFIX = "-dense"
"""``model.onnx`` and ``model-dense.onnx`` belong together: the compact network, and the one before removal."""

COLORS = {1: "L", 3: "RGB"}
"""Pillow's mode of images with so many channels."""


def export_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory that compress train has finished.")],
    onnx: Annotated[Path, typer.Option("--onnx", metavar="FILE", help="The file to write; weights are inside.")],
    opset: Annotated[
        int | None, typer.Option("--opset", help="18 to 23; 18 by default, which ONNX Runtime 1.14 and later read.")
    ] = None,
    dynamic_batch: Annotated[
        bool, typer.Option("--dynamic-batch", help="Let the number of images vary; one image at a time by default.")
    ] = False,
    dense: Annotated[
        bool, typer.Option("--dense", help="Write the network before removal instead, the baseline for bench.")
    ] = False,
) -> None:
    """Write a run's compact network as ONNX, verified against torch on random and on real images.

    The largest difference is printed and stored in the file, with the run's hash, accuracy, class names and
    preprocessing. A difference above the tolerance is an error and leaves no file. A run whose images are gone is
    verified on random ones alone.
    """
    import torch

    from compress.cli.tables import console
    from compress.train.rundir import open_run
    from export import ExportError, to_onnx  # the one crossing between the two packages

    if onnx.suffix != ".onnx" and not onnx.is_dir():  # a slip must not overwrite the run's own files
        raise CompressError(f"--onnx {onnx}: the file's name must end in .onnx")
    opened = open_run(run)
    model = opened.dense_model() if dense else opened.model()
    images, notes = _real_images(opened)
    size = REAL_BATCH if dynamic_batch else 1
    try:
        report = to_onnx(
            model,
            (torch.zeros(1, *opened.image_shape),),
            onnx,
            opset=opset,
            dynamic_batch=dynamic_batch,
            metadata=run_metadata(opened, dense=dense, dynamic_batch=dynamic_batch),
            extra_inputs=[(images[start : start + size],) for start in range(0, len(images), size)],
        )
    except ExportError as error:
        raise CompressError(f"cannot export {run}: {error}") from error
    out = console()
    out.print(_table(report, dense=dense))
    for note in (*notes, *report.notes):
        out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    command = next_command(opened, onnx, dense=dense, dynamic_batch=dynamic_batch, opset=opset)
    out.print(command, markup=False, highlight=False, soft_wrap=True)


def _real_images(run: Run) -> tuple[Tensor, list[str]]:
    """Validation images to verify on, float32 ``[n, C, H, W]``; none, and a note, where the data set is gone."""
    import torch

    try:
        return run.validation_batch(REAL_IMAGES), []
    except DataError as error:
        return torch.empty(0, *run.image_shape), [f"verified on random batches alone, for want of images: {error}"]


def run_metadata(run: Run, *, dense: bool, dynamic_batch: bool) -> dict[str, str]:
    """What the file tells about the run; everything but plain text is JSON."""
    variant, counted = _variant(dense=dense), "dense" if dense else "compact"
    values = {
        "run_hash": run.hash,
        "variant": variant,
        "model": _without_folders(run.summary["model"]),
        "dataset": _without_folders(run.summary["dataset"]),
        "class_names": list(run.class_names),
        "mean": list(run.mean),
        "std": list(run.std),
        "preprocess": preprocessing(run),
        "output": "logits",
        "batch": _batch(dynamic=dynamic_batch),
        "validation_accuracy": run.summary["accuracy"]["validation"][variant],
        "test_accuracy": run.summary["accuracy"]["test"][variant],
        "parameters": run.summary["parameters"][counted],
        "macs": run.summary["macs"][counted],
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def _without_folders(name: str) -> str:
    """A model's or data set's name, of a path the last part: where it lay on the machine is nobody else's business."""
    return Path(name).name if Path(name).is_absolute() else name


def _variant(*, dense: bool) -> str:
    return "masked" if dense else "compact"


def _batch(*, dynamic: bool) -> str:
    return "dynamic" if dynamic else "1"


def preprocessing(run: Run) -> dict[str, object]:
    """What became of the run's images, besides ``mean`` and ``std``, before the network saw them.

    docs/export.md tells what each key means. Images of the data sets that have a name come as pixels, not as files, and
    are resized by torch (``compress/data/split.py``); those of folders by Pillow (``compress/data/folder.py``).
    """
    from compress.data import DATASETS

    channels, height, width = run.image_shape
    from_files = run.config.data.name not in DATASETS
    resize = "Pillow BILINEAR" if from_files else "torch bilinear antialias"
    return {
        "color": COLORS[channels],
        "exif_orientation": "ignored" if from_files else None,
        "height": height,
        "width": width,
        "resize": None if run.config.data.image_size is None else resize,
        "scale": 1 / 255,
        "normalise": "(pixels * scale - mean) / std",
        "layout": "NCHW",
        "dtype": "float32",
    }


def next_command(run: Run, onnx: Path, *, dense: bool, dynamic_batch: bool = False, opset: int | None = None) -> str:
    """The line to paste next: both networks compared, after the export of the other one where it is not there yet.

    Args:
        run: That ``onnx`` was exported from.
        onnx: The file just written.
        dense: Whether it holds the network before removal.
        dynamic_batch: How it was written; the other one has to be written likewise.
        opset: Likewise.
    """
    other = _counterpart(onnx, dense=dense)
    model, baseline = (other, onnx) if dense else (onnx, other)
    bench = shlex.join(["bench", "latency", str(model), "--baseline", str(baseline), "--device", "cpu"])
    wanted = {"run_hash": run.hash, "variant": _variant(dense=not dense), "batch": _batch(dynamic=dynamic_batch)}
    if wanted.items() <= _stored(other).items():
        return bench
    words = ["compress", "export", str(run.path), "--onnx", str(other)]
    words += [] if dense else ["--dense"]
    words += ["--dynamic-batch"] if dynamic_batch else []
    words += [] if opset is None else ["--opset", str(opset)]
    return f"{shlex.join(words)} && {bench}"


def _counterpart(onnx: Path, *, dense: bool) -> Path:
    """The other network's file: without the suffix for dense, or one word in the place of the other, or added."""
    if dense and onnx.stem != DENSE_SUFFIX and onnx.stem.endswith(DENSE_SUFFIX):
        return onnx.with_stem(onnx.stem.removesuffix(DENSE_SUFFIX))
    own, other = ("dense", "compact") if dense else ("compact", "dense")
    stem, replaced = re.subn(rf"(?<![a-z0-9]){own}(?![a-z0-9])", other, onnx.stem, count=1)
    return onnx.with_stem(stem if replaced else f"{onnx.stem}-{other}")


def _stored(onnx: Path) -> dict[str, str]:
    """The metadata of a file; none where there is no such file, or no ONNX in it."""
    from export import ExportError, read_metadata

    try:
        return read_metadata(onnx)
    except ExportError:
        return {}


def _table(report: ExportReport, *, dense: bool) -> Table:
    from rich import box
    from rich.table import Table

    rows = {
        "file": str(report.path),
        "network": "before removal" if dense else "compact",
        "bytes": f"{report.file_bytes:,}",
        "opset": f"{report.opset} (ONNX Runtime {report.min_onnxruntime} and later)",
        "nodes": f"{report.nodes_exported} exported, {report.nodes_written} written",
        "difference, random batches": str(report.random),
        "difference, real images": str(report.real or "no images"),
    }
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table
