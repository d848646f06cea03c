"""The measuring process: one request (JSON) on stdin, one answer (JSON) on stdout.

    python worker.py < request.json > answer.json

This file is copied to devices, hence it stands alone: the standard library, numpy and onnxruntime, Python 3.9 or later.
The two messages are described in ``bench/protocol.py``. A measure is one function in ``MEASURES``. What the caller can
mend (a model that does not load, a shape that does not fit) comes back as an answer with ``error``; anything else is a
defect and ends with a traceback on stderr and no answer.
"""

from __future__ import annotations

import base64
import gc
import json
import math
import os
import platform
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

VERSION = 1

# Flags of the CPU that decide which kernels ONNX Runtime picks: vector width, half precision, int8 dot products.
ISA_FLAGS = (
    *("avx", "fma", "f16c", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8"),
    *("asimd", "neon", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)

# /proc/cpuinfo of ARM Linux gives numbers, not names. Source: Arm's MIDR_EL1 part numbers (implementer 0x41).
ARM_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd0d": "Cortex-A77",
    "0xd40": "Neoverse-V1",
    "0xd41": "Cortex-A78",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}

# ONNX tensor types -> numpy types that onnxruntime takes from Python. bfloat16 and float8 have none.
DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(uint16)": "uint16",
    "tensor(int16)": "int16",
    "tensor(uint32)": "uint32",
    "tensor(int32)": "int32",
    "tensor(uint64)": "uint64",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
    "tensor(string)": "object",
}

CPU_PROVIDER = "CPUExecutionProvider"
PROVIDER_ENDING = "ExecutionProvider"

# Providers with threads of their own, and the option that fixes their number.
PROVIDER_THREADS = {"XnnpackExecutionProvider": "intra_op_num_threads"}

WARMUP_WINDOW_S = 0.05  # long enough that a median over it does not see single interrupts
WARMUP_TOLERANCE = 0.02  # caches and clock frequency settle by tens of per cent; medians of a window vary below this
WARMUP_LIMIT_S = 3.0  # a clock that has not settled by then is the machine's state, and the report says so
# More samples add nothing to a median and make the report megabytes long: faster models get untimed inferences between.
MAX_SAMPLES = 5_000


# Changes the options of a session before it is made.
Tune = Callable[[ort.SessionOptions], None]


class RefusedError(Exception):
    """Something the caller can mend; travels back as the answer's ``error``."""


# Host ----------------------------------------------------------------------------------------------------------------


def cpuinfo() -> dict[str, list[str]]:
    """The distinct values of each field of /proc/cpuinfo; empty where there is none (macOS)."""
    facts: dict[str, list[str]] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return facts
    for line in lines:
        key, _, value = line.partition(":")
        values = facts.setdefault(key.strip(), [])
        if value.strip() not in values:
            values.append(value.strip())
    return facts


def cpu_model(info: dict[str, list[str]]) -> str:
    """The CPU's name; on ARM the cores' names, since big.LITTLE chips have several."""
    if "model name" in info:
        return " + ".join(info["model name"])
    if "CPU part" in info:
        return " + ".join(ARM_PARTS.get(part, "ARM part " + part) for part in info["CPU part"])
    return platform.processor() or platform.machine()


def governor() -> str | None:
    """What rules the clock frequency of core 0, where the kernel tells (virtual machines do not)."""
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text().strip()
    except OSError:
        return None


