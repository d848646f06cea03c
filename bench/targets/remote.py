"""Runs requests on a device through a connection that carries bytes: what ``ssh`` and ``adb`` have in common.

One connection serves a whole session. It starts ``agent.py`` with the device's Python and sends it the worker and,
once each, the models with the files that hold their weights. The agent removes all of it when the connection ends.
"""

import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from bench.errors import BenchError
from bench.onnx_file import external_files
from bench.protocol import Answer, Request
from bench.targets import launch
from bench.targets.channel import Channel, LostError, SlowError, opened
from bench.targets.link import Link
from bench.targets.local import STARTUP_ALLOWANCE_S

AGENT = Path(__file__).with_name("agent.py")
COPIED_BYTES = 1 << 20  # at a time

CONNECT_S = 20.0
REPLY_S = 10.0  # for an answer on its way, and for the agent to remove its files
PATIENCE_S = 300  # of the agent: when the network is gone, nobody can tell it to remove its files

MISSING_MODULE = re.compile(r"ModuleNotFoundError: No module named '(numpy|onnxruntime)'")


class RemoteTarget:
    """Runs requests on a device that a link leads to."""

    def __init__(
        self,
        link: Link,
        *,
        worker: Path = launch.WORKER,
        startup_s: float = STARTUP_ALLOWANCE_S,
        connect_s: float = CONNECT_S,
    ) -> None:
        self.link = link
        self.worker = worker
        self.startup_s = startup_s
        self.connect_s = connect_s

    @contextmanager
    def session(self, limit_s: float, /) -> Iterator["RemoteSession"]:
        """A connection, and a private folder on the device for as long as it lasts.

        Raises:
            BenchError: It cannot be opened, or something stays behind on the device.
        """
        agent, token = AGENT.read_bytes(), secrets.token_hex(8)
        # The folder in which the login begins, an empty entry of sys.path, must not shadow modules.
        load = f"import sys; sys.path = [p for p in sys.path if p]; exec(sys.stdin.buffer.read({len(agent)}))"
        command = self.link.command(f'{load}; serve("{token}", {PATIENCE_S})')
        with ExitStack() as stack:
            try:
                channel = stack.enter_context(opened(command, token))
            except OSError as error:
                raise BenchError(f"cannot start {command[0]}: {error.strerror}; install {self.link.program}") from error
            session = RemoteSession(self.link, channel, time.monotonic() + limit_s, self.startup_s)
            try:
                session.open(agent, self.worker, self.connect_s)
                yield session
            finally:
                left = session.close()
            if left is not None:
                raise BenchError(
                    f"{self.link.device}: {launch.printable(left)} could not be removed there; remove it by hand"
                )


