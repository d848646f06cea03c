"""Real reports of two tiny models, measured once."""

from dataclasses import replace

import pytest

from bench.gate import Budget, gate
from bench.gate.evidence import Measurement
from bench.html import Document
from bench.measure.profile import profile
from bench.measure.throughput import throughput

QUICK = Measurement(shapes={}, runs=6, samples=60, min_seconds=0.0, memory_runs=1, deadline_ms=2.0, frames=30)
LIMITS = {
    "latency.ratio": 1.0,
    "latency.p50_ms": 1e-9,
    "memory.peak_bytes": 1e12,
    "file.bytes": 1e9,
    "accuracy.test": 0.5,
}


@pytest.fixture(scope="session")
def documents(make_convs) -> list[Document]:
    """One of each kind; the gate has limits that hold, that break and that cannot be measured."""
    model, baseline = make_convs("small.onnx", size=16), make_convs("dense.onnx", width=16, depth=4, size=16)
    judged = gate(model, Budget(name="budget.toml", limits=LIMITS, measure=QUICK), baseline)
    timed = judged.latency
    assert timed is not None
    assert timed.baseline is not None
    pair = timed.model.latency.runs, timed.baseline.latency.runs
    return [
        Document("latency.json", replace(timed, throughput=(throughput(1, *pair), throughput(4, *pair)))),
        Document("memory.json", judged.memory),
        Document("profile.json", profile(model, baseline, runs=1, samples=20)),
        Document("gate.json", judged),
    ]
