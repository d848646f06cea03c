"""Profile: where a model's time goes, node by node and operator by operator, as ONNX Runtime's profiler tells it.

ONNX Runtime fuses nodes, renames them and pads channels to whole blocks. The multiply-accumulates of a node are those
of the parts of the *file's* graph that it computes, so that GFLOP/s tell what the model gets for its time; they are
found by name, or by following the values of the file's graph to the first one that a node of the run makes.
"""

import base64
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.errors import BenchError
from bench.macs import contracts, macs
from bench.measure.runs import Progress, assumed_sizes, each_alone, fallen_back, host_doubts, host_of, models_of, now
from bench.measure.values import computing, values_of
from bench.onnx_file import OnnxFile, describe
from bench.onnx_graph import Graph, Node, parse_graph, read_graph
from bench.protocol import CPU_PROVIDER, MeasuredModel, NodeTimes, ProfileSamples, Value
from bench.report import NodeProfile, OperatorProfile, Profile, ProfileReport, ProfileResult, Settings
from bench.stats import interquartile_mean
from bench.targets import caveats
from bench.units import NS_PER_MS, US_PER_MS

TOKEN = re.compile(r"_token_\d+$")  # what ONNX Runtime appends to names that it would use twice
ADDED_VALUE = re.compile(r"reorder(_token_\d+)?$")  # between nodes in blocked layout
# Operators into which ONNX Runtime fuses an activation, a sum or a transposition -> what they are without it.
FUSED = {"FusedConv": "Conv", "NhwcFusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul"}
BLOCKED_SUFFIX = "_nchwc"  # of nodes in blocked layout, which are named after the value that they make


def profile(
    model: Path,
    baseline: Path | None = None,
    *,
    device: str = "cpu",
    threads: int = 1,
    pin: Sequence[int] = (),
    provider: str = CPU_PROVIDER,
    runs: int = 3,
    samples: int = 300,
    batch: int | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    tolerance: float | None = None,
    seed: int = 0,
    timeout_s: float = 600.0,
    progress: Progress | None = None,
) -> ProfileReport:
    """Measure each node of `model`, and of `baseline` in processes of its own, in turn.

    Args:
        model: ONNX file.
        baseline: ONNX file to compare with, usually the dense network.
        device: A key of ``bench.targets.TARGETS``, with ``:address`` where the target takes one.
        threads: Intra-op threads of ONNX Runtime.
        pin: Cores to which the workers restrict themselves; none leaves them free.
        provider: Execution provider of ONNX Runtime, with or without the ending ``ExecutionProvider``.
        runs: Fresh processes for each model.
        samples: Inferences of each model, over all runs; fewer where the profiler would write too much.
        batch: Size of every open first dimension; 1 by default.
        shapes: Whole shapes of inputs by name; other open sizes are 1.
        tolerance: Allowed difference of a device's outputs from this machine's, as a share of each output's largest
            value; by default that of ``bench/measure/parity.py``.
        seed: Of the random inputs.
        timeout_s: For everything.
        progress: Called after each process with those done and their number.

    Raises:
        BenchError: The request makes no sense, or a model could not be measured.
    """
    settings = Settings(
        threads=threads,
        batch=batch,
        shapes={name: tuple(shape) for name, shape in (shapes or {}).items()},
        runs=runs,
        min_seconds=0.0,
        min_samples=samples,
        seed=seed,
        pin=tuple(pin),
        provider=provider,
    )
    paths = tuple(str(path) for path in (model, baseline) if path is not None)
    files = [describe(Path(path)) for path in paths]
    found = each_alone("profile", paths, files, device, settings, timeout_s, progress, tolerance)
    host, by_model = host_of(found[0][0]), [models_of(own) for own in found]
    settings = replace(settings, provider=by_model[0][0].provider)
    works = [work_of(Path(path), settings, timeout_s) for path in paths]
    results = [_result(*each) for each in zip(files, by_model, works, strict=True)]
    return ProfileReport(
        measure="profile",
        created=now(),
        device=device,
        settings=settings,
        host=host,
        warnings=(
            *caveats(device),
            *host_doubts(settings, host),
            *fallen_back(zip(files, by_model, strict=True)),
            *assumed_sizes((result.file, result.inputs) for result in results),
            *(f"{file.file_name}: {work.unknown}" for file, work in zip(files, works, strict=True) if work.unknown),
        ),
        model=results[0],
        baseline=results[1] if baseline is not None else None,
    )


