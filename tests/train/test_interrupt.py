import os
import signal

import pytest

from compress.train.interrupt import StopRequest, interrupts_kept


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_gives_the_handlers_back(number: signal.Signals):
    before = signal.getsignal(number)
    heard: list[str] = []
    with StopRequest(lambda: heard.append("stop")) as stop:
        assert not stop
        os.kill(os.getpid(), number)
        assert stop
        assert heard == ["stop"]
        assert signal.getsignal(number) is before
    assert signal.getsignal(number) is before


def test_the_second_ctrl_c_acts_at_once():
    with StopRequest(lambda: None) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert stop


def test_an_interrupt_that_somebody_swallowed_acts_at_the_end():
    before = signal.getsignal(signal.SIGINT)
    heard: list[str] = []

    def swallow() -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            heard.append("at once")
        heard.append("went on")

    with pytest.raises(KeyboardInterrupt), interrupts_kept():
        swallow()
    assert heard == ["at once", "went on"]
    assert signal.getsignal(signal.SIGINT) is before


def test_without_an_interrupt_nothing_is_kept():
    before = signal.getsignal(signal.SIGINT)
    with interrupts_kept():
        pass
    with pytest.raises(ValueError, match="own"), interrupts_kept():
        raise ValueError("own")
    assert signal.getsignal(signal.SIGINT) is before


def test_a_handler_of_somebody_else_is_left_alone():
    heard: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        with interrupts_kept():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]
