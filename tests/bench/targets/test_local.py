import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.protocol import Request
from bench.targets import TARGETS, find_target
from bench.targets.launch import answer_of, worker_environment
from bench.targets.local import LocalTarget

REQUEST = Request(
    measure="latency",
    models=(),
    threads=1,
    batch=None,
    shapes={},
    seed=0,
    min_seconds=0.0,
    min_samples=3,
    limit_seconds=30.0,
)


def ask(model: Path, **changes: object) -> str:
    """The message with which the real worker's target refuses a request."""
    request = replace(REQUEST, models=(str(model),), **changes)  # type: ignore[arg-type]
    with pytest.raises(BenchError) as refusal:
        LocalTarget().run(request)
    return str(refusal.value)


def test_one_request_gives_samples_inputs_and_host(make_convs) -> None:
    path = str(make_convs("a.onnx"))
    answer = LocalTarget().run(replace(REQUEST, models=(path, path), min_samples=5, batch=2))
    assert answer.host is not None
    assert answer.host.emulated is False
    assert 1 <= answer.host.usable_cores <= answer.host.logical_cores
    for model in answer.models:
        assert model.latency is not None
        assert model.memory is None
        assert model.inputs[0].shape == (2, 1, 8, 8)
        assert len(model.latency.samples_ns) == 5
        assert min(model.latency.samples_ns) > 0
        assert model.latency.untimed_between == 1
    alone = LocalTarget().run(replace(REQUEST, models=(path,))).models[0].latency
    assert alone is not None
    assert alone.untimed_between == 0


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"this is no protobuf")
    message = ask(path)
    assert "cannot load" in message
    assert str(path) in message
    assert "check the file with onnx.checker" in message


def test_a_truncated_model_is_refused(make_convs) -> None:
    path = make_convs("a.onnx", depth=3)
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot load" in ask(path)


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    assert ask(tmp_path / "none.onnx") == f"model file not found: {tmp_path / 'none.onnx'}"


def test_sizes_that_do_not_fit_are_refused(make_convs) -> None:
    fixed = make_convs("fixed.onnx", batch=1)
    assert "no input can take batch 4" in ask(fixed, batch=4)
    assert "has shape [1, 1, 8, 8], which [2, 1, 8, 8] does not fit" in ask(fixed, shapes={"image": (2, 1, 8, 8)})
    assert "has no input picture; its inputs are image" in ask(fixed, shapes={"picture": (1,)})


def test_a_run_too_long_for_the_limit_is_refused_before_it_starts(make_convs) -> None:
    message = ask(make_convs("a.onnx", width=32, depth=3, size=64), min_samples=10**9, limit_seconds=2.0)
    assert message.startswith("1000000000 samples in one process would take")
    assert message.endswith("give fewer --samples or a longer --timeout")


def test_sampling_too_long_for_the_limit_is_refused_before_it_starts(make_convs) -> None:
    message = ask(make_convs("a.onnx"), min_seconds=300.0, limit_seconds=5.0)
    assert message.startswith("300 s of samples in one process do not fit into the ")
    assert message.endswith("give fewer --min-seconds or a longer --timeout")


def test_what_a_device_says_of_itself_cannot_rule_the_terminal(tmp_path: Path) -> None:
    host = {"cpu_model": "fast\x1b[2J", "governor": None, "isa": [], "emulated": False, "load_average_1min": 0.5}
    host |= dict.fromkeys(("architecture", "os", "python", "numpy", "onnxruntime"), "1\n2")
    host |= {"logical_cores": 4, "usable_cores": 4}
    answer = {"format": "bench-answer", "version": 1, "error": None, "host": host, "models": []}
    found = answer_of(0, json.dumps(answer), "").host
    assert found is not None
    assert (found.cpu_model, found.os, found.logical_cores, found.governor) == ("fast?[2J", "1?2", 4, None)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("print('hello')", "worker's answer: expected JSON, got 'hello"),
        ("print('{}')", "expected a document of format 'bench-answer', got None"),
        ("", "worker's answer: expected JSON, got ''"),
        ("print('[' * 100000)", "worker's answer: expected JSON, got '"),
        ("raise SystemExit('no onnxruntime here')", "ended with code 1; its last words: no onnxruntime here"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL .out of memory.."),
        ("import time; time.sleep(60)", "did not finish within 1 s and was stopped"),
        ("import os; os.write(1, bytes(range(128, 256)))", "expected JSON"),
    ],
)
def test_whatever_the_worker_does_is_one_clear_error(tmp_path: Path, script: str, message: str) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text(script)
    with pytest.raises(BenchError, match=message):
        LocalTarget(worker=worker, startup_s=0.5).run(replace(REQUEST, limit_seconds=0.5 if "sleep" in script else 20))


def test_the_worker_does_not_inherit_the_threads_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("KMP_AFFINITY", "compact")
    monkeypatch.setenv("SOMETHING_ELSE", "kept")
    environment = worker_environment()
    assert environment["OMP_NUM_THREADS"] == "1"
    assert "KMP_AFFINITY" not in environment
    assert environment["SOMETHING_ELSE"] == "kept"


def test_an_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(BenchError, match=f"unknown device 'toaster'; known devices: {', '.join(TARGETS)}"):
        find_target("toaster")


def test_the_cpu_has_no_address() -> None:
    with pytest.raises(BenchError, match="takes no address, got 'fast'"):
        find_target("cpu:fast")
