import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest

import bench.targets.qemu.lock
from bench.errors import BenchError
from bench.targets.qemu import setup
from bench.targets.qemu.lock import COUNTER_SOURCE, Lock, Package, counter_name, read_lock
from bench.targets.qemu.programs import run
from bench.targets.qemu.setup import compiler, fetch, missing_programs, set_up
from bench.targets.qemu.space import Space, cache_folder

needs_apt = pytest.mark.skipif(bool(missing_programs()), reason=f"needs {', '.join(missing_programs())}")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edge-compress"


def deb(mirror: Path, name: str) -> Package:
    """A Debian package on a mirror of one's own, with one file."""
    tree = mirror / f"{name}-tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: Nobody <a@b.c>\nDescription: none\n"
    )
    (tree / name).write_text(name)
    file = mirror / f"pool/{name}_1_all.deb"
    file.parent.mkdir(exist_ok=True)
    subprocess.run(["dpkg-deb", "--build", tree, file], check=True, capture_output=True)
    content = file.read_bytes()
    return Package(f"pool/{name}_1_all.deb", len(content), hashlib.sha256(content).hexdigest())


def lock_of(tmp_path: Path, *packages: Package) -> Lock:
    return Lock(host=packages, guest=(), mirrors=(f"copy://{tmp_path}",), fingerprint="0123456789ab")


def test_the_lock_names_what_is_needed_with_sums() -> None:
    lock = read_lock()
    names = [package.file_name.partition("_")[0] for package in lock.host + lock.guest]
    assert {"qemu-user", "python3.11-minimal"} < set(names)
    assert all(len(bytes.fromhex(package.sha256)) == 32 for package in lock.host + lock.guest)
    assert all(package.file_name.endswith("_amd64.deb") for package in lock.host)
    assert all(package.file_name.endswith("_arm64.deb") for package in lock.guest)
    assert len(lock.fingerprint) == 12


def test_another_lock_is_another_folder(tmp_path: Path) -> None:
    room = Path(setup.__file__).parent
    for name in ("packages.toml", "wheels.txt"):
        shutil.copy(room / name, tmp_path)
    assert read_lock(tmp_path).fingerprint == read_lock().fingerprint
    wheels = (tmp_path / "wheels.txt").read_text()
    (tmp_path / "wheels.txt").write_text(wheels.replace("numpy==2", "numpy==3"))
    assert read_lock(tmp_path).fingerprint != read_lock().fingerprint


def test_the_cache_is_where_the_user_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    for named, folder in (
        (str(tmp_path), tmp_path),
        ("relative", "/home/someone/.cache"),
        ("", "/home/someone/.cache"),
    ):
        monkeypatch.setenv("XDG_CACHE_HOME", named)
        assert cache_folder() == Path(folder) / "edge-compress"


@needs_apt
def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    package, downloads = deb(tmp_path, "one"), tmp_path / "downloads"
    downloads.mkdir()
    said: list[str] = []
    file = fetch(package, (f"copy://{tmp_path}",), downloads, said.append)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == package.sha256
    assert fetch(package, ("copy:///nowhere",), downloads, said.append) == file
    assert said == ["one_1_all.deb, 0.0 MB"]
    assert [path.name for path in downloads.iterdir()] == ["one_1_all.deb"]


@needs_apt
def test_a_damaged_file_is_fetched_again_and_from_the_next_mirror(tmp_path: Path) -> None:
    package, downloads = deb(tmp_path, "one"), tmp_path / "downloads"
    downloads.mkdir()
    (downloads / package.file_name).write_bytes(b"half of it")
    (downloads / f".{package.file_name}.part").write_bytes(b"half of it")
    file = fetch(package, ("copy:///nowhere", f"copy://{tmp_path}"), downloads, lambda _: None)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == package.sha256


@needs_apt
def test_what_is_not_the_file_of_the_lock_is_deleted_and_refused(tmp_path: Path) -> None:
    package, downloads = deb(tmp_path, "one"), tmp_path / "downloads"
    downloads.mkdir()
    served = tmp_path / package.path
    served.write_bytes(served.read_bytes() + b"!")
    with pytest.raises(BenchError) as caught:
        fetch(package, (f"copy://{tmp_path}", "copy:///nowhere"), downloads, lambda _: None)
    message = str(caught.value)
    got = hashlib.sha256(served.read_bytes()).hexdigest()
    assert f"has the SHA-256 {got}, expected {package.sha256}; it was deleted" in message
    assert "cannot fetch copy:///nowhere/pool/one_1_all.deb: E: Failed to fetch" in message
    assert message.endswith("check the network and its proxy, then: bench devices setup arm64")
    assert list(downloads.iterdir()) == []


