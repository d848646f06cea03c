"""This machine: the worker in a fresh interpreter of its own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from bench.errors import BenchError
from bench.protocol import Answer, Request

WORKER = Path(__file__).resolve().parent.parent / "worker.py"

# Importing onnxruntime and loading a large model, before the worker's own clock runs.
STARTUP_ALLOWANCE_S = 60.0

# Variables with which the caller's shell would change the number of threads that the request fixes. One thread for
# numpy's BLAS: the worker does no algebra, and idle threads would count as memory.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
THREAD_POLICY_PREFIXES = ("OMP_", "KMP_", "GOMP_")


def worker_environment() -> dict[str, str]:
    """The caller's environment without what moves threads."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(THREAD_POLICY_PREFIXES)}
    return kept | dict.fromkeys(THREAD_VARIABLES, "1")


class LocalTarget:
    """Runs requests on this machine's CPU, x86 or ARM."""

    def __init__(self, address: str = "", worker: Path = WORKER, startup_s: float = STARTUP_ALLOWANCE_S) -> None:
        if address:
            raise BenchError(f"--device cpu takes no address, got {address!r}; write --device cpu")
        self.worker = worker
        self.startup_s = startup_s

    def run(self, request: Request) -> Answer:
        """Run one request in a process of its own.

        Raises:
            BenchError: The worker refused, crashed, took too long or answered rubbish.
        """
        answer = Answer.from_json(self._output(request))
        if answer.error is not None:
            raise BenchError(answer.error)
        return answer

    def _output(self, request: Request) -> str:
        limit_s = request.limit_seconds + self.startup_s
        try:
            done = subprocess.run(
                [sys.executable, "-P", str(self.worker)],  # -P: `bench/` itself must not shadow other modules' names
                input=request.to_json(),
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                env=worker_environment(),
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(
                f"the worker did not finish within {limit_s:.0f} s and was stopped; "
                "give fewer --samples, a smaller --batch or a longer --timeout"
            ) from error
        except OSError as error:
            raise BenchError(f"cannot start the worker with {sys.executable}: {error.strerror}") from error
        if done.returncode != 0:
            raise BenchError(f"the worker {_ending(done.returncode)}; its last words: {_last_line(done.stderr)}")
        return done.stdout


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")


def _last_line(stderr: str) -> str:
    lines = [line for line in stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "none"
