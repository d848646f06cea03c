"""What is known about a model and its baseline: their files, what these tell, and what was measured."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from bench.errors import BenchError
from bench.measure.instructions import instructions
from bench.measure.latency import latency
from bench.measure.memory import memory
from bench.measure.realtime import Deadline
from bench.measure.runs import Advise, Progress
from bench.onnx_file import OnnxFile, describe, metadata
from bench.protocol import CPU_PROVIDER
from bench.report import InstructionsReport, LatencyReport, MemoryReport, results_of
from bench.targets import is_emulated

T = TypeVar("T")
R = TypeVar("R", LatencyReport, MemoryReport, InstructionsReport)

# Options that messages of measures name -> keys of the budget, where the gate's user says the same.
KEYS = {
    **{f"--{name}": f"measure.{name}" for name in ("threads", "pin", "provider", "batch", "samples", "runs", "frames")},
    "--min-seconds": "measure.min_seconds",
    "--repeats": "measure.memory_runs",
    "--shape": "measure.shapes",
    "--tolerance": "measure.tolerance",
    "--timeout": "measure.timeout_s",
}
OPTION = re.compile(r"(?<!\S)\(?(--[a-z-]+)")


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """How to measure: the section ``[measure]`` of a budget.

    Attributes:
        threads: Intra-op threads of ONNX Runtime; instructions are counted on one.
        pin: Cores to which the workers restrict themselves; none leaves them free.
        provider: Execution provider of ONNX Runtime.
        batch: Size of open first dimensions; None leaves them at 1.
        shapes: Whole shapes of inputs by name.
        runs: Processes that measure latency.
        samples: Inferences of each model, at least.
        min_seconds: Of sampling, for each model.
        memory_runs: Processes that measure memory, for each model.
        instruction_runs: Processes that count instructions, for each model.
        instruction_samples: Inferences whose instructions are counted, of each model, at least.
        tolerance: Allowed difference of a device's outputs from this machine's; None leaves it to bench.
        deadline_ms: Of a frame; None feeds no frames.
        period_ms: From a frame to the next; None: as long as the deadline.
        frames: Of each model.
        seed: Of the random inputs.
        timeout_s: For each measure.
    """

    threads: int = 1
    pin: tuple[int, ...] = ()
    provider: str = CPU_PROVIDER
    batch: int | None = None
    shapes: dict[str, tuple[int, ...]]
    runs: int = 10
    samples: int = 200
    min_seconds: float = 2.0
    memory_runs: int = 3
    instruction_runs: int = 2
    instruction_samples: int = 6
    tolerance: float | None = None
    deadline_ms: float | None = None
    period_ms: float | None = None
    frames: int = 300
    seed: int = 0
    timeout_s: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to measure, where and how."""

    model: Path
    baseline: Path | None
    device: str
    measure: Measurement
    progress: Progress | None


@dataclass(frozen=True)
class Failed:
    """A measure without a result, and why."""

    reason: str


