"""What runs on a device while `bench` measures there: takes files and requests from stdin, runs workers, cleans up.

It lives as long as the connection. Files go to a private directory, which is removed however the connection ends: stdin
closes, nothing is heard for too long, a signal arrives, the disk is full. A running worker is killed first.

An order is a line of JSON: ``{"file": NAME, "bytes": N}``, followed by N bytes, or ``{"run": REQUEST, "limit_s": S,
"unset": [PREFIX, ...], "set": {NAME: VALUE, ...}}``. A reply is a line: a token that the caller chose, a blank, JSON;
what login scripts print has no token. The last one is ``{"left": DIRECTORY}`` or, as it should be, ``{"left": null}``.

``bench/targets/remote.py`` sends this file through the connection, hence the standard library only; and nothing that
Python 3.6 cannot read, so that it can say that its Python is too old for the worker.
"""

import contextlib
import json
import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OLDEST_PYTHON = (3, 9)  # that bench/worker.py runs on
CHUNK_BYTES = 1 << 16
MAX_OUTPUT_BYTES = 1 << 26  # of a worker; raw samples take less than a megabyte
KEPT_STDERR_BYTES = 1 << 14


class TroubleError(Exception):
    """What the caller should read; the session is over."""


class Wire:
    """Orders from stdin, replies to stdout. What takes longer than the patience ends the process."""

    def __init__(self, token: str, patience_s: int) -> None:
        self.token = token
        self.patience_s = patience_s
        self.held = b""

    def more(self) -> bytes:
        """Bytes that have arrived."""
        signal.alarm(self.patience_s)
        data = os.read(0, CHUNK_BYTES)
        signal.alarm(0)
        if not data:
            raise SystemExit(0)
        return data

    def order(self) -> "dict[str, Any]":
        """The next order."""
        while b"\n" not in self.held:
            self.held += self.more()
        line, self.held = self.held.split(b"\n", 1)
        return dict(json.loads(line.decode()))

    def copy(self, count: int, path: Path) -> None:
        """Write the next `count` bytes to a new file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            while count:
                data = self.held or self.more()
                file.write(data[:count])
                self.held = data[count:]
                count -= len(data[:count])

    def tell(self, reply: "dict[str, Any]") -> None:
        """Send a reply, on a line of its own whatever login scripts left unfinished."""
        line = f"\n{self.token} {json.dumps(reply)}\n".encode()
        signal.alarm(self.patience_s)
        while line:
            line = line[os.write(1, line) :]
        signal.alarm(0)


def run(directory: Path, order: "dict[str, Any]") -> "dict[str, Any]":
    """A worker's return code and what it printed; ``late`` in place of a code if it took too long."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(tuple(order["unset"]))}
    # ONNX Runtime leaves a file (.ses) where temporary files go.
    environment.update(order["set"], TMPDIR=str(directory))
    request = directory / "request.json"
    request.write_text(order["run"], encoding="utf-8")
    with request.open("rb") as file:
        process = subprocess.Popen(
            # The worker's folder, first on its path, holds nothing else; hence no -P, which old Pythons lack.
            [sys.executable, str(directory / "worker" / "worker.py")],
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=str(directory),
            env=environment,
            start_new_session=True,
        )
    try:
        return listen(process, time.monotonic() + order["limit_s"])
    finally:
        with contextlib.suppress(OSError):  # it has ended, and so have its children
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def listen(process: "subprocess.Popen[bytes]", deadline: float) -> "dict[str, Any]":
    """Wait until the worker ends, the deadline is over, or the caller hangs up."""
    assert process.stdout is not None
    assert process.stderr is not None
    out, err = process.stdout.fileno(), process.stderr.fileno()
    heard, waiting = {out: bytearray(), err: bytearray()}, [out, err]
    while waiting:
        ready, _, _ = select.select([0, *waiting], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return {"late": True}
        if 0 in ready:
            raise SystemExit(0)  # no order comes while a worker runs
        for source in ready:
            data = os.read(source, CHUNK_BYTES)
            heard[source] += data
            if not data:
                waiting.remove(source)
        del heard[err][:-KEPT_STDERR_BYTES]
        if len(heard[out]) > MAX_OUTPUT_BYTES:
            raise TroubleError(f"the worker printed more than {MAX_OUTPUT_BYTES} bytes")
    try:
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return {"late": True}
    return {"code": code, "stdout": heard[out].decode(errors="replace"), "stderr": heard[err].decode(errors="replace")}


def work(wire: Wire, directory: Path) -> None:
    """Fulfil orders until the caller hangs up."""
    python = {"python": sys.executable, "version": platform.python_version()}
    wire.tell(dict(python, directory=str(directory)))
    while True:
        order = wire.order()
        if "file" in order:
            wire.copy(order["bytes"], directory / order["file"])
            wire.tell({})
        else:
            wire.tell(run(directory, order))


def end(*_: object) -> None:
    """As a signal's handler: leave through the finally clauses."""
    raise SystemExit(1)


def serve(token: str, patience_s: int) -> None:
    """The whole session."""
    signals = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGALRM)
    for number in signals:
        signal.signal(number, end)
    wire = Wire(token, patience_s)
    directory = None
    try:
        if sys.version_info < OLDEST_PYTHON:
            needed = ".".join(map(str, OLDEST_PYTHON))
            raise TroubleError(f"Python {needed} or later is needed, this is {platform.python_version()}")
        directory = Path(tempfile.mkdtemp(prefix="bench-")).resolve()
        work(wire, directory)
    except (OSError, TroubleError) as error:
        with contextlib.suppress(OSError):
            wire.tell({"error": getattr(error, "strerror", None) or str(error)})
    finally:
        for number in signals:
            signal.signal(number, signal.SIG_IGN)
        if directory is not None:
            shutil.rmtree(str(directory), ignore_errors=True)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            with contextlib.suppress(OSError):
                wire.tell({"left": str(directory) if directory.exists() else None})
