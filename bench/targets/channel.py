"""Orders to a process and replies from it, each within a time limit: how the agent on a device is spoken to.

A reply is a line that begins with the channel's token. Whatever else arrives, as from login scripts, is noise.
"""

import os
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from bench.processes import started

CHUNK_BYTES = 1 << 16
MAX_LINE_BYTES = 1 << 28  # four times what the agent takes from a worker: JSON writes some characters as six
KEPT_NOISE_BYTES = 1 << 12


class LostError(Exception):
    """The process has closed its output: there will be no reply."""


class SlowError(Exception):
    """There was no reply in time."""


@contextmanager
def opened(command: Sequence[str], token: str) -> Iterator["Channel"]:
    """A process that takes orders, whose replies begin with `token`; it is killed when the block ends.

    Raises:
        OSError: There is no such program.
    """
    with started(command) as process:
        yield Channel(process, token)


class Channel:
    """A running process that takes orders.

    Attributes:
        noise: The end of what it printed to stdout besides replies.
        stderr: The end of what it printed there.
    """

    def __init__(self, process: "subprocess.Popen[bytes]", token: str) -> None:
        """Replies begin with `token`."""
        self.noise = bytearray()
        self.stderr = bytearray()
        self._start = token.encode() + b" "
        self._replies: list[bytes] = []
        self._line = bytearray()  # not yet ended
        self._process = process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._in, self._out, self._err = process.stdin, process.stdout, process.stderr
        self._sources = [self._out, self._err]
        os.set_blocking(self._in.fileno(), False)

    def send(self, data: bytes, deadline: float) -> None:
        """Write `data`, as far as the process takes it: if it does not, its last reply will tell why.

        Raises:
            SlowError: The time was over first; `deadline` is one of ``time.monotonic()``.
        """
        left = memoryview(data)
        while left and not self._replies:
            if not self._wait(deadline, writing=True):
                continue
            try:
                left = left[os.write(self._in.fileno(), left) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return

    def receive(self, deadline: float) -> bytes:
        """The next reply, without token and line end.

        Raises:
            LostError: There will be none.
            SlowError: There was none in time.
        """
        while not self._replies:
            if self._out not in self._sources:
                raise LostError
            self._wait(deadline, writing=False)
        return self._replies.pop(0)

    def hang_up(self) -> None:
        """Close the process's stdin."""
        self._in.close()

    def ending(self, deadline: float) -> int | None:
        """The process's return code; None if it does not end in time."""
        with suppress(SlowError):
            while self._sources:
                self._wait(deadline, writing=False)
        try:
            return self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return None

    def _wait(self, deadline: float, *, writing: bool) -> bool:
        """Take what arrives; gives whether the process takes more.

        Raises:
            SlowError: Nothing happens until the deadline, or it is over.
        """
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise SlowError
        ready, writable, _ = select.select(self._sources, [self._in] if writing else [], [], seconds)
        for source in ready:
            data = os.read(source.fileno(), CHUNK_BYTES)
            if not data:
                self._sources.remove(source)
            elif source is self._err:
                _keep_end(self.stderr, data)
            else:
                self._take(data)
        return bool(writable)

    def _take(self, data: bytes) -> None:
        """Divide stdout into replies and noise."""
        *ended, rest = data.split(b"\n")
        for piece in ended:
            self._line += piece
            if self._line.startswith(self._start):
                self._replies.append(bytes(self._line[len(self._start) :]))
            else:
                _keep_end(self.noise, self._line + b"\n")
            self._line = bytearray()
        self._line += rest
        if len(self._line) > MAX_LINE_BYTES:
            _keep_end(self.noise, self._line)
            self._line = bytearray()


def _keep_end(text: bytearray, data: bytes | bytearray) -> None:
    text += data
    del text[:-KEPT_NOISE_BYTES]