def usable_cores() -> int:
    """Cores that this process may run on: a container or taskset may give fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def host_facts(emulated: bool) -> dict[str, Any]:
    """Everything about this machine without which a figure cannot be compared with another."""
    info = cpuinfo()
    flags = set(" ".join(info.get("flags", []) + info.get("Features", [])).split())
    return {
        "cpu_model": cpu_model(info),
        "architecture": platform.machine(),
        "isa": [flag for flag in ISA_FLAGS if flag in flags],
        "logical_cores": os.cpu_count() or 1,
        "usable_cores": usable_cores(),
        "governor": governor(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "onnxruntime": ort.__version__,
        "load_average_1min": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "emulated": emulated,
    }


# Model and inputs ----------------------------------------------------------------------------------------------------


def provider_of(wanted: str) -> str:
    """ONNX Runtime's name of the execution provider that is `wanted`, in any case, with or without its long ending.

    Raises:
        RefusedError: This build of ONNX Runtime lacks it.
    """
    available: list[str] = ort.get_available_providers()
    for name in available:
        if wanted.lower() in (name.lower(), name.lower()[: -len(PROVIDER_ENDING)]):
            return name
    raise RefusedError(
        f"ONNX Runtime {ort.__version__} has no execution provider {wanted!r} here; it has {', '.join(available)}; "
        "give --provider one of these, or install a build that has it"
    )


def load(path: str, request: dict[str, Any], tune: Tune | None = None, content: bytes | None = None) -> Any:
    """A session with a fixed number of threads, operators one after the other.

    Args:
        path: The model's file.
        request: Gives threads and provider.
        tune: May change further options.
        content: Stands in for what the file holds.

    Raises:
        RefusedError: The file is missing or no model, or the provider is absent or cannot be started.
    """
    threads, provider = request["threads"], provider_of(request["provider"])
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 4
    # The threads of a session spin for up to a second after a run, and would take the cores from the other model.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if tune is not None:
        tune(options)
    if not Path(path).is_file():
        raise RefusedError(f"model file not found: {path}")
    own = {PROVIDER_THREADS[provider]: str(threads)} if provider in PROVIDER_THREADS else {}
    if own:  # two pools of threads: while one works, the other must not spin
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(content or path, options, providers=[(provider, own)], enable_fallback=0)
    except Exception as error:  # onnxruntime has a dozen exception classes with no base of their own
        raise RefusedError(
            f"ONNX Runtime {ort.__version__} cannot load {path}: {one_line(error)}; "
            "check the file with onnx.checker, or export it again"
        ) from error
    taken = session.get_providers()[0]
    if taken != provider:
        raise RefusedError(f"ONNX Runtime {ort.__version__} cannot start {provider} here: it took {taken} instead")
    return session


def input_shape(path: str, name: str, declared: list[Any], batch: int | None, wanted: list[int] | None) -> list[int]:
    """The shape to run: ``wanted`` if given, else the declared one with the batch first and 1 for other open sizes."""
    if wanted is not None:
        fits = len(wanted) == len(declared) and all(
            not isinstance(size, int) or size == wanted[dim] for dim, size in enumerate(declared)
        )
        if not fits:
            raise RefusedError(f"{path}: input {name} has shape {declared}, which {wanted} does not fit")
        return wanted
    shape = [size if isinstance(size, int) else 1 for size in declared]
    if batch is not None and declared and not isinstance(declared[0], int):
        shape[0] = batch
    return shape


def input_shapes(session: ort.InferenceSession, path: str, request: dict[str, Any]) -> dict[str, list[int]]:
    """The shape of each input.

    Raises:
        RefusedError: A wanted shape does not fit, or no input can take the wanted batch.
    """
    wanted, batch = request["shapes"], request["batch"]
    declared = {value.name: value.shape for value in session.get_inputs()}
    unknown = sorted(set(wanted) - set(declared))
    if unknown:
        raise RefusedError(f"{path} has no input {', '.join(unknown)}; its inputs are {', '.join(declared)}")
    shapes = {name: input_shape(path, name, dims, batch, wanted.get(name)) for name, dims in declared.items()}
    if batch is not None and not any(shape and shape[0] == batch for shape in shapes.values()):
        raise RefusedError(
            f"{path}: no input can take batch {batch}: the shapes {json.dumps(declared)} are fixed; "
            "export the model with a dynamic batch"
        )
    return shapes


def assumed_places(declared: list[Any], wanted: list[int] | None) -> list[int]:
    """Places of sizes behind the batch that the file leaves open and nobody gave."""
    return [] if wanted is not None else [dim for dim, size in enumerate(declared) if dim and not isinstance(size, int)]


def random_tensor(rng: np.random.RandomState, dtype: str, shape: list[int]) -> np.ndarray:
    """Values that any vision model accepts: normal numbers, whole bytes, and 0 or 1 for possible indices.

    Of RandomState, whose numbers are frozen (NEP 19): those of numpy's other generator may change with its version, and
    outputs are compared between machines.
    """
    if dtype.startswith("float"):
        return rng.standard_normal(shape).astype(dtype)
    if dtype in ("uint8", "int8"):
        limits = np.iinfo(dtype)
        return rng.randint(limits.min, limits.max + 1, shape, dtype=np.int64).astype(dtype)
    return rng.randint(0, 2, shape, dtype=np.int64).astype("str" if dtype == "object" else dtype).astype(dtype)


class Model:
    """A loaded model; `prepare()` makes its inputs, then `run()` is one inference.

    Attributes:
        load_ns: How long loading took.
        first_inference_ns: How long the first inference took, after `prepare()`.
    """

    def __init__(
        self, path: str, request: dict[str, Any], tune: Tune | None = None, content: bytes | None = None
    ) -> None:
        self.path = path
        start = time.perf_counter_ns()
        self.session = load(path, request, tune, content)
        self.load_ns = time.perf_counter_ns() - start
        self.first_inference_ns = 0
        self.shapes = input_shapes(self.session, path, request)
        self.wanted = request["shapes"]
        self.seed = request["seed"]
        self.feeds: dict[str, Any] = {}

    def prepare(self) -> None:
        """Make random inputs and run once, so that a failure is told as this model's, with the shapes.

        Raises:
            RefusedError: An input has a type that numpy lacks, or the model cannot run with these shapes.
        """
        rng = np.random.RandomState(self.seed)
        for value in self.session.get_inputs():
            if value.type not in DTYPES:
                raise RefusedError(f"{self.path}: input {value.name} is a {value.type}, which numpy lacks")
            self.feeds[value.name] = random_tensor(rng, DTYPES[value.type], self.shapes[value.name])
        try:
            self.first_inference_ns = timed(self)
        except Exception as error:  # onnxruntime's exceptions have no base of their own
            shapes = ", ".join(f"{name}={shape}" for name, shape in self.shapes.items())
            raise RefusedError(
                f"{self.path} cannot run with {shapes}: {one_line(error)}; "
                "give other sizes with --shape INPUT=1,3,224,224"
            ) from error

    def run(self) -> None:
        """One inference, outputs dropped."""
        self.session.run(None, self.feeds)

    def inputs(self) -> list[dict[str, Any]]:
        """The inputs as they are run."""
        return [
            {
                "name": value.name,
                "shape": self.shapes[value.name],
                "dtype": value.type[len("tensor(") : -1],
                "assumed": assumed_places(value.shape, self.wanted.get(value.name)),
            }
            for value in self.session.get_inputs()
        ]


def one_line(error: Exception) -> str:
    """The message without line breaks, and without ONNX Runtime's "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : "."""
    text = " ".join(str(error).split())
    return text.split(" : ", 3)[-1] if text.startswith("[ONNXRuntimeError]") else text


