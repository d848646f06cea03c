"""Where the built user space lies, and how a program is started in it.

    <cache>/edge-compress/downloads/          packages as they came, sums verified
    <cache>/edge-compress/arm64-<lock>/host/  QEMU and its libraries, for x86-64
                                       root/  Python, numpy and onnxruntime, for ARM64
                                       cpu/<name>/  what QEMU takes for / : links into root, and what tells of the CPU
                                       counter-<source>.so  the plugin

The folder appears by one rename when it is complete: if it is there, it is whole.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.targets.qemu.cpus import Cpu
from bench.targets.qemu.lock import counter_name, read_lock

SETUP = "bench devices setup arm64"

# Nothing of the caller's environment: its size and content would move the counts, its PYTHONPATH the modules.
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "LC_ALL": "C.UTF-8",
    "PYTHONHASHSEED": "0",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/edge-compress``, ``~/.cache/edge-compress`` by default.

    Raises:
        BenchError: There is no home.
    """
    named = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The XDG specification has relative paths ignored.
        base = Path(named) if Path(named).is_absolute() else Path.home() / ".cache"
    except RuntimeError as error:
        raise BenchError("there is no home directory for the cache: set XDG_CACHE_HOME to a folder") from error
    return base / "edge-compress"


@dataclass(frozen=True)
class Space:
    """A user space, built or not."""

    folder: Path

    @property
    def built(self) -> bool:
        """Whether Python can be started in it."""
        return self.folder.is_dir()

    @property
    def counter(self) -> Path:
        """The plugin that counts instructions; absent if it was built without a compiler."""
        return self.folder / counter_name()

    def python(self, cpu: Cpu, words: Sequence[str], plugin: str | None = None) -> list[str]:
        """The command that runs the emulated Python.

        Args:
            cpu: Which CPU it sees.
            words: Options and arguments of Python.
            plugin: QEMU's ``-plugin``.
        """
        libraries = ":".join(
            str(self.folder / "host" / name) for name in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
        )
        loader = self.folder / "host/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
        root = self.folder / "cpu" / cpu.name
        command = [str(loader), "--library-path", libraries, str(self.folder / "host/usr/bin/qemu-aarch64")]
        command += ["-cpu", cpu.name, "-L", str(root)]
        if plugin is not None:
            command += ["-plugin", plugin]
        return [*command, str(root / "usr/bin/python3.11"), *words]


def default_space() -> Space:
    """The user space of this version of bench."""
    return Space(cache_folder() / f"arm64-{read_lock().fingerprint}")
