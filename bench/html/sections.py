"""A section of the page for each report: what it says is in a file for each measure."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bench.gate.report import GateReport
from bench.html.gate import gate_content
from bench.html.instructions import instructions_content
from bench.html.latency import latency_content
from bench.html.memory import memory_content
from bench.html.parts import Panel, Section, Tile
from bench.html.profile import profile_content
from bench.onnx_file import OnnxFile
from bench.report import (
    AnyReport,
    InstructionsReport,
    InstructionsResult,
    LatencyReport,
    LatencyResult,
    MemoryReport,
    MemoryResult,
    ProfileReport,
    ProfileResult,
    results_of,
)

Content = tuple[list[Tile], list[Panel]]
Measured = LatencyResult | MemoryResult | ProfileResult | InstructionsResult | OnnxFile

_CONTENT: dict[type[Any], Callable[[Any], Content]] = {
    LatencyReport: latency_content,
    MemoryReport: memory_content,
    ProfileReport: profile_content,
    InstructionsReport: instructions_content,
    GateReport: gate_content,
}

_TITLES: dict[type[Any], str] = {
    LatencyReport: "Latency",
    MemoryReport: "Memory",
    ProfileReport: "Layer profile",
    InstructionsReport: "Instructions",
    GateReport: "Gate",
}


@dataclass(frozen=True)
class Document:
    """A report and what to call it, its file for example."""

    name: str
    report: AnyReport | GateReport


def section(document: Document, number: int) -> Section:
    """A document's section; a gate's holds the measurements that it rests on."""
    report = document.report
    measured = report.measurements() if isinstance(report, GateReport) else [report]
    shown = [report, *measured] if isinstance(report, GateReport) else measured
    contents = [_CONTENT[type(part)](part) for part in shown]
    return Section(
        anchor=f"report-{number + 1}",
        title=_TITLES[type(report)],
        source=document.name,
        models=_models(report),
        tiles=tuple(tile for tiles, _ in contents for tile in tiles),
        panels=tuple(panel for _, panels in contents for panel in panels),
        warnings=report.warnings,
        facts=facts(measured[0]) if measured else (),
    )


def _models(report: AnyReport | GateReport) -> tuple[tuple[str, str, str], ...]:
    """Kind, file name and beginning of the hash of model and baseline."""
    results: list[tuple[str, Measured]] = results_of(report)
    files = [(kind, _file(result)) for kind, result in results]
    return tuple((kind, file.file_name, file.sha256[:12]) for kind, file in files)


def _file(result: Measured) -> OnnxFile:
    return result if isinstance(result, OnnxFile) else result.file


def facts(report: AnyReport) -> tuple[tuple[str, str], ...]:
    """Everything about the machine and the way of measuring without which a figure means nothing."""
    host, settings = report.host, report.settings
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    pinned = f", pinned to {', '.join(map(str, settings.pin))}" if settings.pin else ""
    inputs = ", ".join(f"{value.name} {list(value.shape)} {value.dtype}" for value in report.model.inputs)
    return (
        ("CPU", f"{host.cpu_model} ({host.architecture}), {'emulated' if host.emulated else 'native'}"),
        ("instruction sets", " ".join(host.isa) or "none that matter"),
        ("cores", f"{host.usable_cores} usable of {host.logical_cores}; {threads}{pinned}"),
        ("governor", host.governor or "unknown"),
        ("software", f"onnxruntime {host.onnxruntime}, Python {host.python}, numpy {host.numpy}; {host.os}"),
        ("provider", settings.provider),
        ("inputs", inputs),
        ("processes", f"{settings.runs}, seed {settings.seed}"),
        ("measured", f"{report.created} on {report.device}"),
    )
