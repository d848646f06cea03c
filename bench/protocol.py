"""What goes to a measuring process and what comes back; the same for every target.

A `Request` is one JSON document on the worker's stdin, an `Answer` one on its stdout. ``bench/worker.py`` speaks the
same two formats without importing this file, because it is copied to devices; the version ties the two together.
"""

from dataclasses import dataclass
from typing import ClassVar, Self

from bench import codec

CPU_PROVIDER = "CPUExecutionProvider"


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
        pin: Cores that the process restricts itself to; none leaves it free.
        provider: Execution provider of ONNX Runtime, with or without the ending ``ExecutionProvider``, in any case.
        period_ns: Time between frames, for ``periodic`` alone.
        outputs: Values inside the graph whose shapes are wanted, for ``shapes`` alone.
        counter: File to which an emulator writes counts of instructions, for ``instructions`` alone.
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
    pin: tuple[int, ...] = ()
    provider: str = CPU_PROVIDER
    period_ns: int = 0
    outputs: tuple[str, ...] = ()
    counter: str | None = None

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
    """A model input as it was run.

    Attributes:
        assumed: Places in `shape`, the first aside, of sizes that the file leaves open and nobody gave: they are 1.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    assumed: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LatencySamples:
    """Raw samples of one model in one process.

    Attributes:
        samples_ns: Each is one inference, in the order taken; index i of two models are neighbours in time.
        untimed_between: Inferences of the same model in front of each timed one.
        warmup_inferences: Inferences before the first sample.
        warmup_stable: Whether two successive windows of the warm-up had the same median.
        loaded_first: No other model was loaded or run in the process before: only then are the two below cold.
        load_ns: To make the session, the file read and the graph optimised; importing ONNX Runtime is not in it.
        first_inference_ns: The first one, on inputs that are there.
    """

    samples_ns: tuple[int, ...]
    untimed_between: int
    warmup_inferences: int
    warmup_stable: bool
    loaded_first: bool
    load_ns: int
    first_inference_ns: int


@dataclass(frozen=True, kw_only=True)
class PeriodicSamples:
    """One model fed at a fixed period in one process, by a source that keeps the newest frame alone.

    A frame waits while the one before it is computed; if a newer one arrives meanwhile, it is dropped.

    Attributes:
        response_ns: For each frame the time from its arrival to its result; None where it was dropped.
        inference_ns: Of the frames that were not dropped, in order.
    """

    response_ns: tuple[int | None, ...]
    inference_ns: tuple[int, ...]


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
class NodeTimes:
    """A node as ONNX Runtime ran it, after its optimisations.

    Attributes:
        name: Its name, or operator and index where it has none.
        operator: Its type.
        provider: That computed it.
        input_shapes: Shapes of its inputs, weights included, as they were.
        output_shapes: Of its outputs.
        samples_us: Time in each inference; ONNX Runtime's profiler cuts off fractions of a microsecond.
    """

    name: str
    operator: str
    provider: str
    input_shapes: tuple[tuple[int, ...], ...]
    output_shapes: tuple[tuple[int, ...], ...]
    samples_us: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ProfileSamples:
    """One model's nodes in one process, in the order in which they ran.

    Attributes:
        samples_ns: Inferences without the profiler.
        profiled_ns: Inferences with it, of which the nodes' times are.
        graph: The graph of which these are the nodes, without large weights: ONNX in base64; None where the provider
            cannot write it down.
    """

    samples_ns: tuple[int, ...]
    profiled_ns: tuple[int, ...]
    nodes: tuple[NodeTimes, ...]
    graph: str | None


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value inside the graph, as it was in a run; `value_bytes` is 0 for what is no tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    value_bytes: int


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a model computed from the seed's inputs.

    Attributes:
        dtype: numpy's name.
        shape: Of the whole output.
        stride: `values` holds every so-many-th value of the flattened output; 1 but for large ones.
        values: Little-endian bytes in base64.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stride: int
    values: str


@dataclass(frozen=True, kw_only=True)
class InstructionSamples:
    """Instructions that one process executed for one model.

    Attributes:
        counts: Of single inferences, in order; ONNX Runtime's call from Python is in them.
        marking: Of the marks between inferences; subtracted from `counts`.
    """

    counts: tuple[int, ...]
    marking: int


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """What one process found out about one model: the measure asked for is there, the others are None.

    Attributes:
        provider: The execution provider in ONNX Runtime's words.
        nodes_by_provider: How many nodes each provider computes; None if all are the CPU's by definition.
    """

    inputs: tuple[Input, ...]
    latency: LatencySamples | None = None
    memory: MemorySamples | None = None
    periodic: PeriodicSamples | None = None
    profile: ProfileSamples | None = None
    shapes: tuple[Value, ...] | None = None
    outputs: tuple[Output, ...] | None = None
    instructions: InstructionSamples | None = None
    provider: str = CPU_PROVIDER
    nodes_by_provider: dict[str, int] | None = None


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
