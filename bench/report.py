"""What a measurement found, with everything needed to judge it; the JSON is described in docs/bench-report.md."""

from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

from bench import codec
from bench.errors import BenchError
from bench.onnx_file import OnnxFile
from bench.protocol import (
    CPU_PROVIDER,
    Host,
    Input,
    InstructionSamples,
    LatencySamples,
    MemorySamples,
    PeriodicSamples,
    ProfileSamples,
)
from bench.saved import Saved
from bench.stats import Ratio


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What was asked for.

    Attributes:
        threads: Intra-op threads of ONNX Runtime; inter-op is 1, execution sequential.
        batch: Size of open first dimensions; None leaves them at 1.
        shapes: Whole shapes of inputs by name.
        runs: Worker processes.
        min_seconds: Of sampling, for each model over all runs.
        min_samples: Of each model over all runs.
        seed: Of the random inputs.
        pin: Cores to which the workers restrict themselves; none leaves them free.
        provider: Execution provider of ONNX Runtime.
    """

    threads: int
    batch: int | None
    shapes: dict[str, tuple[int, ...]]
    runs: int
    min_seconds: float
    min_samples: int
    seed: int
    pin: tuple[int, ...] = ()
    provider: str = CPU_PROVIDER

    def __post_init__(self) -> None:
        """Refuse what cannot be measured, all faults at once."""
        faults = [
            f"{name} is {value}, expected at least 1"
            for name, value in (("threads", self.threads), ("runs", self.runs), ("samples", self.min_samples))
            if value < 1
        ]
        if not 0 <= self.min_seconds < float("inf"):
            faults.append(f"min_seconds is {self.min_seconds}, expected 0 or more")
        if len(set(self.pin)) < len(self.pin) or min(self.pin, default=0) < 0:
            faults.append(f"pin is {','.join(map(str, self.pin))}, expected different cores from 0 on")
        shapes = self.shapes if self.batch is None else {"batch": (self.batch,), **self.shapes}
        faults += [
            f"{name} is {'x'.join(map(str, shape))}, expected sizes of 1 or more"
            for name, shape in shapes.items()
            if min(shape, default=1) < 1
        ]
        if faults:
            raise BenchError("; ".join(faults))


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One model's inference times, in milliseconds.

    Attributes:
        p50_low_ms: Lower end of the median's 95 % interval.
        p50_high_ms: Upper end.
        samples: Number of timed inferences.
        outliers: Samples beyond Tukey's outer fence; they are in every figure.
        load_ms: Cold start: to make the session, median over the processes that loaded this model before any other.
        first_inference_ms: Cold start: the first inference, median over the same processes.
        cold_starts: The number of these processes.
        runs: Raw samples, one entry for each process.
    """

    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    samples: int
    outliers: int
    load_ms: float
    first_inference_ms: float
    cold_starts: int
    runs: tuple[LatencySamples, ...]


