"""Memory: resident bytes of each model alone in fresh processes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.errors import BenchError
from bench.measure.runs import Progress, answers, host_of, now, request_of, require_unchanged
from bench.onnx_file import OnnxFile, describe
from bench.protocol import MeasuredModel
from bench.report import Memory, MemoryRatios, MemoryReport, MemoryResult, Settings

INFERENCES = 10  # of each process; ONNX Runtime's arena has reached its size after the second


def memory(
    model: Path,
    baseline: Path | None = None,
    *,
    device: str = "cpu",
    threads: int = 1,
    repeats: int = 3,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    timeout_s: float = 600.0,
    progress: Progress | None = None,
) -> MemoryReport:
    """Measure what `model`, and `baseline` in processes of its own, take of the memory.

    Args:
        model: ONNX file.
        baseline: ONNX file to compare with, usually the dense network.
        device: A key of ``bench.targets.TARGETS``, with ``:address`` where the target takes one.
        threads: Intra-op threads of ONNX Runtime; each has a stack.
        repeats: Fresh processes for each model; the figures are their medians.
        batch: Size of every open first dimension; 1 by default.
        shapes: Whole shapes of inputs by name; other open sizes are 1.
        seed: Of the random inputs.
        timeout_s: For everything.
        progress: Called after each process with those done and their number.

    Raises:
        BenchError: The request makes no sense, or a model could not be measured.
    """
    if repeats < 1:
        raise BenchError(f"repeats is {repeats}, expected at least 1")
    settings = Settings(
        threads=threads,
        batch=batch,
        shapes={name: tuple(shape) for name, shape in (shapes or {}).items()},
        runs=repeats,
        min_seconds=0.0,
        min_samples=INFERENCES * repeats,
        seed=seed,
    )
    paths = tuple(str(path) for path in (model, baseline) if path is not None)
    files = [describe(Path(path)) for path in paths]
    requests = [request_of("memory", (path,), settings) for _ in range(repeats) for path in paths]
    found = list(answers(device, requests, timeout_s, progress))
    require_unchanged(files, paths)
    results = [
        _result(file, [measured for answer in found[place :: len(paths)] for measured in answer.models])
        for place, file in enumerate(files)
    ]
    return MemoryReport(
        measure="memory",
        created=now(),
        device=device,
        settings=settings,
        host=host_of(found[0]),
        warnings=_warnings(results[0]),
        model=results[0],
        baseline=results[1] if baseline is not None else None,
        ratios=_ratios(*results) if baseline is not None else None,
    )


def _result(file: OnnxFile, measured: Sequence[MeasuredModel]) -> MemoryResult:
    """One model's medians."""
    runs = tuple(model.memory for model in measured if model.memory is not None)
    if len(runs) != len(measured):
        raise BenchError("worker's answer: memory is missing; the worker is not the one of this bench")

    def median(values: Sequence[int]) -> int:
        return round(float(np.median(values)))

    peaks = [run.peak_rss_bytes for run in runs]
    figures = Memory(
        bare_rss_bytes=median([run.bare_rss_bytes for run in runs]),
        model_rss_bytes=median([run.loaded_rss_bytes - run.bare_rss_bytes for run in runs]),
        load_peak_rss_bytes=median([run.load_peak_rss_bytes for run in runs]),
        peak_rss_bytes=median(peaks),
        peak_over_bare_bytes=median([run.peak_rss_bytes - run.bare_rss_bytes for run in runs]),
        spread_bytes=max(peaks) - min(peaks),
        runs=runs,
    )
    return MemoryResult(file=file, inputs=measured[0].inputs, memory=figures)


def _ratios(model: MemoryResult, baseline: MemoryResult) -> MemoryRatios:
    ours, theirs = model.memory, baseline.memory
    return MemoryRatios(
        file_bytes=model.file.file_bytes / baseline.file.file_bytes,
        model_rss_bytes=ours.model_rss_bytes / theirs.model_rss_bytes,
        peak_rss_bytes=ours.peak_rss_bytes / theirs.peak_rss_bytes,
        peak_over_bare_bytes=ours.peak_over_bare_bytes / theirs.peak_over_bare_bytes,
    )


# What the figures mean where the kernel does not let the worker reset its peak.
_DOUBTS = {
    "VmHWM": "the kernel does not let a process reset its peak here: peaks are those since the process began, "
    "loading included; for the peak of inference alone run on a Linux host outside of the container",
    "getrusage": "this system tells only the largest resident size since the process began, which stands in for all "
    "figures; for exact ones run on Linux",
}


def _warnings(result: MemoryResult) -> tuple[str, ...]:
    methods = sorted({run.method for run in result.memory.runs})
    return tuple(_DOUBTS[method] for method in methods if method in _DOUBTS)
