"""Deferred handling of Ctrl-C and SIGTERM, until training can stop without losing work."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Context manager that records SIGTERM and Ctrl-C instead of ending the process.

    A signal that is ignored on entry stays ignored. This is the case in processes started by nohup, or in the
    background by a shell script.

    Attributes:
        received: number of the signal; 0 if there was none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._exits = False

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        for number, handler in self._before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self._exits:
            raise SystemExit(self.exit_code)

    @property
    def exit_code(self) -> int:
        """Exit code that shells report for a process ended by the signal: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + self.received

    @contextmanager
    def exit_at_once(self) -> Iterator[None]:
        """Context manager for repeatable work: a signal, even one recorded earlier, raises SystemExit."""
        self._exits = True
        try:
            if self.received:
                raise SystemExit(self.exit_code)
            yield
        finally:
            self._exits = False
