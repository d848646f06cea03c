"""Commands that are stopped from outside, or whose reader goes away."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.cli.stopping import SIGNALS, stopped_by_signals

RUNTIME_FILES = {".ses"}  # ONNX Runtime's own, see experiments/gate_load.py


def children(process: int) -> list[int]:
    return [int(word) for path in Path(f"/proc/{process}/task").glob("*/children") for word in path.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc of Linux")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_takes_its_worker_with_it(make_convs, tmp_path: Path, number: signal.Signals) -> None:
    words = ["latency", str(make_convs("a.onnx")), "--min-seconds", "300", "--timeout", "3000"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = subprocess.Popen([sys.executable, "-m", "bench", *words], stderr=subprocess.PIPE, env=environment)
    try:
        end = time.monotonic() + 20
        while not (workers := children(command.pid)):
            assert time.monotonic() < end
            time.sleep(0.02)
        command.send_signal(number)
        _, stderr = command.communicate(timeout=10)
    finally:
        command.kill()
    assert command.returncode == 128 + number  # 1 would say that a model is over its budget
    assert b"Traceback" not in stderr
    assert [worker for worker in workers if Path(f"/proc/{worker}/cwd").exists()] == []
    assert {path.name for path in tmp_path.iterdir()} <= RUNTIME_FILES


def test_handlers_are_put_back_and_ignored_signals_stay_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with pytest.raises(SystemExit) as stop, stopped_by_signals():
        signal.raise_signal(signal.SIGTERM)
    assert stop.value.code == 143
    assert [signal.getsignal(number) for number in SIGNALS] == before
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with stopped_by_signals():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before[SIGNALS.index(signal.SIGHUP)])


@pytest.mark.parametrize(("limit", "code"), [("1_000_000", 0), ("10", 1)])
def test_a_reader_that_goes_away_changes_no_verdict(make_convs, tmp_path: Path, limit: str, code: int) -> None:
    budget, out = tmp_path / "budget.toml", tmp_path / "gate.md"
    budget.write_text(f"[file]\nbytes = {limit}\n")
    words = ["gate", str(make_convs("a.onnx")), "--budget", str(budget), "--markdown", str(out)]
    command = subprocess.Popen([sys.executable, "-m", "bench", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert command.stdout is not None
    assert command.stderr is not None
    command.stdout.close()
    stderr = command.stderr.read()
    command.stderr.close()
    assert command.wait(20) == code
    assert b"Traceback" not in stderr
    assert b"BrokenPipe" not in stderr
    assert out.exists()


def test_a_name_that_is_not_utf_8_is_judged_and_written(make_convs, tmp_path: Path) -> None:
    model = os.fsencode(tmp_path) + b"/m\xff.onnx"
    Path(os.fsdecode(model)).write_bytes(make_convs("a.onnx").read_bytes())
    (tmp_path / "budget.toml").write_text("[file]\nbytes = 1_000_000\n")
    outputs = {name: tmp_path / f"gate.{name}" for name in ("junit", "markdown", "json")}
    words = [b"gate", model, "--budget", tmp_path / "budget.toml"]
    words += [word for name, path in outputs.items() for word in (f"--{name}", path)]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "bench", *words], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "m\\udcff.onnx: within budget" in done.stdout
    assert "m?.onnx is within its budget" in outputs["markdown"].read_text(encoding="utf-8")
    assert "m\N{REPLACEMENT CHARACTER}.onnx on cpu" in outputs["junit"].read_text(encoding="utf-8")
    page = [sys.executable, "-m", "bench", "report", outputs["json"], "--html", tmp_path / "gate.html"]
    assert subprocess.run(page, capture_output=True, check=False).returncode == 0
    assert "m?.onnx" in (tmp_path / "gate.html").read_text(encoding="utf-8")
