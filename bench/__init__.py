"""Measure ONNX models where they will run: inference time and memory, each with what is needed to trust the figure.

    import bench
    report = bench.latency(Path("small.onnx"), Path("dense.onnx"))
    report.ratio.low, report.ratio.high, report.model.latency.p50_ms

The names below are imported when they are first used, so that ``import bench`` costs nothing. This package never
imports torch, nor the packages that make models: it measures files.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.errors import BenchError
    from bench.measure.latency import latency
    from bench.measure.memory import memory
    from bench.report import LatencyReport, MemoryReport, load_report

__all__ = ["BenchError", "LatencyReport", "MemoryReport", "latency", "load_report", "memory"]

_HOME = {
    "BenchError": "bench.errors",
    "LatencyReport": "bench.report",
    "MemoryReport": "bench.report",
    "latency": "bench.measure.latency",
    "load_report": "bench.report",
    "memory": "bench.measure.memory",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
