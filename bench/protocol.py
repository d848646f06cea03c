"""What goes to a measuring process and what comes back; the same for every target.

A `Request` is one JSON document on the worker's stdin, an `Answer` one on its stdout. ``bench/worker.py`` speaks the
same two formats without importing this file, because it is copied to devices; the version ties the two together.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

from bench import codec


@dataclass(frozen=True, kw_only=True)
class Request:
    """One process's work.

    Attributes:
        measure: A key of the worker's ``MEASURES``.
        models: Paths of ONNX files as the worker sees them, in the order of loading.
        threads: Intra-op threads of ONNX Runtime.
        batch: Size of every open first dimension; None leaves it at 1.
        shapes: Whole shapes of inputs by name; open sizes of other inputs are 1.
        seed: Of the random inputs.
        min_seconds: Time to spend on timed and untimed inferences, for each model.
        min_samples: Inferences to measure, at least, of each model.
        limit_seconds: The worker refuses what it cannot finish within this time.
        emulated: The target runs the worker under an emulator: its seconds are no latency.
    """

    HEADER: ClassVar[codec.Header] = ("bench-request", 1)

    measure: str
    models: tuple[str, ...]
    threads: int
    batch: int | None
    shapes: dict[str, tuple[int, ...]]
    seed: int
    min_seconds: float
    min_samples: int
    limit_seconds: float
    emulated: bool = False

    def to_json(self) -> str:
        """As the worker reads it."""
        return codec.dumps(self, self.HEADER)

    @classmethod
    def from_json(cls, text: str, source: str = "request") -> Self:
        """Read `to_json`; raises BenchError naming the fault's place."""
        return codec.loads(cls, text, cls.HEADER, source)


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine and libraries that measured; figures of different hosts are not comparable.

    Attributes:
        isa: Those instruction-set extensions present that decide which kernels ONNX Runtime picks.
        usable_cores: Cores the process may run on; a container may give fewer than `logical_cores`.
        governor: Clock-frequency governor of core 0; None where the kernel does not tell.
        load_average_1min: Before measuring, where the system tells.
        emulated: True under QEMU: seconds are then no latency.
    """

    cpu_model: str
    architecture: str
    isa: tuple[str, ...]
    logical_cores: int
    usable_cores: int
    governor: str | None
    os: str
    python: str
    numpy: str
    onnxruntime: str
    load_average_1min: float | None
    emulated: bool


@dataclass(frozen=True, kw_only=True)
class Input:
    """A model input as it was run."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class LatencySamples:
    """Raw samples of one model in one process.

    Attributes:
        samples_ns: Each is one inference, in the order taken; index i of two models are neighbours in time.
        untimed_between: Inferences of the same model in front of each timed one.
        warmup_inferences: Inferences before the first sample.
        warmup_stable: Whether two successive windows of the warm-up had the same median.
    """

    samples_ns: tuple[int, ...]
    untimed_between: int
    warmup_inferences: int
    warmup_stable: bool


@dataclass(frozen=True, kw_only=True)
class MemorySamples:
    """Resident bytes of one process that loads and runs one model.

    Attributes:
        method: ``clear_refs+VmHWM``: peaks of their phase alone; ``VmHWM`` or ``getrusage``: peaks since the process
            began, and with ``getrusage`` the other figures are such peaks too.
        bare_rss_bytes: Python, numpy and onnxruntime imported, no model.
        loaded_rss_bytes: After loading the model.
        load_peak_rss_bytes: The largest while loading.
        peak_rss_bytes: The largest while running inferences.
    """

    method: str
    bare_rss_bytes: int
    loaded_rss_bytes: int
    load_peak_rss_bytes: int
    peak_rss_bytes: int


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """What one process found out about one model: the measure asked for is there, the others are None."""

    inputs: tuple[Input, ...]
    latency: LatencySamples | None = None
    memory: MemorySamples | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the worker found; `models` in the request's order. With an `error` there is nothing else."""

    HEADER: ClassVar[codec.Header] = ("bench-answer", 1)

    error: str | None
    host: Host | None
    models: tuple[MeasuredModel, ...]

    def to_json(self) -> str:
        """As the worker writes it."""
        return codec.dumps(self, self.HEADER)

    @classmethod
    def from_json(cls, text: str, source: str = "worker's answer") -> Self:
        """Read a worker's answer; raises BenchError naming the fault's place."""
        return codec.loads(cls, text, cls.HEADER, source)
