"""An Android device by ``adb``, over USB or the network. Never tried on a phone: see `CAVEAT`.

Written ``adb``, ``adb:SERIAL``, ``adb:SERIAL?python=PATH`` or ``adb:?python=PATH``. Android brings no Python: one with
onnxruntime has to lie where adb's shell may run it. A phone with Termux is measured more easily by ``ssh://``.
"""

import re
import shlex

from bench.errors import BenchError
from bench.targets.link import Link, shell_word
from bench.targets.remote import RemoteTarget

ADDRESS = re.compile(r"(?P<serial>[^?]*)(?:\?python=(?P<python>.*))?", re.DOTALL)
SERIAL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]*")  # of USB, emulator-5554, 192.168.1.5:5555
FORM = "adb[:SERIAL][?python=/path/on/the/device], or adb:?python=/path for the only device"

# The folder in which adb's shell may write and run programs; Android has no /tmp.
TMPDIR = "/data/local/tmp"

CAVEAT = (
    "adb was never tried on a phone, only with the adb program and a stand-in for the phone: compare a figure with one "
    "by ssh:// before you rely on it"
)


def adb_target(address: str) -> RemoteTarget:
    """The device that adb reaches; raises as `adb_link`."""
    return RemoteTarget(adb_link(address))


def adb_link(address: str) -> Link:
    """The way to ``SERIAL?python=PATH``.

    Raises:
        BenchError: The address is none, or not safe as a word of a command.
    """
    device = "adb:" + address if address else "adb"
    parts = ADDRESS.fullmatch(address)
    if parts is None or (parts["serial"] and not SERIAL.fullmatch(parts["serial"])):
        raise BenchError(f"--device {device!r}: expected {FORM}; the serials are printed by: adb devices")
    python = "python3" if parts["python"] is None else parts["python"]
    words = ["adb", *(["-s", parts["serial"]] if parts["serial"] else []), "shell"]
    return Link(
        device=device,
        words=(*words, "-T"),
        program="Android's platform tools (apt-get install adb)",
        variables=(f"TMPDIR={TMPDIR}",),
        python=python,
        by_hand=shlex.join([*words, f"{shell_word(python)} --version"]),
        install="put a Python with onnxruntime on the device, see docs/bench-devices.md, and name it with ?python=PATH",
    )
