"""What a budget can limit: one line each in `LIMITS`, the key as it is written in the file.

A figure that varies from process to process comes with the range that it lies in; a limit is broken only when the whole
range is beyond it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from bench.errors import BenchError
from bench.gate.evidence import Evidence, Facts, Failed
from bench.measure.realtime import longest_run, missed_frames
from bench.protocol import LatencySamples
from bench.report import Latency, LatencyReport, MemoryResult
from bench.shares import MOST_FRAMES, count_to_tell, share_interval, share_of
from bench.stats import quantile_interval
from bench.units import NS_PER_MS

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured figure and the range that it lies in, which is a point for exact ones; `range_of` says what it is."""

    value: float
    low: float
    high: float
    range_of: str = ""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """How figures are written.

    Attributes:
        spec: Python's format specification.
        suffix: Behind the number.
        largest: No limit above this makes sense.
        zero: Whether a limit of 0 makes sense.
    """

    spec: str
    suffix: str = ""
    largest: float = float("inf")
    zero: bool = False

    def shown(self, value: float) -> str:
        """A figure for people."""
        return f"{value:{self.spec}}{self.suffix}"


UNITS = {
    "ms": Unit(spec=".4g", suffix=" ms"),
    "bytes": Unit(spec=",.0f", suffix=" bytes"),
    "ratio": Unit(spec=".4g"),
    "share": Unit(spec=".6g", largest=1.0, zero=True),
    "difference": Unit(spec=".4g", zero=True),
    "count": Unit(spec=",.0f"),
    "frames": Unit(spec=",.0f", suffix=" frames", zero=True),
}
INTERVAL, PROCESSES, COUNTS = "95 % interval", "range of the processes", "range of the counts"
BOUNDS = "bounds of the best order"
SHARE_DIGITS = 12  # no test set tells more; in binary 0.95 - 0.94 is more than 0.01, and would be over such a limit


@dataclass(frozen=True, kw_only=True)
class Limit:
    """Something that a budget can limit.

    Attributes:
        what: In words.
        unit: A key of `UNITS`.
        read: The figure from the evidence; raises BenchError where there is none.
        measure: What has to be measured for it; None: the file is enough.
        at_least: The limit is the smallest good figure, not the largest.
        needs_baseline: Whether it compares.
        to_tell: What tells a figure from a limit that it lies too close to; None: more of what its measure takes.
    """

    what: str
    unit: str
    read: Callable[[Evidence], Figure]
    measure: str | None = None
    at_least: bool = False
    needs_baseline: bool = False
    to_tell: Callable[[Evidence, float], str] | None = None


def exact(value: float) -> Figure:
    """A figure without a range."""
    return Figure(value=value, low=value, high=value)


def measured(outcome: T | Failed | None) -> T:
    """A measure's result.

    Raises:
        BenchError: It failed; the reason is the measure's own.
    """
    if isinstance(outcome, Failed):
        raise BenchError(outcome.reason)
    if outcome is None:
        raise BenchError("it was not measured")
    return outcome


def native(evidence: Evidence) -> LatencyReport:
    """The latency report, if its seconds are any."""
    report = measured(evidence.latency)
    if report.host.emulated:
        raise BenchError(
            "seconds under an emulator are no latency: limit instructions there, and latency on a real board"
        )
    return report


def compared(evidence: Evidence) -> Facts:
    """The baseline."""
    if evidence.baseline is None:
        raise BenchError("it needs --baseline")
    return evidence.baseline


def quantile(share: float) -> Callable[[Evidence], Figure]:
    """Inference time that `share` of the samples do not exceed, with its interval."""

    def read(evidence: Evidence) -> Figure:
        figures = native(evidence).model.latency
        value = {0.5: figures.p50_ms, 0.9: figures.p90_ms, 0.95: figures.p95_ms, 0.99: figures.p99_ms}[share]
        low, high = quantile_interval([run.samples_ns for run in figures.runs], share)
        return Figure(value=value, low=low / NS_PER_MS, high=high / NS_PER_MS, range_of=INTERVAL)

    return read


def latency_ratio(evidence: Evidence) -> Figure:
    """The model's inference time over its baseline's, as measured side by side."""
    ratio = native(evidence).ratio
    if ratio is None:
        raise BenchError("it needs --baseline")
    return Figure(value=ratio.value, low=ratio.low, high=ratio.high, range_of=INTERVAL)


def cold(value: Callable[[Latency], float], of_run: Callable[[LatencySamples], int]) -> Callable[[Evidence], Figure]:
    """A figure of the cold start, with the smallest and the largest of the processes that loaded the model first."""

    def read(evidence: Evidence) -> Figure:
        figures = native(evidence).model.latency
        runs = [of_run(run) / NS_PER_MS for run in figures.runs if run.loaded_first]
        return Figure(value=value(figures), low=min(runs), high=max(runs), range_of=PROCESSES)

    return read


