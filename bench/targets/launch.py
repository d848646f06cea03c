"""One request to a worker process and its answer back: what all targets share.

A target says which command starts the worker; the request goes to its stdin, the answer comes from its stdout.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.processes import finished
from bench.protocol import Answer, Host, Request

WORKER = Path(__file__).resolve().parent.parent / "worker.py"

# Variables with which the caller's shell would change the number of threads that the request fixes. One thread for
# numpy's BLAS: the worker does no algebra, and idle threads would count as memory.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
THREAD_POLICY_PREFIXES = ("OMP_", "KMP_", "GOMP_")

Explain = Callable[[int, str], str | None]


def worker_environment() -> dict[str, str]:
    """The caller's environment without what moves threads."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(THREAD_POLICY_PREFIXES)}
    return kept | dict.fromkeys(THREAD_VARIABLES, "1")


def ask(
    command: Sequence[str],
    request: Request,
    *,
    startup_s: float,
    environment: Mapping[str, str] | None = None,
    explain: Explain | None = None,
) -> Answer:
    """Run one request in a process of its own.

    Args:
        command: Starts the worker; a list of words, no shell.
        request: Goes to its stdin.
        startup_s: Time on top of ``request.limit_seconds``, before the worker's own clock runs.
        environment: `worker_environment()` by default.
        explain: What the target knows about an ending that is not the worker's: called with a return code other than 0
            and stderr; None leaves it to the general message.

    Raises:
        BenchError: The worker refused, could not be started, crashed, took too long or answered rubbish.
    """
    limit_s = request.limit_seconds + startup_s
    try:
        own = worker_environment() if environment is None else environment
        done = finished(command, request.to_json(), limit_s, own)
    except subprocess.TimeoutExpired as error:
        raise too_late(limit_s) from error
    except OSError as error:
        raise BenchError(f"cannot start the worker with {command[0]}: {error.strerror}") from error
    return answer_of(done.returncode, done.stdout, done.stderr, explain)


def answer_of(code: int, stdout: str, stderr: str, explain: Explain | None = None) -> Answer:
    """The answer of a worker that ended with `code`; for `explain` see `ask`.

    Raises:
        BenchError: The worker refused, crashed or answered rubbish.
    """
    if code != 0:
        known = None if explain is None else explain(code, stderr)
        raise BenchError(known or f"the worker {ending(code)}; its last words: {last_line(stderr)}")
    answer = Answer.from_json(stdout)
    if answer.error is not None:
        raise BenchError(answer.error)
    return answer if answer.host is None else replace(answer, host=_printable_host(answer.host))


def _printable_host(host: Host) -> Host:
    """The host with its words, which are printed, free of control characters."""
    words: dict[str, Any] = {name: printable(fact) for name, fact in vars(host).items() if isinstance(fact, str)}
    return replace(host, **words)


def too_late(limit_s: float) -> BenchError:
    """The worker took longer than `limit_s`."""
    return BenchError(
        f"the worker did not finish within {limit_s:.0f} s and was stopped; "
        "give fewer --samples, a smaller --batch or a longer --timeout"
    )


def ending(code: int) -> str:
    """How a process ended, from its return code: ``ended with code 1``, ``was killed by SIGKILL``."""
    if code >= 0:
        return f"ended with code {code}"
    # Real-time signals have numbers only, and a device may number others differently.
    name = {known.value: known.name for known in signal.Signals}.get(-code, f"signal {-code}")
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def last_line(stderr: str) -> str:
    """The last line that says something."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    return printable(lines[-1].strip()) if lines else "none"


def printable(text: str) -> str:
    """Text without control characters, with which a device could rule the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)
