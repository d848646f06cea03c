"""A report of each kind, of two tiny models."""

from dataclasses import replace

import numpy as np
import pytest

from bench.gate import GateReport
from bench.gate.evidence import Evidence, facts_of
from bench.gate.judge import check, outcome
from bench.html import Document
from bench.measure.profile import profile
from bench.measure.realtime import frames
from bench.measure.throughput import throughput
from bench.protocol import PeriodicSamples
from bench.report import Frames, Realtime

LIMITS = {
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
    checks = tuple(check(name, limit, evidence) for name, limit in LIMITS.items())
    return [
        Document("latency.json", full),
        Document("memory.json", generous.memory),
        Document("profile.json", profile(pair.model, pair.baseline, runs=1, samples=20)),
        Document("gate.json", replace(generous, latency=full, checks=checks, outcome=outcome(checks))),
    ]
