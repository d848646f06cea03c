"""The same network in smaller numbers: made, judged on the run's images, and timed beside float32."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.cli.export.images import SPLITS
from compress.cli.export.options import FLOAT16, INT8, INT8_WEIGHTS, Options
from compress.errors import CompressError

if TYPE_CHECKING:
    from bench import LatencyReport
    from compress.cli.export.sources import Source
    from export import Fusion, Graph

INTEGER_DOT_PRODUCTS = frozenset(("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "dotprod", "i8mm"))
"""Flags of CPUs that multiply and add four 8-bit integers in one instruction, of x86 and of ARM."""

PERCENT = 100

ROUNDING = 1e-9
"""Of the difference of two accuracies: 1 - 0.99 is more than 0.01 in floating point."""


@dataclass(frozen=True)
class Variant:
    """A network in smaller numbers beside itself in float32.

    Attributes:
        graph: What is written.
        float_graph: In float32.
        accuracy: Of the variant, by split; None where there are no images.
        float_accuracy: Likewise, in float32, both in ONNX Runtime.
        details: For the document beside the file.
        latency: Of both, side by side on this CPU; None where it was not measured.
    """

    graph: Graph
    float_graph: Graph
    accuracy: dict[str, float | None]
    float_accuracy: dict[str, float | None]
    details: dict[str, Any]
    latency: LatencyReport | None


def make_variant(source: Source, options: Options) -> Variant:
    """Quantise, judge and time.

    Raises:
        CompressError: It loses more of the validation accuracy than is allowed.
        ExportError: It cannot be made or verified.
    """
    graph, details = MAKERS[options.precision](source, options)
    before, after = (_accuracy(source, each) for each in (source.graph, graph))
    lost = None if before["validation"] is None else before["validation"] - (after["validation"] or 0.0)
    if lost is not None and lost > options.max_drop + ROUNDING:
        raise CompressError(
            f"{options.precision} loses {lost:.2%} of the validation accuracy, more than the {options.max_drop:.2%} of "
            "--max-drop; no file was written"
        )
    latency, notes = _latency(graph, source.graph, options)
    details |= {
        "accuracy": {"float32": before, options.precision: after},
        "latency": None if latency is None else _latency_figures(latency),
    }
    return Variant(graph.noting(*notes), source.graph, after, before, details, latency)


def _int8(source: Source, options: Options) -> tuple[Graph, dict[str, Any]]:
    from export import Calibration, Judge, accuracy_of, to_int8

    images = source.images
    assert images is not None
    judge = Judge(
        lambda model: accuracy_of(model, images.labelled("validation")), images.ranking(), max_drop=options.max_drop
    )
    calibration = Calibration(images.calibration(options.calibration_images), options.calibration)
    made = to_int8(source.graph, calibration, judge, weight_bits=options.weight_bits)
    notes = [
        f"int8: {len(made.layers)} layers quantised"
        + (f", left in float for what they cost: {', '.join(made.float_layers)}" if made.float_layers else "")
        + f"; calibrated on {len(calibration.images)} training images ({options.calibration})"
    ]
    details = {
        "calibration": {"method": options.calibration, "images": len(calibration.images)},
        "weight_bits": options.weight_bits,
        "layers": list(made.layers),
        "float_layers": list(made.float_layers),
        "sensitivity": made.sensitivity,
        "fused_and_written_differ": {
            "max_relative_difference": made.fused.max_relative_difference,
            "argmax_agreement": made.fused.argmax_agreement,
        },
    }
    return made.graph.noting(*notes), {"int8": details}


def _float16(source: Source, options: Options) -> tuple[Graph, dict[str, Any]]:
    from export import to_float16

    del options
    return to_float16(source.graph), {}


def _int8_weights(source: Source, options: Options) -> tuple[Graph, dict[str, Any]]:
    from export import to_int8_weights

    del options
    return to_int8_weights(source.graph), {}


MAKERS = {INT8: _int8, FLOAT16: _float16, INT8_WEIGHTS: _int8_weights}


def _accuracy(source: Source, graph: Graph) -> dict[str, float | None]:
    """By split, in ONNX Runtime; None where there are no images."""
    from export import accuracy_of

    images = source.images
    if images is None:
        return dict.fromkeys(SPLITS)
    return {split: accuracy_of(graph.model, images.labelled(split)) if images.has(split) else None for split in SPLITS}


def _latency(graph: Graph, float_graph: Graph, options: Options) -> tuple[LatencyReport | None, list[str]]:
    """Both timed side by side, and what there is to say about it."""
    from bench import BenchError, latency

    if not options.latency:
        return None, []
    try:
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / f"{name}.onnx" for name in ("variant", "float32")]
            for file, each in zip(files, (graph, float_graph), strict=True):
                file.write_bytes(each.model.SerializeToString())
            report = latency(*files, shapes=graph.shapes)
    except BenchError as error:
        return None, [f"latency could not be measured: {error}"]
    except OSError as error:
        return None, [f"latency could not be measured for want of room: {error.strerror}; let TMPDIR name a folder"]
    return report, _slower(report, graph)


def _latency_figures(report: LatencyReport) -> dict[str, Any]:
    assert report.ratio is not None
    assert report.baseline is not None
    return {
        "float32_p50_ms": report.baseline.latency.p50_ms,
        "p50_ms": report.model.latency.p50_ms,
        "ratio": report.ratio.value,
        "ratio_low": report.ratio.low,
        "ratio_high": report.ratio.high,
        "cpu": report.host.cpu_model,
        "isa": list(report.host.isa),
        "threads": report.settings.threads,
    }


def _slower(report: LatencyReport, graph: Graph) -> list[str]:
    """A note where the variant takes longer than float32 on this CPU."""
    from export import ExportError, fusion_of

    assert report.ratio is not None
    if report.ratio.low <= 1:
        return []
    longer = (report.ratio.value - 1) * PERCENT
    try:
        reason = REASONS.get(graph.precision) or why_int8_is_slower(
            report.host.isa, report.host.architecture, fusion_of(graph.model)
        )
    except ExportError as error:  # the reason is a note: what was measured is not lost for it
        reason = f"why is not known: {error}"
    return [f"{graph.precision} is {longer:.0f}% slower than float32 on this CPU: {reason}"]


def why_int8_is_slower(isa: Sequence[str], architecture: str, fusion: Fusion) -> str:
    """What is known to make integers slow.

    Args:
        isa: Flags of the CPU.
        architecture: ``x86_64``, ``aarch64`` and so on.
        fusion: What ONNX Runtime made of the network there.
    """
    reasons = []
    if not INTEGER_DOT_PRODUCTS & set(isa):
        kind = "VNNI" if architecture in ("x86_64", "AMD64") else "dot product (asimddp)"
        reasons.append(f"it has no {kind}, so that a product of integers takes several instructions")
    if fusion.floating:
        reasons.append(f"{fusion.floating} layers are computed in float")
    between = fusion.conversions - EDGE_CONVERSIONS
    if between > 0:
        reasons.append(f"{between} conversions between float and integers are left inside of the network")
    return "; ".join(reasons) or "the layers are so small that rounding to integers takes longer than it saves"


EDGE_CONVERSIONS = 2
"""One at the input, one at the output."""

REASONS = {
    FLOAT16: "ONNX Runtime computes it in float32 here and converts at every layer",
    INT8_WEIGHTS: "every inference turns the integers into floats first",
}
