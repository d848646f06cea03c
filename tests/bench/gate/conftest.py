"""One real measurement of tiny models, from which the tests make the figures that they need."""

from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest

from bench.gate import Budget, GateReport, gate
from bench.gate.evidence import Measurement

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
