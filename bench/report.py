"""What a measurement found, with everything needed to judge it; the JSON is described in docs/bench-report.md."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from bench import codec
from bench.errors import BenchError
from bench.files import write_whole
from bench.onnx_file import OnnxFile
from bench.protocol import Host, Input, LatencySamples, MemorySamples
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
    """

    threads: int
    batch: int | None
    shapes: dict[str, tuple[int, ...]]
    runs: int
    min_seconds: float
    min_samples: int
    seed: int

    def __post_init__(self) -> None:
        """Refuse what cannot be measured, all faults at once."""
        faults = [
            f"{name} is {value}, expected at least 1"
            for name, value in (("threads", self.threads), ("runs", self.runs), ("samples", self.min_samples))
            if value < 1
        ]
        if not 0 <= self.min_seconds < float("inf"):
            faults.append(f"min_seconds is {self.min_seconds}, expected 0 or more")
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
        runs: Raw samples, one entry for each process.
    """

    p50_ms: float
    p50_low_ms: float
    p50_high_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    min_ms: float
    samples: int
    outliers: int
    runs: tuple[LatencySamples, ...]


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


@dataclass(frozen=True, kw_only=True)
class MemoryRatios:
    """The model's figures over its baseline's."""

    file_bytes: float
    model_rss_bytes: float
    peak_rss_bytes: float
    peak_over_bare_bytes: float


@dataclass(frozen=True, kw_only=True)
class Report:
    """What every report holds.

    Attributes:
        measure: ``latency`` or ``memory``.
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

    def to_json(self) -> str:
        """The document of docs/bench-report.md."""
        return codec.dumps(self, self.HEADER)

    def save(self, path: Path) -> None:
        """Write the JSON whole or not at all; raises BenchError."""
        write_whole(path, self.to_json() + "\n")

    @classmethod
    def from_json(cls, text: str, source: str = "report") -> Self:
        """Read this kind of report; raises BenchError naming the fault's place."""
        return codec.loads(cls, text, cls.HEADER, source)


@dataclass(frozen=True, kw_only=True)
class LatencyReport(Report):
    """Latency of a model, and of its baseline measured in the same processes."""

    model: LatencyResult
    baseline: LatencyResult | None
    ratio: Ratio | None
    verdict: str | None


@dataclass(frozen=True, kw_only=True)
class MemoryReport(Report):
    """Memory of a model, and of its baseline measured in processes of its own."""

    model: MemoryResult
    baseline: MemoryResult | None
    ratios: MemoryRatios | None


REPORTS: dict[str, type[LatencyReport] | type[MemoryReport]] = {"latency": LatencyReport, "memory": MemoryReport}


def load_report(path: Path) -> LatencyReport | MemoryReport:
    """Read a report of any measure.

    Raises:
        BenchError: The file cannot be read, or is no report of this version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BenchError(f"cannot read {path}: {error}") from error
    data = codec.parse(text, Report.HEADER, str(path))
    measure = data.get("measure")
    if measure not in REPORTS:
        raise BenchError(f"{path}: unknown measure {measure!r}; known measures: {', '.join(REPORTS)}")
    return codec.read(REPORTS[measure], data, str(path))