@needs_apt
def test_an_interrupted_setup_leaves_what_it_fetched_and_nothing_else(tmp_path: Path, cache: Path) -> None:
    packages = [deb(tmp_path, name) for name in ("one", "two")]
    served = (tmp_path / packages[1].path).rename(tmp_path / "away")
    remains = cache / ".arm64-dead.tmp"
    remains.mkdir(parents=True)
    said: list[str] = []
    with pytest.raises(BenchError, match=r"cannot fetch .*two_1_all\.deb"):
        set_up(said.append, lock_of(tmp_path, *packages))
    assert sorted(path.name for path in cache.iterdir()) == ["downloads", "lock"]
    served.rename(tmp_path / packages[1].path)

    class StopError(Exception):
        pass

    def stop_at_pip(line: str) -> None:
        said.append(line)
        if "pip" in line:
            raise StopError

    with pytest.raises(StopError):
        set_up(stop_at_pip, lock_of(tmp_path, *packages))
    assert said == [
        *("one_1_all.deb, 0.0 MB", "two_1_all.deb, 0.0 MB", "two_1_all.deb, 0.0 MB"),
        "numpy and onnxruntime for ARM64, by pip",
    ]
    assert sorted(path.name for path in cache.iterdir()) == ["downloads", "lock"]


@needs_apt
def test_a_built_space_is_not_built_again(cache: Path, tmp_path: Path) -> None:
    lock = lock_of(tmp_path, Package("pool/none.deb", 1, "0" * 64))
    folder = cache / f"arm64-{lock.fingerprint}"
    folder.mkdir(parents=True)
    (folder / counter_name()).touch()
    said: list[str] = []
    assert set_up(said.append, lock) == Space(folder)
    assert said == [f"the user space is there: {folder}"]


@needs_apt
def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(
        BenchError, match=r"cannot set up arm64: .*file.*: Not a directory; make room there, or set XDG"
    ):
        set_up(lambda _: None)


@needs_apt
def test_without_a_compiler_the_next_setup_builds_the_plugin_alone(cache, tmp_path: Path, monkeypatch) -> None:
    lock = lock_of(tmp_path)
    folder = cache / f"arm64-{lock.fingerprint}"
    folder.mkdir(parents=True)
    said: list[str] = []
    monkeypatch.setenv("CC", "no-such-compiler")
    space = set_up(said.append, lock)
    assert not space.counter.exists()
    assert said[-1] == (
        "no C compiler: instructions cannot be counted; install gcc or set CC, then: bench devices setup arm64"
    )
    monkeypatch.setenv("CC", "false")
    with pytest.raises(BenchError, match=r"cannot compile the counting plugin: exit code 1"):
        set_up(said.append, lock)
    assert list(folder.iterdir()) == []
    monkeypatch.delenv("CC")
    if compiler() is None:
        pytest.skip("needs a C compiler")
    assert set_up(said.append, lock).counter.stat().st_size > 0
    assert [path.name for path in folder.iterdir()] == [counter_name()]
    former = space.counter
    source = tmp_path / "counter.c"
    source.write_text(f"{COUNTER_SOURCE.read_text()}\n/* another */\n")
    monkeypatch.setattr(bench.targets.qemu.lock, "COUNTER_SOURCE", source)
    assert not space.counter.exists()  # an older plugin does not stand in for it
    assert set_up(said.append, lock).counter.exists()
    assert former.exists()


def test_missing_programs_are_told_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "APT_HELPER", "/nowhere/apt-helper")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(setup.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(setup.sys, "platform", "linux")
    with pytest.raises(BenchError, match=r"cannot set up arm64 without apt \(Debian .*\), dpkg-deb \(package dpkg\)$"):
        set_up(lambda _: None)
    monkeypatch.setattr(setup.platform, "machine", lambda: "aarch64")
    with pytest.raises(BenchError, match=r"cannot set up arm64 without Linux on x86-64"):
        set_up(lambda _: None)


def test_a_program_that_fails_is_told_by_its_errors() -> None:
    assert run(["sh", "-c", "echo out"], "print") == "out\n"
    with pytest.raises(BenchError, match=r"^cannot build it: E: no room; E: no time$"):
        run(["sh", "-c", "echo W: careful; echo E: no room >&2; echo E: no time >&2; exit 3"], "build it")
    with pytest.raises(BenchError, match=r"^cannot build it: last$"):
        run(["sh", "-c", "echo first; echo last; exit 3"], "build it")
    with pytest.raises(BenchError, match=r"^cannot build it: no-such-program: No such file or directory$"):
        run(["no-such-program"], "build it")
