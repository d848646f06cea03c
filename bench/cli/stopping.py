"""What stops a command from outside ends it through its own cleaning: workers, connections, temporary folders."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from bench.processes import SIGNALS

FROM_SIGNAL = 128  # the shell's exit code is this and the signal's number; 1 would say that a model is over budget


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Within the block the first such signal raises SystemExit; a second one does what it did before.

    A signal that is ignored, as by nohup, stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python lets no other thread set handlers
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    def stop(number: int, _: FrameType | None) -> None:
        restore()
        raise SystemExit(FROM_SIGNAL + number)

    for number, handler in former.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        restore()
