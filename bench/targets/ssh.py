"""A device with an SSH server: a board, a phone under Termux, another computer.

Written ``ssh://[user@]host[:port][?python=PATH]``. The OpenSSH client does the connecting, with the user's own
configuration: aliases, jump hosts, keys and known hosts are as for ``ssh host``. It never asks for a password.
"""

import re
import shlex
from collections.abc import Sequence

from bench.errors import BenchError
from bench.targets.link import Link, shell_word
from bench.targets.remote import CONNECT_S, RemoteTarget

ADDRESS = re.compile(
    r"//(?:(?P<user>[^@/?]*)@)?(?P<host>\[[^]]*\]|[^]\[:/?@]*)(?::(?P<port>[^/?]*))?(?:\?python=(?P<python>.*))?",
    re.DOTALL,
)
PASSWORD = re.compile(r"//[^@/?\[]*:(?!\d*\?python=).*@", re.DOTALL)  # a colon in front of an @
USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*|\[[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?\]")
PORT = re.compile(r"[0-9]{1,5}")
FORM = "ssh://[user@]host[:port][?python=/path/on/the/device]"
DEFAULT_PYTHON = "python3"
VENV = "~/bench-venv"  # that messages advise to make: systems do not let pip install into their own Python

# Whatever the user's configuration says: no questions, a bounded wait, nothing but this one command, no banner.
OPTIONS = {
    "BatchMode": "yes",
    "ConnectTimeout": f"{CONNECT_S * 3 / 4:.0f}",  # so that ssh can tell the reason
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "3",
    "ControlMaster": "no",
    "ClearAllForwardings": "yes",
    "RemoteCommand": "none",
    "LogLevel": "ERROR",
}


def ssh_target(address: str) -> RemoteTarget:
    """The host that the OpenSSH client reaches; raises as `ssh_link`."""
    return RemoteTarget(ssh_link(address))


def ssh_link(address: str) -> Link:
    """The way to ``//[user@]host[:port][?python=PATH]``.

    Raises:
        BenchError: The address is none, or not safe as a word of a command.
    """
    if PASSWORD.match(address):
        raise BenchError("--device ssh://...: passwords are not taken; copy a key to the device with ssh-copy-id")
    device = "ssh:" + address
    parts = ADDRESS.fullmatch(address)
    if parts is None:
        raise BenchError(f"--device {device!r}: expected {FORM}")
    user, host, port, python = parts.group("user", "host", "port", "python")
    for value, allowed in ((user, USER), (host, HOST), (port, PORT)):
        if value is not None and not allowed.fullmatch(value):
            raise BenchError(
                f"--device {device!r}: {value!r} is empty or has unexpected characters, expected {FORM}; "
                "unusual names can be given another one in ~/.ssh/config"
            )
    name = host.strip("[]")
    port_words = ["-p", port] if port else []
    options = [word for option, value in OPTIONS.items() for word in ("-o", f"{option}={value}")]
    by_hand = ["ssh", *port_words, f"{user}@{name}" if user else name]
    return Link(
        device=device,
        words=("ssh", "-T", "-x", "-a", *options, *port_words, *(["-l", user] if user else []), "--", name),
        program="the OpenSSH client (apt-get install openssh-client)",
        python=DEFAULT_PYTHON if python is None else python,
        by_hand=shlex.join([*by_hand, f"{shell_word(DEFAULT_PYTHON if python is None else python)} --version"]),
        install=_install(by_hand, device, python),
    )


def _install(by_hand: Sequence[str], device: str, python: str | None) -> str:
    if python is not None:
        return f"install it: {shlex.join([*by_hand, f'{shell_word(python)} -m pip install onnxruntime'])}"
    there = f"python3 -m venv {VENV} && {VENV}/bin/pip install onnxruntime"
    return (
        f"install it: {shlex.join([*by_hand, there])}, then give --device '{device}?python={VENV}/bin/python' "
        "(under Termux: pkg install python-onnxruntime)"
    )
