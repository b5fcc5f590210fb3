"""Ctrl-C and SIGTERM, kept waiting until training can stop without a loss."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """A context in which SIGTERM and Ctrl-C are noted instead of ending the process.

    One that the process was told to ignore, as nohup and shell scripts tell what they start in the background, stays
    ignored.

    Attributes:
        received: the number of the signal; 0: none yet.
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
        """What shells report of a process that the signal ended: 143 for SIGTERM, 130 for Ctrl-C."""
        return 128 + self.received

    @contextmanager
    def exit_at_once(self) -> Iterator[None]:
        """For what can be done again: a signal in here, or noted before, raises SystemExit with the exit code."""
        self._exits = True
        try:
            if self.received:
                raise SystemExit(self.exit_code)
            yield
        finally:
            self._exits = False
