import os
import signal

import pytest

from iounet.engine.signals import StopSignals


@pytest.fixture(autouse=True)
def handlers_are_put_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in the background of a shell ignore
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
class TestStopSignals:
    def test_a_signal_is_noted_and_the_work_goes_on(self, number, code):
        before = signal.getsignal(number)
        with StopSignals() as signals:
            assert signals.received == 0
            os.kill(os.getpid(), number)
            assert signals.received == number
            assert signals.exit_code == code
        assert signal.getsignal(number) is before

    def test_what_can_be_done_again_is_left_at_once(self, number, code):
        with StopSignals() as signals, pytest.raises(SystemExit) as stopped, signals.exit_at_once():
            os.kill(os.getpid(), number)
            pytest.fail("went on")
        assert stopped.value.code == code

    def test_what_can_be_done_again_is_not_begun_after_a_signal(self, number, code):
        with StopSignals() as signals:
            os.kill(os.getpid(), number)
            with pytest.raises(SystemExit) as stopped, signals.exit_at_once():
                pytest.fail("began")
        assert stopped.value.code == code

    def test_after_it_signals_are_noted_again(self, number, code):
        with StopSignals() as signals:
            with signals.exit_at_once():
                pass
            os.kill(os.getpid(), number)
            assert signals.received == number

    def test_an_ignored_signal_stays_ignored(self, number, code):
        signal.signal(number, signal.SIG_IGN)
        with StopSignals() as signals:
            os.kill(os.getpid(), number)
            assert signals.received == 0