def missed(evidence: Evidence) -> list[list[bool]]:
    """Of each frame of each process, whether it was missed."""
    realtime = native(evidence).realtime
    if realtime is None:
        raise BenchError("no frames were fed: set measure.deadline_ms")
    return missed_frames(realtime.model.runs, realtime.deadline_ms)


def missed_share(evidence: Evidence) -> Figure:
    """The share of missed frames, with its interval."""
    runs = missed(evidence)
    low, high = share_interval(runs)
    return Figure(value=share_of(runs), low=low, high=high, range_of=INTERVAL)


def frames_to_tell(evidence: Evidence, limit: float) -> str:
    """How many frames would tell the share of missed ones from `limit`."""
    count = count_to_tell(missed(evidence), limit)
    if count is None:
        return f"no number of frames up to {MOST_FRAMES:,} would tell: set another limit"
    return f"to tell, set measure.frames = {count} in the budget, which is enough if as large a share is missed again"


def longest_row(evidence: Evidence) -> Figure:
    """The most frames missed in a row, with the smallest and the largest of the processes."""
    rows = [longest_run(run) for run in missed(evidence)]
    return Figure(value=max(rows), low=min(rows), high=max(rows), range_of=PROCESSES)


def peak(evidence: Evidence) -> Figure:
    """Peak memory, with the smallest and the largest of the processes."""
    figures = measured(evidence.memory).model.memory
    runs = [run.peak_rss_bytes for run in figures.runs]
    return Figure(value=figures.peak_rss_bytes, low=min(runs), high=max(runs), range_of=PROCESSES)


def over_bare(result: MemoryResult) -> list[int]:
    """Peak over the bare runtime of each process.

    Raises:
        BenchError: The system tells only the largest size since the process began: the runtime's own peak hides it.
    """
    runs = result.memory.runs
    found = [run.peak_rss_bytes - run.bare_rss_bytes for run in runs]
    if min(found) <= 0 or any(run.method == "getrusage" for run in runs):
        raise BenchError(
            f"this system does not tell what {result.file.file_name} takes over the bare runtime ({runs[0].method}): "
            "limit memory.peak_bytes, or measure on Linux"
        )
    return found


def peak_over_bare(evidence: Evidence) -> Figure:
    """Peak memory over the bare runtime, with the smallest and the largest of the processes."""
    report = measured(evidence.memory)
    runs = over_bare(report.model)
    value = report.model.memory.peak_over_bare_bytes
    return Figure(value=value, low=min(runs), high=max(runs), range_of=PROCESSES)


def activations(evidence: Evidence) -> Figure:
    """Peak of activations in the best order: a point where the search came to its end, else between its bounds."""
    figures = measured(evidence.memory).model.static
    if figures.peak_activation_bytes is None or figures.lower_bound_bytes is None:
        raise BenchError(figures.unknown_because or "it is not known")
    value = figures.peak_activation_bytes
    return Figure(value=value, low=figures.lower_bound_bytes, high=value, range_of=BOUNDS)


def counted(evidence: Evidence) -> Figure:
    """Instructions of an inference, with the smallest and the largest count."""
    figures = measured(evidence.instructions).model.instructions
    return Figure(value=figures.per_inference, low=figures.low, high=figures.high, range_of=COUNTS)


def counted_ratio(evidence: Evidence) -> Figure:
    """Instructions over the baseline's: the widest range that the counts leave open."""
    report = measured(evidence.instructions)
    if report.baseline is None or report.ratio is None:
        raise BenchError("it needs --baseline")
    ours, theirs = report.model.instructions, report.baseline.instructions
    return Figure(value=report.ratio, low=ours.low / theirs.high, high=ours.high / theirs.low, range_of=COUNTS)


def peak_ratio(evidence: Evidence) -> Figure:
    """Peak memory over the bare runtime, model over baseline: the widest range that the processes leave open."""
    report = measured(evidence.memory)
    if report.baseline is None:
        raise BenchError("it needs --baseline")
    ours, theirs = over_bare(report.model), over_bare(report.baseline)
    value = report.model.memory.peak_over_bare_bytes / report.baseline.memory.peak_over_bare_bytes
    return Figure(value=value, low=min(ours) / max(theirs), high=max(ours) / min(theirs), range_of=PROCESSES)


def told(key: str, largest: float = float("inf")) -> Callable[[Evidence], Figure]:
    """A figure that the file tells about itself."""
    return lambda evidence: exact(_within(evidence.model, key, largest))