# Latency -------------------------------------------------------------------------------------------------------------


def timed(model: Model) -> int:
    """Nanoseconds of one inference."""
    start = time.perf_counter_ns()
    model.run()
    return time.perf_counter_ns() - start


def warm_up(model: Model) -> tuple[float, dict[str, Any]]:
    """Run until two windows in a row have the same median, or the limit is over; gives the last median in seconds.

    The model has run once, in `prepare()`; the first inference is the other that counts towards no window.
    """
    start = time.perf_counter()
    count, previous, stable = 2, float(timed(model)), False
    while not stable and time.perf_counter() - start < WARMUP_LIMIT_S:
        window = [timed(model) for _ in range(max(1, int(WARMUP_WINDOW_S * 1e9 / previous)))]
        current = float(np.median(window))
        stable = abs(current - previous) <= WARMUP_TOLERANCE * previous
        count, previous = count + len(window), current
    return previous * 1e-9, {"warmup_inferences": count, "warmup_stable": stable}


def seconds(duration: float) -> str:
    """A duration for people."""
    return f"{duration:,.0f} s" if duration >= 10 else f"{duration:.2g} s"


def require_left(request: dict[str, Any], deadline: float) -> None:
    """Refuse to go on where the time was over before the first sample.

    Raises:
        RefusedError: It was.
    """
    limit_s, late_s = request["limit_seconds"], time.perf_counter() - deadline
    if late_s >= 0:
        raise RefusedError(
            f"to load and warm up {' and '.join(request['models'])} took {seconds(limit_s + late_s)}, and each process "
            f"has {seconds(limit_s)} of the time limit: give a longer --timeout"
        )


