"""Ctrl-C that ends a run cleanly: the first one asks, the second one acts at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)

EXIT_INTERRUPTED = 130
"""What shells report for a command that Ctrl-C ended: 128 + SIGINT."""


class Interrupted(Exception):  # noqa: N818  # not an error: the run did what it was asked to
    """A run stopped on request; it continues from its last checkpoint."""


class StopRequest:
    """While entered, SIGINT and SIGTERM set ``requested``; each does so once, then its former handler is back.

    Outside the main thread, where Python handles no signals, it does nothing.

    Args:
        on_request: Called inside the signal's handler, to tell the user that it was heard; it must not use Python's
            buffered streams.
    """

    def __init__(self, on_request: Callable[[], object]) -> None:
        self.requested = False
        self._on_request = on_request
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._restore()

    def __bool__(self) -> bool:
        return self.requested

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self._restore()
        self.requested = True
        self._on_request()

    def _restore(self) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)
        self._former = {}


@contextmanager
def interrupts_kept() -> Iterator[None]:
    """While entered, Ctrl-C acts at once as ever, and again at the end if somebody swallowed it.

    Torch's C++ code clears Python errors here and there, a KeyboardInterrupt that was raised meanwhile with them.
    Outside the main thread, or where SIGINT has a handler of its own, it does nothing.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed meanwhile, and what was entered went on nevertheless.
    """
    former = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or former is not signal.default_int_handler:
        yield
        return
    heard = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal heard
        heard = True
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
    if heard:
        raise KeyboardInterrupt
