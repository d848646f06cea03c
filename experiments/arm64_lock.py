"""Which files the ARM64 user space of `bench` is made of, with their sums.

    python experiments/arm64_lock.py

Writes packages.toml from Debian's signed package index, and wheels.txt from pip's, to bench/targets/qemu/.
Run it after a point release of Debian, or for another ONNX Runtime; `bench devices setup arm64` then builds that space.
Needs apt-get, Debian's keyring, pip and a network; no root.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tomli_w

QEMU_ROOM = Path(__file__).resolve().parent.parent / "bench" / "targets" / "qemu"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"
WHEELS = ("numpy==2.2.6", "onnxruntime==1.23.2")

# QEMU for this machine, with every library it is linked to, so that it runs on any distribution.
HOST = (
    *("qemu-user", "libc6", "libgcc-s1", "libcapstone4", "libglib2.0-0", "libpcre2-8-0", "libnuma1", "liburing2"),
    *("zlib1g", "libgnutls30", "libgmp10", "libnettle8", "libhogweed6", "libunistring2", "libidn2-0", "libp11-kit0"),
    *("libtasn1-6", "libffi8"),
)
# Python for ARM64, with the libraries of those of its modules that numpy and onnxruntime import.
GUEST = (
    *("libc6", "libgcc-s1", "libstdc++6", "zlib1g", "libexpat1", "libffi8", "libbz2-1.0", "liblzma5", "libssl3"),
    *("python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib"),
)


def apt(folder: Path, *words: str) -> str:
    """What an apt program prints that knows nothing but the suite, in folders of its own."""
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "status").touch()
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {SUITE} main\n")
    (folder / "apt.conf").write_text(
        f'Dir::Etc::SourceList "{folder}/sources.list";\nDir::Etc::SourceParts "/dev/null";\n'
        f'Dir::State::Lists "{folder}/lists";\nDir::State::status "{folder}/status";\nDir::Cache "{folder}";\n'
        'APT::Architecture "arm64";\nAPT::Architectures { "arm64"; "amd64"; };\n'
    )
    environment = {**os.environ, "APT_CONFIG": f"{folder}/apt.conf", "LC_ALL": "C"}
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout


def package(folder: Path, name: str, architecture: str) -> dict[str, Any]:
    """The newest version of a package: where it lies on a mirror, its size and its sum."""
    text = apt(folder, "apt-cache", "show", "--no-all-versions", f"{name}:{architecture}")
    fields = dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", text, flags=re.MULTILINE))
    return {"path": fields["Filename"], "bytes": int(fields["Size"]), "sha256": fields["SHA256"]}


def wheels(folder: Path) -> str:
    """A requirements file with the sums of the aarch64 wheels."""
    platforms = [word for glibc in ("2_17", "2_27", "2_28") for word in ("--platform", f"manylinux_{glibc}_aarch64")]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", "3.11", "--implementation", "cp", *platforms, "--dest", str(folder), *WHEELS]
    subprocess.run(command, check=True)
    lines = ["# Written by experiments/arm64_lock.py."]
    for requirement in WHEELS:
        (wheel,) = folder.glob(f"{requirement.partition('==')[0]}-*.whl")
        lines.append(f"{requirement} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write both files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        apt(folder, "apt-get", "-q", "update")
        lock = {
            "snapshot": datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"),
            "host": [package(folder, name, "amd64") for name in HOST],
            "guest": [package(folder, name, "arm64") for name in GUEST],
        }
        (folder / "wheels").mkdir()
        requirements = wheels(folder / "wheels")
    header = "# Written by experiments/arm64_lock.py from Debian's signed package index.\n"
    (QEMU_ROOM / "packages.toml").write_text(header + tomli_w.dumps(lock))
    (QEMU_ROOM / "wheels.txt").write_text(requirements)


if __name__ == "__main__":
    main()
