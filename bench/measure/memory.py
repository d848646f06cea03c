"""Memory: resident bytes of each model alone in fresh processes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.errors import BenchError
from bench.measure.activations import static_memory
from bench.measure.runs import Progress, assumed_sizes, each_alone, fallen_back, host_of, models_of, now
from bench.onnx_file import OnnxFile, describe
from bench.protocol import CPU_PROVIDER, MeasuredModel, MemorySamples
from bench.report import Memory, MemoryRatios, MemoryReport, MemoryResult, Settings, StaticMemory
from bench.targets import caveats

REPEATABLE = 0.02  # of the peak: what processes of one model differed by at most on quiet and on busy machines
INFERENCES = 10  # of each process; ONNX Runtime's arena has reached its size after the second


def memory(
    model: Path,
    baseline: Path | None = None,
    *,
    device: str = "cpu",
    threads: int = 1,
    pin: Sequence[int] = (),
    provider: str = CPU_PROVIDER,
    repeats: int = 3,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    tolerance: float | None = None,
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
        pin: Cores to which the workers restrict themselves; none leaves them free.
        provider: Execution provider of ONNX Runtime, with or without the ending ``ExecutionProvider``.
        repeats: Fresh processes for each model; the figures are their medians.
        batch: Size of every open first dimension; 1 by default.
        shapes: Whole shapes of inputs by name; other open sizes are 1.
        tolerance: Allowed difference of a device's outputs from this machine's, as a share of each output's largest
            value; by default that of ``bench/measure/parity.py``.
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
        pin=tuple(pin),
        provider=provider,
    )
    paths = tuple(str(path) for path in (model, baseline) if path is not None)
    files = [describe(Path(path)) for path in paths]
    found = each_alone("memory", paths, files, device, settings, timeout_s, progress, tolerance)
    by_model = [models_of(own) for own in found]
    settings = replace(settings, provider=by_model[0][0].provider)
    static = [static_memory(Path(path), settings, timeout_s) for path in paths]
    results = [_result(*each) for each in zip(files, by_model, static, strict=True)]
    return MemoryReport(
        measure="memory",
        created=now(),
        device=device,
        settings=settings,
        host=host_of(found[0][0]),
        warnings=(
            *caveats(device),
            *_warnings(results, settings),
            *fallen_back(zip(files, by_model, strict=True)),
            *assumed_sizes((result.file, result.inputs) for result in results),
        ),
        model=results[0],
        baseline=results[1] if baseline is not None else None,
        ratios=ratios(*results) if baseline is not None else None,
    )


def _result(file: OnnxFile, measured: Sequence[MeasuredModel], static: StaticMemory) -> MemoryResult:
    """One model's medians."""
    runs = tuple(model.memory for model in measured if model.memory is not None)
    if len(runs) != len(measured):
        raise BenchError("worker's answer: memory is missing; the worker is not the one of this bench")
    return MemoryResult(file=file, inputs=measured[0].inputs, memory=memory_figures(runs), static=static)


def memory_figures(runs: tuple[MemorySamples, ...]) -> Memory:
    """Medians over the processes."""

    def median(values: Sequence[int]) -> int:
        return round(float(np.median(values)))

    peaks = [run.peak_rss_bytes for run in runs]
    return Memory(
        bare_rss_bytes=median([run.bare_rss_bytes for run in runs]),
        model_rss_bytes=median([run.loaded_rss_bytes - run.bare_rss_bytes for run in runs]),
        load_peak_rss_bytes=median([run.load_peak_rss_bytes for run in runs]),
        peak_rss_bytes=median(peaks),
        peak_over_bare_bytes=median([run.peak_rss_bytes - run.bare_rss_bytes for run in runs]),
        spread_bytes=max(peaks) - min(peaks),
        runs=runs,
    )


def ratios(model: MemoryResult, baseline: MemoryResult) -> MemoryRatios:
    """The model's figures over its baseline's."""
    ours, theirs = model.memory, baseline.memory
    static, static_theirs = model.static, baseline.static

    def ratio(value: int | None, other: int | None) -> float | None:
        return value / other if value is not None and other is not None and other > 0 else None

    return MemoryRatios(
        file_bytes=model.file.file_bytes / baseline.file.file_bytes,
        model_rss_bytes=ratio(ours.model_rss_bytes, theirs.model_rss_bytes),
        peak_rss_bytes=ours.peak_rss_bytes / theirs.peak_rss_bytes,
        peak_over_bare_bytes=ratio(ours.peak_over_bare_bytes, theirs.peak_over_bare_bytes),
        weight_bytes=ratio(static.weight_bytes, static_theirs.weight_bytes),
        peak_activation_bytes=ratio(static.peak_activation_bytes, static_theirs.peak_activation_bytes),
    )


# What the figures mean where the kernel does not let the worker reset its peak.
_DOUBTS = {
    "VmHWM": "the kernel does not let a process reset its peak here: peaks are those since the process began, "
    "loading included; for the peak of inference alone run on a Linux host outside of the container",
    "getrusage": "this system tells only the largest resident size since the process began, which stands in for all "
    "figures; for exact ones run on Linux",
}


def _warnings(results: Sequence[MemoryResult], settings: Settings) -> tuple[str, ...]:
    methods = sorted({run.method for result in results for run in result.memory.runs})
    found = [_DOUBTS[method] for method in methods if method in _DOUBTS]
    for result in results:
        spread = result.memory.spread_bytes / result.memory.peak_rss_bytes
        if spread > REPEATABLE:
            found.append(
                f"the peaks of {result.file.file_name} differ by {spread:.0%} from process to process, more than "
                f"{REPEATABLE:.0%}: run with --repeats {2 * settings.runs}"
            )
    return tuple(found)
