"""No process stays behind, whenever the signal comes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.processes import finished, started

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


class Stopped(Exception):
    """What a handler raises."""


@pytest.fixture
def handler():
    """SIGTERM raises ``Stopped``."""

    def stop(*_: object) -> None:
        raise Stopped

    former = signal.signal(signal.SIGTERM, stop)
    yield stop
    signal.signal(signal.SIGTERM, former)


def test_a_signal_while_a_process_is_being_started_leaves_none(handler, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Popen(subprocess.Popen):
        def __init__(self, *words, **options) -> None:
            super().__init__(*words, **options)
            made.append(self)
            signal.raise_signal(signal.SIGTERM)  # the caller does not yet hold the process

    monkeypatch.setattr(subprocess, "Popen", Popen)
    with pytest.raises(Stopped), started(SLEEPER):
        pytest.fail("the signal was swallowed")
    assert [process.returncode for process in made] == [-signal.SIGKILL]
    assert signal.getsignal(signal.SIGTERM) is handler


@contextmanager
def stopped_after(seconds: float) -> Iterator[None]:
    """SIGALRM comes by then."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs timers of POSIX")
def test_a_signal_at_any_moment_of_a_program_leaves_none(handler, tmp_path: Path, monkeypatch) -> None:
    """Some come before the process is there, some while it starts, some while it runs."""
    monkeypatch.setattr("bench.processes.SIGNALS", (signal.SIGALRM,))  # a timer's
    former = signal.signal(signal.SIGALRM, handler)
    marks = [tmp_path / str(number) for number in range(40)]
    try:
        for number, mark in enumerate(marks):
            sleeper = [*SLEEPER[:2], f"import os; open({str(mark)!r}, 'w').write(str(os.getpid())); {SLEEPER[2]}"]
            with pytest.raises(Stopped), stopped_after(1e-5 + number * 2e-3):
                finished(sleeper, "", 60.0)
    finally:
        signal.signal(signal.SIGALRM, former)
    time.sleep(0.5)
    left = [int(text) for mark in marks if mark.exists() and (text := mark.read_text())]
    assert [process for process in left if Path(f"/proc/{process}").exists()] == []


def test_a_program_gets_its_text_and_says_its_code() -> None:
    echo = "import os, sys; print(sys.stdin.read(), os.environ['A']); sys.stderr.write('e\\n'); sys.exit(3)"
    done = finished([sys.executable, "-c", echo], "some text", 60.0, os.environ | {"A": "b"})
    assert (done.returncode, done.stdout, done.stderr) == (3, "some text b\n", "e\n")


def test_a_program_that_takes_too_long_is_killed() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        finished(SLEEPER, "", 0.1)