@dataclass(frozen=True, kw_only=True)
class BatchTimes:
    """One model at one batch size.

    Attributes:
        images_per_second: The batch over the mean time of an inference, outliers included.
        images_per_second_low: Lower end of its 95 % interval.
        images_per_second_high: Upper end.
        runs: Raw samples, one entry for each process.
    """

    images_per_second: float
    images_per_second_low: float
    images_per_second_high: float
    p50_ms: float
    p99_ms: float
    runs: tuple[LatencySamples, ...]


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Inferences of one batch size, one after the other; `ratio` is that of median times, model over baseline."""

    batch: int
    model: BatchTimes
    baseline: BatchTimes | None
    ratio: Ratio | None


@dataclass(frozen=True, kw_only=True)
class Frames:
    """One model fed at a fixed period. A frame is missed if its result comes after the deadline, or never.

    Attributes:
        missed: Late and dropped frames.
        dropped: Those that were never computed, since a newer one had arrived.
        longest_run: The most frames missed in a row, within one process.
        response_p50_ms: From a frame's arrival to its result, dropped frames left out.
        response_p99_ms: The same.
        inference_p50_ms: Of the inferences alone.
        runs: Raw samples, one entry for each process.
    """

    frames: int
    missed: int
    dropped: int
    missed_share: float
    longest_run: int
    response_p50_ms: float
    response_p99_ms: float
    inference_p50_ms: float
    runs: tuple[PeriodicSamples, ...]


@dataclass(frozen=True, kw_only=True)
class Realtime:
    """Frames at a fixed period, and how many were missed."""

    deadline_ms: float
    period_ms: float
    model: Frames
    baseline: Frames | None


@dataclass(frozen=True, kw_only=True)
class Memory:
    """One model's resident memory, in bytes: medians over the processes.

    Attributes:
        model_rss_bytes: After loading, less the bare runtime.
        load_peak_rss_bytes: The largest while loading, runtime included.
        peak_rss_bytes: The largest during inference, runtime included.
        peak_over_bare_bytes: The same less the bare runtime.
        spread_bytes: Largest less smallest `peak_rss_bytes` of the processes.
        runs: Raw figures, one entry for each process.
    """

    bare_rss_bytes: int
    model_rss_bytes: int
    load_peak_rss_bytes: int
    peak_rss_bytes: int
    peak_over_bare_bytes: int
    spread_bytes: int
    runs: tuple[MemorySamples, ...]


@dataclass(frozen=True, kw_only=True)
class StaticMemory:
    """What a model needs by its graph alone, whatever the runtime; ``bench/measure/activations.py`` gives the rules.

    Attributes:
        weight_bytes: Of all weights and constants of the file.
        peak_activation_bytes: Of the values alive at once, in the best order of execution; None if it is not known.
        peak_is_exact: The order is proved to be the best; else it is the best that was found, an upper bound.
        lower_bound_bytes: No order needs less.
        file_order_bytes: In the order of the file.
        unknown_because: Why the four above are None.
    """

    weight_bytes: int
    peak_activation_bytes: int | None
    peak_is_exact: bool | None
    lower_bound_bytes: int | None
    file_order_bytes: int | None
    unknown_because: str | None


@dataclass(frozen=True, kw_only=True)
class NodeProfile:
    """A node as ONNX Runtime ran it.

    Attributes:
        name: In the words of the file: of its first contraction, else its own, else operator and value.
        output_shape: Of its first output, as the node made it: blocked layouts are padded to whole blocks.
        time_us: Of one inference: mean of the middle half of the samples of a process, median over the processes.
        share: Of the time of all nodes.
        macs: Multiply-accumulates of the parts of the model that it computes; None if a part has no rule.
        gflops: Achieved: two operations for each multiply-accumulate.
    """

    name: str
    operator: str
    provider: str
    output_shape: tuple[int, ...]
    time_us: float
    share: float
    macs: int | None
    gflops: float | None


@dataclass(frozen=True, kw_only=True)
class OperatorProfile:
    """All nodes of one operator, with or without what ONNX Runtime fused into it: FusedConv is Conv."""

    operator: str
    nodes: int
    time_us: float
    share: float
    macs: int | None
    gflops: float | None


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Where one model's time goes.

    Attributes:
        p50_ms: Of inferences without the profiler.
        profiled_p50_ms: With it.
        nodes_ms: The sum of the nodes' times.
        macs: Of the whole model; None if it has a contraction without a rule.
        uncounted: Operators that may contract and have no rule, by name.
        runs: Raw samples, one entry for each process.
    """

    p50_ms: float
    profiled_p50_ms: float
    nodes_ms: float
    macs: int | None
    uncounted: tuple[str, ...]
    nodes: tuple[NodeProfile, ...]
    operators: tuple[OperatorProfile, ...]
    runs: tuple[ProfileSamples, ...]


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """One model's instructions per inference, on one thread.

    Attributes:
        per_inference: Median of all counts.
        low: Smallest count.
        high: Largest count.
        runs: Raw counts, one entry for each process.
    """

    per_inference: int
    low: int
    high: int
    runs: tuple[InstructionSamples, ...]

    @property
    def spread(self) -> float:
        """Largest less smallest count, as a share of the median."""
        return (self.high - self.low) / self.per_inference


