"""Tiny ONNX models of known cost, built when the tests run."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.cli import main
from bench.gate import Budget, GateReport, gate
from bench.gate.evidence import Evidence, Measurement, facts_of
from bench.gate.judge import check, outcome
from bench.html import Document
from bench.measure.profile import profile
from bench.measure.realtime import frames
from bench.measure.throughput import throughput
from bench.protocol import PeriodicSamples
from bench.report import Frames, Realtime

MakeModel = Callable[..., Path]


def save(
    path: Path, nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], weights: list[onnx.TensorProto]
) -> Path:
    output = helper.make_empty_tensor_value_info(nodes[-1].output[0])
    graph = helper.make_graph(nodes, "test", inputs, [output], weights)
    # The oldest versions that have what is used, so that any ONNX Runtime we support loads them.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.fixture
def bench_command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``bench_command(*words)``: run the console script's function; gives its exit code."""

    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["bench", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            main()
        return int(exit_.value.code or 0)

    return run


@pytest.fixture(scope="session")
def make_convs(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """``make_convs(name, width=..., depth=..., size=..., batch=...)``: 3x3 convolutions on images of one channel."""

    def make(name: str, *, width: int = 4, depth: int = 1, size: int = 8, batch: int | str = "n") -> Path:
        rng = np.random.default_rng(0)
        nodes, weights, last, channels = [], [], "image", 1
        for layer in range(depth):
            kernel = rng.standard_normal((width, channels, 3, 3)).astype(np.float32)
            weights.append(numpy_helper.from_array(kernel, f"w{layer}"))
            nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"y{layer}"], pads=[1, 1, 1, 1]))
            last, channels = f"y{layer}", width
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 1, size, size])
        return save(tmp_path_factory.mktemp("convs") / name, nodes, [image], weights)

    return make


@pytest.fixture
def make_identity(tmp_path: Path) -> MakeModel:
    """``make_identity(name, element_type, shape)``: one Identity node on an input ``x`` of any type."""

    def make(name: str, element_type: int, shape: list[int | str]) -> Path:
        value = helper.make_tensor_value_info("x", element_type, shape)
        return save(tmp_path / name, [helper.make_node("Identity", ["x"], ["y"])], [value], [])

    return make


# One real measurement of tiny models, from which the tests of gate, compare and report make the figures they need.
QUICK = Measurement(shapes={}, runs=6, samples=12, min_seconds=0.0, memory_runs=1)
TOLD = {"test_accuracy": "0.9887", "validation_accuracy": "0.991", "max_abs_difference": "1.5e-06"}


def tell(path: Path, **entries: str) -> Path:
    """Write metadata into a model file."""
    model = onnx.load(path)
    onnx.helper.set_model_props(model, entries)
    onnx.save(model, path)
    return path


@dataclass(frozen=True)
class Pair:
    """A model of one convolution, and a baseline of some 60 times the work; both have metadata."""

    model: Path
    baseline: Path


@pytest.fixture(scope="session")
def pair(make_convs) -> Pair:
    return Pair(
        model=tell(make_convs("small.onnx"), **TOLD),
        baseline=tell(make_convs("dense.onnx", width=16, depth=4, size=16), **TOLD | {"test_accuracy": "0.992"}),
    )


@pytest.fixture(scope="session")
def generous(pair: Pair) -> GateReport:
    """All kinds of limits, none of which can be broken."""
    limits = {
        "latency.ratio": 100.0,
        "latency.p99_ms": 1e6,
        "memory.peak_bytes": 1e12,
        "file.bytes": 1e9,
        "accuracy.test": 0.5,
        "accuracy.test_drop": 0.5,
        "parity.max_abs_difference": 1.0,
    }
    return gate(pair.model, Budget(name="budget.toml", limits=limits, measure=QUICK), pair.baseline)


# A report of each kind.
MIXED_LIMITS = {
    "latency.ratio": 1.0,
    "latency.p50_ms": 1e-9,
    "memory.peak_bytes": 1e12,
    "file.bytes": 1e9,
    "accuracy.validation_drop": 0.5,
    "instructions.per_inference": 1.0,
}


def fed(seed: int) -> Frames:
    """Frames of which some come late and some never, as of three processes."""
    rng = np.random.default_rng(seed)
    responses = rng.exponential(1e6, (3, 40)).astype(int)
    runs = tuple(
        PeriodicSamples(
            response_ns=tuple(None if value > 4e6 else int(value) for value in row),
            inference_ns=tuple(int(value) for value in row if value <= 4e6),
        )
        for row in responses
    )
    return frames(runs, 2.0)


@pytest.fixture(scope="session")
def documents(pair, generous: GateReport) -> list[Document]:
    """One of each kind; the gate has limits that hold, that break and that could not be measured."""
    timed = generous.latency
    assert timed is not None
    assert timed.baseline is not None
    runs = timed.model.latency.runs, timed.baseline.latency.runs
    realtime = Realtime(deadline_ms=2.0, period_ms=2.0, model=fed(1), baseline=fed(2))
    full = replace(timed, throughput=(throughput(1, *runs), throughput(4, *runs)), realtime=realtime)
    evidence = Evidence(
        model=facts_of(pair.model),
        baseline=facts_of(pair.baseline),
        latency=timed,
        memory=generous.memory,
        instructions=None,
    )
    checks = tuple(check(name, limit, evidence) for name, limit in MIXED_LIMITS.items())
    return [
        Document("latency.json", full),
        Document("memory.json", generous.memory),
        Document("profile.json", profile(pair.model, pair.baseline, runs=1, samples=20)),
        Document("gate.json", replace(generous, latency=full, checks=checks, outcome=outcome(checks))),
    ]