def lost(key: str) -> Callable[[Evidence], Figure]:
    """How much lower the model's own figure is than its baseline's."""
    return lambda evidence: exact(
        round(_within(compared(evidence), key, 1.0) - _within(evidence.model, key, 1.0), SHARE_DIGITS)
    )


def _within(facts: Facts, key: str, largest: float) -> float:
    value = facts.number(key)
    if not 0 <= value <= largest:
        raise BenchError(f"{key} of {facts.file.file_name} is {value:g}, expected 0 to {largest:g}")
    return value


LIMITS: dict[str, Limit] = {
    "latency.p50_ms": Limit(what="median inference time", unit="ms", read=quantile(0.5), measure="latency"),
    "latency.p90_ms": Limit(what="time of 90 % of inferences", unit="ms", read=quantile(0.9), measure="latency"),
    "latency.p95_ms": Limit(what="time of 95 % of inferences", unit="ms", read=quantile(0.95), measure="latency"),
    "latency.p99_ms": Limit(what="time of 99 % of inferences", unit="ms", read=quantile(0.99), measure="latency"),
    "latency.ratio": Limit(
        what="inference time over the baseline's, measured side by side",
        unit="ratio",
        read=latency_ratio,
        measure="latency",
        needs_baseline=True,
    ),
    "latency.load_ms": Limit(
        what="cold start: from the file to the session",
        unit="ms",
        read=cold(lambda figures: figures.load_ms, lambda run: run.load_ns),
        measure="latency",
    ),
    "latency.first_inference_ms": Limit(
        what="cold start: the first inference",
        unit="ms",
        read=cold(lambda figures: figures.first_inference_ms, lambda run: run.first_inference_ns),
        measure="latency",
    ),
    "latency.missed_share": Limit(
        what="share of the frames that miss `measure.deadline_ms`",
        unit="share",
        read=missed_share,
        measure="latency",
        to_tell=frames_to_tell,
    ),
    "latency.longest_run": Limit(
        what="the most frames missed in a row",
        unit="frames",
        read=longest_row,
        measure="latency",
        to_tell=lambda _, __: "to tell, raise measure.frames in the budget",
    ),
    "instructions.per_inference": Limit(
        what="instructions of an inference on one thread; `--device arm64`",
        unit="count",
        read=counted,
        measure="instructions",
    ),
    "instructions.ratio": Limit(
        what="the same over the baseline's",
        unit="ratio",
        read=counted_ratio,
        measure="instructions",
        needs_baseline=True,
    ),
    "memory.peak_bytes": Limit(
        what="peak resident memory during inference, the runtime's included",
        unit="bytes",
        read=peak,
        measure="memory",
    ),
    "memory.peak_over_bare_bytes": Limit(
        what="the same, less that of the bare runtime",
        unit="bytes",
        read=peak_over_bare,
        measure="memory",
    ),
    "memory.ratio": Limit(
        what="peak over the bare runtime, model over baseline",
        unit="ratio",
        read=peak_ratio,
        measure="memory",
        needs_baseline=True,
    ),
    "memory.weight_bytes": Limit(
        what="all weights, by the graph alone",
        unit="bytes",
        read=lambda evidence: exact(measured(evidence.memory).model.static.weight_bytes),
        measure="memory",
    ),
    "memory.activation_bytes": Limit(
        what="activations alive at once in the best order of execution, by the graph alone",
        unit="bytes",
        read=activations,
        measure="memory",
    ),
    "file.bytes": Limit(
        what="size of the ONNX file, external weights included",
        unit="bytes",
        read=lambda evidence: exact(evidence.model.file.file_bytes),
    ),
    "file.ratio": Limit(
        what="the same over the baseline's",
        unit="ratio",
        read=lambda evidence: exact(evidence.model.file.file_bytes / compared(evidence).file.file_bytes),
        needs_baseline=True,
    ),
    "accuracy.test": Limit(
        what="`test_accuracy` of the file's metadata", unit="share", read=told("test_accuracy", 1.0), at_least=True
    ),
    "accuracy.validation": Limit(
        what="`validation_accuracy` of the file's metadata",
        unit="share",
        read=told("validation_accuracy", 1.0),
        at_least=True,
    ),
    "accuracy.test_drop": Limit(
        what="the baseline's `test_accuracy` less the model's",
        unit="share",
        read=lost("test_accuracy"),
        needs_baseline=True,
    ),
    "accuracy.validation_drop": Limit(
        what="the same of `validation_accuracy`",
        unit="share",
        read=lost("validation_accuracy"),
        needs_baseline=True,
    ),
    "parity.max_abs_difference": Limit(
        what="largest difference from torch's outputs, as the export measured it",
        unit="difference",
        read=told("max_abs_difference"),
    ),
    "parity.max_relative_difference": Limit(
        what="the same, relative", unit="difference", read=told("max_relative_difference")
    ),
}