# What there is to compute ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """The contractions of a file's graph.

    Attributes:
        nodes: All nodes that depend on an input.
        macs: Of the contractions, by the position in `nodes`; None without a rule.
        unknown: Why nothing is known about them, if so.
    """

    nodes: Sequence[Node]
    macs: dict[int, int | None]
    unknown: str | None = None


def work_of(path: Path, settings: Settings, timeout_s: float) -> Work:
    """The contractions of a file, with the shapes of one inference.

    Raises:
        BenchError: The file is no ONNX file.
    """
    graph = read_graph(path)
    nodes, _ = computing(graph)
    try:
        values = values_of(path, graph, settings, timeout_s)
    except BenchError as error:
        return Work(nodes, {}, f"multiply-accumulates are unknown: {error}")
    return Work(nodes, {place: _macs(node, graph, values) for place, node in enumerate(nodes) if contracts(node)})


def _macs(node: Node, graph: Graph, values: Mapping[str, Value]) -> int | None:
    def shape(name: str) -> tuple[int, ...] | None:
        if name in graph.weights:
            return graph.weights[name].shape
        return values[name].shape if name in values else None

    shapes = [shape(name) if name else () for name in (node.outputs[0], *node.inputs)]
    if any(each is None for each in shapes):
        return None
    output, *inputs = [each for each in shapes if each is not None]
    return macs(node, inputs, output)


# Who computes it ------------------------------------------------------------------------------------------------------


def as_written(ran: Sequence[NodeTimes], graph: str | None) -> Sequence[Node | None]:
    """The nodes that ran as the graph of the run has them, in the same order; None for each where it is not known."""
    nodes = parse_graph(base64.b64decode(graph)).nodes if graph is not None else ()
    same = [node.operator for node in nodes] == [node.operator for node in ran]
    return nodes if same else [None] * len(ran)


def label(node: NodeTimes, written: Node | None, work: Sequence[Node]) -> str:
    """What to call a node that ran, in the file's words.

    The first of the contractions that it computes, if it does; else its own name; where it has none in the file, its
    operator and the first value of the file at it. ONNX Runtime numbers the nodes that it adds, and those without a
    name, otherwise from process to process, and calls a fused or blocked node otherwise than a plain one.
    """
    if work:
        return work[0].name or f"{work[0].operator} {work[0].outputs[0]}"
    name = TOKEN.sub("", node.name)
    if written is None or (written.name and name != node.operator):
        return name
    values = [value for value in (*written.outputs, *written.inputs) if value and not ADDED_VALUE.match(value)]
    return f"{node.operator} {values[0]}" if values else node.operator


def placed(work: Work, ran: Sequence[NodeTimes], written: Sequence[Node | None]) -> list[list[int]] | None:
    """The contractions, by their positions in `work.nodes`, that each node computes; None if that is not known."""
    outputs = [_made(node, as_is) for node, as_is in zip(ran, written, strict=True)]
    own_names = Counter(node.name for node in work.nodes)
    by_name = {node.name: place for place, node in enumerate(ran)}
    maker = _makers(ran, written, outputs)
    readers: dict[str, list[Node]] = {}
    for node in work.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)
    found: list[list[int]] = [[] for _ in ran]
    for place in work.macs:
        node = work.nodes[place]
        named = by_name.get(node.name) if own_names[node.name] == 1 and node.name else None
        where = named if named is not None else _first_made(node, maker, readers)
        if where is None:
            return None
        found[where].append(place)
    # Where a contraction has nothing to do, another one has been given its work.
    idle = [node for node, places in zip(ran, found, strict=True) if _may_contract(node) and not places]
    return None if work.unknown or idle else found


def _makers(ran: Sequence[NodeTimes], written: Sequence[Node | None], outputs: Sequence[set[str]]) -> dict[str, int]:
    """For names of values the contracting node that makes them, alone or with what only goes on from it.

    Around kernels that want another layout ONNX Runtime puts transpositions, which then make the values of the file.
    """
    maker = {name: place for place, names in enumerate(outputs) if _may_contract(ran[place]) for name in names}
    sources: dict[str, set[int]] = {}
    for place, node in enumerate(written):
        inputs = () if node is None else node.inputs
        found = {place} if _may_contract(ran[place]) else set().union(*(sources.get(name, set()) for name in inputs))
        sources.update(dict.fromkeys(outputs[place], found))
        if len(found) == 1:
            for name in outputs[place]:
                maker.setdefault(name, min(found))
    return maker


def macs_of(node: NodeTimes, counts: Sequence[int | None] | None) -> int | None:
    """Of the contractions that a node computes: `counts`, None where these are not known."""
    if counts is None:
        return None if _may_contract(node) else 0
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _may_contract(node: NodeTimes) -> bool:
    return contracts(
        Node(name="", operator=node.operator, domain="", inputs=(), outputs=(), integers={}, has_body=False)
    )


def _made(node: NodeTimes, written: Node | None) -> set[str]:
    """Names of what a node makes: those of the graph as it ran, and that in the name of a blocked node."""
    names = set() if written is None else set(written.outputs)
    return names | ({node.name.split(BLOCKED_SUFFIX)[0]} if BLOCKED_SUFFIX in node.name else set())


def _first_made(node: Node, maker: Mapping[str, int], readers: Mapping[str, Sequence[Node]]) -> int | None:
    """The node that ran and makes the first known value at or behind the outputs of `node`."""
    queue, seen = deque(node.outputs), set(node.outputs)
    while queue:
        name = queue.popleft()
        if name in maker:
            return maker[name]
        for reader in readers.get(name, ()):
            queue.extend(output for output in reader.outputs if output not in seen)
            seen.update(reader.outputs)
    return None


# Figures --------------------------------------------------------------------------------------------------------------


def _result(file: OnnxFile, measured: Sequence[MeasuredModel], work: Work) -> ProfileResult:
    """One model's figures from its processes.

    Raises:
        BenchError: An answer holds no profile, or processes ran other nodes.
    """
    runs = tuple(model.profile for model in measured if model.profile is not None)
    if len(runs) != len(measured):
        raise BenchError("worker's answer: profile is missing; the worker is not the one of this bench")
    kinds = [[(node.operator, node.output_shapes) for node in run.nodes] for run in runs]
    if any(each != kinds[0] for each in kinds):
        raise BenchError(f"{file.file_name}: ONNX Runtime ran other nodes in one process than in another")
    return ProfileResult(file=file, inputs=measured[0].inputs, profile=_profile(runs, work))


def _profile(runs: Sequence[ProfileSamples], work: Work) -> Profile:
    ran = runs[0].nodes
    times = node_times(runs)
    p50_ms, profiled_p50_ms, nodes_ms = profile_times(runs)
    written = as_written(ran, runs[0].graph)
    places = placed(work, ran, written)
    total_us = sum(times)
    nodes = []
    for number, (node, time) in enumerate(zip(ran, times, strict=True)):
        own = [] if places is None else [work.nodes[place] for place in places[number]]
        count = macs_of(node, None if places is None else [work.macs[place] for place in places[number]])
        nodes.append(
            NodeProfile(
                name=label(node, written[number], own),
                operator=node.operator,
                provider=node.provider,
                output_shape=node.output_shapes[0] if node.output_shapes else (),
                time_us=time,
                share=time / total_us if total_us else 0.0,
                macs=count,
                gflops=gflops(count, time),
            )
        )
    known = [count for count in work.macs.values() if count is not None]
    return Profile(
        p50_ms=p50_ms,
        profiled_p50_ms=profiled_p50_ms,
        nodes_ms=nodes_ms,
        macs=sum(known) if len(known) == len(work.macs) and not work.unknown else None,
        uncounted=tuple(sorted({work.nodes[place].operator for place, count in work.macs.items() if count is None})),
        nodes=tuple(nodes),
        operators=by_operator(nodes),
        runs=tuple(runs),
    )


def node_times(runs: Sequence[ProfileSamples]) -> list[float]:
    """Microseconds of each node: mean of the middle half of a process's samples, median over the processes."""
    nodes = zip(*(run.nodes for run in runs), strict=True)
    return [float(np.median([interquartile_mean(run.samples_us) for run in node])) for node in nodes]