def untimed_between(request: dict[str, Any], inference_s: list[float], deadline: float) -> int:
    """How many untimed inferences go in front of each timed one.

    With two models at least one: the caches then hold this model's weights whatever ran before, as in a loop of one
    model. Without it a sample's neighbour decides its speed, and the median lies between two heaps of samples.

    Raises:
        RefusedError: The samples cannot be taken before the deadline.
    """
    require_left(request, deadline)
    least = 1 if len(inference_s) > 1 else 0
    turn_s = sum(inference_s)
    needed_s = request["min_samples"] * turn_s * (1 + least)
    if time.perf_counter() + needed_s > deadline:
        raise RefusedError(
            f"{request['min_samples']} samples in one process would take {seconds(needed_s)}, and "
            f"{seconds(max(0.0, deadline - time.perf_counter()))} are left: give fewer --samples or a longer --timeout"
        )
    sampling_s = request["min_seconds"] * len(inference_s)
    left_s = max(0.0, deadline - time.perf_counter())
    if sampling_s > left_s:
        raise RefusedError(
            f"{seconds(sampling_s)} of samples in one process do not fit into the {seconds(left_s)} that are left: "
            "give fewer --min-seconds or a longer --timeout"
        )
    return max(least, int(request["min_seconds"] * len(inference_s) / (turn_s * MAX_SAMPLES)))