class RemoteSession:
    """Runs requests on a device."""

    def __init__(self, link: Link, channel: Channel, deadline: float, startup_s: float) -> None:
        self._link = link
        self._channel = channel
        self._deadline = deadline
        self._startup_s = startup_s
        self._directory: str | None = None  # on the device
        self._python = link.python
        self._copies: dict[str, str] = {}  # model's path here -> on the device

    def open(self, agent: bytes, worker: Path, connect_s: float) -> None:
        """Start the agent and give it the worker.

        Raises:
            BenchError: The device is out of reach, has no Python, or no room.
        """
        seconds = min(connect_s, self._deadline - time.monotonic())
        deadline = time.monotonic() + seconds
        by_hand = f"this must work without a question: {self._link.by_hand}"
        try:
            self._channel.send(agent, deadline)
            reply = self._reply("starting a session", deadline)
        except SlowError:
            raise BenchError(f"{self._link.device} did not answer within {seconds:.0f} s; {by_hand}") from None
        except LostError:
            raise BenchError(f"no session on {self._link.device}: {self._last_words()}; {by_hand}") from None
        match reply:
            case {"directory": str(directory), "python": str(python), "version": str(version)}:
                self._directory, self._python = directory, f"{python} (Python {version})"
            case _:
                raise self._rubbish(reply)
        self._put(worker, "worker/worker.py")

    def run(self, request: Request) -> Answer:
        """Answer one request.

        Raises:
            BenchError: A model cannot be copied; the worker refused, crashed, took too long or answered rubbish; the
                connection was lost.
        """
        models = tuple(self._copied(path) for path in request.models)
        limit_s = request.limit_seconds + self._startup_s
        order = {
            "run": replace(request, models=models).to_json(),
            "limit_s": limit_s,
            "unset": launch.THREAD_POLICY_PREFIXES,
            "set": dict.fromkeys(launch.THREAD_VARIABLES, "1"),
        }
        with self._told("running the worker"):
            deadline = time.monotonic() + limit_s + REPLY_S
            self._send(order, deadline)
            reply = self._reply("running the worker", deadline)
        match reply:
            case {"late": True}:
                raise launch.too_late(limit_s)
            case {"code": int(code), "stdout": str(stdout), "stderr": str(stderr)}:
                return self._answer(code, stdout, stderr)
            case _:
                raise self._rubbish(reply)

    def close(self) -> str | None:
        """Let the agent remove its files and end; gives the folder that it could not remove."""
        if self._directory is None:
            return None
        self._channel.hang_up()
        deadline = time.monotonic() + REPLY_S
        try:
            while True:
                match json.loads(self._channel.receive(deadline)):
                    case {"left": str(folder)}:
                        return folder
                    case {"left": _}:
                        return None
        except (LostError, SlowError, ValueError, RecursionError):
            return None  # the agent removes its files without us

    def _copied(self, path: str) -> str:
        """The path on the device of a model, which is copied if it is not there yet."""
        if path not in self._copies:
            folder = f"models/{len(self._copies)}"
            # ONNX Runtime tells its own format from ONNX by the name's end.
            name = f"{folder}/model{'.ort' if path.endswith('.ort') else '.onnx'}"
            self._put(Path(path), name)
            for weights in external_files(Path(path).read_bytes()):
                inside = PurePosixPath(weights)
                if inside.is_absolute() or ".." in inside.parts:
                    raise BenchError(
                        f"{path} keeps weights in {weights!r}, outside of its folder, and cannot be copied to "
                        f"{self._link.device}; save it anew with its weights beside it"
                    )
                self._put(Path(path).parent / inside, f"{folder}/{inside}")
            self._copies[path] = f"{self._directory}/{name}"
        return self._copies[path]

    def _put(self, path: Path, name: str) -> None:
        """Copy a file to the private folder on the device."""
        try:
            file = path.open("rb")
        except OSError as error:
            raise BenchError(f"{path} cannot be read: {error.strerror}") from error
        with file, self._told(f"copying {path}"):
            left = os.fstat(file.fileno()).st_size
            self._send({"file": name, "bytes": left}, self._deadline)
            while left and (data := file.read(min(left, COPIED_BYTES))):
                self._channel.send(data, self._deadline)
                left -= len(data)
            if left:
                raise BenchError(f"{path} became smaller while it was copied to {self._link.device}; measure again")
            self._reply(f"copying {path}", self._deadline)

    def _send(self, order: dict[str, Any], deadline: float) -> None:
        self._channel.send(json.dumps(order).encode() + b"\n", deadline)

    def _reply(self, what: str, deadline: float) -> dict[str, Any]:
        """The agent's reply.

        Raises:
            BenchError: It could not do what was asked, or the reply is none.
            LostError: There is none, or but the one that the agent ends with.
            SlowError: There is none in time.
        """
        line = self._channel.receive(deadline)
        try:
            reply = json.loads(line)
        except (ValueError, RecursionError):
            raise self._rubbish(line) from None
        match reply:
            case {"error": str(message)}:
                raise BenchError(f"{self._link.device}: {what} failed there: {launch.printable(message)}")
            case {"left": _}:
                raise LostError
            case dict():
                return reply
            case _:
                raise self._rubbish(reply)

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Tell a connection's end as an error of this package."""
        try:
            yield
        except SlowError:
            raise BenchError(
                f"{self._link.device}: {what} was not done in time; give a longer --timeout, or look at the network"
            ) from None
        except LostError:
            raise BenchError(
                f"{self._link.device}: the connection was lost while {what}: {self._last_words()}; "
                "the device removes what was copied; run the same command again"
            ) from None

    def _answer(self, code: int, stdout: str, stderr: str) -> Answer:
        """As `launch.answer_of`, with the models' names here in place of those there."""
        try:
            return launch.answer_of(code, stdout, stderr, self._explain)
        except BenchError as error:
            message = launch.printable(str(error))
            for here, there in self._copies.items():
                message = message.replace(there, here)
            raise BenchError(message) from error

    def _explain(self, _code: int, stderr: str) -> str | None:
        missing = MISSING_MODULE.search(stderr)
        if missing is None:
            return None
        return f"{self._python} on {self._link.device} has no {missing[1]}; {self._link.install}"

    def _last_words(self) -> str:
        """What is known of a connection that ended."""
        code = self._channel.ending(time.monotonic() + REPLY_S)
        for printed in (self._channel.stderr, self._channel.noise):
            if printed.strip():
                return launch.last_line(printed.decode(errors="replace"))
        program = self._link.words[0]
        return f"{program} does not end" if code is None else f"{program} {launch.ending(code)}"

    def _rubbish(self, reply: object) -> BenchError:
        return BenchError(f"{self._link.device}: unexpected reply {str(reply)[:80]!r}; is something else at its end?")
