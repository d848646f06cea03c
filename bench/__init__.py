"""Measure ONNX models where they will run, with what is needed to trust the figures.

Inference time, memory, instructions, and where the time goes.

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
    from bench.loading import load_report
    from bench.measure.instructions import instructions
    from bench.measure.latency import latency
    from bench.measure.memory import memory
    from bench.measure.profile import profile
    from bench.measure.realtime import Deadline
    from bench.report import InstructionsReport, LatencyReport, MemoryReport, ProfileReport

__all__ = [
    "BenchError",
    "Deadline",
    "InstructionsReport",
    "LatencyReport",
    "MemoryReport",
    "ProfileReport",
    "instructions",
    "latency",
    "load_report",
    "memory",
    "profile",
]

_HOME = {
    "BenchError": "bench.errors",
    "Deadline": "bench.measure.realtime",
    "InstructionsReport": "bench.report",
    "LatencyReport": "bench.report",
    "MemoryReport": "bench.report",
    "ProfileReport": "bench.report",
    "instructions": "bench.measure.instructions",
    "latency": "bench.measure.latency",
    "load_report": "bench.loading",
    "memory": "bench.measure.memory",
    "profile": "bench.measure.profile",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
