"""Latency: inference times of a model and its baseline, sampled side by side in several fresh processes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.errors import BenchError
from bench.measure.realtime import Deadline, realtime
from bench.measure.realtime import requests as realtime_requests
from bench.measure.runs import (
    Advise,
    Progress,
    answers,
    assumed_sizes,
    call_again,
    fallen_back,
    host_doubts,
    host_of,
    now,
    request_of,
    require_unchanged,
)
from bench.measure.throughput import throughput
from bench.onnx_file import OnnxFile, describe
from bench.protocol import CPU_PROVIDER, Answer, Host, LatencySamples, MeasuredModel
from bench.report import Latency, LatencyReport, LatencyResult, Realtime, Settings
from bench.stats import MIN_RUNS, Ratio, far_out, median_interval, ratio_of_medians
from bench.targets import caveats
from bench.units import NS_PER_MS

# Half the width of an interval from which a figure is called noisy: differences that people act on are about this size.
NOISY_HALF_WIDTH = 0.05
MAX_ADVISED_RUNS = 100  # beyond, a quieter machine is the better advice


def latency(
    model: Path,
    baseline: Path | None = None,
    *,
    device: str = "cpu",
    threads: int = 1,
    pin: Sequence[int] = (),
    provider: str = CPU_PROVIDER,
    runs: int = 10,
    min_seconds: float = 2.0,
    samples: int = 200,
    batch: int | None = None,
    batches: Sequence[int] = (),
    shapes: Mapping[str, Sequence[int]] | None = None,
    deadline: Deadline | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    timeout_s: float = 600.0,
    progress: Progress | None = None,
    advise: Advise = call_again,
) -> LatencyReport:
    """Measure single inferences of `model`, interleaved with those of `baseline`.

    Args:
        model: ONNX file.
        baseline: ONNX file to compare with, usually the dense network; loaded in the same processes.
        device: A key of ``bench.targets.TARGETS``, with ``:address`` where the target takes one.
        threads: Intra-op threads of ONNX Runtime.
        pin: Cores to which the workers restrict themselves; none leaves them free.
        provider: Execution provider of ONNX Runtime, with or without the ending ``ExecutionProvider``.
        runs: Fresh processes; the unit of the interval, see ``bench/stats.py``.
        min_seconds: Of sampling for each model and batch size, over all runs.
        samples: Of each model and batch size at least, over all runs.
        batch: Size of every open first dimension; 1 by default.
        batches: Sizes of every open first dimension for which the throughput is wanted, in place of `batch`; the first
            is the one of the other figures.
        shapes: Whole shapes of inputs by name; other open sizes are 1.
        deadline: Feed the models at a fixed period too, and count missed deadlines.
        tolerance: Allowed difference of a device's outputs from this machine's, as a share of each output's largest
            value; by default that of ``bench/measure/parity.py``.
        seed: Of the random inputs.
        timeout_s: For everything.
        progress: Called after each run with the runs done and their number.
        advise: Says how to measure longer, in the words of who asked; a noisy report warns with it.

    Raises:
        BenchError: The request makes no sense, or a model could not be measured.
    """
    sizes = _sizes(batch, batches)
    settings = Settings(
        threads=threads,
        batch=sizes[0],
        shapes={name: tuple(shape) for name, shape in (shapes or {}).items()},
        runs=runs,
        min_seconds=min_seconds,
        min_samples=samples,
        seed=seed,
        pin=tuple(pin),
        provider=provider,
    )
    if runs < MIN_RUNS:
        raise BenchError(f"runs is {runs}, expected at least {MIN_RUNS}: an interval of fewer runs means nothing")
    paths = tuple(str(path) for path in (model, baseline) if path is not None)
    files = [describe(Path(path)) for path in paths]
    request = request_of("latency", paths, settings)
    # What is loaded first comes to lie elsewhere in memory: every other process loads, and samples, the other way.
    steady = [replace(request, models=paths[:: _step(run)], batch=size) for run in range(runs) for size in sizes]
    frames = [] if deadline is None else realtime_requests(deadline, request)
    found = list(answers(device, [*steady, *frames], timeout_s, progress, tolerance))
    require_unchanged(files, paths)
    by_size = [_in_order(found[place : len(steady) : len(sizes)]) for place in range(len(sizes))]
    results = [_result(file, measured) for file, measured in zip(files, by_size[0], strict=True)]
    settings = replace(settings, provider=by_size[0][0][0].provider)
    host = host_of(found[0])
    ratio = _ratio(*results) if baseline is not None else None
    fallen = fallen_back(zip(files, by_size[0], strict=True))
    return LatencyReport(
        measure="latency",
        created=now(),
        device=device,
        settings=settings,
        host=host,
        warnings=(
            *caveats(device),
            *doubts(advise, settings, host, results, ratio),
            *fallen,
            *assumed_sizes((result.file, result.inputs) for result in results),
        ),
        model=results[0],
        baseline=results[1] if baseline is not None else None,
        ratio=ratio,
        verdict=None if ratio is None else ratio.verdict,
        throughput=tuple(throughput(size, *map(_samples, by_size[place])) for place, size in enumerate(batches)),
        realtime=None if deadline is None else _realtime(deadline, found[len(steady) :], len(paths)),
    )


def _sizes(batch: int | None, batches: Sequence[int]) -> tuple[int | None, ...]:
    """The batch sizes to measure.

    Raises:
        BenchError: Both are given, or a size is given twice or below 1.
    """
    if not batches:
        return (batch,)
    if batch is not None:
        raise BenchError(f"batch is {batch} and batches are {','.join(map(str, batches))}: give one of them")
    if len(set(batches)) < len(batches) or min(batches) < 1:
        raise BenchError(f"batches are {','.join(map(str, batches))}, expected different sizes of 1 or more")
    return tuple(batches)


def _step(run: int) -> int:
    return -1 if run % 2 else 1


def _in_order(found: Sequence[Answer]) -> list[list[MeasuredModel]]:
    """``[model][run]`` of one batch size, the model before its baseline in every run."""
    runs = [answer.models[:: _step(run)] for run, answer in enumerate(found)]
    return [list(models) for models in zip(*runs, strict=True)]


def _samples(measured: Sequence[MeasuredModel]) -> tuple[LatencySamples, ...]:
    """One model's samples of every run.

    Raises:
        BenchError: An answer holds none.
    """
    runs = tuple(model.latency for model in measured if model.latency is not None)
    if len(runs) != len(measured):
        raise BenchError("worker's answer: latency is missing; the worker is not the one of this bench")
    return runs


def _result(file: OnnxFile, measured: Sequence[MeasuredModel]) -> LatencyResult:
    """One model's figures from its samples of every run."""
    return LatencyResult(file=file, inputs=measured[0].inputs, latency=latency_figures(_samples(measured)))


