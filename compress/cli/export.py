"""``compress export``: a run's network as an ONNX file that is proved to compute the same."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from compress.errors import CompressError

if TYPE_CHECKING:
    from rich.table import Table

    from compress.train.rundir import Run
    from export import ExportReport

REAL_IMAGES = 32
"""Validation images on which the file is held against the torch model; a second or two for 224x224 images."""

REAL_BATCH = 8
"""Images at a time where the batch is dynamic; one where it is not."""

DENSE_SUFFIX = "-dense"
"""``model.onnx`` and ``model-dense.onnx`` belong together: the compact network, and the one before removal."""


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
    normalisation. A difference above the tolerance is an error and leaves no file.
    """
    from rich.console import Console

    from compress.train.rundir import open_run
    from export import ExportError, to_onnx  # the one crossing between the two packages

    if onnx.suffix != ".onnx" and not onnx.is_dir():  # a slip must not overwrite the run's own files
        raise CompressError(f"--onnx {onnx}: the file's name must end in .onnx")
    opened = open_run(run)
    model = opened.dense_model() if dense else opened.model()
    images = opened.validation_batch(REAL_IMAGES)
    size = REAL_BATCH if dynamic_batch else 1
    try:
        report = to_onnx(
            model,
            (images[:1],),
            onnx,
            opset=opset,
            dynamic_batch=dynamic_batch,
            metadata=run_metadata(opened, dense=dense),
            extra_inputs=[(images[start : start + size],) for start in range(0, len(images), size)],
        )
    except ExportError as error:
        raise CompressError(f"cannot export {run}: {error}") from error
    console = Console()
    console.print(_table(report, dense=dense))
    for note in report.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    console.print(next_command(run, onnx, dense=dense), markup=False, highlight=False, soft_wrap=True)


def run_metadata(run: Run, *, dense: bool) -> dict[str, str]:
    """What the file tells about the run; everything but plain text is JSON."""
    variant, counted = ("masked", "dense") if dense else ("compact", "compact")
    values = {
        "run_hash": run.hash,
        "variant": variant,
        "model": run.summary["model"],
        "dataset": run.summary["dataset"],
        "class_names": list(run.class_names),
        "mean": list(run.mean),
        "std": list(run.std),
        "validation_accuracy": run.summary["accuracy"]["validation"][variant],
        "test_accuracy": run.summary["accuracy"]["test"][variant],
        "parameters": run.summary["parameters"][counted],
        "macs": run.summary["macs"][counted],
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def next_command(run: Path, onnx: Path, *, dense: bool) -> str:
    """The line to paste next: the comparison of both networks, preceded by the export of the other if it is missing."""
    compact_file, dense_file = _pair(onnx, dense=dense)
    bench = shlex.join(["bench", "latency", str(compact_file), "--baseline", str(dense_file), "--device", "cpu"])
    other = compact_file if dense else dense_file
    if other.exists():
        return bench
    return shlex.join(["compress", "export", str(run), "--onnx", str(other), *(() if dense else ("--dense",))]) + (
        f" && {bench}"
    )


def _pair(onnx: Path, *, dense: bool) -> tuple[Path, Path]:
    """The names of the compact and of the dense file, one of which is ``onnx``."""
    if not dense:
        return onnx, onnx.with_stem(onnx.stem + DENSE_SUFFIX)
    if onnx.stem != DENSE_SUFFIX and onnx.stem.endswith(DENSE_SUFFIX):
        return onnx.with_stem(onnx.stem.removesuffix(DENSE_SUFFIX)), onnx
    return onnx.with_stem(onnx.stem + "-compact"), onnx


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
        "difference, real images": str(report.real),
    }
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, value)
    return table