def measure_latency(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Samples of every model, interleaved, the order turned round at every turn so that drift cancels."""
    deadline = time.perf_counter() + request["limit_seconds"]
    models = []
    for path in request["models"]:  # each is run before the next is loaded: the first one's cold start is its own
        models.append(Model(path, request))
        models[-1].prepare()
    warm = [warm_up(model) for model in models]
    untimed = untimed_between(request, [inference_s for inference_s, _ in warm], deadline)
    samples: list[list[int]] = [[] for _ in models]
    order = list(enumerate(models))
    gc.collect()
    gc.disable()
    start = time.perf_counter()
    while len(samples[0]) < request["min_samples"] or time.perf_counter() - start < request["min_seconds"] * len(
        models
    ):
        for index, model in order:
            for _ in range(untimed):
                model.run()
            samples[index].append(timed(model))
        order.reverse()
        if time.perf_counter() > deadline:
            raise RefusedError(
                "the machine became slower while measuring and the time is over; give a longer --timeout"
            )
    gc.enable()
    return [
        {
            "inputs": model.inputs(),
            "latency": dict(
                warm[index][1],
                samples_ns=samples[index],
                untimed_between=untimed,
                loaded_first=index == 0,
                load_ns=model.load_ns,
                first_inference_ns=model.first_inference_ns,
            ),
        }
        for index, model in enumerate(models)
    ]


# Frames at a fixed period --------------------------------------------------------------------------------------------


def measure_periodic(request: dict[str, Any]) -> list[dict[str, Any]]:
    """One model fed as by a camera: frame k arrives at k periods, and the newest one is computed.

    A frame that arrives while another is computed waits, and is dropped when a newer one arrives; its response counts
    from its arrival, hence the waiting and the sleeping thread's late waking are in it.
    """
    (path,) = request["models"]
    period, frames = request["period_ns"], request["min_samples"]
    deadline = time.perf_counter() + request["limit_seconds"]
    model = Model(path, request)
    model.prepare()
    warm_up(model)
    require_left(request, deadline)
    left_s = deadline - time.perf_counter()
    if frames * period * 1e-9 > left_s:
        raise RefusedError(
            f"{frames} frames of {period * 1e-6:.4g} ms in one process take {seconds(frames * period * 1e-9)}, and "
            f"{seconds(max(0.0, left_s))} are left: give fewer --frames or a longer --timeout"
        )
    response: list[int | None] = [None] * frames
    inference = []
    gc.collect()
    gc.disable()
    start, frame = time.perf_counter_ns() + period, 0
    while frame < frames:
        arrival = start + frame * period
        time.sleep(max(0, arrival - time.perf_counter_ns()) * 1e-9)
        inference.append(timed(model))
        end = time.perf_counter_ns()
        response[frame] = end - arrival
        frame = max(frame + 1, (end - start) // period)
        if time.perf_counter() > deadline:
            raise RefusedError(
                "the machine became slower while measuring and the time is over; give a longer --timeout"
            )
    gc.enable()
    return [{"inputs": model.inputs(), "periodic": {"response_ns": response, "inference_ns": inference}}]


# Memory --------------------------------------------------------------------------------------------------------------


def linux_status(key: str) -> int:
    """A figure of /proc/self/status in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no " + key)


def linux_resident() -> int:
    """Resident bytes: the pages counted by smaps_rollup, since VmRSS adds per-core counters that lag by megabytes."""
    try:
        for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return linux_status("VmRSS")


def reset_peak() -> bool:
    """Set the kernel's peak to the present; False where it does not let us (some containers, Android)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def process_peak() -> int:
    """The largest resident size since the process began, from getrusage: kibibytes on Linux, bytes on macOS."""
    import resource  # absent on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def memory_probes() -> tuple[str, Callable[[], int], Callable[[], int], Callable[[], bool]]:
    """The best way here: its name, and functions for the resident bytes, the peak bytes and the peak's reset.

    Without a reset the peak is that of the whole process, loading included; without /proc the resident size is not
    known either, and the peak so far stands in for it. The report names the way.
    """
    if not Path("/proc/self/status").exists():
        return "getrusage", process_peak, process_peak, lambda: False

    def peak() -> int:
        return max(linux_status("VmHWM"), linux_resident())

    name = "clear_refs+VmHWM" if reset_peak() else "VmHWM"
    return name, linux_resident, peak, reset_peak


def measure_memory(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Resident bytes of the bare runtime, after loading, and the peaks of loading and of inference, for one model."""
    (path,) = request["models"]
    method, resident, peak, reset = memory_probes()
    gc.collect()
    bare = resident()
    reset()
    model = Model(path, request)
    gc.collect()
    loaded, load_peak = resident(), peak()
    reset()
    model.prepare()
    for _ in range(request["min_samples"] - 1):
        model.run()
    figures = {
        "method": method,
        "bare_rss_bytes": bare,
        "loaded_rss_bytes": loaded,
        "load_peak_rss_bytes": load_peak,
        "peak_rss_bytes": peak(),
    }
    return [{"inputs": model.inputs(), "memory": figures}]


# Profile -------------------------------------------------------------------------------------------------------------

MAX_EVENTS = 50_000  # the profiler writes some 700 bytes for each; 35 MB are bearable on a small board
CONTROL_FLOW = {"If", "Loop", "Scan", "SequenceMap"}  # operators whose nodes run others inside
SETTLING_INFERENCES = 5  # with the profiler, before the first that counts


def top_level(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events of nodes, in the order in which they ended, without those inside a Loop or an If, which holds their time.

    Clocks alone do not tell: a node of less than a microsecond begins and ends with its successor's beginning.
    """
    found: list[dict[str, Any]] = []
    for event in events:
        if event["args"]["op_name"] in CONTROL_FLOW:
            while found and found[-1]["ts"] >= event["ts"]:
                found.pop()
        found.append(event)
    return found


def profiled(
    path: str, request: dict[str, Any], folder: str, inferences: int
) -> tuple[Model, list[int], list[list[dict[str, Any]]]]:
    """Run with ONNX Runtime's profiler.

    Returns:
        The model, the nanoseconds of each of `inferences`, and the events of the nodes: ``[inference][node]``, that of
        the first inference, which is on top of their number, included.
    """

    def profiling(options: ort.SessionOptions) -> None:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")

    model = Model(path, request, profiling)
    model.prepare()
    durations = [timed(model) for _ in range(inferences)]
    written = json.loads(Path(model.session.end_profiling()).read_text(encoding="utf-8"))
    events = top_level([event for event in written if event.get("cat") == "Node" and "dur" in event])
    count, rest = divmod(len(events), inferences + 1)
    runs = [events[run * count : (run + 1) * count] for run in range(inferences + 1)]
    if rest or any([event["name"] for event in run] != [event["name"] for event in runs[0]] for run in runs):
        raise RefusedError(f"{path} runs other nodes from one inference to the next: such a model has no profile")
    return model, durations, runs


def optimised_graph(path: str, request: dict[str, Any], folder: str) -> str | None:
    """The graph as ONNX Runtime runs it, weights left out, as ONNX in base64; None where a provider cannot write it."""
    file = Path(folder) / "optimised.onnx"

    def tune(options: ort.SessionOptions) -> None:
        options.optimized_model_filepath = str(file)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
        options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "256")

    try:
        load(path, request, tune)
        return base64.b64encode(file.read_bytes()).decode()
    except (RefusedError, OSError):
        return None


def shapes_of(types_and_shapes: list[dict[str, list[int]]]) -> list[list[int]]:
    """The profiler's ``[{"float": [1, 3]}, ...]`` without the types."""
    return [shape for entry in types_and_shapes for shape in entry.values()]


def measure_profile(request: dict[str, Any]) -> list[dict[str, Any]]:
    """The time of each node of one model, and of whole inferences with and without the profiler."""
    (path,) = request["models"]
    plain = Model(path, request)
    plain.prepare()
    warm_up(plain)
    wanted = request["min_samples"]
    gc.collect()
    gc.disable()
    samples = [timed(plain) for _ in range(wanted)]
    with tempfile.TemporaryDirectory() as folder:
        _, _, (first,) = profiled(path, request, folder, 0)
        count = min(wanted, max(1, MAX_EVENTS // max(1, len(first))))
        model, durations, runs = profiled(path, request, folder, SETTLING_INFERENCES + count)
        graph = optimised_graph(path, request, folder)
    gc.enable()
    runs = runs[1 + SETTLING_INFERENCES :]
    nodes = [
        {
            "name": event["name"][: -len("_kernel_time")],
            "operator": event["args"]["op_name"],
            "provider": event["args"]["provider"],
            "input_shapes": shapes_of(event["args"]["input_type_shape"]),
            "output_shapes": shapes_of(event["args"]["output_type_shape"]),
            "samples_us": [run[place]["dur"] for run in runs],
        }
        for place, event in enumerate(runs[0])
    ]
    figures = {"samples_ns": samples, "profiled_ns": durations[SETTLING_INFERENCES:], "nodes": nodes, "graph": graph}
    return [{"inputs": model.inputs(), "profile": figures}]


def nodes_by_provider(path: str, request: dict[str, Any]) -> dict[str, int]:
    """How many nodes each provider computes, from a profile of one inference.

    Raises:
        RefusedError: The provider asked for computes none.
    """
    provider = provider_of(request["provider"])
    with tempfile.TemporaryDirectory() as folder:
        _, _, (events,) = profiled(path, request, folder, 0)
    counts = dict(Counter(event["args"]["provider"] for event in events))
    if provider not in counts:
        raise RefusedError(
            f"{path}: {provider} takes none of the {len(events)} nodes, which run on {', '.join(counts)}; "
            "leave --provider out to measure that"
        )
    return counts


# Shapes --------------------------------------------------------------------------------------------------------------

# Bits of an element, for what numpy's types do not tell.
ELEMENT_BITS = {
    **dict.fromkeys(("tensor(int4)", "tensor(uint4)", "tensor(float4e2m1)"), 4),
    **{f"tensor(float8{name})": 8 for name in ("e4m3fn", "e4m3fnuz", "e5m2", "e5m2fnuz", "e8m0")},
    "tensor(bfloat16)": 16,
}


def message(number: int, content: bytes) -> bytes:
    """A length-delimited field of a protobuf message."""
    size, head = len(content), bytearray([number << 3 | 2])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*head, size]) + content


def with_outputs(content: bytes, names: list[str]) -> bytes:
    """An ONNX file whose graph has further outputs: what is appended to a protobuf message is merged with it.

    The numbers are those of onnx.proto: name of ValueInfoProto 1, output of GraphProto 12, graph of ModelProto 7.
    """
    return content + message(7, b"".join(message(12, message(1, name.encode())) for name in names))


def tensor_bytes(kind: str, shape: list[int]) -> int:
    """Bytes of a dense tensor."""
    bits = ELEMENT_BITS[kind] if kind in ELEMENT_BITS else 8 * np.dtype(DTYPES[kind]).itemsize
    return -(-int(np.prod(shape, dtype=np.int64)) * bits // 8)


def described(name: str, value: ort.OrtValue) -> dict[str, Any]:
    """A value's name, type, shape and bytes; 0 bytes for what is no tensor."""
    kind = value.data_type()
    if not value.is_tensor():
        return {"name": name, "dtype": kind, "shape": [], "value_bytes": 0}
    shape = value.shape()
    return {"name": name, "dtype": kind, "shape": shape, "value_bytes": tensor_bytes(kind, shape)}


def measure_shapes(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Type and shape of inputs, outputs and the wanted values of a model, from an inference that returns them all."""
    (path,) = request["models"]

    def tune(options: ort.SessionOptions) -> None:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", str(Path(path).resolve().parent)
        )

    if not Path(path).is_file():
        raise RefusedError(f"model file not found: {path}")
    model = Model(path, request, tune, with_outputs(Path(path).read_bytes(), request["outputs"]))
    model.prepare()
    names = [value.name for value in model.session.get_outputs()]
    feeds = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in model.feeds.items()}
    returned = dict(feeds)
    for place, value in enumerate(model.session.run_with_ort_values(names, feeds)):
        returned[names[place]] = value
    values = [described(name, value) for name, value in returned.items()]
    return [{"inputs": model.inputs(), "shapes": values}]


# Outputs -------------------------------------------------------------------------------------------------------------

MAX_VALUES = 1 << 18  # of one output: two machines that agree on so many of its values agree on the others


def encoded(path: str, name: str, output: Any) -> dict[str, Any]:
    """An output for the answer: little-endian bytes in base64; of a large one every k-th value.

    Raises:
        RefusedError: It is no tensor of numbers.
    """
    if not isinstance(output, np.ndarray) or output.dtype.kind not in "fiub":
        kind = output.dtype if isinstance(output, np.ndarray) else type(output).__name__
        raise RefusedError(f"{path}: output {name} is a {kind}, which cannot be compared between machines")
    stride = max(1, -(-output.size // MAX_VALUES))
    while math.gcd(stride, output.size) > 1:  # else some columns would never be looked at: the last ones, for example
        stride += 1
    values = output.reshape(-1)[::stride]
    return {
        "name": name,
        "dtype": output.dtype.name,
        "shape": list(output.shape),
        "stride": stride,
        "values": base64.b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode(),
    }


def outputs_of(model: Model) -> list[dict[str, Any]]:
    """All outputs of one inference."""
    values = model.session.run(None, model.feeds)
    return [encoded(model.path, value.name, values[place]) for place, value in enumerate(model.session.get_outputs())]


def measure_outputs(request: dict[str, Any]) -> list[dict[str, Any]]:
    """What every model computes from the seed's inputs."""
    found = []
    for path in request["models"]:
        model = Model(path, request)
        model.prepare()
        found.append({"inputs": model.inputs(), "outputs": outputs_of(model)})
    return found


# Instructions --------------------------------------------------------------------------------------------------------

SETTLING_MARKS = 16  # Python rewrites the code of a loop while it runs for the first time


def mark() -> None:
    """A system call that nothing else makes: the emulator's plugin writes down how many instructions it has seen."""
    os.getpriority(os.PRIO_PGRP, 0)


def measure_instructions(request: dict[str, Any]) -> list[dict[str, Any]]:
    """Instructions of single inferences of one model, counted by the emulator, and what the model computes.

    Raises:
        RefusedError: Nobody counts, or the time is over.
    """
    (path,) = request["models"]
    counter = request["counter"]
    if counter is None:
        raise RefusedError(
            "instructions are counted by an emulator, not here; "
            f"count those of an ARM CPU: bench instructions {shlex.quote(path)} --device arm64:cortex-a53"
        )
    deadline = time.perf_counter() + request["limit_seconds"]
    model = Model(path, request)
    model.prepare()
    model.run()
    gc.collect()
    gc.disable()
    for _ in range(SETTLING_MARKS):
        mark()
    for _ in range(request["min_samples"]):
        model.run()
        mark()
        if time.perf_counter() > deadline:
            raise RefusedError("the time is over before all instructions are counted; give a longer --timeout")
    gc.enable()
    marks = [int(line) for line in Path(counter).read_text().split()]
    expected = SETTLING_MARKS + request["min_samples"]
    if len(marks) != expected:
        raise RefusedError(
            f"the counting plugin wrote {len(marks)} counts, expected {expected}: its counts are not ours"
        )
    between = np.diff(marks).tolist()
    empty = between[SETTLING_MARKS - 2]
    counts = {"marking": empty, "counts": [count - empty for count in between[SETTLING_MARKS - 1 :]]}
    return [{"inputs": model.inputs(), "instructions": counts, "outputs": outputs_of(model)}]


MEASURES = {
    "latency": measure_latency,
    "periodic": measure_periodic,
    "memory": measure_memory,
    "profile": measure_profile,
    "shapes": measure_shapes,
    "outputs": measure_outputs,
    "instructions": measure_instructions,
}


def pin(cores: list[int]) -> None:
    """Restrict this process, and the threads that it will start, to `cores`.

    Raises:
        RefusedError: The system cannot, or the process may not use one of them.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise RefusedError(f"{platform.system()} does not let a process choose its cores; leave --pin out")
    usable = sorted(os.sched_getaffinity(0))
    absent = sorted(set(cores) - set(usable))
    if absent:
        raise RefusedError(
            f"--pin: this process may not run on core {', '.join(map(str, absent))}; it may run on "
            f"{', '.join(map(str, usable))}"
        )
    os.sched_setaffinity(0, cores)


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Measure what the request asks for.

    Raises:
        RefusedError: The request is of another version, or cannot be met.
    """
    got = (request.get("format"), request.get("version"))
    if got != ("bench-request", VERSION):
        raise RefusedError(f"this worker reads bench-request version {VERSION}, got {got[0]} version {got[1]}")
    if request["measure"] not in MEASURES:
        raise RefusedError(f"unknown measure {request['measure']}; known: {', '.join(MEASURES)}")
    host = host_facts(request["emulated"])  # before measuring, which raises the load average
    provider = provider_of(request["provider"])
    if request["pin"]:
        pin(request["pin"])
    models = MEASURES[request["measure"]](request)
    for index, model in enumerate(models):
        model["provider"] = provider
        if provider != CPU_PROVIDER:  # after measuring, since it loads the model again
            model["nodes_by_provider"] = nodes_by_provider(request["models"][index], request)
    return {"host": host, "models": models}


def main() -> None:
    """Read, measure, write."""
    # Native code may print to stdout: it goes to stderr, and only the answer to the real stdout.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        head = {"format": "bench-answer", "version": VERSION}
        try:
            body = dict(answer(json.load(sys.stdin)), error=None)
        except RefusedError as error:
            body = {"error": str(error), "host": None, "models": []}
        json.dump(dict(head, **body), out, allow_nan=False)


if __name__ == "__main__":
    main()
