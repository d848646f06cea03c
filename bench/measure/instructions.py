"""Instructions per inference: counted by an emulator, the same on a busy machine as on a quiet one."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from bench.errors import BenchError
from bench.measure.parity import local_outputs, outputs_of, require_parity
from bench.measure.runs import (
    Advise,
    Progress,
    assumed_sizes,
    call_again,
    each_alone,
    host_of,
    models_of,
    now,
    request_of,
    require_time,
)
from bench.onnx_file import OnnxFile, describe
from bench.protocol import InstructionSamples, MeasuredModel
from bench.report import Instructions, InstructionsReport, InstructionsResult, Parity, Settings

REPEATABLE = 0.01  # single inferences and processes differ by 0.1 % and less: what Python does between two calls


def instructions(
    model: Path,
    baseline: Path | None = None,
    *,
    device: str = "arm64",
    runs: int = 2,
    samples: int = 6,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    timeout_s: float = 600.0,
    progress: Progress | None = None,
    advise: Advise = call_again,
) -> InstructionsReport:
    """Count the instructions of single inferences of `model`, and of `baseline` in processes of its own, on one thread.

    Args:
        model: ONNX file.
        baseline: ONNX file to compare with, usually the dense network.
        device: ``arm64``, with ``:cpu`` behind it.
        runs: Fresh processes for each model.
        samples: Inferences of each model at least, over all runs.
        batch: Size of every open first dimension; 1 by default.
        shapes: Whole shapes of inputs by name; other open sizes are 1.
        tolerance: Allowed difference from this machine's outputs, as a share of each output's largest value; by default
            that of ``bench/measure/parity.py``.
        seed: Of the random inputs.
        timeout_s: For everything.
        progress: Called after each process with those done and their number.
        advise: Says how to count more, in the words of who asked; counts that differ warn with it.

    Raises:
        BenchError: The request makes no sense, the device does not count, a model could not be run, or it computes
            something else there than here.
    """
    settings = Settings(
        threads=1,
        batch=batch,
        shapes={name: tuple(shape) for name, shape in (shapes or {}).items()},
        runs=runs,
        min_seconds=0.0,
        min_samples=samples,
        seed=seed,
    )
    paths = tuple(str(path) for path in (model, baseline) if path is not None)
    files = [describe(Path(path)) for path in paths]
    require_time(timeout_s)
    here = local_outputs(request_of("outputs", paths, settings), timeout_s)
    found = each_alone("instructions", paths, files, device, settings, timeout_s, progress)
    results = []
    for path, file, outputs, own in zip(paths, files, here, found, strict=True):
        parities = [require_parity(Path(path), outputs, outputs_of(answer)[0], device, tolerance) for answer in own]
        parity = max(parities, key=lambda each: each.max_abs_error)
        results.append(_result(file, models_of(own), parity))
    return InstructionsReport(
        measure="instructions",
        created=now(),
        device=device,
        settings=settings,
        host=host_of(found[0][0]),
        warnings=(
            *_warnings(results, settings, advise),
            *assumed_sizes((result.file, result.inputs) for result in results),
        ),
        model=results[0],
        baseline=results[1] if baseline is not None else None,
        ratio=ratio_of(*results) if baseline is not None else None,
    )


def _result(file: OnnxFile, measured: Sequence[MeasuredModel], parity: Parity) -> InstructionsResult:
    """One model's median."""
    runs = tuple(model.instructions for model in measured if model.instructions is not None)
    if len(runs) != len(measured):
        raise BenchError("worker's answer: instructions are missing; the worker is not the one of this bench")
    figures = instruction_figures(runs)
    return InstructionsResult(file=file, inputs=measured[0].inputs, instructions=figures, parity=parity)


def instruction_figures(runs: tuple[InstructionSamples, ...]) -> Instructions:
    """One model's figures from the counts of each process."""
    counts = [count for run in runs for count in run.counts]
    return Instructions(per_inference=round(float(np.median(counts))), low=min(counts), high=max(counts), runs=runs)


def ratio_of(model: InstructionsResult, baseline: InstructionsResult) -> float:
    """Instructions over the baseline's."""
    return model.instructions.per_inference / baseline.instructions.per_inference


def _warnings(results: Sequence[InstructionsResult], settings: Settings, advise: Advise) -> tuple[str, ...]:
    """What is not repeatable, and how to see whether more samples help."""
    more = advise(runs=2 * settings.runs, samples=4 * settings.min_samples)
    return tuple(
        f"{result.file.file_name}: counts of single inferences differ by {result.instructions.spread:.1%}, more than "
        f"{REPEATABLE:.0%}; {more}"
        for result in results
        if result.instructions.spread > REPEATABLE
    )
