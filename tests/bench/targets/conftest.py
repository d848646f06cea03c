"""A device on this machine: a real sshd on a free port, with keys and a configuration of its own."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")

# Alias of the host -> command that its key is bound to; the one asked for is in SSH_ORIGINAL_COMMAND.
FORCED = {
    "localhost": None,
    "onecore": 'exec taskset -c 0 sh -c "$SSH_ORIGINAL_COMMAND"',
    "noisy": 'printf "Welcome to \\033[31mnoisy\\n{}\\nlast login: "; echo motd >&2; eval "$SSH_ORIGINAL_COMMAND"',
    "full": 'ulimit -f 8; eval "$SSH_ORIGINAL_COMMAND"',
    "nearly-full": 'ulimit -f 300; eval "$SSH_ORIGINAL_COMMAND"',
    "no-tmp": 'cd /; TMPDIR=/nowhere; export TMPDIR; ulimit -f 0; eval "$SSH_ORIGINAL_COMMAND"',
    "nologin": "echo This account is currently not available.; exit 1",
    "silent": "exec sleep 5",
}


def wait_until(done: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether `done` comes true in time."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def processes_in(folder: Path) -> list[int]:
    """Those of this machine that were started in `folder` or deeper; none where there is no /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cwd"):
        try:
            where = entry.readlink()
        except OSError:
            continue
        if str(where).removesuffix(" (deleted)").startswith(f"{folder}/"):
            found.append(int(entry.parent.name))
    return found


@dataclass(frozen=True)
class Device:
    """A device with an SSH server.

    Attributes:
        folder: Its temporary files; empty when nothing was left behind.
        bin: Holds an ``ssh`` that is the real one with our configuration file.
        log: To which that one appends its process ids.
    """

    folder: Path
    bin: Path
    log: Path

    def address(self, alias: str = "localhost") -> str:
        """As after ``ssh:``, with a Python that has onnxruntime."""
        return f"//{alias}?python={sys.executable}"

    def clients(self) -> list[int]:
        """Process ids of the ssh clients of this test."""
        return [int(line) for line in self.log.read_text().split()]

    def wait_for_files(self, pattern: str) -> bool:
        """Whether such files appear on the device."""
        return wait_until(lambda: list(self.folder.glob(pattern)) != [], 20.0)

    def wait(self, done: Callable[[], bool]) -> bool:
        """Whether `done` comes true soon."""
        return wait_until(done)

    def is_clean(self) -> bool:
        """Whether nothing is left, neither files nor processes."""
        return not list(self.folder.iterdir()) and not processes_in(self.folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_key(path: Path) -> str:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path.with_suffix(".pub").read_text().rsplit(" ", 1)[0]


def write_server(home: Path, folder: Path, port: int) -> None:
    """Keys and configuration of the server; each alias of the host is a user's key with a command of its own."""
    lines = []
    for alias, command in FORCED.items():
        key = make_key(home / alias)
        escaped = (command or "").replace('"', '\\"')
        lines.append(f'command="{escaped}" {key}' if command else key)
    (home / "authorized_keys").write_text("\n".join(lines) + "\n")
    (home / "banner").write_text("Authorised use only.\n")
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": home / "host",
        "AuthorizedKeysFile": home / "authorized_keys",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "yes",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
        "Banner": home / "banner",
        "SetEnv": f'"TMPDIR={folder}"',
        "MaxStartups": 100,
    }
    (home / "sshd_config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))


def write_client(home: Path, port: int) -> None:
    """The user's own configuration, with one alias that the server does not know and one whose host key is unknown."""
    make_key(home / "wrong-key")
    (home / "known_hosts").write_text(f"[127.0.0.1]:{port} {(home / 'host.pub').read_text()}")
    (home / "nobody_known").touch()
    text = ""
    for alias in (*FORCED, "wrong-key", "stranger"):
        key = "localhost" if alias == "stranger" else alias
        known = "nobody_known" if alias == "stranger" else "known_hosts"
        text += f"Host {alias}\n  IdentityFile {home / key}\n  UserKnownHostsFile {home / known}\n"
    common = f"HostName 127.0.0.1\n  Port {port}\n  IdentitiesOnly yes\n  IdentityAgent none\n  RemoteCommand false\n"
    (home / "ssh_config").write_text(f"{text}Host *\n  {common}  RequestTTY force\n  StrictHostKeyChecking yes\n")


def write_ssh(home: Path) -> Path:
    """A folder for the PATH: OpenSSH takes the user's configuration from the home of the password file, not of HOME."""
    folder = home / "bin"
    folder.mkdir()
    real = shlex.quote(str(shutil.which("ssh")))
    config, log = (shlex.quote(str(home / name)) for name in ("ssh_config", "clients"))
    (folder / "ssh").write_text(f'#!/bin/sh\necho $$ >> {log}\nexec {real} -F {config} "$@"\n')
    (folder / "ssh").chmod(0o700)
    return folder


def answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), 1.0):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Device]:
    """The running server."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("needs sshd and ssh: apt-get install openssh-server openssh-client")
    home = tmp_path_factory.mktemp("sshd")
    folder, port = home / "device's tmp", free_port()
    folder.mkdir()
    make_key(home / "host")
    write_server(home, folder, port)
    write_client(home, port)
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # a server that may change its user insists on this folder
    with (home / "log").open("wb") as log:
        server = subprocess.Popen([SSHD, "-D", "-e", "-f", home / "sshd_config"], stdout=log, stderr=log)
    try:
        if not wait_until(lambda: answers(port) or server.poll() is not None) or server.poll() is not None:
            pytest.fail(f"sshd does not start: {(home / 'log').read_text()}")
        yield Device(folder=folder, bin=write_ssh(home), log=home / "clients")
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def device(sshd: Device, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    """The device as a user reaches it; whatever a test does, nothing may be left on it."""
    monkeypatch.setenv("PATH", f"{sshd.bin}:{os.environ['PATH']}")
    sshd.log.write_text("")
    yield sshd
    assert wait_until(sshd.is_clean), (list(sshd.folder.rglob("*")), processes_in(sshd.folder))
