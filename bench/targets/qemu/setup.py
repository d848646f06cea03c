"""Build the ARM64 user space in the cache directory: no root, no container.

Debian's packages are fetched with apt's own downloader and unpacked with dpkg-deb; numpy and onnxruntime come by pip.
What arrives is compared with the lock. Everything is put together under a temporary name, tried, and renamed.
"""

import hashlib
import os
import platform
import shlex
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from bench.errors import BenchError
from bench.targets.qemu.cpus import CPUS, DEFAULT_CPU
from bench.targets.qemu.lock import COUNTER_SOURCE, WHEELS, Lock, Package, read_lock
from bench.targets.qemu.programs import run
from bench.targets.qemu.space import ENVIRONMENT, SETUP, Space, cache_folder

Say = Callable[[str], None]

APT_HELPER = "/usr/lib/apt/apt-helper"
QEMU = "qemu-aarch64"
PYTHON = "3.11"
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64")
COMPILERS = ("cc", "gcc", "clang")


def missing_programs() -> list[str]:
    """What this machine lacks for the user space, each with where to get it; the compiler is apart."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return [f"Linux on x86-64 (this is {platform.system()} on {platform.machine()})"]
    faults = []
    if not Path(APT_HELPER).exists():
        faults.append("apt (Debian and Ubuntu have it; elsewhere run in a container of theirs)")
    if shutil.which("dpkg-deb") is None:
        faults.append("dpkg-deb (package dpkg)")
    if find_spec("pip") is None:
        faults.append(f"pip ({sys.executable} -m ensurepip)")
    return faults


def compiler() -> list[str] | None:
    """The C compiler as a command: ``$CC``, or the first of the usual names."""
    named = shlex.split(os.environ.get("CC", ""))
    if named:
        return named if shutil.which(named[0]) else None
    found = next(filter(None, map(shutil.which, COMPILERS)), None)
    return [found] if found else None


def set_up(say: Say, lock: Lock | None = None) -> Space:
    """Build what is missing; nothing is done twice, and what was fetched before an interruption is kept.

    Args:
        say: Called with a line for each step.
        lock: What to build; by default this version's.

    Raises:
        BenchError: A program is missing, a file could not be fetched or is not that of the lock, or the disk is full.
    """
    lock = lock or read_lock()
    cache = cache_folder()
    space = Space(cache / f"arm64-{lock.fingerprint}")
    faults = missing_programs()
    if faults:
        raise BenchError(f"cannot set up arm64 without {', '.join(faults)}")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache, say):
            if space.built:
                say(f"the user space is there: {space.folder}")
            else:
                _build(space, lock, cache, say)
            _compile_counter(space, say)
    except OSError as error:
        place = error.filename or cache
        raise BenchError(
            f"cannot set up arm64: {place}: {error.strerror}; make room there, or set XDG_CACHE_HOME"
        ) from error
    return space


@contextmanager
def _alone(cache: Path, say: Say) -> Iterator[None]:
    """One setup at a time; remains of interrupted ones are removed."""
    import fcntl  # absent on Windows, which `missing_programs` refuses

    with (cache / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another setup")
            fcntl.flock(file, fcntl.LOCK_EX)
        for remains in cache.glob(".arm64-*.tmp"):
            shutil.rmtree(remains)
        yield


def _build(space: Space, lock: Lock, cache: Path, say: Say) -> None:
    downloads = cache / "downloads"
    downloads.mkdir(exist_ok=True)
    building = Space(cache / f".arm64-{uuid.uuid4().hex[:8]}.tmp")
    try:
        for side, packages in (("host", lock.host), ("root", lock.guest)):
            folder = building.folder / side
            folder.mkdir(parents=True)
            for package in packages:
                file = fetch(package, lock.mirrors, downloads, say)
                run(["dpkg-deb", "--extract", str(file), str(folder)], f"unpack {file}")
        _keep_one_emulator(building)
        say("numpy and onnxruntime for ARM64, by pip")
        _install_wheels(building.folder / "root/usr/lib/python3/dist-packages")
        _make_roots(building)
        say("a first start")
        _try_out(building)
        building.folder.rename(space.folder)
    finally:
        if building.folder.exists():
            shutil.rmtree(building.folder)
    say(f"built {space.folder}")


def fetch(package: Package, mirrors: tuple[str, ...], downloads: Path, say: Say) -> Path:
    """The file of a package in `downloads`, from there or from the first mirror that serves it.

    Raises:
        BenchError: No mirror has it, or what came is not the file of the lock.
    """
    file = downloads / package.file_name
    if file.is_file() and _sha256(file) == package.sha256:
        return file
    say(f"{package.file_name}, {package.size_bytes / 1e6:.1f} MB")
    arriving, faults = file.with_name(f".{file.name}.part"), []
    for mirror in mirrors:
        arriving.unlink(missing_ok=True)
        try:
            run(
                [APT_HELPER, "download-file", f"{mirror}/{package.path}", str(arriving)],
                f"fetch {mirror}/{package.path}",
            )
        except BenchError as error:
            faults.append(str(error))
            continue
        got = _sha256(arriving)
        if got == package.sha256:
            arriving.replace(file)
            return file
        arriving.unlink()
        faults.append(f"{mirror}/{package.path} has the SHA-256 {got}, expected {package.sha256}; it was deleted")
    raise BenchError("; ".join(faults) + f"; check the network and its proxy, then: {SETUP}")


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _keep_one_emulator(space: Space) -> None:
    """Remove the emulators of the thirty other architectures, 100 MB."""
    for program in (space.folder / "host/usr/bin").glob("qemu-*"):
        if program.name != QEMU:
            program.unlink()


def _install_wheels(target: Path) -> None:
    """Install with pip, which compares the wheels with the sums of the lock.

    Raises:
        BenchError: There is no network, or a wheel is not the one of the lock.
    """
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += [
        "--no-deps",
        "--no-compile",
        "--only-binary=:all:",
        "--python-version",
        PYTHON,
        "--implementation",
        "cp",
    ]
    command += [word for name in PLATFORMS for word in ("--platform", name)]
    command += ["--require-hashes", "--target", str(target), "--requirement", str(WHEELS)]
    run(command, "install numpy and onnxruntime for ARM64", {"PIP_USER": "0"})


def _make_roots(space: Space) -> None:
    """For each CPU a folder that QEMU takes for ``/``."""
    for cpu in CPUS.values():
        root = space.folder / "cpu" / cpu.name
        (root / "proc").mkdir(parents=True)
        (root / "proc/cpuinfo").write_text(cpu.cpuinfo())
        # As many cores as cpuinfo lists: ONNX Runtime aborts if the two disagree.
        cores = root / "sys/devices/system/cpu"
        cores.mkdir(parents=True)
        for name in ("possible", "present", "online", "kernel_max"):
            (cores / name).write_text("0\n")
        for name in ("usr", "lib", "etc"):
            (root / name).symlink_to(Path("../../root") / name)


def _try_out(space: Space) -> None:
    """Import what the worker imports, which also leaves the modules' bytecode in the cache for later starts.

    Raises:
        BenchError: The emulated Python does not run, or has other versions than the lock.
    """
    script = "import numpy, onnxruntime as o; print(f'numpy=={numpy.__version__} onnxruntime=={o.__version__}')"
    command = space.python(CPUS[DEFAULT_CPU], ["-P", "-s", "-c", script])
    got = run(
        ["env", "-i", *(f"{key}={value}" for key, value in ENVIRONMENT.items()), *command], "start Python for ARM64"
    )
    expected = " ".join(line.split()[0] for line in WHEELS.read_text().splitlines() if "==" in line)
    if got.strip() != expected:
        raise BenchError(f"the emulated Python has {got.strip()!r}, expected {expected!r}")


def _compile_counter(space: Space, say: Say) -> None:
    """Compile the plugin where it is missing; without a compiler all but `bench instructions` works."""
    if space.counter.exists():
        return
    command = compiler()
    if command is None:
        say(f"no C compiler: instructions cannot be counted; install gcc or set CC, then: {SETUP}")
        return
    compiled = space.folder / f".counter.{uuid.uuid4().hex[:8]}.tmp"
    options = ["-shared", "-fPIC", "-O2", "-fvisibility=hidden", "-o", str(compiled), str(COUNTER_SOURCE)]
    try:
        run([*command, *options], "compile the counting plugin")
        compiled.rename(space.counter)
    finally:
        compiled.unlink(missing_ok=True)
    say(f"compiled {space.counter}")