def profile_times(runs: Sequence[ProfileSamples]) -> tuple[float, float, float]:
    """Milliseconds of an inference without the profiler and with it, medians, and of all nodes together."""
    plain, with_it = (np.concatenate(each) for each in zip(*((r.samples_ns, r.profiled_ns) for r in runs), strict=True))
    return float(np.median(plain)) / NS_PER_MS, float(np.median(with_it)) / NS_PER_MS, sum(node_times(runs)) / US_PER_MS


def gflops(count: int | None, time_us: float) -> float | None:
    """Achieved 1e9 operations a second, two for each multiply-accumulate; None where nothing is counted or timed."""
    return 2 * count / (time_us * 1e3) if count and time_us > 0 else None


def by_operator(nodes: Iterable[NodeProfile]) -> tuple[OperatorProfile, ...]:
    """The sums of each operator, the longest first.

    One that ONNX Runtime fused with its activation counts as the plain one: in another model it may not have been, and
    a part of the convolutions would stand beside all of them.
    """
    groups: dict[str, list[NodeProfile]] = {}
    for node in nodes:
        groups.setdefault(FUSED.get(node.operator, node.operator), []).append(node)
    found = []
    for operator, members in groups.items():
        time_us = sum(node.time_us for node in members)
        counts = [node.macs for node in members if node.macs is not None]
        count = sum(counts) if len(counts) == len(members) else None
        found.append(
            OperatorProfile(
                operator=operator,
                nodes=len(members),
                time_us=time_us,
                share=sum(node.share for node in members),
                macs=count,
                gflops=gflops(count, time_us),
            )
        )
    return tuple(sorted(found, key=lambda each: -each.time_us))
