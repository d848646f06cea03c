"""What ``compress export`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from compress.cli.export.options import INT8
from compress.cli.tables import pairs_table, percent

if TYPE_CHECKING:
    from compress.cli.export.options import Options
    from compress.cli.export.variants import Variant
    from compress.train.rundir import Run
    from export import ExportReport


BEYOND = "(beyond what int8 was calibrated for: only real images tell what it loses)"


def report_table(report: ExportReport, options: Options, run: Run | None) -> Table:
    """The file, and how far it was verified."""
    last = report.steps[-1]
    rows = {
        "file": str(report.path),
        "network": "as it is" if run is None else "before removal" if options.dense else "compact",
        "numbers": report.precision,
        "bytes": f"{report.file_bytes:,} ({report.gzip_bytes:,} compressed by gzip)",
        "opset": f"{report.opset} (ONNX Runtime {report.min_onnxruntime} and later)",
        "nodes": f"{report.nodes_exported} exported, {report.nodes_written} written",
        "zero weights": f"{report.zeros.share:.1%} of {report.zeros.values:,}",
        "difference, real images": str(last.real or "no images"),
        "difference, random batches": str(last.random),
        **({"": BEYOND} if report.precision == INT8 and last.real is not None else {}),
        "verification": str(report.json_path),
    }
    if report.ort is not None:
        rows["ORT format"] = f"{report.path.with_name(report.ort.name)}, {len(report.ort.content):,} bytes"
        rows["operators"] = str(report.path.with_name(report.ort.operators_name))
    return pairs_table(rows)


def variant_table(variant: Variant, report: ExportReport) -> Table:
    """Float32 and the variant side by side."""
    from export import gzip_size

    content = variant.float_graph.model.SerializeToString()
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("", "validation", "test", "bytes", "gzip", "latency p50", "ratio [95%]"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    latency = variant.latency
    sides = (None, None) if latency is None else (latency.baseline, latency.model)
    ratios = ["1", "-"]
    if latency is not None and latency.ratio is not None:
        ratios[1] = f"{latency.ratio.value:.3f} [{latency.ratio.low:.3f}, {latency.ratio.high:.3f}]"
    rows = (
        ("float32", variant.float_accuracy, len(content), gzip_size(content)),
        (report.precision, variant.accuracy, report.file_bytes, report.gzip_bytes),
    )
    for (name, accuracy, size, packed), side, ratio in zip(rows, sides, ratios, strict=True):
        table.add_row(
            name,
            *(percent(accuracy[split]) for split in ("validation", "test")),
            f"{size:,}",
            f"{packed:,}",
            "-" if side is None else f"{side.latency.p50_ms:.4f} ms",
            ratio,
        )
    return table
