"""``bench devices``: where can be measured from here, and what the other devices need."""

import os
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import typer

from bench.cli import console
from bench.errors import BenchError
from bench.targets.qemu.cpus import CPUS
from bench.targets.qemu.setup import missing_programs, set_up
from bench.targets.qemu.space import SETUP, default_space


@dataclass(frozen=True)
class Status:
    """A device as it is found here.

    Attributes:
        device: What to write behind ``--device``.
        state: ``ready``, or what is missing, in a word or two.
        about: What it is, or the next command to run.
    """

    device: str
    state: str
    about: str


def _cpu() -> Status:
    return Status("cpu", "ready", f"this machine: {platform.machine()}, {os.cpu_count()} cores")


def _arm64() -> Status:
    device = f"arm64:{'|'.join(CPUS)}"
    space = default_space()
    if not space.built:
        missing = missing_programs()
        return Status(device, "not set up", f"needs {', '.join(missing)}" if missing else f"build it once: {SETUP}")
    if not space.counter.exists():
        return Status(device, "no plugin", f"cannot count yet: install a C compiler (gcc) or set CC, then: {SETUP}")
    return Status(device, "ready", f"emulated, for bench instructions: {space.folder}")


def _program(device: str, program: str, package: str, ready: str) -> Status:
    if shutil.which(program) is None:
        return Status(device, f"no {program}", f"install it: apt-get install {package}")
    return Status(device, "ready", ready)


# Name of a target -> how it stands with it here.
DEVICES: dict[str, Callable[[], Status]] = {
    "cpu": _cpu,
    "arm64": _arm64,
    "ssh": lambda: _program(
        "ssh://user@host", "ssh", "openssh-client", "the OpenSSH client; the host needs Python with onnxruntime"
    ),
    "adb": lambda: _program(
        "adb[:SERIAL]", "adb", "adb", "Android's adb; the device needs Python with onnxruntime; never tried on a phone"
    ),
}


def _set_up_arm64() -> None:
    set_up(lambda line: typer.echo(line, err=True))


# Name of a target that has to be built before use -> what builds it.
SETUPS: dict[str, Callable[[], None]] = {"arm64": _set_up_arm64}


def devices_command(
    action: Annotated[str | None, typer.Argument(metavar="setup", help="setup: build what a device needs.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="DEVICE", help=f"One of: {', '.join(SETUPS)}.")] = None,
) -> None:
    """List the devices and what each missing one needs; with `setup arm64`, build the emulated ARM64 user space."""
    if action is not None:
        if action != "setup" or name not in SETUPS:
            words = " ".join(word for word in (action, name) if word is not None)
            known = ", ".join(f"bench devices setup {target}" for target in SETUPS)
            raise BenchError(f"bench devices {words} is no command; there is bench devices, the list, and {known}")
        SETUPS[name]()
    table = console.table("devices", "--device", "state")
    table.add_column("", justify="left", overflow="fold")
    for status in DEVICES.values():
        found = status()
        table.add_row(found.device.replace("[", "\\["), found.state, found.about)
    console.stdout().print(table)
