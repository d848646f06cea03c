"""Which files the user space is made of: ``packages.toml`` (Debian), ``wheels.txt`` (pip), ``counter.c``.

Each has its SHA-256 in the lock, which experiments/arm64_lock.py writes from signed indexes: what a mirror serves is
compared with that, so that the mirror needs no trust and every machine counts the same instructions.
"""

import hashlib
import tomllib
from dataclasses import dataclass
from pathlib import Path

from bench.targets.qemu.cpus import CPUS

LAYOUT = 1  # of the built space's folders; raised when they change

ROOM = Path(__file__).resolve().parent
WHEELS = ROOM / "wheels.txt"
COUNTER_SOURCE = ROOM / "counter.c"

# Debian keeps a version on its mirrors until the next point release, and every version in its archive.
MIRROR = "http://deb.debian.org/debian"
ARCHIVE = "http://snapshot.debian.org/archive/debian"


@dataclass(frozen=True)
class Package:
    """A Debian package.

    Attributes:
        path: Below a mirror's root.
        size_bytes: Of the file.
    """

    path: str
    size_bytes: int
    sha256: str

    @property
    def file_name(self) -> str:
        """Without its folders."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class Lock:
    """What to build.

    Attributes:
        host: QEMU and its libraries, for x86-64.
        guest: Python and its libraries, for ARM64.
        mirrors: Where to look, one after the other.
        fingerprint: Changes with everything that the built space depends on, but for the plugin (`counter_name`).
    """

    host: tuple[Package, ...]
    guest: tuple[Package, ...]
    mirrors: tuple[str, ...]
    fingerprint: str


def read_lock(room: Path = ROOM) -> Lock:
    """The lock of this version of bench."""
    content = (room / "packages.toml").read_bytes()
    data = tomllib.loads(content.decode())
    digest = hashlib.sha256(content + (room / "wheels.txt").read_bytes() + f"{LAYOUT}{CPUS}".encode())
    return Lock(
        host=_packages(data["host"]),
        guest=_packages(data["guest"]),
        mirrors=(MIRROR, f"{ARCHIVE}/{data['snapshot']}"),
        fingerprint=digest.hexdigest()[:12],
    )


def counter_name() -> str:
    """The compiled plugin's file name: another source is another file, which an older one cannot stand in for."""
    return f"counter-{hashlib.sha256(COUNTER_SOURCE.read_bytes()).hexdigest()[:8]}.so"


def _packages(rows: list[dict[str, str | int]]) -> tuple[Package, ...]:
    return tuple(Package(str(row["path"]), int(row["bytes"]), str(row["sha256"])) for row in rows)
