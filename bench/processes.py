"""Other programs, started so that nothing which ends this process early leaves one behind."""

import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextmanager
def started(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """A process with pipes to all three of its streams; it is killed when the block ends.

    Raises:
        OSError: There is no such program.
    """
    pipe, process = subprocess.PIPE, None
    try:
        with _held_back():
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0, env=environment)
        yield process
    finally:
        if process is not None:
            process.kill()
            with suppress(BrokenPipeError), process:
                pass  # waits, and closes the pipes


@contextmanager
def _held_back() -> Iterator[None]:
    """What a signal would raise here, it raises at the end: not between the start of a process and its name for us."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs handlers in the main thread
        return
    late: list[int] = []
    former = {number: handler for number in SIGNALS if callable(handler := signal.getsignal(number))}
    for number in former:
        signal.signal(number, lambda number, _: late.append(number))
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for number in late:
            signal.raise_signal(number)


def finished(
    command: Sequence[str], text: str, limit_s: float, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end.

    Args:
        command: A list of words, no shell.
        text: Goes to its stdin.
        limit_s: Seconds until it is killed.
        environment: The caller's by default.

    Raises:
        OSError: There is no such program.
        subprocess.TimeoutExpired: It took longer.
    """
    with started(command, environment=environment) as process:
        out, err = process.communicate(text.encode(), limit_s)
        return subprocess.CompletedProcess(
            command, process.returncode, *(s.decode(errors="replace") for s in (out, err))
        )
