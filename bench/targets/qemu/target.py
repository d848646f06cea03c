"""``arm64``: the worker on an emulated ARM CPU. It counts and computes; it tells nothing of time or memory."""

import shlex
import tempfile
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Self

from bench.errors import BenchError
from bench.protocol import Answer, Request
from bench.targets.launch import WORKER, ask
from bench.targets.qemu.cpus import find_cpu
from bench.targets.qemu.space import ENVIRONMENT, SETUP, Space, default_space

# Importing numpy and onnxruntime takes five emulated seconds on a quiet machine.
STARTUP_ALLOWANCE_S = 180.0

# Why a measure makes no sense under an emulator; those that are not here do.
REFUSALS = {
    "latency": "emulated seconds are no latency",
    "periodic": "emulated seconds are no latency",
    "profile": "emulated seconds are no latency",
    "memory": "the resident memory of an emulated process is the emulator's too",
}


class QemuTarget:
    """Runs requests in the ARM64 user space."""

    def __init__(self, address: str = "", space: Space | None = None, startup_s: float = STARTUP_ALLOWANCE_S) -> None:
        self.cpu = find_cpu(address)
        self.space = space or default_space()
        self.startup_s = startup_s

    def session(self, _limit_s: float, /) -> AbstractContextManager[Self]:
        """Itself: requests have nothing in common here."""
        return nullcontext(self)

    def run(self, request: Request) -> Answer:
        """Run one request in an emulated process of its own.

        Raises:
            BenchError: The measure makes no sense here, the user space is not set up, or the worker failed.
        """
        self._refuse(request)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            counted = request.measure == "instructions"
            counter = Path(folder) / "counts"
            plugin = _option(self.space.counter) + ",out=" + _option(counter) if counted else None
            command = self.space.python(self.cpu, ["-P", "-s", "-B", str(WORKER)], plugin)
            emulated = replace(request, emulated=True, counter=str(counter) if counted else None)
            return ask(command, emulated, startup_s=self.startup_s, environment=ENVIRONMENT)

    def _refuse(self, request: Request) -> None:
        if request.measure in REFUSALS:
            raise BenchError(
                f"--device arm64 cannot measure {request.measure}: {REFUSALS[request.measure]}; "
                f"count instructions instead: {self._next_command(request)}"
            )
        if not self.space.built:
            raise BenchError(f"the ARM64 user space is not set up; build it once: {SETUP}")
        if request.measure == "instructions" and not self.space.counter.exists():
            raise BenchError(f"the counting plugin is not built: install a C compiler (gcc) or set CC, then: {SETUP}")

    def _next_command(self, request: Request) -> str:
        model, *others = request.models
        baseline = ["--baseline", others[0]] if others else []
        return shlex.join(["bench", "instructions", model, *baseline, "--device", f"arm64:{self.cpu.name}"])


def _option(path: Path) -> str:
    """A path inside a QEMU option, where commas separate."""
    return str(path).replace(",", ",,")