@dataclass(frozen=True, kw_only=True)
class Parity:
    """How far a model's outputs on the device are from this machine's, of the output that differs most.

    Attributes:
        output: Its name.
        arithmetic: ``float32``, ``float16`` or ``int8``: the coarsest that the model computes in.
        max_abs_error: Largest difference of two values.
        largest_value: Largest absolute value on this machine.
        tolerance: Allowed `max_abs_error`, as a share of `largest_value`; 0 for classes and indices.
    """

    output: str
    arithmetic: str
    max_abs_error: float
    largest_value: float
    tolerance: float


@dataclass(frozen=True, kw_only=True)
class LatencyResult:
    """A model, its inputs as they were run, and its times."""

    file: OnnxFile
    inputs: tuple[Input, ...]
    latency: Latency


@dataclass(frozen=True, kw_only=True)
class MemoryResult:
    """A model, its inputs as they were run, and its memory."""

    file: OnnxFile
    inputs: tuple[Input, ...]
    memory: Memory
    static: StaticMemory


@dataclass(frozen=True, kw_only=True)
class ProfileResult:
    """A model, its inputs as they were run, and where its time goes."""

    file: OnnxFile
    inputs: tuple[Input, ...]
    profile: Profile


@dataclass(frozen=True, kw_only=True)
class InstructionsResult:
    """A model, its inputs as they were run, its instructions, and whether it computes what it should."""

    file: OnnxFile
    inputs: tuple[Input, ...]
    instructions: Instructions
    parity: Parity


@dataclass(frozen=True, kw_only=True)
class MemoryRatios:
    """The model's figures over its baseline's; None where one is not known, or the baseline's is 0."""

    file_bytes: float
    model_rss_bytes: float | None
    peak_rss_bytes: float
    peak_over_bare_bytes: float | None
    weight_bytes: float | None
    peak_activation_bytes: float | None


@dataclass(frozen=True, kw_only=True)
class Report(Saved):
    """What every report holds.

    Attributes:
        measure: ``latency``, ``memory``, ``profile`` or ``instructions``.
        created: UTC, ISO 8601.
        device: As given with ``--device``.
        warnings: What makes the figures doubtful, each with the next command to run.
    """

    HEADER: ClassVar[codec.Header] = ("bench-report", 1)

    measure: str
    created: str
    device: str
    settings: Settings
    host: Host
    warnings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class LatencyReport(Report):
    """Latency of a model, and of its baseline measured in the same processes.

    Attributes:
        throughput: An entry for each batch size asked for; the first of them is that of `model` and `baseline`.
        realtime: If a deadline was asked for.
    """

    model: LatencyResult
    baseline: LatencyResult | None
    ratio: Ratio | None
    verdict: str | None
    throughput: tuple[Throughput, ...] = ()
    realtime: Realtime | None = None


@dataclass(frozen=True, kw_only=True)
class MemoryReport(Report):
    """Memory of a model, and of its baseline measured in processes of its own."""

    model: MemoryResult
    baseline: MemoryResult | None
    ratios: MemoryRatios | None


@dataclass(frozen=True, kw_only=True)
class ProfileReport(Report):
    """Where a model's time goes, and its baseline's, measured in processes of its own."""

    model: ProfileResult
    baseline: ProfileResult | None


@dataclass(frozen=True, kw_only=True)
class InstructionsReport(Report):
    """Instructions per inference of a model and its baseline, and the first over the second."""

    model: InstructionsResult
    baseline: InstructionsResult | None
    ratio: float | None


AnyReport = LatencyReport | MemoryReport | ProfileReport | InstructionsReport

T = TypeVar("T", covariant=True)


class Compared(Protocol[T]):
    """What holds something of a model, and the same of its baseline where there is one."""

    @property
    def model(self) -> T:
        """Of the model."""

    @property
    def baseline(self) -> T | None:
        """Of the baseline."""


def results_of(report: Compared[T]) -> list[tuple[str, T]]:
    """Of the model, and of the baseline where there is one, each with its name."""
    both = (("model", report.model), ("baseline", report.baseline))
    return [(kind, result) for kind, result in both if result is not None]


REPORTS: dict[str, type[AnyReport]] = {
    "latency": LatencyReport,
    "memory": MemoryReport,
    "profile": ProfileReport,
    "instructions": InstructionsReport,
}
