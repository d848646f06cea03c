"""Latency: inference times of a model and its baseline, sampled side by side in several fresh processes."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.errors import BenchError
from bench.measure.runs import Progress, answers, host_of, now, request_of, require_unchanged
from bench.onnx_file import OnnxFile, describe
from bench.protocol import Host, MeasuredModel
from bench.report import Latency, LatencyReport, LatencyResult, Settings
from bench.stats import MIN_RUNS, Ratio, far_out, median_interval, ratio_of_medians

# Half the width of an interval from which a figure is called noisy: differences that people act on are about this size.
NS_PER_MS = 1e6
NOISY_HALF_WIDTH = 0.05
IDLE_LOAD = 0.5  # a desktop or the end of the previous command; a whole busy process is 1
MAX_ADVISED_RUNS = 100  # beyond, a quieter machine is the better advice


def latency(
    model: Path,
    baseline: Path | None = None,
    *,
    device: str = "cpu",
    threads: int = 1,
    runs: int = 10,
    min_seconds: float = 2.0,
    samples: int = 200,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
    timeout_s: float = 600.0,
    progress: Progress | None = None,
) -> LatencyReport:
    """Measure single inferences of `model`, interleaved with those of `baseline`.

    Args:
        model: ONNX file.
        baseline: ONNX file to compare with, usually the dense network; loaded in the same processes.
        device: A key of ``bench.targets.TARGETS``, with ``:address`` where the target takes one.
        threads: Intra-op threads of ONNX Runtime.
        runs: Fresh processes; the unit of the interval, see ``bench/stats.py``.
        min_seconds: Of sampling for each model, over all runs.
        samples: Of each model at least, over all runs.
        batch: Size of every open first dimension; 1 by default.
        shapes: Whole shapes of inputs by name; other open sizes are 1.
        seed: Of the random inputs.
        timeout_s: For everything.
        progress: Called after each run with the runs done and their number.

    Raises:
        BenchError: The request makes no sense, or a model could not be measured.
    """
    settings = Settings(
        threads=threads,
        batch=batch,
        shapes={name: tuple(shape) for name, shape in (shapes or {}).items()},
        runs=runs,
        min_seconds=min_seconds,
        min_samples=samples,
        seed=seed,
    )
    if runs < MIN_RUNS:
        raise BenchError(f"runs is {runs}, expected at least {MIN_RUNS}: an interval of fewer runs means nothing")
    paths = tuple(str(path) for path in (model, baseline) if path is not None)
    files = [describe(Path(path)) for path in paths]
    request = request_of("latency", paths, settings)
    # What is loaded first comes to lie elsewhere in memory: every other process loads, and samples, the other way.
    requests = [replace(request, models=paths[:: _step(run)]) for run in range(runs)]
    found = list(answers(device, requests, timeout_s, progress))
    in_order = [answer.models[:: _step(run)] for run, answer in enumerate(found)]
    require_unchanged(files, paths)
    results = [_result(file, measured) for file, *measured in zip(files, *in_order, strict=True)]
    host = host_of(found[0])
    ratio = _ratio(*results) if baseline is not None else None
    return LatencyReport(
        measure="latency",
        created=now(),
        device=device,
        settings=settings,
        host=host,
        warnings=doubts(advised(paths, device, settings), settings, host, results, ratio),
        model=results[0],
        baseline=results[1] if baseline is not None else None,
        ratio=ratio,
        verdict=None if ratio is None else ratio.verdict,
    )


def _step(run: int) -> int:
    return -1 if run % 2 else 1


def _result(file: OnnxFile, measured: Sequence[MeasuredModel]) -> LatencyResult:
    """One model's figures from its samples of every run."""
    runs = tuple(model.latency for model in measured if model.latency is not None)
    if len(runs) != len(measured):
        raise BenchError("worker's answer: latency is missing; the worker is not the one of this bench")
    samples = np.concatenate([run.samples_ns for run in runs]) / NS_PER_MS
    p50, p90, p99 = (float(value) for value in np.quantile(samples, (0.5, 0.9, 0.99)))
    low, high = median_interval([run.samples_ns for run in runs])
    figures = Latency(
        p50_ms=p50,
        p50_low_ms=low / NS_PER_MS,
        p50_high_ms=high / NS_PER_MS,
        p90_ms=p90,
        p99_ms=p99,
        mean_ms=float(samples.mean()),
        min_ms=float(samples.min()),
        samples=len(samples),
        outliers=far_out(samples),
        runs=runs,
    )
    return LatencyResult(file=file, inputs=measured[0].inputs, latency=figures)


def _ratio(model: LatencyResult, baseline: LatencyResult) -> Ratio:
    return ratio_of_medians(*([run.samples_ns for run in result.latency.runs] for result in (model, baseline)))


def doubts(
    command: Sequence[str], settings: Settings, host: Host, results: Sequence[LatencyResult], ratio: Ratio | None
) -> tuple[str, ...]:
    """What makes the figures doubtful, and what to run next: `command` with more runs."""
    found = []
    threads, cores, load = settings.threads, host.usable_cores, host.load_average_1min
    if threads > cores:
        found.append(f"{threads} threads share {cores} cores: run with --threads {cores}")
    if load is not None and load + threads > cores + IDLE_LOAD:
        found.append(
            f"other processes were running: load average {load:.1f} before the start, and {threads} of {cores} cores "
            "needed; stop them (see: top), then run the same command"
        )
    if not all(run.warmup_stable for result in results for run in result.latency.runs):
        found.append(
            "the speed was still changing after the warm-up: fix the clock frequency (see: cpupower) or cool down"
        )
    low, value, high = (
        (ratio.low, ratio.value, ratio.high)
        if ratio is not None
        else (results[0].latency.p50_low_ms, results[0].latency.p50_ms, results[0].latency.p50_high_ms)
    )
    half_width = (high - low) / 2 / value
    if half_width > NOISY_HALF_WIDTH:
        what = "ratio" if ratio is not None else "p50"
        found.append(
            f"noisy: the interval of the {what} is +-{half_width:.0%} wide, more than {NOISY_HALF_WIDTH:.0%}; run: "
            + _longer(command, settings, half_width)
        )
    return tuple(found)


def advised(paths: Sequence[str], device: str, settings: Settings) -> list[str]:
    """The words that measure the same again, as long as by default."""
    words = ["bench", "latency", paths[0], *(["--baseline", paths[1]] if len(paths) > 1 else []), "--device", device]
    words += [] if settings.batch is None else ["--batch", f"{settings.batch}"]
    for name, shape in settings.shapes.items():
        words += ["--shape", f"{name}={','.join(map(str, shape))}"]
    return [*words, "--threads", f"{settings.threads}"]


def _longer(command: Sequence[str], settings: Settings, half_width: float) -> str:
    """The command whose interval should be narrow enough: its width falls with the root of the number of runs."""
    runs = min(MAX_ADVISED_RUNS, math.ceil(settings.runs * (half_width / NOISY_HALF_WIDTH) ** 2))
    longer = runs / settings.runs
    words = ["--runs", f"{runs}", "--samples", f"{math.ceil(settings.min_samples * longer)}"]
    return shlex.join([*command, *words, "--min-seconds", f"{settings.min_seconds * longer:.3g}"])
