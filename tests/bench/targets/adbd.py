"""A stand-in for a phone: as much of Android's adbd as ``adb connect`` and ``adb shell -T`` need, on this machine.

    python adbd.py FOLDER        # prints its port; FOLDER stands for /data/local/tmp

The adb program that talks to it is the real one, and so is what the shell runs; only the phone is missing.
Source of both protocols: https://android.googlesource.com/platform/packages/modules/adb, docs/dev and shell_protocol.h
"""

import queue
import shlex
import socket
import struct
import subprocess
import sys
import threading
from typing import IO

CNXN, OPEN, OKAY, CLSE, WRTE = (
    int.from_bytes(name.encode(), "little") for name in ("CNXN", "OPEN", "OKAY", "CLSE", "WRTE")
)
VERSION_WITHOUT_CHECKSUMS, MAX_DATA = 0x01000001, 1 << 18
STDIN, STDOUT, STDERR, EXIT, CLOSE_STDIN = range(5)


class Shell:
    """A stream of the connection: a shell command with stdin, stdout, stderr and exit code in packets."""

    def __init__(self, phone: "Phone", theirs: int, command: str) -> None:
        self.phone, self.theirs = phone, theirs
        self.acknowledged = threading.Semaphore(0)
        self.arrived: queue.Queue[bytes] = queue.Queue()
        self.lock = threading.Lock()
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(["/bin/sh", "-c", command], stdin=pipe, stdout=pipe, stderr=pipe, bufsize=0)
        for work in (self.serve, self.feed):
            threading.Thread(target=work, daemon=True).start()

    def serve(self) -> None:
        pumps = [
            threading.Thread(target=self.pump, args=(number, stream), daemon=True)
            for number, stream in ((STDOUT, self.process.stdout), (STDERR, self.process.stderr))
        ]
        for pump in pumps:
            pump.start()
        for pump in pumps:
            pump.join()
        self.write(EXIT, bytes([self.process.wait() & 0xFF]))
        self.phone.send(CLSE, self.theirs, self.theirs)

    def pump(self, number: int, stream: IO[bytes]) -> None:
        while data := stream.read(1 << 14):
            self.write(number, data)

    def write(self, number: int, data: bytes) -> None:
        with self.lock:
            self.phone.send(WRTE, self.theirs, self.theirs, struct.pack("<BI", number, len(data)) + data)
            self.acknowledged.acquire()

    def feed(self) -> None:
        """Hand stdin's packets to the command; a message is acknowledged when the command has taken it."""
        held = b""
        while message := self.arrived.get():
            held += message
            while len(held) >= 5 and len(held) >= 5 + (size := struct.unpack("<BI", held[:5])[1]):
                if held[0] == CLOSE_STDIN:
                    self.process.stdin.close()
                elif held[0] == STDIN and not self.write_stdin(held[5 : 5 + size]):
                    return
                held = held[5 + size :]
            self.phone.send(OKAY, self.theirs, self.theirs)
        self.process.stdin.close()
        self.acknowledged.release(1000)  # nobody listens any more

    def write_stdin(self, data: bytes) -> bool:
        try:
            while data:
                data = data[self.process.stdin.write(data) :]
        except OSError:
            return False
        return True


class Phone:
    """One connection."""

    def __init__(self, connection: socket.socket, folder: str) -> None:
        self.connection, self.folder = connection, folder
        self.shells: dict[int, Shell] = {}
        self.lock = threading.Lock()

    def send(self, command: int, first: int, second: int, data: bytes = b"") -> None:
        head = struct.pack("<6I", command, first, second, len(data), 0, command ^ 0xFFFFFFFF)
        try:
            with self.lock:
                self.connection.sendall(head + data)
        except OSError:
            pass

    def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.connection.recv(size - len(data))
            if not more:
                raise ConnectionError
            data += more
        return data

    def serve(self) -> None:
        try:
            while True:
                command, first, _, size, _, _ = struct.unpack("<6I", self.receive(24))
                self.handle(command, first, self.receive(size))
        except ConnectionError:
            for shell in self.shells.values():
                shell.arrived.put(b"")

    def handle(self, command: int, theirs: int, data: bytes) -> None:
        if command == CNXN:
            banner = b"device::ro.product.name=stand-in;ro.product.model=x;ro.product.device=x;features=shell_v2,cmd"
            self.send(CNXN, VERSION_WITHOUT_CHECKSUMS, MAX_DATA, banner)
        elif command == OPEN:
            service, _, shell_command = data.rstrip(b"\0").decode().partition(":")
            if not service.startswith("shell,v2") or not service.endswith("raw"):
                self.send(CLSE, 0, theirs)
                return
            self.send(OKAY, theirs, theirs)
            there = shell_command.replace("/data/local/tmp", shlex.quote(self.folder))
            self.shells[theirs] = Shell(self, theirs, there)
        elif command == WRTE and theirs in self.shells:
            self.shells[theirs].arrived.put(data)
        elif command == OKAY and theirs in self.shells:
            self.shells[theirs].acknowledged.release()
        elif command == CLSE and theirs in self.shells:
            self.shells.pop(theirs).arrived.put(b"")


def main() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        print(server.getsockname()[1], flush=True)
        while True:
            connection, _ = server.accept()
            threading.Thread(target=Phone(connection, sys.argv[1]).serve, daemon=True).start()


if __name__ == "__main__":
    main()
