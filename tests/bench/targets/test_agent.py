"""The agent by itself, spoken to through pipes."""

import ast
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.targets.remote import AGENT
from tests.bench.targets.conftest import processes_in, wait_until

TOKEN = "0123"
SLEEPER = "import pathlib, time; pathlib.Path('started').touch(); time.sleep(60)"


@contextmanager
def agent(tmp_path: Path, patience_s: int = 30, source: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """The running agent, whose private folder is made in `tmp_path`; in the end it is gone."""
    start = f"\nserve({TOKEN!r}, {patience_s})"
    pipe = subprocess.PIPE
    words = [sys.executable, "-c", (source or AGENT.read_text()) + start]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, env=environment) as process:
        try:
            yield process
            process.wait(10)
            assert wait_until(lambda: not processes_in(tmp_path))
            assert list(tmp_path.iterdir()) == []
        finally:
            process.kill()


def tell(process: subprocess.Popen[bytes], order: dict[str, object], data: bytes = b"") -> None:
    process.stdin.write(json.dumps(order).encode() + b"\n" + data)
    process.stdin.flush()


def reply(process: subprocess.Popen[bytes]) -> dict[str, object]:
    """The next line with the token."""
    for line in process.stdout:
        token, _, text = line.decode().partition(" ")
        if token == TOKEN:
            return json.loads(text)
    pytest.fail(f"no reply; stderr: {process.stderr.read().decode()}")


def started(process: subprocess.Popen[bytes], text: str, limit_s: float = 30.0) -> Path:
    """Give the agent a worker and start it; the private folder."""
    folder = Path(str(reply(process)["directory"]))
    tell(process, {"file": "worker/worker.py", "bytes": len(text)}, text.encode())
    assert reply(process) == {}
    tell(process, {"run": "request", "limit_s": limit_s, "unset": ["OMP_"], "set": {}})
    return folder


def test_a_worker_gets_its_request_and_tells_how_it_ended(tmp_path: Path) -> None:
    text = "import sys, os; print(sys.stdin.read(), os.getcwd()); sys.exit('words')"
    with agent(tmp_path) as process:
        folder = started(process, text)
        assert folder.stat().st_mode & 0o777 == 0o700
        assert reply(process) == {"code": 1, "stdout": f"request {folder}\n", "stderr": "words\n"}
        process.stdin.close()
        assert reply(process) == {"left": None}


def test_files_arrive_whole_in_whatever_pieces(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    with agent(tmp_path) as process:
        folder = Path(str(reply(process)["directory"]))
        tell(process, {"file": "a/b/large", "bytes": len(data)}, data + b'{"file": "empty", "bytes": 0}\n')
        assert (reply(process), reply(process)) == ({}, {})
        assert (folder / "a" / "b" / "large").read_bytes() == data
        assert (folder / "empty").read_bytes() == b""
        process.stdin.close()


@pytest.mark.parametrize("end", ["close", "HUP", "TERM", "INT"])
def test_whatever_ends_it_removes_files_and_worker(tmp_path: Path, end: str) -> None:
    with agent(tmp_path) as process:
        folder = started(process, SLEEPER)
        assert wait_until((folder / "started").exists)
        if end == "close":
            process.stdin.close()
        else:
            process.send_signal(signal.Signals[f"SIG{end}"])
        assert reply(process) == {"left": None}


def test_a_silent_caller_is_given_up(tmp_path: Path) -> None:
    with agent(tmp_path, patience_s=1) as process:
        folder = Path(str(reply(process)["directory"]))
        tell(process, {"file": "model", "bytes": 100}, b"only a part")
        assert wait_until((folder / "model").exists)
        assert reply(process) == {"left": None}


def test_a_caller_that_does_not_listen_is_given_up(tmp_path: Path) -> None:
    with agent(tmp_path, patience_s=1) as process:
        started(process, "print('x' * 1_000_000)")  # more than a pipe holds
        process.wait(10)  # with a full pipe in front of it


def test_a_broken_order_ends_it(tmp_path: Path) -> None:
    with agent(tmp_path) as process:
        tell(process, {}, b"rubbish\n")
        assert "directory" in reply(process)
        assert reply(process) == {"left": None}


def test_an_old_python_is_told(tmp_path: Path) -> None:
    source = AGENT.read_text()
    assert "OLDEST_PYTHON = (3, 9)" in source
    with agent(tmp_path, source=source.replace("OLDEST_PYTHON = (3, 9)", "OLDEST_PYTHON = (99, 0)")) as process:
        message = reply(process)["error"]
    assert message == f"Python 99.0 or later is needed, this is {'.'.join(map(str, sys.version_info[:3]))}"


def test_it_needs_nothing_but_an_old_python() -> None:
    tree = ast.parse(AGENT.read_text(encoding="ascii"), feature_version=(3, 6))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names
