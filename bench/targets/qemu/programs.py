"""Other programs, run to their end: failures are one message."""

import os
import subprocess
from collections.abc import Mapping, Sequence

from bench.errors import BenchError
from bench.processes import finished

LIMIT_S = 900.0  # for one program; a download of tens of megabytes over a slow line is the longest


def run(command: Sequence[str], doing: str, environment: Mapping[str, str] | None = None) -> str:
    """The program's stdout.

    Args:
        command: A list of words, no shell.
        doing: What failed if it fails, as in "cannot {doing}".
        environment: Variables on top of the caller's.

    Raises:
        BenchError: It is missing, failed, or took longer than a quarter of an hour; with what it said.
    """
    try:
        done = finished(command, "", LIMIT_S, {**os.environ, **(environment or {})})
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"cannot {doing}: {command[0]} did not finish within {LIMIT_S:.0f} s") from error
    except OSError as error:
        raise BenchError(f"cannot {doing}: {command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise BenchError(f"cannot {doing}: {_said(done.stderr + done.stdout) or f'exit code {done.returncode}'}")
    return done.stdout


def _said(text: str) -> str:
    """The lines that tell of errors, or else the last one."""
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith(("e:", "error", "fatal")) or " error:" in line.lower()]
    return "; ".join(dict.fromkeys(errors[:4] or lines[-1:]))
