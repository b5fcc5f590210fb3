import os
import signal

import pytest

from iounet.engine.signals import StopSignals


@pytest.fixture(autouse=True)
def restored_handlers():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if a shell runs the tests in the background
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
class TestStopSignals:
    def test_a_signal_is_recorded_and_work_continues(self, number, code):
        before = signal.getsignal(number)
        with StopSignals() as signals:
            assert signals.received == 0
            os.kill(os.getpid(), number)
            assert signals.received == number
            assert signals.exit_code == code
        assert signal.getsignal(number) is before

    def test_repeatable_work_is_left_at_once(self, number, code):
        with StopSignals() as signals, pytest.raises(SystemExit) as stopped, signals.exit_at_once():
            os.kill(os.getpid(), number)
            pytest.fail("continued")
        assert stopped.value.code == code

    def test_repeatable_work_does_not_start_after_a_signal(self, number, code):
        with StopSignals() as signals:
            os.kill(os.getpid(), number)
            with pytest.raises(SystemExit) as stopped, signals.exit_at_once():
                pytest.fail("started")
        assert stopped.value.code == code

    def test_signals_are_recorded_after_repeatable_work(self, number, code):
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
