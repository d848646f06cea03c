"""With the real adb program and a stand-in for the phone (adbd.py): no test here has seen a phone."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.cli import main
from bench.errors import BenchError
from bench.loading import load_report
from bench.protocol import Request
from bench.targets import CAVEATS, find_target
from bench.targets.adb import adb_link
from bench.targets.remote import RemoteTarget
from tests.bench.targets.conftest import free_port, processes_in, wait_until

REQUEST = Request(
    measure="latency",
    models=(),
    threads=1,
    batch=None,
    shapes={},
    seed=0,
    min_seconds=0.0,
    min_samples=3,
    limit_seconds=30.0,
)


@dataclass(frozen=True)
class Phone:
    """A stand-in that adb knows by `serial`; `folder` stands for its /data/local/tmp."""

    serial: str
    folder: Path

    def address(self) -> str:
        return f"{self.serial}?python={sys.executable}"

    def is_clean(self) -> bool:
        return not list(self.folder.iterdir()) and not processes_in(self.folder)


def refused(message: str) -> pytest.RaisesExc[BenchError]:
    return pytest.raises(BenchError, match=message)


def open_session(device: str) -> None:
    with find_target(device).session(10.0):
        pass


@pytest.fixture(scope="module")
def adb_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables of an adb server apart from the user's, with keys of its own."""
    if shutil.which("adb") is None:
        pytest.skip("needs adb: apt-get install adb")
    home = str(tmp_path_factory.mktemp("adb"))
    variables = {"ANDROID_ADB_SERVER_PORT": str(free_port()), "HOME": home, "TMPDIR": home}
    try:
        yield variables
    finally:
        subprocess.run(["adb", "kill-server"], env=os.environ | variables, capture_output=True, check=True)


@pytest.fixture
def phone(adb_server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Phone]:
    """The stand-in, connected; whatever a test does, nothing may be left on it."""
    for name, value in adb_server.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "phone's tmp"
    folder.mkdir()
    words = [sys.executable, Path(__file__).with_name("adbd.py"), folder]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as stand_in:
        try:
            found = Phone(f"127.0.0.1:{stand_in.stdout.readline().strip()}", folder)
            subprocess.run(["adb", "connect", found.serial], check=True, capture_output=True)
            assert wait_until(lambda: b"\tdevice" in subprocess.check_output(["adb", "devices"]))
            yield found
            assert wait_until(found.is_clean), list(folder.rglob("*"))
        finally:
            subprocess.run(["adb", "disconnect"], check=True, capture_output=True)
            stand_in.kill()


def test_bench_measures_through_adb_and_says_that_no_phone_was_tried(phone, make_convs, tmp_path, monkeypatch, capsys):
    out = tmp_path / "report.json"
    model = make_convs("a.onnx", width=300, depth=3)  # megabytes: more than one message of the protocol
    words = ["bench", "memory", model, "--repeats", 2, "--device", f"adb:{phone.address()}", "--json", out]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as ending:
        main()
    printed = capsys.readouterr()
    assert not ending.value.code, printed.err
    report = load_report(out)
    assert report.model.memory.runs[0].peak_rss_bytes > model.stat().st_size
    assert report.warnings[0] == CAVEATS["adb"]
    assert "never tried on a phone" in printed.err
    assert phone.is_clean()


@pytest.mark.parametrize("kill", ["client", "phone"])
def test_a_connection_that_is_cut_leaves_nothing(phone, tmp_path: Path, kill: str) -> None:
    worker = tmp_path / "worker.py"
    worker.write_text("import pathlib, time; pathlib.Path('started').touch(); time.sleep(60)")

    def when_started() -> None:
        assert wait_until(lambda: list(phone.folder.glob("*/started")) != [])
        if kill == "phone":
            subprocess.run(["adb", "disconnect", phone.serial], check=True, capture_output=True)
        else:
            clients = Path(f"/proc/self/task/{threading.main_thread().native_id}/children").read_text().split()
            (client,) = [pid for pid in clients if b"adb\0-s" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            os.kill(int(client), signal.SIGKILL)

    thread = threading.Thread(target=when_started)
    thread.start()
    lost = "the connection was lost while running the worker: .*the device removes what was copied"
    target = RemoteTarget(adb_link(phone.address()), worker=worker)
    with refused(lost), target.session(30.0) as session:
        session.run(REQUEST)
    thread.join()


def test_a_device_that_adb_does_not_know_is_told_with_a_command_to_try(adb_server, monkeypatch) -> None:
    for name, value in adb_server.items():
        monkeypatch.setenv(name, value)
    with refused(r"no session on adb:nobody: .*device 'nobody' not found; .*: adb -s nobody shell "):
        open_session("adb:nobody")
    with refused(r"no session on adb: .*no devices/emulators found; this must work .*: adb shell "):
        open_session("adb")


def test_a_phone_without_python_is_told(phone) -> None:
    with refused(r"no session on adb:.*/nowhere/python3: not found; .*'/nowhere/python3 --version'"):
        open_session(f"adb:{phone.serial}?python=/nowhere/python3")


@pytest.mark.parametrize("address", ["-s", "a b", "$(id)", "a;b", "a\nb", "a?b", "a?python=", "a?python=-c"])
def test_an_address_that_is_none_is_refused_before_anything_starts(address: str) -> None:
    with refused("expected") as refusal:
        find_target(f"adb:{address}")
    assert str(refusal.value).isprintable()


def test_the_words_of_adb() -> None:
    assert adb_link("").command("code") == ["adb", "shell", "-T", "TMPDIR=/data/local/tmp exec python3 -c 'code'"]
    words = adb_link("192.168.1.5:5555?python=/data/local/tmp/py/bin/python3").command("code")
    assert words[:4] == ["adb", "-s", "192.168.1.5:5555", "shell"]
    assert words[-1] == "TMPDIR=/data/local/tmp exec /data/local/tmp/py/bin/python3 -c 'code'"
