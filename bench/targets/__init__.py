"""Where a model can be measured: one file and one line in `TARGETS` for each.

A device is written ``name`` or ``name:address``; the name picks the target, which is built with the address.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from bench.errors import BenchError
from bench.protocol import Answer, Request
from bench.targets.adb import CAVEAT as ADB_CAVEAT
from bench.targets.adb import adb_target
from bench.targets.local import LocalTarget
from bench.targets.qemu.target import QemuTarget
from bench.targets.ssh import ssh_target


class Session(Protocol):
    """Runs requests, each in a fresh process, somewhere."""

    def run(self, request: Request) -> Answer:
        """Answer one request; every failure is a BenchError with one clear message, within a bounded time."""


class Target(Protocol):
    """Where requests can be run."""

    def session(self, limit_s: float, /) -> AbstractContextManager[Session]:
        """What several requests have in common, as a connection: open it, at most for `limit_s` seconds, and close it.

        Nothing is left on the device after it, whatever happens within. Failures are BenchErrors here as well.
        """


TARGETS: dict[str, Callable[[str], Target]] = {
    "cpu": LocalTarget,
    "ssh": ssh_target,
    "arm64": QemuTarget,
    "adb": adb_target,
}

# Targets that emulate a CPU: there instructions can be counted, and seconds and memory are the emulator's.
EMULATED = frozenset({"arm64"})

# Name of a target -> what makes every figure of it doubtful.
CAVEATS = {"adb": ADB_CAVEAT}


def find_target(device: str) -> Target:
    """The target that ``--device`` names.

    Raises:
        BenchError: The name is unknown, or the target refuses the address.
    """
    name, _, address = device.partition(":")
    if name not in TARGETS:
        raise BenchError(f"unknown device {device!r}; known devices: {', '.join(TARGETS)}")
    return TARGETS[name](address)


def is_emulated(device: str) -> bool:
    """Whether ``--device`` names an emulated CPU."""
    return device.partition(":")[0] in EMULATED


def caveats(device: str) -> tuple[str, ...]:
    """What has to be said with every figure of a device."""
    caveat = CAVEATS.get(device.partition(":")[0])
    return () if caveat is None else (caveat,)
