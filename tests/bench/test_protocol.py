import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import bench
from bench import worker
from bench.errors import BenchError
from bench.protocol import Answer, Host, Input, LatencySamples, MeasuredModel, Request
from bench.targets.launch import WORKER

REQUEST = Request(
    measure="latency",
    models=("a.onnx", "b.onnx"),
    threads=2,
    batch=None,
    shapes={"x": (1, 3, 8, 8)},
    seed=0,
    min_seconds=0.5,
    min_samples=20,
    limit_seconds=10.0,
)
HOST = Host(
    cpu_model="CPU",
    architecture="x86_64",
    isa=("avx2",),
    logical_cores=2,
    usable_cores=2,
    governor=None,
    os="Linux",
    python="3.11",
    numpy="2",
    onnxruntime="1",
    load_average_1min=0.25,
    emulated=False,
)
SAMPLES = LatencySamples(
    samples_ns=(3, 1, 2),
    untimed_between=1,
    warmup_inferences=9,
    warmup_stable=True,
    loaded_first=True,
    load_ns=7,
    first_inference_ns=5,
)
ANSWER = Answer(
    error=None,
    host=HOST,
    models=(MeasuredModel(inputs=(Input(name="x", shape=(1, 3), dtype="float"),), latency=SAMPLES),),
)


def test_requests_and_answers_come_back_equal() -> None:
    assert Request.from_json(REQUEST.to_json()) == REQUEST
    assert Answer.from_json(ANSWER.to_json()) == ANSWER


def test_an_answer_of_another_version_is_refused() -> None:
    text = ANSWER.to_json().replace('"version":1', '"version":2')
    with pytest.raises(BenchError, match="worker's answer: bench-answer version 2, but this bench reads version 1"):
        Answer.from_json(text)


def test_the_worker_refuses_a_request_of_another_version() -> None:
    asked = json.dumps({**json.loads(REQUEST.to_json()), "version": 9})
    done = subprocess.run([sys.executable, "-P", str(WORKER)], input=asked, capture_output=True, text=True, check=True)
    answer = Answer.from_json(done.stdout)
    assert answer.error is not None
    assert "reads bench-request version 1, got bench-request version 9" in answer.error
    assert (answer.host, answer.models) == (None, ())


def test_worker_and_protocol_have_the_same_version() -> None:
    assert {Request.HEADER[1], Answer.HEADER[1]} == {worker.VERSION}


def imported(path: Path) -> set[str]:
    """Top-level names of everything that a file imports, functions' insides included."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or ".")
    return {name.partition(".")[0] for name in names}


def test_the_worker_imports_only_the_standard_library_numpy_and_onnxruntime() -> None:
    assert imported(WORKER) - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


def test_the_worker_is_written_in_python_3_9() -> None:
    ast.parse(WORKER.read_text(), feature_version=(3, 9))


def test_the_package_knows_neither_torch_nor_its_neighbours() -> None:
    root = WORKER.parent
    known = {"numpy", "onnxruntime", "scipy", "typer", "rich", "jinja2", "bench"}
    for path in root.rglob("*.py"):
        assert imported(path) - set(sys.stdlib_module_names) <= known, path


def test_importing_the_package_and_measuring_code_never_imports_torch() -> None:
    code = "import bench, bench.cli, sys; bench.latency, bench.memory; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "bench.measure.latency" in modules
    assert modules.isdisjoint({"torch", "compress", "export"})


def test_an_unknown_name_of_the_package_is_told() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'speed'"):
        bench.speed  # noqa: B018
