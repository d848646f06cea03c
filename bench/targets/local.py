"""This machine: the worker in a fresh interpreter of its own."""

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Self

from bench.errors import BenchError
from bench.protocol import Answer, Request
from bench.targets.launch import WORKER, ask

# Importing onnxruntime and loading a large model, before the worker's own clock runs.
STARTUP_ALLOWANCE_S = 60.0


class LocalTarget:
    """Runs requests on this machine's CPU, x86 or ARM."""

    def __init__(self, address: str = "", worker: Path = WORKER, startup_s: float = STARTUP_ALLOWANCE_S) -> None:
        if address:
            raise BenchError(f"--device cpu takes no address, got {address!r}; write --device cpu")
        self.worker = worker
        self.startup_s = startup_s

    def session(self, _limit_s: float, /) -> AbstractContextManager[Self]:
        """Itself: requests have nothing in common here."""
        return nullcontext(self)

    def run(self, request: Request) -> Answer:
        """Run one request in a process of its own.

        Raises:
            BenchError: The worker refused, crashed, took too long or answered rubbish.
        """
        # -P: `bench/` itself must not shadow other modules' names.
        return ask([sys.executable, "-P", str(self.worker)], request, startup_s=self.startup_s)