def latency_figures(runs: tuple[LatencySamples, ...]) -> Latency:
    """One model's figures from the samples of each process."""
    samples = np.concatenate([run.samples_ns for run in runs]) / NS_PER_MS
    p50, p90, p95, p99 = (float(value) for value in np.quantile(samples, (0.5, 0.9, 0.95, 0.99)))
    low, high = median_interval([run.samples_ns for run in runs])
    cold = [run for run in runs if run.loaded_first]
    return Latency(
        p50_ms=p50,
        p50_low_ms=low / NS_PER_MS,
        p50_high_ms=high / NS_PER_MS,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99,
        mean_ms=float(samples.mean()),
        min_ms=float(samples.min()),
        samples=len(samples),
        outliers=far_out(samples),
        load_ms=float(np.median([run.load_ns for run in cold])) / NS_PER_MS,
        first_inference_ms=float(np.median([run.first_inference_ns for run in cold])) / NS_PER_MS,
        cold_starts=len(cold),
        runs=runs,
    )


def _realtime(deadline: Deadline, found: Sequence[Answer], models: int) -> Realtime:
    return realtime(deadline, [model for answer in found for model in answer.models], models)


def _ratio(model: LatencyResult, baseline: LatencyResult) -> Ratio:
    return ratio_of_medians(*([run.samples_ns for run in result.latency.runs] for result in (model, baseline)))


def doubts(
    advise: Advise, settings: Settings, host: Host, results: Sequence[LatencyResult], ratio: Ratio | None
) -> tuple[str, ...]:
    """What makes the figures doubtful, and what to do next: more runs, each as long as before.

    An interval's width falls with the root of their number.
    """
    found = host_doubts(settings, host)
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
        noisy = f"noisy: the interval of the {what} is +-{half_width:.0%} wide, more than {NOISY_HALF_WIDTH:.0%}"
        runs = math.ceil(settings.runs * (half_width / NOISY_HALF_WIDTH) ** 2)
        if runs > MAX_ADVISED_RUNS:
            noisy += f"; {runs} processes would be needed: take a quieter machine or core (--pin)"
            runs = MAX_ADVISED_RUNS
        longer = runs / settings.runs
        samples, seconds = math.ceil(settings.min_samples * longer), f"{settings.min_seconds * longer:.3g}"
        advice = advise(runs=runs, samples=samples, min_seconds=seconds)
        found.append(f"{noisy}; {advice}")
    return tuple(found)