@dataclass(frozen=True)
class Facts:
    """A model file and what it tells about itself."""

    file: OnnxFile
    metadata: dict[str, str]

    def number(self, key: str) -> float:
        """A figure of the metadata.

        Raises:
            BenchError: The file does not hold it, or it is no number.
        """
        if key not in self.metadata:
            raise BenchError(
                f"{self.file.file_name} has no {key} in its metadata; compress export writes it (docs/export.md)"
            )
        text = self.metadata[key]
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        if value is None:
            raise BenchError(f"{key} of {self.file.file_name} is null: nobody measured it before the export")
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            raise BenchError(f"{key} of {self.file.file_name} is {text[:60]!r}, expected a number")
        return float(value)


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Files and measurements; what nobody asked for is None."""

    model: Facts
    baseline: Facts | None
    latency: LatencyReport | Failed | None
    memory: MemoryReport | Failed | None
    instructions: InstructionsReport | Failed | None


def facts_of(path: Path) -> Facts:
    """Read a model file.

    Raises:
        BenchError: It is missing, or no ONNX file.
    """
    return Facts(describe(path), metadata(path))


def measure_latency(job: Job) -> LatencyReport:
    """Latency of both models, interleaved, and their frames if there is a deadline."""
    how = job.measure
    deadline = None
    if how.deadline_ms is not None:
        deadline = Deadline(deadline_ms=how.deadline_ms, period_ms=how.period_ms, frames=how.frames)
    return latency(
        job.model,
        job.baseline,
        device=job.device,
        threads=how.threads,
        pin=how.pin,
        provider=how.provider,
        deadline=deadline,
        runs=how.runs,
        min_seconds=how.min_seconds,
        samples=how.samples,
        batch=how.batch,
        shapes=how.shapes,
        tolerance=how.tolerance,
        seed=how.seed,
        timeout_s=how.timeout_s,
        progress=job.progress,
        advise=in_budget("measure."),
    )


def measure_memory(job: Job) -> MemoryReport:
    """Memory of both models, each in processes of its own."""
    how = job.measure
    return memory(
        job.model,
        job.baseline,
        device=job.device,
        threads=how.threads,
        pin=how.pin,
        provider=how.provider,
        repeats=how.memory_runs,
        batch=how.batch,
        shapes=how.shapes,
        tolerance=how.tolerance,
        seed=how.seed,
        timeout_s=how.timeout_s,
        progress=job.progress,
    )


def measure_instructions(job: Job) -> InstructionsReport:
    """Instructions of both models, each in processes of its own, and their outputs against this machine's."""
    how = job.measure
    return instructions(
        job.model,
        job.baseline,
        device=job.device,
        runs=how.instruction_runs,
        samples=how.instruction_samples,
        batch=how.batch,
        shapes=how.shapes,
        tolerance=how.tolerance,
        seed=how.seed,
        timeout_s=how.timeout_s,
        progress=job.progress,
        advise=in_budget("measure.instruction_"),
    )


def _of_known_sizes(report: R) -> R | Failed:
    """The report, unless sizes of the inputs were taken for 1: figures of pictures of one pixel hold no budget."""
    for _, result in results_of(report):
        for value in result.inputs:
            if value.assumed:
                return Failed(
                    f"{result.file.file_name} leaves sizes of its input {value.name} open, and nobody gave them: "
                    f"set measure.shapes = {{{json.dumps(value.name)} = [1, 3, 224, 224]}}, for example"
                )
    return report


def _require_possible(measure: str, device: str) -> None:
    """Refuse what a device cannot measure, in the words of the gate.

    Raises:
        BenchError: Instructions on a real CPU, or time or memory on an emulated one.
    """
    if measure == "instructions" and not is_emulated(device):
        raise BenchError(
            f"instructions are counted on an emulated CPU, not on --device {device}: "
            "gate them with --device arm64:cortex-a53"
        )
    if measure != "instructions" and is_emulated(device):
        raise BenchError(
            f"--device {device} is emulated, and tells nothing of {measure}: limit instructions there, and gate "
            f"{measure} with --device cpu or on a board"
        )


def in_budget(prefix: str) -> Advise:
    """Says which keys of the budget to set; those of a measure begin with `prefix`."""
    return lambda **changed: (
        f"set {', '.join(f'{prefix}{name} = {value}' for name, value in changed.items())} in the budget"
    )


def in_keys(text: str) -> str:
    """A measure's message with the budget's keys in the place of options."""
    return OPTION.sub(lambda match: match[0].replace(match[1], KEYS.get(match[1], match[1])), text)


def gather(job: Job, wanted: set[str]) -> Evidence:
    """Read the files, and measure what is `wanted` (``latency``, ``memory``, ``instructions``); failures are kept.

    Raises:
        BenchError: A file cannot be read, or is another at the end than at the start.
    """

    def found(measure: str, run: Callable[[Job], R]) -> R | Failed | None:
        if measure not in wanted:
            return None
        try:
            _require_possible(measure, job.device)
            report = run(job)
        except BenchError as error:
            return Failed(in_keys(str(error)))
        return _of_known_sizes(replace(report, warnings=tuple(map(in_keys, report.warnings))))

    evidence = Evidence(
        model=facts_of(job.model),
        baseline=None if job.baseline is None else facts_of(job.baseline),
        latency=found("latency", measure_latency),
        memory=found("memory", measure_memory),
        instructions=found("instructions", measure_instructions),
    )
    for path, facts in ((job.model, evidence.model), (job.baseline, evidence.baseline)):
        if path is not None and facts is not None and describe(path) != facts.file:
            raise BenchError(f"{path} changed while it was measured; measure again")
    return evidence
