import os
import signal

import pytest

from compress.train.interrupt import StopRequest


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
